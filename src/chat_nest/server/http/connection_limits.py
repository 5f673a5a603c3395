"""The limits of connections of a worker, in all and for one IP address, and which idle connections make room."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("chat_nest.server")

SPARE_FILES = 32
"""File descriptors kept free of clients: for providers, the store and refusals."""
WARN_SECONDS = 60.0
MOST_REFUSED = 16
"""Connections over the limits that stay open to get a refusal; further ones are reset."""


class Evictable(Protocol):
    address: str | None

    def evict(self) -> None:
        """Close an idle connection, and free its place at once."""


class Droppable(Protocol):
    def drop(self) -> None:
        """Reset the connection."""


class ConnectionLimits:
    """The places for connections in one worker.

    `max_files` is how many file descriptors the process may open. `max_per_address` applies to each value that
    `address_of` returns for a peer's IP address; None is not counted.
    """

    def __init__(
        self,
        *,
        max_connections: int = 4_096,
        max_files: float = math.inf,
        max_per_address: float = math.inf,
        address_of: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.connections = 0
        """Admitted and still open."""
        self.address_of = address_of
        self.idle: dict[Evictable, None] = {}
        """Kept-alive connections without a request, the longest idle first."""
        self.extra: dict[Droppable, None] = {}
        """Connections over the limits that wait for their refusal, the oldest first."""
        self._max_connections = max_connections
        self._last_file = max_files - SPARE_FILES
        self._max_per_address = max_per_address
        self._by_address: Counter[str] = Counter()
        self._warned_at: dict[str, float] = {}

    def adopt(self, *, max_connections: int, max_per_address: float, address_of: Callable[[str], str | None]) -> None:
        """Replace the limits, from the next connection on."""
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self.address_of = address_of

    def admit(self, file: int, address: str | None = None) -> bool:
        """Take a place for the connection with this file descriptor; return whether there was one.

        An idle connection makes room for a new one.
        """
        if address is not None and self._by_address[address] >= self._max_per_address and not self._evict(address):
            self._warn("max_connections_per_address is reached", "an address is refused until it closes some")
            return False
        if self.connections >= self._max_connections and not self._evict():
            self._warn("max_connections is reached", "new connections are refused until some end")
            return False
        if file > self._last_file:  # the kernel uses the lowest free descriptor
            self._warn("file descriptors run out", "raise the limit (ulimit -n); new connections are refused meanwhile")
            return False
        self.connections += 1
        if address is not None:
            self._by_address[address] += 1
        return True

    def release(self, address: str | None) -> None:
        """Free the place of a connection that was admitted."""
        self.connections -= 1
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def refuse_later(self, connection: Droppable) -> None:
        """Add a connection that was not admitted; if there are too many, the oldest is reset."""
        self.extra[connection] = None
        if len(self.extra) > MOST_REFUSED:
            next(iter(self.extra)).drop()

    def _evict(self, address: str | None = None) -> bool:
        """Close the connection that has been idle longest, of one address or of all; return whether there was one."""
        for connection in self.idle:
            if address is None or connection.address == address:
                connection.evict()
                return True
        return False

    def _warn(self, what: str, advice: str) -> None:
        """Log a warning, at most once a minute."""
        now = asyncio.get_running_loop().time()
        if now - self._warned_at.get(what, -math.inf) >= WARN_SECONDS:
            self._warned_at[what] = now
            log.warning("%s: %s", what, advice)
