"""Claude Code and Codex CLI, as a user installs them: hundreds of megabytes that no other test needs.

    python tests/clients/coding.py claude|codex PORT PROMPT [OPTIONS]

OPTIONS is JSON: `files` (text, or a path in a list, by name, in the directory where the client works), `picture` (the
name of one of them, which Codex shows), and `schema`. Prints JSON: the answer's text, all that the client printed, and
its exit code.

They are looked for in CODING_CLIENTS (a directory where `npm install @anthropic-ai/claude-code @openai/codex` ran), else
in tests/clients/coding.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PLACE = Path(os.environ.get("CODING_CLIENTS") or Path(__file__).parent / "coding")


def program(name: str) -> str:
    return str(PLACE / "node_modules" / ".bin" / name)


def command(name: str, port: str, prompt: str, options: dict[str, Any], home: Path) -> list[str]:
    schema, picture = options.get("schema"), options.get("picture")
    if name == "claude":
        given = ["--json-schema", json.dumps(schema)] if schema else []
        return [
            program(name),
            "-p",
            prompt,
            "--model",
            "agent",
            "--output-format",
            "json",
            "--allowedTools=Read",
            *given,
        ]
    provider = f'{{name="nest",base_url="http://127.0.0.1:{port}/v1",env_key="OPENAI_API_KEY",wire_api="responses"}}'
    given = [
        "-c",
        "web_search=disabled",
        "-c",
        "model_provider=nest",
        "-c",
        f"model_providers.nest={provider}",
        "-m",
        "agent",
    ]
    if picture:
        given += ["--image", picture]
    if schema:
        file = home / "schema.json"
        file.write_text(json.dumps(schema))
        given += ["--output-schema", str(file)]
    unguarded = "--dangerously-bypass-approvals-and-sandbox"  # the provider is a script
    return [program(name), "exec", "--skip-git-repo-check", "--json", unguarded, *given, "--", prompt]


def run(name: str, port: str, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        for file, text in options.get("files", {}).items():
            if isinstance(text, str):
                (home / file).write_text(text)
            else:
                shutil.copy(text[0], home / file)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": directory,
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
            "ANTHROPIC_API_KEY": "unused",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CODEX_HOME": directory,
            "OPENAI_API_KEY": "unused",
        }
        done = subprocess.run(
            command(name, port, prompt, options, home),
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if name == "claude":
        text = str(lines[-1].get("result", "")) if lines else ""
    else:
        items = [line.get("item", line) for line in lines]
        text = "".join(item["text"] for item in items if item.get("type") == "agent_message")
    return {"text": text, "printed": done.stdout + done.stderr, "code": done.returncode}


if __name__ == "__main__":
    options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    sys.stdout.write(json.dumps(run(sys.argv[1], sys.argv[2], sys.argv[3], options)))
