"""What runs have said, kept for readers who come back: numbered batches in no dialect's words, and how each run ended.

The memory log is for one process. Appending never waits, so a run costs the same with a log; a reader that follows is
woken by the append.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence

from chat_nest.deltas import Batch, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.protocols import Finale

MAX_TEXT = 1 << 20
"""Characters that are kept of one run; its oldest are then forgotten."""
MAX_RUNS = 10_000


class MemoryRun:
    """One run's batches, numbered from 1: the writer's end and the readers' (protocols.RunLog and FollowedRun)."""

    def __init__(self, id: str, owner: str, model: str) -> None:
        self.id = id
        self.owner = owner
        self.model = model
        self.readers = 0
        self.finale: Finale | None = None
        self._batches: list[Batch] = []
        self._forgotten = 0
        self._size = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def append(self, batch: Batch) -> int:
        """Keep one batch and return its number."""
        self._batches.append(batch)
        self._size += _size(batch)
        while self._size > MAX_TEXT and len(self._batches) > 1:
            self._size -= _size(self._batches.pop(0))
            self._forgotten += 1
        if self._waiting:
            self._wake()
        return self._forgotten + len(self._batches)

    def end(self, finale: Finale) -> int:
        """Say how the run ended; nothing is appended afterwards."""
        self.finale = finale
        self._wake()
        return self._forgotten + len(self._batches) + 1

    async def read(self, after: int) -> AsyncGenerator[tuple[int, Batch], None]:
        """Yield the batches behind number `after` as they come. Raises LookupError where they are gone."""
        self.readers += 1
        try:
            while True:
                if after < self._forgotten:
                    raise LookupError
                for batch in self._batches[after - self._forgotten :]:
                    after += 1
                    yield after, batch
                if after < self._forgotten + len(self._batches):
                    continue
                if self.finale is not None:
                    return
                woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.add(woken)
                try:
                    await woken
                finally:
                    self._waiting.discard(woken)
        finally:
            self.readers -= 1

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

    def begin(self, id: str, owner: str, model: str, names: Sequence[str] = ()) -> MemoryRun:
        """Keep a new run, which can also be found by `names`: of the same name, the newest run is found."""
        self._forget()
        run = self._runs[id] = MemoryRun(id, owner, model)
        for name in names:
            self._named[name] = id
        return run

    def ended(self, id: str, names: Sequence[str] = ()) -> None:
        """Forget the run after a while."""
        self._ended[id] = (self._clock() + self._keep, names)

    async def find(self, name: str) -> MemoryRun | None:
        """The run with this id or name."""
        self._forget()
        return self._runs.get(self._named.get(name, name))

    def listen(self, stop: Callable[[str, str], bool]) -> None:
        """There is no other process."""

    async def stop(self, name: str, owner: str) -> bool:  # noqa: ARG002 - the seam's
        """There is no other process."""
        return False

    async def aclose(self) -> None:
        """Nothing is open."""

    def _forget(self) -> None:
        now = self._clock()
        while self._ended:
            id, (until, names) = next(iter(self._ended.items()))
            if until > now and len(self._runs) < MAX_RUNS:
                return
            del self._ended[id]
            self._runs.pop(id, None)
            for name in names:
                if self._named.get(name) == id:
                    del self._named[name]


def _size(batch: Batch) -> int:
    return sum(len(delta.text) for delta in batch if isinstance(delta, TextDelta | ReasoningDelta | ToolCallDelta)) + 1
