"""`fresh_chat.py COMMAND...`: run a command that serves, post one chat to it, and end it.

Exits with 0 if the answer has text and ends with `done`. Runs on a new machine: it needs only the standard library.
"""

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time

PATIENCE = 600
"""Seconds until a command that prints no URL has failed."""


def say(began, text):
    print(f"fresh: {time.monotonic() - began:6.1f} s  {text}", flush=True)


def listening(lines):
    """The port that the command prints."""
    for line in lines:
        print(f"  | {line}", end="", flush=True)
        found = re.search(r"listening on http://[^/]+:(\d+)", line)
        if found:
            return int(found[1])
    return None


def events(response):
    """The name and the data of each event."""
    name = ""
    for line in response:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value or "null")


def ask(port, began):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    connection.request("POST", "/api/chat", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        say(began, f"status {response.status}: {response.read().decode()}")
        return False
    text, last = "", ""
    for last, data in events(response):
        if last == "token":
            if not text:
                say(began, "first token")
            text += data
        elif last == "error":
            say(began, f"error: {data}")
    say(began, f"{last}: {text!r}")
    return bool(text.strip()) and last == "done"


def main():
    began = time.monotonic()
    server = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    too_late = threading.Timer(PATIENCE, server.kill)
    too_late.daemon = True
    too_late.start()
    port = listening(server.stdout)
    if port is None:
        say(began, f"{sys.argv[1]} did not serve: exit code {server.wait()}")
        sys.exit(1)
    say(began, "it listens")
    rest = threading.Thread(target=listening, args=(server.stdout,), daemon=True)
    rest.start()
    good = ask(port, began)
    server.send_signal(signal.SIGINT)
    code = server.wait(60)
    rest.join(10)
    if code:
        say(began, f"exit code {code}")
    sys.exit(not good or code != 0)


if __name__ == "__main__":
    main()
