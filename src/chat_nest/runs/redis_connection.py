"""Access to runs in Redis: their keys, one shared connection, and separate connections for blocking commands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from chat_nest.core.errors import RunsUnavailable
from chat_nest.stores.redis.resp import Broken, Denied, Wire, Word, tls_context
from chat_nest.stores.redis.topology import Servers, UnsafeServer, open_servers
from chat_nest.stores.redis.url import read_url

log = logging.getLogger("chat_nest.runs")

TIMEOUT = 0.5
"""Seconds for Redis to answer."""
BLOCK_SECONDS = 0.4
"""How long Redis blocks on a command without an answer yet."""
MAX_FOLLOWED = 200
"""The most followers in this process of runs in others: each has a connection to Redis."""
TROUBLE = (Denied, Broken, OSError, UnsafeServer)  # TimeoutError is an OSError

Ask = Callable[..., Awaitable[Any]]


class Link:
    """The servers that `url` names; nothing is opened before the first command. Raises ValueError."""

    def __init__(self, url: str, prefix: str) -> None:
        place = read_url(url)
        tls = tls_context(place.options) if place.tls else None
        self._open: Callable[[], Servers] = lambda: open_servers(place, tls)
        self._servers: Servers | None = None
        self._prefix = prefix
        self._followed = 0
        self._failing = False

    def key(self, kind: str, id: str, name: str) -> str:
        """Return a key; all keys of one `id` of a `kind` (run, process, all) share a slot of a Cluster."""
        return f"{{{self._tag(kind, id)}}}:{name}"

    async def call(self, kind: str, id: str, command: str, name: str, *words: Word) -> Any:
        """Send one repeatable command on one key. Raises the errors in TROUBLE."""
        async with asyncio.timeout(TIMEOUT):
            return await self._all().call(self._tag(kind, id), command, self.key(kind, id, name), *words)

    async def evaluate(self, kind: str, id: str, script: str, name: str, *words: Word) -> Any:
        """Run a repeatable Lua script on one key. Raises the errors in TROUBLE."""
        async with asyncio.timeout(TIMEOUT):
            key = self.key(kind, id, name)
            return await self._all().call(self._tag(kind, id), "EVAL", script, 1, key, *words)

    @asynccontextmanager
    async def own(self, kind: str, id: str) -> AsyncGenerator[Ask, None]:
        """Yield a connection for blocking commands; it is opened again after each failure."""
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
        """Yield a separate connection for a follower of a run. Raises RunsUnavailable if there are too many."""
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
        """Raise RunsUnavailable within a second instead of TROUBLE, for a caller who waits."""
        try:
            async with asyncio.timeout(TIMEOUT + BLOCK_SECONDS):
                yield
        except TROUBLE as error:
            self.note(error)
            raise RunsUnavailable from error

    def note(self, error: Exception | None) -> None:
        """Log the first failure, and the recovery."""
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
