"""Claude Code and Codex CLI, as a user installs them: two hundred megabytes that no other test needs.

    python tests/clients/coding.py claude|codex PORT PROMPT [PICTURE]     # prints the answer's text

They are looked for in CODING_CLIENTS (a directory where `npm install @anthropic-ai/claude-code @openai/codex` ran), else
in tests/clients/coding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PLACE = Path(os.environ.get("CODING_CLIENTS") or Path(__file__).parent / "coding")


def program(name: str) -> Path:
    return PLACE / "node_modules" / ".bin" / name


def command(name: str, port: str, prompt: str, pictures: list[str]) -> list[str]:
    if name == "claude":
        tools = ["--allowedTools", "Read"] if pictures else []
        return [str(program(name)), "-p", prompt, "--model", "agent", "--output-format", "json", *tools]
    provider = f'{{name="nest",base_url="http://127.0.0.1:{port}/v1",env_key="OPENAI_API_KEY",wire_api="responses"}}'
    set_to = ["-c", "model_provider=nest", "-c", f"model_providers.nest={provider}"]
    shown = [word for picture in pictures for word in ("--image", picture)]
    return [str(program(name)), "exec", "--skip-git-repo-check", "--json", *set_to, "-m", "agent", *shown, "--", prompt]


def run(name: str, port: str, prompt: str, pictures: list[str]) -> str:
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
            "ANTHROPIC_API_KEY": "unused",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CODEX_HOME": home,
            "OPENAI_API_KEY": "unused",
        }
        done = subprocess.run(
            command(name, port, prompt, pictures),
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if name == "claude":
        return str(lines[-1]["result"]) if lines else done.stderr
    items = [line.get("item", line) for line in lines]
    return "".join(item["text"] for item in items if item.get("type") == "agent_message") or done.stdout


if __name__ == "__main__":
    sys.stdout.write(run(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
