"""`fresh_install.py`: run the blocks of "On a server" in docs/install.md, word for word, in this system.

For a throw-away system, in the checkout that is the current folder. A stand-in replaces systemctl, and one of OpenAI
answers a chat through nginx at the end. Needs root, and nothing but Python's standard library.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from fresh_image import PATIENCE, provider

NAME = "chat.example.org"


def blocks():
    """The commands of the section, in order."""
    text = Path("docs/install.md").read_text()
    section = re.search(r"^## On a server$(.*?)^## ", text, re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"^```bash\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def chat():
    """Post one chat through nginx; return whether its answer is whole."""
    certificate = f"/etc/letsencrypt/live/{NAME}/fullchain.pem"
    body = json.dumps({"messages": [{"role": "user", "content": "What is the capital of France?"}]})
    done = subprocess.run(
        ["curl", "-sSN", "--max-time", str(PATIENCE), "--cacert", certificate, "--resolve", f"{NAME}:443:127.0.0.1",
         "-H", "content-type: application/json", "-d", body, f"https://{NAME}/api/chat"],
        capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout, done.stderr, flush=True)
    return '"Paris"' in done.stdout and "event: done" in done.stdout


def main():
    folder = Path(tempfile.mkdtemp())
    stand_in = folder / "systemctl"
    stand_in.write_text(Path("tests/fresh_systemctl.py").read_text())
    stand_in.chmod(0o755)
    Path("/etc/chat-nest").mkdir()
    Path("/etc/chat-nest/environment").write_text(f"CHAT_NEST_PROVIDERS_OPENAI_BASE_URL={provider()}\n")
    script = "set -euo pipefail\nset -x\n" + "\n".join(blocks())
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "OPENAI_API_KEY": "sk-x",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    done = subprocess.run(["bash", "-c", script], env=environment, stdin=subprocess.DEVNULL)
    log = Path("/var/log/chat-nest.log")
    print(log.read_text() if log.exists() else "no log", flush=True)
    if done.returncode:
        sys.exit(f"install: a block ended with {done.returncode}")
    good = chat()
    usage = subprocess.run(
        ["sudo", "-u", "chat-nest", "chat-nest", "usage", "--config", "/etc/chat-nest/chat-nest.toml"],
        capture_output=True, text=True,
    )  # fmt: skip
    print(usage.stdout, usage.stderr, flush=True)
    subprocess.run([stand_in, "stop", "chat-nest"], check=True)
    sys.exit(not good or usage.returncode != 0)


if __name__ == "__main__":
    main()
