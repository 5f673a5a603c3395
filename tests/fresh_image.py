"""`fresh_image.py [CONTAINERFILE]`: run the steps of an image in this system, in the checkout that is the current folder.

For a throw-away system: RUN and COPY change it. Both stages share it, so what the second copies from the first is there
already. Then the server runs as the image's user, on a root that is read-only, and must pass the image's health check
and a chat of a scripted provider. Needs root, and nothing but Python's standard library.
"""

import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

PATIENCE = 60
"""Seconds until the server must be healthy."""
WRITABLE = "/var/lib/chat-nest /tmp"
CHUNKS = (
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Paris"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}},
)


def steps(text):
    """The instructions of a Containerfile, each with its arguments on one line."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


class Provider(http.server.BaseHTTPRequestHandler):
    """Answers each chat with one word, and each list of models with one model."""

    def do_GET(self):
        self._send("application/json", json.dumps({"object": "list", "data": [{"id": "gpt-4o-mini"}]}).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        events = [*(json.dumps(chunk) for chunk in CHUNKS), "[DONE]"]
        self._send("text/event-stream", "".join(f"data: {event}\n\n" for event in events).encode())

    def _send(self, kind, body):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def provider():
    """Serve a provider in a thread; return its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def chat(url):
    """Post one chat; return whether its answer is whole."""
    import urllib.request

    body = json.dumps({"messages": [{"role": "user", "content": "What is the capital of France?"}]}).encode()
    request = urllib.request.Request(f"{url}/api/chat", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        text = answer.read().decode()
    return '"Paris"' in text and "event: done" in text


class Image:
    """The state of the image: the system itself, and what the instructions set."""

    def __init__(self):
        self.arguments, self.environment, self.health = {}, {}, []
        self.folder, self.user, self.entrypoint, self.command = "/", "0:0", [], []
        self.context = Path.cwd()

    def do(self, name, rest):
        print(f"image: {name} {rest}", flush=True)
        match name:
            case "RUN":
                environment = {**os.environ, **self.environment, **self.arguments}
                subprocess.run(
                    ["sh", "-euc", rest], cwd=self.folder, env=environment, check=True, stdout=subprocess.DEVNULL
                )
            case "COPY" if not rest.startswith("--from"):
                self._copy(*shlex.split(rest))
            case "ARG" | "ENV":
                values = dict(each.partition("=")[::2] for each in shlex.split(rest))
                (self.arguments if name == "ARG" else self.environment).update(values)
            case "WORKDIR":
                self.folder = rest
                Path(rest).mkdir(parents=True, exist_ok=True)
            case "USER":
                self.user = rest
            case "ENTRYPOINT":
                self.entrypoint = json.loads(rest)
            case "CMD":
                self.command = json.loads(rest)
            case "HEALTHCHECK":
                self.health = json.loads(rest[rest.index("CMD ") + 4 :])
            case "FROM" | "COPY" | "VOLUME" | "EXPOSE" | "STOPSIGNAL":
                pass
            case _:
                sys.exit(f"image: this program does not know {name}")

    def _copy(self, *names):
        *sources, target = names
        into = Path(self.folder) / target
        for source in sources:
            path = self.context / source
            to = into / path.name if len(sources) > 1 else into
            to.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", path, to], check=True)

    def run(self, *command, **environment):
        """Run a command as the image's user, on a read-only root."""
        user, _, group = self.user.partition(":")
        script = f"""
            mount --rbind / /mnt
            mount -o remount,bind,ro /mnt
            for each in {WRITABLE}; do mount --bind "$each" "/mnt$each"; done
            exec /usr/sbin/chroot --userspec={user}:{group} --groups= /mnt sh -c 'cd {self.folder} && exec "$@"' image "$@"
        """
        return subprocess.Popen(
            ["unshare", "--mount", "--propagation", "unchanged", "sh", "-euc", script, "image", *command],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
        )


def main(file="deploy/container/Containerfile"):
    image = Image()
    for name, rest in steps(Path(file).read_text()):
        image.do(name, rest)
    url = "http://127.0.0.1:8000"
    refused = image.run("sh", "-c", "touch /written || touch /etc/chat-nest/written").wait()
    if not refused or image.run("pip", "--version").wait() == 0:
        sys.exit("image: the root is not read-only, or pip is there")
    server = image.run(
        *image.entrypoint, *image.command, "--workers", "2", OPENAI_BASE_URL=provider(), OPENAI_API_KEY="sk-x"
    )
    until = time.monotonic() + PATIENCE
    try:
        while image.run(*image.health).wait():
            if server.poll() is not None or time.monotonic() > until:
                sys.exit("image: the server is not healthy")
            time.sleep(1)
        good = chat(url)
    finally:
        server.terminate()
        code = server.wait()
    print(f"image: healthy, a chat is {'whole' if good else 'not whole'}, exit code {code}", flush=True)
    sys.exit(not good or code != 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
