"""Turns at the store: few requests at once, the others in line behind them.

A thousand requests that ask at once would all wait in the driver's queue while their deadlines run, and fail though the
store is well. Here they wait without a deadline of their own: it runs only while the store answers nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

from chat_nest.errors import LimiterUnavailable

FEWEST, MOST = 2, 6
"""Turns at once. They begin with the fewest: each may open a connection, and a new one is slow at first. More of them
would only wait for each other at a counter that all share, and leave settlements no connection."""
QUICK, SLOW = 1 / 8, 1 / 4
"""Of the patience: answers that come sooner let more ask at once, those that come later fewer. Where the store, or this
machine, has too much to do, more at once would only wait inside the store, where their deadlines run."""
LONGEST_WAIT = 10.0
"""Seconds in line, however well the store answers."""
LATE = 0.1
"""Seconds. A timer that comes later than that says that this process was kept from running, not that the store was."""


class Turns:
    """One more at once for each round of quick answers, one less for slow ones, half as many after a failure.

    Who is in line is refused, with LimiterUnavailable, when the store has answered nobody for `patience` seconds.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.answered_at = 0.0
        self._at_once = float(FEWEST)
        self._running = 0
        self._line: deque[tuple[Turn, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, turn: Turn) -> None:
        """Return when it is this one's turn. Raises LimiterUnavailable."""
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
        """The store answered one who had its turn for so long."""
        self.answered_at = asyncio.get_running_loop().time()
        if seconds < QUICK * self.patience:
            self._at_once = min(self._at_once + 1 / self._at_once, MOST)
        elif seconds > SLOW * self.patience:
            self._at_once = max(self._at_once - 1 / self._at_once, FEWEST)

    def failed(self) -> None:
        """The store did not."""
        self._at_once = max(self._at_once / 2, FEWEST)

    def end(self) -> None:
        """One turn is over: the next ones in line have theirs."""
        self._running -= 1
        while self._line and self._running < int(self._at_once):
            _, called = self._line.popleft()
            if not called.done():  # it may have left
                self._running += 1
                called.set_result(None)

    def _look(self, due: float) -> None:
        """Refuse those at the head of the line whose time is up; come back when the next one's may be."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        if now - due > LATE:  # let what has arrived meanwhile be read first
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
    """A place in line: entering waits for the turn, leaving ends it. Entered again while it lasts, it does not wait."""

    __slots__ = ("_lasts", "_turns", "began_at", "joined_at")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._lasts = False
        self.joined_at = self.began_at = 0.0

    @property
    def deadline(self) -> float:
        """Until when the store may answer, in the event loop's seconds."""
        return max(self.joined_at, self._turns.answered_at) + self._turns.patience

    def answered(self) -> None:
        """The store answered."""
        self._turns.answered(asyncio.get_running_loop().time() - self.began_at)

    def failed(self) -> None:
        """The store did not."""
        self._turns.failed()

    async def __aenter__(self) -> Self:
        """Raises LimiterUnavailable."""
        if not self._lasts:
            self.joined_at = asyncio.get_running_loop().time()
            await self._turns.wait(self)
            self._lasts = True
            self.began_at = asyncio.get_running_loop().time()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lasts:
            self._lasts = False
            self._turns.end()
