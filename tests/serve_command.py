"""`chat-nest serve` in a process of its own that a test may kill: `async with command(folder, provider.url) as served`."""

from __future__ import annotations

import asyncio
import os
import re
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from forked_command import Process, run

LISTENING = re.compile(rb"listening on http://127\.0\.0\.1:(\d+)\n")


class Command:
    """A running server. `said` is all that it wrote so far, on either output."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said = b""
        self.port = 0
        self._reading = asyncio.create_task(self._read())
        self._news = asyncio.Event()

    async def _read(self) -> None:
        assert self.process.stdout
        while piece := await self.process.stdout.read(65_536):
            self.said += piece
            self._news.set()
        self._news.set()

    async def until(self, pattern: bytes, times: int = 1) -> re.Match[bytes]:
        """Wait until it has written what the pattern matches, so many times; return the last match."""
        while len(found := list(re.finditer(pattern, self.said))) < times:
            assert not self._reading.done(), self.said
            await self._news.wait()
            self._news.clear()
        return found[times - 1]

    async def listening(self) -> None:
        self.port = int((await self.until(LISTENING.pattern))[1])

    async def kill(self) -> None:
        """SIGKILL, if it still runs, and wait for the rest of its output."""
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    async def ended(self) -> int:
        await self._reading
        return await self.process.wait()


async def start(folder: Path, *options: str, before: Sequence[str] = (), **environ: str) -> Command:
    """Begin to serve in `folder`; `before` is a command that runs the server's."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await run(
        *("serve", "--port", "0", *options),
        cwd=folder,
        env={**clean, **environ},
        stdout=PIPE,
        stderr=STDOUT,
        before=before,
    )
    return Command(process)


@asynccontextmanager
async def command(
    folder: Path, url: str, key: str = "sk-served", *options: str, wait: bool = True, **environ: str
) -> AsyncIterator[Command]:
    """Serve in `folder`, with the provider at `url`; killed at the end if it still runs.

    Without `wait` it may have failed to start.
    """
    served = await start(folder, *options, **{"OPENAI_BASE_URL": url, "OPENAI_API_KEY": key, **environ})
    try:
        if wait:
            await served.listening()
        yield served
    finally:
        await served.kill()
