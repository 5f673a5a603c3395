"""The copy of the controls in this process, which requests read without waiting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence

from chat_nest.controls.memory import MemoryControls
from chat_nest.core.controls import Act, Control, Snapshot
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.protocols import Controls, Now

EVERY_SECONDS = 0.75
"""Between two looks at the store: with the time of the look, a change is known within a second."""
PATIENCE_SECONDS = 1.0
"""The longest look, and the longest wait of a request for one."""
AGAIN_SECONDS = 0.1
"""The shortest time between two reads, however many requests wait: a store that is down is not called all the time."""
RECENT_SECONDS = 1.0
"""The maximum age of a copy for readers to whom an old one is useless."""

_log = logging.getLogger(__name__)
_NONE: Mapping[str, Control] = {}


class LiveControls:
    """A copy of the controls in memory. One task keeps it up to date; no request waits for the store.

    While the store does not answer, or was emptied, the last copy stays in force: pauses and blocks hold until they
    expire. Before the first copy, `ready` raises LimiterUnavailable, so that nothing is admitted past a pause. A change
    by this process is in force when `change` returns. For one event loop at a time.
    """

    def __init__(
        self,
        controls: Controls,
        now: Now = time.time,
        *,
        every: float = EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._controls = controls
        self._now = now
        self._every = every
        self._clock = clock
        self._looked_at = -math.inf
        """The beginning of the last look that the store answered."""
        self._rows: dict[str, dict[str, Control]] = {}
        self._version = 0
        self._known = False
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        """Set at the end of the look that comes next, or goes on."""
        self._wanted = asyncio.Event()
        """Set by a request that waits for the first copy: the next look comes at once."""
        self._looking = asyncio.Lock()
        """Looks follow one another: an older answer never replaces a newer one."""
        self._listeners: list[Callable[[], None]] = []
        if isinstance(controls, MemoryControls):
            self._take(controls.snapshot())
            controls.listen(self._take)
            self._looked_at = math.inf

    @property
    def known(self) -> bool:
        """Whether there is a copy."""
        return self._known

    @property
    def version(self) -> int:
        """A number that is another one after each change."""
        return self._version

    @property
    def recent(self) -> bool:
        """Whether the copy is at most a second old."""
        return self._clock() - self._looked_at < RECENT_SECONDS

    def start(self) -> None:
        """Start to look at the store, unless that goes on already. Called in the event loop."""
        if isinstance(self._controls, MemoryControls):
            return
        if self._task is None or self._task.done():
            self._looked, self._wanted = asyncio.Event(), asyncio.Event()
            self._task = asyncio.create_task(self._keep_looking())

    async def ready(self) -> None:
        """Return once there is a copy. Raises LimiterUnavailable if the store does not answer."""
        if not self._known:
            await self._wait_for_look()
            if not self._known:
                raise LimiterUnavailable

    async def current(self) -> None:
        """Return once the copy is recent. Raises LimiterUnavailable if the store does not answer."""
        if not self.recent:
            await self._wait_for_look()
            if not self.recent:
                raise LimiterUnavailable

    async def _wait_for_look(self) -> None:
        self.start()
        if self._task is not None:
            self._wanted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._looked.wait()

    def get(self, kind: str, name: str) -> Control | None:
        """Return the row, unless it has expired."""
        found = self._rows.get(kind, _NONE).get(name)
        return found if found is not None and (found.expires is None or found.expires > self._now()) else None

    def of(self, kind: str) -> Sequence[Control]:
        """Return the kind's rows that have not expired, by name."""
        rows = self._rows.get(kind)
        if not rows:
            return ()
        now = self._now()
        return [row for row in rows.values() if row.expires is None or row.expires > now]

    def kept(self, kind: str) -> Sequence[Control]:
        """Return the kind's rows by name, also those that have ended."""
        return list(self._rows.get(kind, _NONE).values())

    def has(self, kind: str) -> bool:
        """Return whether there is any row of the kind, perhaps an expired one."""
        return kind in self._rows

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change of the copy."""
        self._listeners.append(listener)

    async def change(
        self, put: Sequence[Control] = (), remove: Sequence[tuple[str, str]] = (), act: Act | None = None
    ) -> None:
        """Change the rows in the store, and then this copy. Raises what Controls.change raises."""
        await self._controls.change(put, remove, act)
        with contextlib.suppress(Exception):  # it is done; the task finds it later
            await self._look()

    async def first(self, key: str, seconds: float, report: Sequence[Control] = ()) -> bool:
        """See Controls."""
        return await self._controls.first(key, seconds, report)

    async def acts(self, most: int) -> Sequence[Act]:
        """See Controls."""
        return await self._controls.acts(most)

    async def report(self, rows: Sequence[Control]) -> None:
        """See Controls."""
        await self._controls.report(rows)

    async def reports(self, kind: str, name: str = "") -> Sequence[Control]:
        """See Controls."""
        return await self._controls.reports(kind, name)

    async def aclose(self) -> None:
        """Stop looking. The copy stays."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _keep_looking(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            self._wanted.clear()
            with contextlib.suppress(Exception):  # the store logs why it does not answer
                await self._look()
            looked, self._looked = self._looked, asyncio.Event()
            looked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._wanted.wait()
            await asyncio.sleep(max(0.0, began + AGAIN_SECONDS - clock()))

    async def _look(self) -> None:
        async with self._looking, asyncio.timeout(PATIENCE_SECONDS):
            began = self._clock()
            found = await self._controls.watch(self._version)
            if found is not None:
                self._take(found)
            self._known = True
            self._looked_at = max(self._looked_at, began)

    def _take(self, found: Snapshot) -> None:
        rows: dict[str, dict[str, Control]] = {}
        for row in found.rows:
            rows.setdefault(row.kind, {})[row.name] = row
        self._rows, self._version, self._known = rows, found.version, True
        for listener in self._listeners:
            try:
                listener()
            except Exception as bug:
                _log.error("a listener to the controls failed: %s", type(bug).__name__)
