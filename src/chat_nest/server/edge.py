"""What the connections of one worker share: their limits, one clock for their deadlines, and whether it is ending."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Protocol

from msgspec import Struct

log = logging.getLogger("chat_nest.server")

SPARE_FILES = 32
"""File descriptors that no connection may take: providers and the store need some, and so does saying no."""
WARN_SECONDS = 60.0


class Deadlines(Struct, frozen=True, kw_only=True):
    """Seconds."""

    header: float = 10.0
    """From a request's first byte to the end of its head; also from connecting to that byte, and between a body's."""
    body: float = 30.0
    """From the end of the head to the end of the body."""
    idle: float = 65.0
    """Between two requests."""
    write: float = 30.0
    """A client that takes nothing for this long is dropped."""
    grace: float = 5.0
    """On top of `write`: a stream's own watch comes first, for it knows what the slow reader owes."""
    linger: float = 2.0
    """How long what a refused client still sends is thrown away, so that it can read why it was refused."""


class Expiring(Protocol):
    deadline: float
    """In the loop's seconds."""

    def expire(self) -> None:
        """What to do now that the deadline has passed."""


class Edge:
    """One sweep looks at every connection that has a deadline; streams that flow have none, and cost nothing here.

    `max_files` is how many file descriptors the process may open.
    """

    def __init__(
        self,
        deadlines: Deadlines,
        *,
        max_connections: int = 4_096,
        max_files: float = math.inf,
    ) -> None:
        self.deadlines = deadlines
        self.draining = False
        self.connections = 0
        """Those that were admitted and are still there."""
        self._max_connections = max_connections
        self._last_file = max_files - SPARE_FILES
        self._every = min(1.0, deadlines.header / 4, deadlines.body / 4, deadlines.idle / 4, deadlines.write / 4)
        self._waiting: dict[Expiring, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._warned_at: dict[str, float] = {}

    def admit(self, file: int) -> bool:
        """Whether there is room for one more connection, whose file descriptor is this one; then it counts."""
        if self.connections >= self._max_connections:
            self.warn("max_connections is reached", "new connections are refused until some end")
            return False
        if file > self._last_file:  # the kernel gives out the lowest that is free
            self.warn("file descriptors run out", "raise the limit (ulimit -n); new connections are refused meanwhile")
            return False
        self.connections += 1
        return True

    def watch(self, connection: Expiring, seconds: float) -> None:
        """Let the connection expire in that time, instead of when it would have."""
        loop = asyncio.get_running_loop()
        connection.deadline = loop.time() + seconds
        self._waiting[connection] = None
        if self._timer is None:
            self._timer = loop.call_later(self._every, self._sweep)

    def forget(self, connection: Expiring) -> None:
        """It has no deadline any more."""
        self._waiting.pop(connection, None)

    def warn(self, what: str, advice: str) -> None:
        """Log it, at most once a minute."""
        now = asyncio.get_running_loop().time()
        if now - self._warned_at.get(what, -math.inf) >= WARN_SECONDS:
            self._warned_at[what] = now
            log.warning("%s: %s", what, advice)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [each for each in self._waiting if each.deadline <= now]:
            self.forget(connection)
            connection.expire()
        self._timer = loop.call_later(self._every, self._sweep) if self._waiting else None
