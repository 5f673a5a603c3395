"""The queue in front of the store: few calls run at once, and the others wait for their turns.

A thousand calls at once would all wait in the driver's queue while their deadlines run, and would fail although the
store is healthy. In this queue a waiting call has no deadline: time counts only while the store answers no call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

from chat_nest.core.errors import LimiterUnavailable

FEWEST, MOST = 2, 6
"""The limits of concurrent calls. The start is the lower one: each call may open a connection, and a new one is slow at
first. More than the upper one would only wait for each other at a counter that all share, and leave no connection to
settlements. A store that sends many calls in one names its own upper limit (see `BatchesCalls`)."""
QUICK, SLOW = 1 / 8, 1 / 4
"""Shares of the patience: faster answers raise the concurrency, slower ones lower it. If the store or this machine is
overloaded, further calls would only wait inside the store, while their deadlines run."""
LONGEST_WAIT = 10.0
"""The most seconds in the queue, however well the store answers."""
LATE = 0.1
"""Seconds. A timer later than this means that this process was kept from running, not the store."""


class Turns:
    """Admits one more call for each round of fast answers, one less for slow ones, half as many after a failure.

    There are never more than `most`. Queued calls are refused with LimiterUnavailable after `patience` seconds without
    an answer from the store.
    """

    def __init__(self, patience: float, most: int = MOST) -> None:
        self.patience = patience
        self._most = most
        self.answered_at = 0.0
        self._at_once = float(FEWEST)
        self._running = 0
        self._line: deque[tuple[Turn, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """The number of calls in the queue."""
        return len(self._line)

    async def wait(self, turn: Turn) -> None:
        """Return when the call's turn comes. Raises LimiterUnavailable."""
        if self._running < int(self._at_once) and not self._line:
            self._running += 1
            return
        loop = asyncio.get_running_loop()
        called: asyncio.Future[None] = loop.create_future()
        self._line.append((turn, called))
        if self._timer is None:
            self._timer = loop.call_at(turn.deadline, self._look, turn.deadline)
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled() and called.exception() is None:
                self.end()
            raise

    def answered(self, seconds: float) -> None:
        """Record an answer of the store that took `seconds`."""
        self.answered_at = asyncio.get_running_loop().time()
        if seconds < QUICK * self.patience:
            self._at_once = min(self._at_once + 1 / self._at_once, self._most)
        elif seconds > SLOW * self.patience:
            self._at_once = max(self._at_once - 1 / self._at_once, FEWEST)

    def failed(self) -> None:
        """Record a failed store call."""
        self._at_once = max(self._at_once / 2, FEWEST)

    def end(self) -> None:
        """End one turn: the next calls in the queue begin theirs."""
        self._running -= 1
        while self._line and self._running < int(self._at_once):
            _, called = self._line.popleft()
            if not called.done():  # its caller may have left
                self._running += 1
                called.set_result(None)

    def _look(self, due: float) -> None:
        """Refuse the calls at the head of the queue whose time is up; run again when the next one's may be."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        if now - due > LATE:  # first read the answers that have arrived meanwhile
            again = now + min(now - due, self.patience)
            self._timer = loop.call_at(again, self._look, again)
            return
        while self._line:
            turn, called = self._line[0]
            if not called.done() and turn.deadline > now and turn.joined_at + LONGEST_WAIT > now:
                at = min(turn.deadline, turn.joined_at + LONGEST_WAIT)
                self._timer = loop.call_at(at, self._look, at)
                return
            self._line.popleft()
            if not called.done():
                called.set_exception(LimiterUnavailable())


class Turn:
    """A place in the queue: entering waits for the turn, leaving ends it. Entering again during a turn never waits."""

    __slots__ = ("_lasts", "_turns", "began_at", "joined_at")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._lasts = False
        self.joined_at = self.began_at = 0.0

    @property
    def deadline(self) -> float:
        """The store's deadline, in the event loop's seconds."""
        return max(self.joined_at, self._turns.answered_at) + self._turns.patience

    def answered(self) -> None:
        """Record that the store answered."""
        self._turns.answered(asyncio.get_running_loop().time() - self.began_at)

    def failed(self) -> None:
        """Record that the store failed."""
        self._turns.failed()

    async def begin(self) -> None:
        """Wait for the turn. Raises LimiterUnavailable."""
        if not self._lasts:
            self.joined_at = asyncio.get_running_loop().time()
            await self._turns.wait(self)
            self._lasts = True
            self.began_at = asyncio.get_running_loop().time()

    def end(self) -> None:
        """End the turn, if it has begun. It may begin again."""
        if self._lasts:
            self._lasts = False
            self._turns.end()

    async def __aenter__(self) -> Self:
        """See `begin`."""
        await self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
