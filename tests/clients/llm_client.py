"""The command `llm`, with a model of extra-openai-models.yaml; tools and structured output are options of the command.

OPTIONS["responses"] lets it speak Responses instead of Chat Completions. The command is a fork of this process, with
arguments, directory, input, output and exit code of its own: its modules take a second of a processor to load.
"""

import base64
import json
import os
import re
import signal
import sys
import tempfile
import threading
from pathlib import Path

import llm.cli
import llm.default_plugins.openai_models  # noqa: F401  what the first command would load
import openai  # noqa: F401
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


def start(home: Path, arguments: list[str]) -> tuple[int, int, int, int]:
    """Start `llm ARGUMENTS`; return its process id, and our ends of its input, output and error output."""
    read_input, write_input = os.pipe()
    read_output, write_output = os.pipe()
    read_errors, write_errors = os.pipe()
    child = os.fork()
    if child == 0:
        for number, end in enumerate((read_input, write_output, write_errors)):
            os.dup2(end, number)
        os.closerange(3, 1024)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8")
            for number, mode in enumerate("rww")  # noqa: SIM115
        )
        os.environ["LLM_USER_PATH"] = str(home)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 1
        try:
            llm.cli.cli.main(arguments, prog_name="llm")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    for end in (read_input, write_output, write_errors):
        os.close(end)
    return child, write_input, read_output, read_errors


def chat(home: Path) -> None:
    model = MODEL.format(url=url, responses=str(bool(options.get("responses"))).lower())
    (home / "extra-openai-models.yaml").write_text(model)
    child, given, printed, complained_of = start(home, words(home))
    errors: list[str] = []
    reading = threading.Thread(target=lambda: errors.append(read(complained_of)))
    reading.start()
    with open(given, "wb") as prompted:  # its prompt may be longer than an argument can be
        prompted.write(prompt.encode())
    if options.get("abort"):
        os.read(printed, 1)
        os.kill(child, signal.SIGINT)
    out = read(printed)
    reading.join()
    complained = errors[0]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if options.get("abort"):
        say("aborted")
        return
    if code:
        said = re.search(r"Error: (.*)", complained, re.DOTALL)
        status = re.search(r"Error code: (\d+)", complained)
        say("error", status=int(status[1]) if status else None, message=said[1] if said else complained)
        return
    say("text", text=out.removesuffix("\n"))
    for name, arguments in re.findall(r"Tool call: (\w+)\((.*?)\)", complained):
        say("tool", name=name, input=json.loads(arguments.replace("'", '"')))
    tokens = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) (?:input|output)", complained)]
    say("end", reason=None, tokens=sum(tokens))


def read(end: int) -> str:
    with open(end, "rb") as pipe:
        return pipe.read().decode()


with tempfile.TemporaryDirectory() as folder:
    chat(Path(folder))
