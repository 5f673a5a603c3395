"""`chat-nest COMMAND` in a process of its own that starts at once: `process = await run("serve", "--port", "0", cwd=folder)`.

Importing the package and building the tables that count tokens takes a second of a processor, and hundreds of tests start
a server. Here one process for each test process does it once, and every command is a fork of it that executes the
script `chat-nest` as the shell would: with its own arguments, environment, directory, outputs, signals and exit code.
tests/e2e/test_serve.py and test_scripts.py have those that must be executed.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

COMMAND = Path(sys.executable).with_name("chat-nest")


class Process:
    """A running command, as asyncio.subprocess.Process has it."""

    def __init__(self, pid: int, ending: asyncio.StreamReader, closing: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._end = asyncio.create_task(self._ended(ending, closing))

    async def _ended(self, ending: asyncio.StreamReader, closing: asyncio.StreamWriter) -> int:
        self.returncode = int(await ending.readline())
        closing.close()
        await closing.wait_closed()
        return self.returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._end)

    async def communicate(self) -> tuple[bytes | None, bytes | None]:
        async def rest(stream: asyncio.StreamReader | None) -> bytes | None:
            return await stream.read() if stream else None

        out, errors, _ = await asyncio.gather(rest(self.stdout), rest(self.stderr), self.wait())
        return out, errors

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def run(
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    before: Sequence[str] = (),
) -> Process:
    """Start `chat-nest ARGUMENTS`; nothing is on its input. The other options are those of create_subprocess_exec.

    `before` is a command that runs it, such as setpriv. Variables that count only at the start of a program, such as
    LD_PRELOAD, make it one of its own.
    """
    if env is not None and any(name.startswith(("LD_", "PYTHON")) for name in env):
        executed = await asyncio.create_subprocess_exec(
            *(*before, COMMAND, *arguments), cwd=cwd, env=env, stdin=DEVNULL, stdout=stdout, stderr=stderr
        )
        return cast("Process", executed)
    link = socket.socket(socket.AF_UNIX)
    link.connect(_forks(tuple(before)))
    out, out_of = _output(stdout, sys.__stdout__)
    errors, errors_of = (out, None) if stderr == STDOUT else _output(stderr, sys.__stderr__)
    asked = {"arguments": list(map(str, arguments)), "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ)}
    socket.send_fds(link, [json.dumps(asked).encode() + b"\n"], [out, errors])
    for mine, given in ((out, stdout), (errors, stderr)):
        if given in (PIPE, DEVNULL):
            os.close(mine)
    link.setblocking(False)
    ending, closing = await asyncio.open_unix_connection(sock=link)
    process = Process(int(await ending.readline()), ending, closing)
    process.stdout, process.stderr = await _reader(out_of), await _reader(errors_of)
    return process


def _output(given: int | IO[Any] | None, inherited: IO[Any] | None) -> tuple[int, int | None]:
    """The file descriptor for the command and, for a pipe, the one to read."""
    if given == PIPE:
        read, write = os.pipe()
        return write, read
    if given == DEVNULL:
        return os.open(os.devnull, os.O_WRONLY), None
    target = inherited if given is None else given
    assert target is not None
    return target if isinstance(target, int) else target.fileno(), None


async def _reader(descriptor: int | None) -> asyncio.StreamReader | None:
    if descriptor is None:
        return None
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(descriptor, "rb", 0))
    return reader


@functools.cache
def _forks(before: tuple[str, ...]) -> str:
    """The socket of the process that forks, which `before` runs, and which ends with this one."""
    folder = tempfile.mkdtemp(prefix="chat-nest-")
    command = (*before, sys.executable, __file__, folder)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(shutil.rmtree, folder)
    atexit.register(process.communicate)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return f"{folder}/forks"


# The process that forks.


def _serve(folder: str) -> None:
    """Fork for each connection; it is told the process id and, at its end, the exit code. End with the input."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/forks")
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    print("ready", flush=True)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                return
            if key.fileobj is listener:
                link, _ = listener.accept()
                asked, outputs = _receive(link)
                pid = os.fork()
                if not pid:
                    selector.close()
                    _become(asked["arguments"], asked["cwd"], asked["env"], outputs)
                for output in outputs:
                    os.close(output)
                link.sendall(b"%d\n" % pid)
                ends = os.pidfd_open(pid)
                running[ends] = pid, link
                selector.register(ends, selectors.EVENT_READ)
            else:
                pid, link = running.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(pid, 0)
                try:
                    link.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                except OSError:  # nobody waits for it
                    pass
                link.close()


def _receive(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    said, outputs, _, _ = socket.recv_fds(link, 65_536, 2)
    while not said.endswith(b"\n"):
        said += link.recv(65_536)
    return json.loads(said), outputs


def _become(arguments: list[str], cwd: str, environ: dict[str, str], outputs: list[int]) -> None:
    """Be the command; never return."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(outputs[0], 1)
    os.dup2(outputs[1], 2)
    os.closerange(3, 1_024)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    sys.argv[1:] = arguments
    sys.path[0] = str(COMMAND.parent)
    runpy.run_path(str(COMMAND), run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    import uvloop  # noqa: F401

    import chat_nest.cli.commands
    import chat_nest.cli.serve  # noqa: F401
    from chat_nest.counting.tokens import counter_for

    counter_for("scripted")
    _serve(sys.argv[1])
