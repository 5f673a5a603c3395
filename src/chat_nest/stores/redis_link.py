"""How runs in Redis are asked for: their keys, one shared connection, and connections of their own for who waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from chat_nest.errors import RunsUnavailable
from chat_nest.stores.redis_servers import Servers, UnsafeServer, open_servers, read_url
from chat_nest.stores.redis_wire import Broken, Denied, Wire, Word, tls_context

log = logging.getLogger("chat_nest.runs")

TIMEOUT = 0.5
"""Seconds for Redis to answer."""
BLOCK_SECONDS = 0.4
"""How long Redis keeps a question open to which there is no answer yet."""
MAX_FOLLOWED = 200
"""Followers in this process of runs in others: each has a connection to Redis."""
TROUBLE = (Denied, Broken, OSError, UnsafeServer)  # TimeoutError is an OSError

Ask = Callable[..., Awaitable[Any]]


class Link:
    """The servers that `url` names; nothing is opened before the first question. Raises ValueError."""

    def __init__(self, url: str, prefix: str) -> None:
        place = read_url(url)
        tls = tls_context(place.options) if place.tls else None
        self._open: Callable[[], Servers] = lambda: open_servers(place, tls)
        self._servers: Servers | None = None
        self._prefix = prefix
        self._followed = 0
        self._failing = False

    def key(self, kind: str, id: str, name: str) -> str:
        """What belongs to one `id` of a `kind` (run, process, all) shares a slot of a Cluster."""
        return f"{{{self._tag(kind, id)}}}:{name}"

    async def call(self, kind: str, id: str, command: str, name: str, *words: Word) -> Any:
        """One command, of those that may be repeated, on one key. Raises what is in TROUBLE."""
        async with asyncio.timeout(TIMEOUT):
            return await self._all().call(self._tag(kind, id), command, self.key(kind, id, name), *words)

    @asynccontextmanager
    async def own(self, kind: str, id: str) -> AsyncGenerator[Ask, None]:
        """A connection for questions that stay open, opened again after each that failed."""
        wire: Wire | None = None

        async def ask(*words: Word) -> Any:
            nonlocal wire
            try:
                async with asyncio.timeout(TIMEOUT + BLOCK_SECONDS):
                    if wire is None:
                        wire = await self._all().wire(self._tag(kind, id))
                    return await wire.ask(*words)
            except BaseException:
                if wire is not None:
                    wire.abort()
                wire = None
                raise

        try:
            yield ask
        finally:
            if wire is not None:
                wire.abort()

    @asynccontextmanager
    async def following(self, id: str) -> AsyncGenerator[Ask, None]:
        """A connection of its own for who follows a run. Raises RunsUnavailable where there are too many."""
        if self._followed >= MAX_FOLLOWED:
            raise RunsUnavailable
        self._followed += 1
        try:
            async with self.own("run", id) as ask:
                yield ask
        finally:
            self._followed -= 1

    @asynccontextmanager
    async def answering(self) -> AsyncGenerator[None, None]:
        """For a caller who waits: RunsUnavailable within a second instead of TROUBLE."""
        try:
            async with asyncio.timeout(TIMEOUT + BLOCK_SECONDS):
                yield
        except TROUBLE as error:
            self.note(error)
            raise RunsUnavailable from error

    def note(self, error: Exception | None) -> None:
        """Log what goes wrong once, and that it goes well again."""
        if error is not None and not self._failing:
            log.warning("Redis does not keep runs for readers who come back: %s", type(error).__name__)
        elif error is None and self._failing:
            log.warning("Redis keeps runs for readers who come back again")
        self._failing = error is not None

    async def aclose(self) -> None:
        servers, self._servers = self._servers, None
        if servers is not None:
            await servers.aclose()

    def _all(self) -> Servers:
        if self._servers is None:
            self._servers = self._open()
        return self._servers

    def _tag(self, kind: str, id: str) -> str:
        return f"{self._prefix}:{kind}:{id}" if id else f"{self._prefix}:{kind}"
