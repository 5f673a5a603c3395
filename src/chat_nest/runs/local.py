"""Runs of all processes of one machine: each keeps its own in memory, and serves them to the others over a Unix socket.

The sockets are in a directory that only this user can enter. A message is its length in four bytes, then the output of
`codec.write`. A connection serves one request; the side that no longer needs it closes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from chat_nest.core.deltas import Batch
from chat_nest.core.errors import RunsUnavailable
from chat_nest.core.protocols import FollowedRun
from chat_nest.runs.codec import Ended, Said, write
from chat_nest.runs.local_messages import (
    Done,
    Find,
    Follow,
    Forget,
    FoundRun,
    Nothing,
    Stop,
    read_answer,
    read_question,
)
from chat_nest.runs.memory import MemoryRun, MemoryRuns

log = logging.getLogger("chat_nest.runs")

PATIENCE = 1.0
"""Seconds for another process to answer; see SILENT."""
SILENT = 0.2
"""The share of PATIENCE for one that did not answer last time: perhaps the operating system has stopped it."""
WRITE_SECONDS = 30.0
"""How long a following process may read nothing; it can come back, by number."""
CLOSE_SECONDS = 1.0

_FAILURES = (OSError, IncompleteReadError, msgspec.DecodeError)


class LocalRuns:
    """A RunLogs for processes that share `folder`; its own runs are kept for `keep` seconds after their end.

    A run is lost with its process. `find` and `stop` raise RunsUnavailable if no process reports the run and one did
    not answer within `patience` seconds, or within a fifth of them if it did not last time either. Raises ValueError
    unless `folder` exists and is closed to others.
    """

    def __init__(self, folder: str | Path, *, keep: float = 300.0, patience: float = PATIENCE) -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir() or self._folder.stat().st_mode & 0o077:
            raise ValueError("runs.url: local:// must name a directory that is there and that only its owner may enter")
        self._patience = patience
        self._silent: set[Path] = set()
        self._here = MemoryRuns(keep=keep)
        self._stop: Callable[[str, str], bool] = lambda _name, _owner: False
        self._opening: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self._socket: Path | None = None
        self._answering: set[asyncio.Task[None]] = set()

    def begin(self, id: str, owner: str, model: str, names: Sequence[str] = ()) -> MemoryRun:
        return self._here.begin(id, owner, model, names)

    def ended(self, id: str, names: Sequence[str] = ()) -> None:
        self._here.ended(id, names)

    def listen(self, stop: Callable[[str, str], bool]) -> None:
        self._stop = stop

    def attend(self) -> None:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())

    async def find(self, name: str) -> FollowedRun | None:
        if here := await self._here.find(name):
            return here
        path, found = await self._ask_all(Find(name))
        return RunElsewhere(path, found, self._patience) if isinstance(found, FoundRun) else None

    async def stop(self, name: str, owner: str) -> bool:
        _, answer = await self._ask_all(Stop(name, owner))
        return isinstance(answer, Done)

    async def forget(self, id: str, owner: str) -> bool:
        if await self._here.forget(id, owner):
            return True
        _, answer = await self._ask_all(Forget(id, owner))
        return isinstance(answer, Done)

    async def aclose(self) -> None:
        """Give followers a moment to read the end, then remove the socket."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
        if self._answering:
            await asyncio.wait(self._answering, timeout=CLOSE_SECONDS)
        for task in self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering)
        self._opening = self._server = self._socket = None

    async def _open(self) -> None:
        """Bind under another name first: a socket that refuses connections marks a dead process."""
        name = f"{os.getpid()}-{secrets.token_hex(3)}"
        coming, there = self._folder / f"{name}.new", self._folder / f"{name}.sock"
        try:
            self._server = await asyncio.start_unix_server(self._on_connection, coming)
            self._socket = coming.rename(there)
        except OSError as error:
            log.error("other workers can't find the runs of this one: %s", error.strerror)  # noqa: TRY400

    async def _ask_all(self, question: Find | Stop | Forget) -> tuple[Path, FoundRun | Done | Nothing]:
        """Query each other process; return the first answer that is not Nothing, and its process."""
        paths = [path for path in self._folder.glob("*.sock") if path != self._socket]
        self._silent.intersection_update(paths)
        asking = [asyncio.create_task(self._ask(path, question)) for path in paths]
        silent = False
        try:
            for next_one in asyncio.as_completed(asking):
                path, answer = await next_one
                if isinstance(answer, FoundRun | Done):
                    return path, answer
                silent = silent or answer is None
        finally:
            for task in asking:
                task.cancel()
            if asking:
                await asyncio.wait(asking)
        if silent:
            raise RunsUnavailable
        return self._folder, Nothing()

    async def _ask(self, path: Path, question: Find | Stop | Forget) -> tuple[Path, object]:
        """Return the answer, or None if none came in time."""
        try:
            async with asyncio.timeout(self._patience * (SILENT if path in self._silent else 1)):
                stream, writer = await asyncio.open_unix_connection(path)
                try:
                    writer.write(_frame(question))
                    answer = read_answer(await _receive(stream))
                finally:
                    writer.close()
            self._silent.discard(path)
            return path, answer
        except TimeoutError:
            self._silent.add(path)
            return path, None
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - a moment, and seldom
            return path, Nothing()
        except _FAILURES:
            return path, Nothing()

    def _on_connection(self, stream: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(self._answer(stream, writer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, stream: StreamReader, writer: StreamWriter) -> None:
        try:
            question = read_question(await _receive(stream))
            run = None if isinstance(question, Stop | Forget) else await self._here.find(_named(question))
            if isinstance(question, Stop):
                writer.write(_frame(Done() if self._stop(question.name, question.owner) else Nothing()))
            elif isinstance(question, Forget):
                done = await self._here.forget(question.id, question.owner)
                writer.write(_frame(Done() if done else Nothing()))
            elif run is None:
                writer.write(_frame(Nothing()))
            elif isinstance(question, Follow):
                await _until_closed(stream, _tell(run, question.after, writer))
            else:
                writer.write(_frame(FoundRun(run.id, run.owner, run.model, run.finale)))
        except _FAILURES:
            pass
        finally:
            writer.close()


class RunElsewhere:
    """A run of another process (protocols.FollowedRun)."""

    def __init__(self, path: Path, found: FoundRun, patience: float) -> None:
        self.id = found.id
        self.owner = found.owner
        self.model = found.model
        self.finale = found.finale
        self._path = path
        self._patience = patience

    async def read(self, after: int) -> AsyncGenerator[tuple[int, Batch], None]:
        """See FollowedRun. If the other process dies, the iterator ends without a finale."""
        self.finale = None
        try:
            async with asyncio.timeout(self._patience):
                stream, writer = await asyncio.open_unix_connection(self._path)
        except TimeoutError:
            raise RunsUnavailable from None
        except OSError:
            return
        try:
            writer.write(_frame(Follow(self.id, after)))
            while True:
                said = read_answer(await _receive(stream))
                if isinstance(said, Ended):
                    self.finale = said.finale
                    return
                if isinstance(said, Nothing):
                    raise LookupError  # noqa: TRY004
                for number, batch in enumerate(said.batches, said.first):
                    yield number, batch
        except _FAILURES:
            return
        finally:
            writer.close()


async def _tell(run: MemoryRun, after: int, writer: StreamWriter) -> None:
    """Write the run's batches as they come; the run does not wait for its readers."""
    run.join()
    try:
        while True:
            batches = run.behind(after)
            if batches:
                writer.write(_frame(Said(after + 1, [list(batch) for batch in batches])))
                after += len(batches)
                async with asyncio.timeout(WRITE_SECONDS):
                    await writer.drain()
            elif run.finale is not None:
                writer.write(_frame(Ended(run.finale)))
                return
            else:
                await run.news()
    except LookupError:
        writer.write(_frame(Nothing()))
    except OSError:  # of which TimeoutError is one
        writer.transport.abort()
    finally:
        run.leave()


async def _until_closed(stream: StreamReader, telling: Coroutine[Any, Any, None]) -> None:
    """Run it until it is done, or until the other side, which sends nothing more, closes the connection."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(telling), asyncio.create_task(stream.read(1))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _named(question: Find | Follow) -> str:
    return question.name if isinstance(question, Find) else question.id


def _frame(message: Struct) -> bytes:
    data = write(message)
    return len(data).to_bytes(4, "big") + data


async def _receive(stream: StreamReader) -> bytes:
    return await stream.readexactly(int.from_bytes(await stream.readexactly(4), "big"))
