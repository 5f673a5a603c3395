"""Time-outs for clients, and one timer that checks all connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgspec import Struct

log = logging.getLogger("chat_nest.server")

LONGEST_SWEEP_SECONDS = 1.0


class ConnectionDeadlines(Struct, frozen=True, kw_only=True):
    """Time-outs in seconds."""

    header: float = 10.0
    """From a request's first byte to the end of its head; also from connecting to that byte, and between a body's."""
    body: float = 30.0
    """From the end of the head to the end of the body."""
    idle: float = 65.0
    """Between two requests."""
    write: float = 30.0
    """A client that reads nothing for this long is dropped."""
    grace: float = 5.0
    """In addition to `write`, for a client that reads, but too little."""
    linger: float = 2.0
    """How long a refused client's remaining bytes are discarded, so that it can read the refusal."""

    @property
    def sweep(self) -> float:
        """Seconds between two sweeps. An expired deadline is noticed at most this much later."""
        return min(LONGEST_SWEEP_SECONDS, self.header / 4, self.body / 4, self.idle / 4, self.write / 4)


class Sweep:
    """Calls `look` at a fixed interval on the running loop. An exception in it is logged, and the sweep goes on."""

    def __init__(self, every: float, look: Callable[[], None]) -> None:
        self._every = every
        self._look = look
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start. A second call has no effect."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._run)

    def stop(self) -> None:
        """Stop. Safe to call before `start`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        self._timer = None
        self.start()
        try:
            self._look()
        except Exception:
            log.exception("a sweep over the connections failed")
