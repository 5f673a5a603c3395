"""`fresh_install.py [systemd]`: run the blocks of "On a server" in docs/install.md, word for word, in this system.

For a throw-away system, in the checkout that is the current folder. Stand-ins replace systemctl (unless `systemd` is
there to be used), OpenAI and the receiver of alerts. At the end a chat through nginx uses a limit up: the alert must reach the receiver, signed, and the request
Prometheus. Needs root, and nothing but Python's standard library.
"""

import base64
import hmac
import http.server

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

from fresh_image import PATIENCE, provider

NAME = "chat.example.org"
CONFIG = Path("/etc/chat-nest/chat-nest.toml")


def blocks():
    """The commands of the section, in order."""
    text = Path("docs/install.md").read_text()
    section = re.search(r"^## On a server$(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert section
    return re.findall(r"^```bash\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)


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


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes alerts with a right signature (Standard Webhooks), and keeps their types."""

    types: list[str] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
        secret = base64.b64decode(Path("/etc/chat-nest/keys/webhook").read_text().strip().removeprefix("whsec_"))
        right = "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()
        good = right in self.headers["webhook-signature"].split()
        print(f"receiver: {'right' if good else 'wrong'} signature: {body.decode()}", flush=True)
        if good:
            self.types.append(json.loads(body)["type"])
        self.send_response(204 if good else 401)
        self.end_headers()

    def log_message(self, *_):
        pass


def receiver():
    """Serve a receiver in a thread; return its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/alerts"


def until(what, holds):
    """Wait until it holds; exit if that takes too long."""
    end = time.monotonic() + PATIENCE + 120
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"install: not within {PATIENCE + 120} s: {what}")
        time.sleep(1)
    print(f"install: {what}", flush=True)


def scraped():
    """Return whether Prometheus has the chat that was answered."""
    query = urllib.parse.urlencode({"query": 'sum(chat_nest_requests_total{code="ok"}) > 0'})
    with urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/query?{query}", timeout=PATIENCE) as answer:
        return bool(json.load(answer)["data"]["result"])


def stand_in():
    """Return a folder with a stand-in for systemctl."""
    folder = Path(tempfile.mkdtemp())
    (folder / "systemctl").write_text(Path("tests/fresh_systemctl.py").read_text())
    (folder / "systemctl").chmod(0o755)
    return folder


def shown(name):
    """A property of the service."""
    command = ("systemctl", "show", "--value", f"--property={name}", "chat-nest")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def manage():
    """Check what only the real systemd does: its sandbox, a reload that fails, and the watchdog."""
    if (state := (shown("ActiveState"), shown("Type"), shown("StatusText"))) and state[:2] != ("active", "notify"):
        sys.exit(f"install: the service is {state}")
    whole = CONFIG.read_text()
    CONFIG.write_text("unheard_of = 1\n" + whole)
    if subprocess.run(["systemctl", "reload", "chat-nest"]).returncode == 0:
        sys.exit("install: the reload of a wrong file has not failed")
    CONFIG.write_text(whole)
    subprocess.run(["systemctl", "reload", "chat-nest"], check=True)
    print("install: the reload of a wrong file failed, and the next one did not", flush=True)
    pid = shown("MainPID")
    subprocess.run(["systemctl", "kill", "--signal=STOP", "--kill-whom=main", "chat-nest"], check=True)
    until(
        "the watchdog has restarted a process that hung",
        lambda: shown("MainPID") not in (pid, "0") and shown("ActiveState") == "active",
    )


def main():
    booted = sys.argv[1:] == ["systemd"]
    path = os.environ["PATH"] if booted else f"{stand_in()}:{os.environ['PATH']}"
    os.environ["PATH"] = path
    Path("/etc/chat-nest").mkdir()
    Path("/etc/chat-nest/environment").write_text(f"CHAT_NEST_PROVIDERS_OPENAI_BASE_URL={provider()}\n")
    script = "set -euo pipefail\nset -x\n" + "\n".join(blocks())
    environment = {
        **os.environ,
        "OPENAI_API_KEY": "sk-x",
        "ALERTS_WEBHOOK": receiver(),
        "DEBIAN_FRONTEND": "noninteractive",
    }
    done = subprocess.run(["bash", "-c", script], env=environment, stdin=subprocess.DEVNULL)
    log = Path("/var/log/chat-nest.log")
    if booted:
        subprocess.run(["journalctl", "--unit=chat-nest", "--no-pager", "--output=cat"])
    print(log.read_text() if log.exists() else "", flush=True)
    if done.returncode:
        sys.exit(f"install: a block ended with {done.returncode}")
    if Receiver.types != ["test"]:
        sys.exit(f"install: the receiver has {Receiver.types}, not the test of alerts")
    CONFIG.write_text(CONFIG.read_text().replace("[limits] ", "[limits]\nrequests_per_day = 1\n# ", 1))
    subprocess.run(["systemctl", "reload", "chat-nest"], check=True)
    good = chat()
    until("the alert has arrived", lambda: "budget.used_up" in Receiver.types)
    until("Prometheus has the request", scraped)
    usage = subprocess.run(
        ["sudo", "-u", "chat-nest", "chat-nest", "usage", "--config", CONFIG],
        capture_output=True, text=True,
    )  # fmt: skip
    print(usage.stdout, usage.stderr, flush=True)
    if booted:
        manage()
    subprocess.run(["systemctl", "stop", "chat-nest"], check=True)
    if booted and shown("ExecMainStatus") != "0":
        sys.exit(f"install: the service ended with {shown('ExecMainStatus')}")
    sys.exit(not good or usage.returncode != 0)


if __name__ == "__main__":
    main()
