"""Runs kept in memory for readers who reconnect: numbered batches in no dialect's format, and each run's ending.

The memory log is for one process. Appending never waits, so a log does not slow a run; an append wakes the readers that
follow.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence

from chat_nest.core.deltas import AskedDelta, Batch, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.core.protocols import Finale

MAX_TEXT = 1 << 20
"""The most that is kept of one run, in characters and their containers; its oldest part is then forgotten."""
MAX_RUNS = 10_000
MAX_ENDED = 64 << 20
"""The most that is kept of all ended runs; the oldest are then forgotten before their time."""
BATCH_WEIGHT = 150
"""The size of a batch besides its text."""


class MemoryRun:
    """One run's batches, numbered from 1: the writer's end and the readers' (protocols.RunLog and FollowedRun)."""

    def __init__(self, id: str, owner: str, model: str) -> None:
        self.id = id
        self.owner = owner
        self.model = model
        self._readers = 0
        self._left_at = 0.0
        self.finale: Finale | None = None
        self._batches: list[Batch] = []
        self._forgotten = 0
        self.size = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def append(self, batch: Batch) -> int:
        """Keep one batch and return its number. It runs for each token."""
        self._batches.append(batch)
        one = batch[0] if len(batch) == 1 else None
        self.size += len(one.text) + BATCH_WEIGHT if type(one) is TextDelta else _size(batch)
        while self.size > MAX_TEXT and len(self._batches) > 1:
            self.size -= _size(self._batches.pop(0))
            self._forgotten += 1
        if self._waiting:
            self._wake()
        return self._forgotten + len(self._batches)

    def end(self, finale: Finale) -> int:
        """Set the ending; nothing is appended afterwards."""
        self.finale = finale
        self._wake()
        return self.last + 1

    def behind(self, after: int) -> list[Batch]:
        """Return the available batches after number `after`. Raises LookupError if they are gone."""
        if after < self._forgotten:
            raise LookupError
        return self._batches[after - self._forgotten :]

    @property
    def readers(self) -> int:
        return self._readers

    @property
    def left_at(self) -> float:
        return self._left_at

    @property
    def forgotten(self) -> int:
        """The number of the last batch that was forgotten."""
        return self._forgotten

    @property
    def last(self) -> int:
        """The number of the last batch."""
        return self._forgotten + len(self._batches)

    async def news(self) -> None:
        """Return after the next batch, or the end."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(woken)
        try:
            await woken
        finally:
            self._waiting.discard(woken)

    async def read(self, after: int) -> AsyncGenerator[tuple[int, Batch], None]:
        """Yield the batches after number `after` as they come. Raises LookupError if they are gone."""
        self.join()
        try:
            while True:
                for batch in self.behind(after):
                    after += 1
                    yield after, batch
                if after < self.last:
                    continue
                if self.finale is not None:
                    return
                await self.news()
        finally:
            self.leave()

    def join(self) -> None:
        """Count one more reader, until `leave`."""
        self._readers += 1

    def leave(self) -> None:
        self._readers -= 1
        self._left_at = asyncio.get_running_loop().time()

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)


class MemoryRuns:
    """The runs of one process (protocols.RunLogs), each kept for `keep` seconds after its end; `clock` is monotonic."""

    def __init__(self, *, keep: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep = keep
        self._clock = clock
        self._runs: dict[str, MemoryRun] = {}
        self._named: dict[str, str] = {}
        self._ended: OrderedDict[str, tuple[float, Sequence[str]]] = OrderedDict()
        self._size = 0
        """The size of the ended runs."""

    def begin(self, id: str, owner: str, model: str, names: Sequence[str] = ()) -> MemoryRun:
        """Keep a new run, which can also be found by `names`: of the same name, the newest run is found."""
        run = MemoryRun(id, owner, model)
        self.put(run, names)
        return run

    def put(self, run: MemoryRun, names: Sequence[str] = ()) -> None:
        """Keep this run."""
        self._forget()
        self._runs[run.id] = run
        for name in names:
            self._named[name] = run.id

    def ended(self, id: str, names: Sequence[str] = ()) -> None:
        """Forget the run after a while."""
        if id in self._runs and id not in self._ended:
            self._ended[id] = (self._clock() + self._keep, names)
            self._size += self._runs[id].size
            self._forget()

    async def find(self, name: str) -> MemoryRun | None:
        """Return the run with this id or name."""
        self._forget()
        return self._runs.get(self._named.get(name, name))

    def listen(self, stop: Callable[[str, str], bool]) -> None:
        """Do nothing: there is no other process."""

    def attend(self) -> None:
        """Do nothing: there is no other process."""

    async def stop(self, name: str, owner: str) -> bool:  # noqa: ARG002 - the seam's
        """Return False: there is no other process."""
        return False

    async def forget(self, id: str, owner: str) -> bool:
        """Forget a run of this owner that has ended."""
        run = self._runs.get(id)
        if run is None or run.owner != owner or id not in self._ended:
            return False
        _, names = self._ended.pop(id)
        self._remove(id, names)
        return True

    async def aclose(self) -> None:
        """Do nothing: no resource is open."""

    def _forget(self) -> None:
        now = self._clock()
        while self._ended:
            id, (until, names) = next(iter(self._ended.items()))
            if until > now and len(self._ended) < MAX_RUNS and self._size <= MAX_ENDED:
                return
            del self._ended[id]
            self._remove(id, names)

    def _remove(self, id: str, names: Sequence[str]) -> None:
        self._size -= self._runs.pop(id).size
        for name in names:
            if self._named.get(name) == id:
                del self._named[name]


_SPOKEN = (TextDelta, ReasoningDelta, ToolCallDelta, AskedDelta)


def _size(batch: Batch) -> int:
    return sum(len(delta.text) for delta in batch if isinstance(delta, _SPOKEN)) + BATCH_WEIGHT
