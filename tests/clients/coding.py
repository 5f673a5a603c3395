"""Coding clients, as a user installs them: hundreds of megabytes that no other test needs.

    python tests/clients/coding.py claude|codex|opencode|qwen|aider PORT PROMPT [OPTIONS]

The settings of opencode, qwen-code and aider are those of docs/clients.md. OPTIONS is JSON: `files` (text, or a path in
a list, by name, in the directory where the client works), `picture` (the name of one of them, which the client shows,
except Claude Code), and `schema`. Prints JSON: the answer's text, all that the client printed, and its exit code.

They are looked for in CODING_CLIENTS (a directory where `npm install` ran for the packages of
tests/clients/coding/package.json), else in tests/clients/coding; aider in .venv-aider.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CLIENTS = Path(__file__).parent
PLACE = Path(os.environ.get("CODING_CLIENTS") or CLIENTS / "coding")
AIDER = CLIENTS.parents[1] / ".venv-aider/bin/aider"


class Asked(NamedTuple):
    """What the client is asked for. `home` is also the directory where it works."""

    url: str
    prompt: str
    options: dict[str, Any]
    home: Path


class How(NamedTuple):
    """A command, with variables of the environment, and what finds the answer in its output."""

    command: list[str]
    environment: dict[str, str]
    text: Callable[[str], str]


def program(name: str) -> str:
    return str(PLACE / "node_modules" / ".bin" / name)


def lines(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def claude(asked: Asked) -> How:
    schema = asked.options.get("schema")
    given = ["--json-schema", json.dumps(schema)] if schema else []
    model = ["--model", "agent", "--output-format", "json", "--allowedTools=Read"]
    environment = {
        "ANTHROPIC_BASE_URL": asked.url,
        "ANTHROPIC_API_KEY": "unused",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }

    def text(printed: str) -> str:
        found = lines(printed)
        return str(found[-1].get("result", "")) if found else ""

    return How([program("claude"), "-p", asked.prompt, *model, *given], environment, text)


def codex(asked: Asked) -> How:
    provider = f'{{name="nest",base_url="{asked.url}/v1",env_key="OPENAI_API_KEY",wire_api="responses"}}'
    settings = ("web_search=disabled", "model_provider=nest", f"model_providers.nest={provider}")
    given = [word for each in settings for word in ("-c", each)]
    if picture := asked.options.get("picture"):
        given += ["--image", picture]
    if schema := asked.options.get("schema"):
        file = asked.home / "schema.json"
        file.write_text(json.dumps(schema))
        given += ["--output-schema", str(file)]
    unguarded = "--dangerously-bypass-approvals-and-sandbox"  # the provider is a script
    command = [program("codex"), "exec", "--skip-git-repo-check", "--json", unguarded, *given, "-m", "agent"]

    def text(printed: str) -> str:
        items = [line.get("item", line) for line in lines(printed)]
        return "".join(item["text"] for item in items if item.get("type") == "agent_message")

    environment = {"CODEX_HOME": str(asked.home), "OPENAI_API_KEY": "unused"}
    return How([*command, "--", asked.prompt], environment, text)


def documented(word: str, url: str) -> str:
    """Return the settings of docs/clients.md that have this word."""
    page = (CLIENTS.parents[1] / "docs/clients.md").read_text("utf-8")
    [settings] = [block for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if word in block]
    return settings.replace("http://localhost:8000", url)


def opencode(asked: Asked) -> How:
    (asked.home / "opencode.json").write_text(documented("opencode.ai", asked.url))
    picture = asked.options.get("picture")
    command = [program("opencode"), "run", asked.prompt, "--format", "json", *(("--file", picture) if picture else ())]
    offline = ("MODELS_FETCH", "AUTOUPDATE", "DEFAULT_PLUGINS", "LSP_DOWNLOAD")

    def text(printed: str) -> str:
        return "".join(line["part"]["text"] for line in lines(printed) if line["type"] == "text")

    return How(command, {f"OPENCODE_DISABLE_{what}": "1" for what in offline}, text)


def qwen(asked: Asked) -> How:
    """Without questions before a tool runs."""
    settings = json.loads(documented("enableManagedAutoMemory", asked.url))
    folder = asked.home / ".qwen"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({**settings, "privacy": {"usageStatisticsEnabled": False}}))
    schema, picture = asked.options.get("schema"), asked.options.get("picture")
    given = ["--json-schema", json.dumps(schema)] if schema else []
    prompt = f"{asked.prompt} @{picture}" if picture else asked.prompt
    way = ["--output-format", "json", "--approval-mode", "yolo"]

    def text(printed: str) -> str:
        found = [line for line in printed.splitlines() if line.startswith("[{")]
        return str(json.loads(found[-1])[-1].get("result", "")) if found else ""

    return How([program("qwen"), *way, *given, "--prompt", prompt], {}, text)


def aider(asked: Asked) -> How:
    """Without what it loads from elsewhere."""
    (asked.home / "models.json").write_text(documented("litellm_provider", asked.url))
    history = asked.home / "history.txt"
    settings = ["--model", "openai/agent", "--model-metadata-file", "models.json", "--llm-history-file", str(history)]
    quiet = ["--no-git", "--yes-always", "--no-pretty", "--no-check-update", "--analytics-disable"]
    picture = asked.options.get("picture")
    environment = {
        "OPENAI_API_BASE": f"{asked.url}/v1",
        "OPENAI_API_KEY": "unused",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }

    def text(_: str) -> str:
        said = history.read_text().rpartition("LLM RESPONSE ")[2].splitlines()[1:]
        return "\n".join(line.removeprefix("ASSISTANT ") for line in said)

    command = [str(AIDER), *settings, *quiet, "--message", asked.prompt, *((picture,) if picture else ())]
    return How(command, environment, text)


CLIENT = {"claude": claude, "codex": codex, "opencode": opencode, "qwen": qwen, "aider": aider}


def run(name: str, port: str, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        for file, text in options.get("files", {}).items():
            if isinstance(text, str):
                (home / file).write_text(text)
            else:
                shutil.copy(text[0], home / file)
        how = CLIENT[name](Asked(f"http://127.0.0.1:{port}", prompt, options, home))
        done = subprocess.run(
            how.command,
            env={"PATH": os.environ["PATH"], "HOME": directory, **how.environment},
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return {"text": how.text(done.stdout), "printed": done.stdout + done.stderr, "code": done.returncode}


if __name__ == "__main__":
    options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    sys.stdout.write(json.dumps(run(sys.argv[1], sys.argv[2], sys.argv[3], options)))
