"""The command `llm`, with a model of extra-openai-models.yaml; tools and structured output are options of the command.

OPTIONS["responses"] lets it speak Responses instead of Chat Completions.
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from say import format, image, options, prompt, say, url

MODEL = """
- model_id: nest
  model_name: gpt-4o-mini
  api_base: {url}/v1
  supports_schema: true
  supports_tools: true
  vision: true
  responses: {responses}
"""
TOOL = '''
def weather(city: str) -> str:
    """Tells the weather of a city"""
    return "19 degrees"
'''


def words(home: Path) -> list[str]:
    given = ["-m", "nest", "-u", "--no-log"]
    if options.get("tools"):
        given += ["--functions", TOOL, "--td"]
    if options.get("format"):
        given += ["--schema", json.dumps(format["schema"])]
    if image:
        (home / "a.png").write_bytes(base64.b64decode(image))
        given += ["-a", str(home / "a.png")]
    return given


def chat(home: Path) -> None:
    model = MODEL.format(url=url, responses=str(bool(options.get("responses"))).lower())
    (home / "extra-openai-models.yaml").write_text(model)
    process = subprocess.Popen(
        [sys.executable, "-m", "llm", *words(home)],
        env={**os.environ, "LLM_USER_PATH": str(home), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE,  # its prompt may be longer than an argument can be
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(prompt.encode())
    process.stdin.close()
    process.stdin = None
    if options.get("abort"):
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.communicate()
        say("aborted")
        return
    out, complained = (text.decode() for text in process.communicate())
    if process.returncode:
        said = re.search(r"Error: (.*)", complained, re.DOTALL)
        status = re.search(r"Error code: (\d+)", complained)
        say("error", status=int(status[1]) if status else None, message=said[1] if said else complained)
        return
    say("text", text=out.removesuffix("\n"))
    for name, arguments in re.findall(r"Tool call: (\w+)\((.*?)\)", complained):
        say("tool", name=name, input=json.loads(arguments.replace("'", '"')))
    tokens = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) (?:input|output)", complained)]
    say("end", reason=None, tokens=sum(tokens))


with tempfile.TemporaryDirectory() as folder:
    chat(Path(folder))
