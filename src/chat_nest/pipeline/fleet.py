"""One worker's part of a provider's streams, which all workers on one store share.

A worker keeps streams that it used within the last second, so a request gets one without a call to the store. It calls
the store when a request needs one more, and for each stream that ends while requests wait anywhere. While it has
streams, it checks once a second whether other workers wait; while its own requests wait, ten times a second.

A worker never has more streams than the board gives it, so all workers together never exceed the limit. A worker that
has not written for LEASE seconds counts as dead, and its streams are free again. Clocks of different machines are never
compared. Without the store a worker keeps its streams; after LEASE seconds it uses an equal share, as all others then
do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Protocol

import msgspec

from chat_nest.core.controls import Control
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.protocols import Controls, Swaps
from chat_nest.pipeline.board import EMPTY, Board, exchange, positions, read, stamped, write

KIND = "queue"
"""The kind of the reports that are boards. Their names are those of the providers."""
LEASE = 10.0
LOOK = 1.0
"""Seconds between two looks at the board, while this worker has streams."""
WAITING_LOOK = 0.1
"""While its requests wait."""
PATIENCE = 0.7
"""Seconds for the store's answers in one exchange."""
TRIES = 20
"""How often other workers may write between our look and our write."""
DAY = 86_400.0


class SharedControls(Controls, Swaps, Protocol):
    """Controls that keep boards."""


class Fleet:
    """Shares one provider's streams with the other workers.

    `running` returns how many are open here, `wanted` the callers that wait here, hashed, in the order of this worker.
    `serve` gives a stream to a request of each of these callers, or to none if it has left.
    """

    def __init__(
        self,
        provider: str,
        controls: SharedControls,
        running: Callable[[], int],
        wanted: Callable[[], Sequence[str]],
        serve: Callable[[Sequence[str]], None],
    ) -> None:
        self.most = 0
        self.peak = 0
        """The most streams that were open here at once since the last look."""
        self.alone = False
        """Whether the store does not answer."""
        self._provider = provider
        self._controls = controls
        self._running, self._wanted, self._serve = running, wanted, serve
        self._streams = 0
        self._board = EMPTY
        self._text: str = ""
        self._me = ""
        self._beat = 0
        self._due = 0.0
        """When this worker must write again, so that the others know that it lives."""
        self._heard_at = 0.0
        self._seen: dict[str, tuple[int, float]] = {}
        """The last beat of each worker, and when it was new."""
        self._asked: list[asyncio.Future[None]] = []
        self._kicked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closes = False

    @property
    def room(self) -> int:
        """The most streams that may be open here."""
        if self.alone and _now() - self._heard_at > LEASE:
            return max(1, self.most // max(1, len({*self._board.shares, self._me})))
        return self._streams

    @property
    def contended(self) -> bool:
        """Whether requests of other workers wait, as far as this one knows."""
        return any(share.waits for name, share in self._board.shares.items() if name != self._me)

    def kick(self) -> None:
        """Exchange streams with the board soon."""
        if self._closes:
            return
        if self._task is None or self._task.done():
            self._me = self._me or token_hex(4)
            self._heard_at = self._heard_at or _now()
            self._kicked = asyncio.Event()
            self._task = asyncio.get_running_loop().create_task(self._exchange_while_needed())
        self._kicked.set()

    async def ask(self) -> None:
        """Return when an exchange has ended that knew what is wanted now. Raises LimiterUnavailable."""
        if self.alone:
            raise LimiterUnavailable
        asked = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self.kick()
        await asked

    def positions(self) -> dict[str, list[int]]:
        """Return the positions of each caller's waiting requests, of those that wait here only."""
        found = positions(self._board)
        mine = self._board.shares.get(self._me)
        if mine is None:
            return {}
        here: dict[str, list[int]] = {}
        for caller in mine.waits:
            workers = sum(caller in share.waits for share in self._board.shares.values())
            here[caller] = list(found[caller][::workers])  # its requests at several workers alternate
        return here

    def stop(self) -> asyncio.Task[None] | None:
        """Stop to share; return what ends soon. The others have the streams when the lease ends."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        asked, self._asked = self._asked, []
        _end(asked)
        return task

    async def aclose(self) -> None:
        """Give all streams back, if the store answers."""
        task = self.stop()
        if task is None:
            return
        await asyncio.wait([task])
        if self._streams and not self.alone:
            self._closes = True
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._exchange()
            except Exception:
                return  # the lease ends
            finally:
                self._closes = False

    async def _exchange_while_needed(self) -> None:
        looks = False
        while True:
            asked, self._asked = self._asked, []
            self._kicked.clear()
            failed = False
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._exchange(looks=looks)
            except asyncio.CancelledError:
                _end(asked)
                raise
            except Exception:
                failed = True
            self.alone = failed
            _end(asked, failed=failed)
            if failed:
                self._serve(())
            wanted = self._wanted()
            if not failed and not self._streams and not self._running() and not wanted and not self._asked:
                self._task = None
                return
            looks = await self._wait(WAITING_LOOK if wanted and not failed else LOOK, kicks=not failed)

    async def _wait(self, seconds: float, *, kicks: bool) -> bool:
        """Wait for a kick, and return whether none came in time. Without `kicks`, wait for the whole time."""
        if not kicks:
            await asyncio.sleep(seconds)
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._kicked.wait()
        except TimeoutError:
            return True
        return False

    async def _exchange(self, *, looks: bool = False) -> None:
        if looks:
            rows = await self._controls.reports(KIND, self._provider)
            self._see(rows[0].value if rows else "")
        for _ in range(TRIES):
            board = self._without_dead()
            wanted = self._wanted()
            kept = self._streams = self._kept(wanted, looks=looks)
            board, here = exchange(board, self._me, self.most, kept, wanted)
            if board == self._board and (self._me not in board.shares or _now() < self._due):
                return
            text = write(stamped(board, self._me, self._beat + 1))
            row = Control(kind=KIND, name=self._provider, value=text, expires=time.time() + DAY)
            due = _now() + LEASE / 3
            self._see(await self._controls.swap(self._text, row))
            if self._text == text:
                self._beat, self._due = self._beat + 1, due
                self._streams = kept + len(here)
                self._serve(here)
                return
        self._kicked.set()

    def _kept(self, wanted: Sequence[str], *, looks: bool) -> int:
        """Return how many streams to keep: if requests wait anywhere, no more than are open."""
        running = self._running()
        kept = running if wanted or self.contended else max(running, min(self._streams, self.peak))
        if looks:
            self.peak = running
        return kept

    def _see(self, text: str) -> None:
        self._heard_at = _now()
        if text != self._text:
            self._text = text
            try:
                self._board = read(text) if text else EMPTY
            except msgspec.MsgspecError:  # of another version: it begins anew
                self._board = EMPTY

    def _without_dead(self) -> Board:
        """Return the board without workers that have not written for LEASE seconds."""
        now, shares = _now(), self._board.shares
        known, self._seen = self._seen, {}
        for name, share in shares.items():
            before = known.get(name)
            self._seen[name] = before if before is not None and before[0] == share.beat else (share.beat, now)
        alive = {
            name: share for name, share in shares.items() if name == self._me or now - self._seen[name][1] <= LEASE
        }
        return self._board if len(alive) == len(shares) else Board(self._board.number, self._board.order, alive)


def _end(asked: Sequence[asyncio.Future[None]], *, failed: bool = False) -> None:
    for each in asked:
        if not each.done():
            if failed:
                each.set_exception(LimiterUnavailable())
            else:
                each.set_result(None)


def _now() -> float:
    return asyncio.get_running_loop().time()
