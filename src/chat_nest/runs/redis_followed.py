"""A run in Redis as seen by a process that does not run it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any

from msgspec import Struct

from chat_nest.core.deltas import Batch
from chat_nest.core.errors import RunsUnavailable
from chat_nest.core.protocols import Finale
from chat_nest.runs.codec import Ended, Said, reader
from chat_nest.runs.redis_connection import BLOCK_SECONDS, TROUBLE, Ask, Link
from chat_nest.stores.redis.resp import Word

SAY_SECONDS = 1.0
"""The time between two reports to the run's process that it is read."""
READ_SECONDS = 3.0
"""How long a run counts as read after such a report."""
READ_AGAIN_SECONDS = 0.45
"""How long a reader waits for a Redis that does not answer."""


class RunFacts(Struct, frozen=True, array_like=True, tag="about"):
    """A run's data besides its batches. `last` is the number of the last batch, once the run has ended."""

    owner: str
    model: str
    process: str
    last: int = 0
    finale: Finale | None = None


read_word = reader(RunFacts | Said | Ended)


def ms(seconds: float) -> int:
    """Return milliseconds, Redis's unit of time."""
    return int(seconds * 1_000)


class RunInRedis:
    """A run that another process has (protocols.FollowedRun)."""

    def __init__(self, link: Link, id: str, about: RunFacts) -> None:
        self.id = id
        self.owner = about.owner
        self.model = about.model
        self.finale = about.finale
        self._link = link
        self._about = about

    async def read(self, after: int) -> AsyncGenerator[tuple[int, Batch], None]:
        """See FollowedRun. If the run's process dies, the iterator ends without a finale."""
        self.finale = None
        log = self._link.key("run", self.id, "log")
        told_at, silent = -math.inf, 0
        loop = asyncio.get_running_loop()
        async with self._link.following(self.id) as ask:
            while silent < 2:
                if loop.time() >= told_at + SAY_SECONDS:
                    told_at = loop.time()
                    await self._tell_its_process()
                wait = ("BLOCK", ms(BLOCK_SECONDS)) if self._about.finale is None else ()
                found = await self._patiently(ask, "XREAD", "COUNT", 100, *wait, "STREAMS", log, f"{after}-0")
                for id, (_, data) in found[0][1] if found else ():
                    said = read_word(data)
                    first = said.first if isinstance(said, Said) else int(id.partition(b"-")[0])
                    if first > after + 1:
                        raise LookupError
                    if isinstance(said, Ended):
                        self.finale = said.finale
                        return
                    for number, batch in enumerate(said.batches, first):
                        if number > after:
                            after = number
                            yield number, batch
                if found:
                    silent = 0
                elif self._about.finale is None:
                    silent = 0 if await self._lives() else silent + 1
                elif after < self._about.last:
                    raise LookupError
                else:
                    self.finale = self._about.finale
                    return

    async def _patiently(self, ask: Ask, *words: Word) -> Any:
        """Retry after trouble, for less than a second. Raises RunsUnavailable."""
        loop = asyncio.get_running_loop()
        until = loop.time() + READ_AGAIN_SECONDS
        while True:
            try:
                return await ask(*words)
            except TROUBLE as error:
                if loop.time() >= until:
                    self._link.note(error)
                    raise RunsUnavailable from error
                await asyncio.sleep(0.05)

    async def _tell_its_process(self) -> None:
        """Report that the run is read: if its profile waits for readers, it goes on."""
        words = (f"read:{self.id}", "1", "PX", ms(READ_SECONDS))
        await self._patiently(self._link.call, "process", self._about.process, "SET", *words)

    async def _lives(self) -> bool:
        """Return whether the run's process lives, or its end can be read. Raises LookupError."""
        try:
            about, alive = await asyncio.gather(
                self._link.call("run", self.id, "GET", "about"),
                self._link.call("process", self._about.process, "EXISTS", "alive"),
            )
        except TROUBLE:
            return True  # unknown
        if about is None:
            raise LookupError
        self._about = read_word(about)
        return bool(alive) or self._about.finale is not None
