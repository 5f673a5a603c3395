"""The two C programs: the provider's stand-in and the load generator. Their first lines say what they take."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.processes import Failed, Missing
from benchmarks.tls import Terminator

HERE = Path(__file__).parent
BUILD = HERE / "build"
LONGEST = 90.0
"""Seconds that one run of the load generator may take."""


class Close(msgspec.Struct, frozen=True, array_like=True):
    """A client's early close: the request's number, and when, in nanoseconds of the monotonic clock."""

    number: int
    ns: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What the load generator saw. Milliseconds are [p50, p99, max]."""

    completed: int
    refused: int
    """With a status from 300 to 499; `errors` counts these, too."""
    aborted: int
    errors: int
    events: int
    error: str
    seconds: float
    closes: list[Close]
    first_token_ms: tuple[float, float, float] | None
    token_delay_ms: tuple[float, float, float] | None
    whole_ms: tuple[float, float, float] | None
    """Of the whole answers."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the stand-in saw since it started; `closes` since it was last asked."""

    requests: int
    completed: int
    aborted: int
    active: int
    tokens: int
    closes: list[Close]


def compile_programs() -> None:
    """Raises Missing where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise Missing("A C compiler is needed: apt-get install -y gcc libc6-dev")
    BUILD.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in HERE.glob("*.[ch]"))
    for name in ("provider", "load"):
        program = BUILD / name
        if not program.exists() or program.stat().st_mtime < newest:
            subprocess.run([compiler, "-O2", "-o", program, HERE / f"{name}.c"], check=True)


class StandIn:
    """The provider's stand-in, running."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([BUILD / "provider"], stdout=subprocess.PIPE)
        assert self.process.stdout
        self.port: int = msgspec.json.decode(self.process.stdout.readline())["port"]
        self._terminator: Terminator | None = None

    def url(self, *, tls: bool = False) -> str:
        """Its base URL, without /v1. With `tls` an nginx on the load's core is in front of it, from the first time."""
        if not tls:
            return f"http://127.0.0.1:{self.port}"
        if self._terminator is None:
            self._terminator = Terminator(self.port)
        return self._terminator.url

    def seen(self) -> Seen:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", "/stats")
        answer = connection.getresponse().read()
        connection.close()
        return msgspec.json.decode(answer, type=Seen)

    def wait_until_idle(self, seconds: float = 10.0) -> Seen:
        """Wait for the last stream to end; raises Failed where one is left open."""
        deadline = time.monotonic() + seconds
        closes: list[Close] = []
        while True:
            seen = self.seen()
            closes += seen.closes
            if not seen.active:
                return msgspec.structs.replace(seen, closes=closes)
            if time.monotonic() > deadline:
                raise Failed(
                    f"{seen.active} streams to the provider are still open {seconds:g} s after the last client"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        if self._terminator is not None:
            self._terminator.stop()
        self.process.kill()
        self.process.wait()


class Load:
    """One run of the load generator, under way. The options are its own, with `_` for `-`."""

    def __init__(self, **options: Any) -> None:
        command = [str(BUILD / "load")]
        for name, value in options.items():
            option = "--" + name.replace("_", "-")
            command += [option] if value is True else [option, str(value)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

    def wait_until_held(self) -> None:
        """With `hold`: return when every stream has its first token; `result` then ends them."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line != b"held\n":
            self._result(line + self._process.stdout.read(), b"")
            raise Failed("the streams were not held")

    def result(self) -> Loaded:
        """What it saw, once it has ended. Raises Failed if any answer was wrong."""
        try:
            out, err = self._process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            self.stop()
            raise Failed(f"no end after {LONGEST:g} s") from None
        return self._result(out, err)

    def outcome(self, longest: float = LONGEST) -> Loaded:
        """Return the result, with the errors if they are part of the measurement."""
        out, _ = self._process.communicate(timeout=longest)
        return msgspec.json.decode(out.splitlines()[-1], type=Loaded)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _result(self, out: bytes, err: bytes) -> Loaded:
        lines = out.splitlines()
        if not lines:
            raise Failed(f"the load generator failed: {err.decode()}")
        result = msgspec.json.decode(lines[-1], type=Loaded)
        if result.errors:
            raise Failed(f"{result.errors} errors; the first: {result.error}")
        return result
