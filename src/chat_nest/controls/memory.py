"""Controls in this process's memory, and the model for those of the other stores."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from msgspec.structs import replace

from chat_nest.core.controls import (
    KEPT_SECONDS,
    MOST_ACTS,
    MOST_ENDED,
    MOST_REPORTS,
    Act,
    Control,
    Snapshot,
    check_change,
    check_first,
    check_report,
    check_swap,
)
from chat_nest.core.protocols import Now


class MemoryControls:
    """Controls of one process; they end with it. No call waits, so every call is atomic."""

    def __init__(self, now: Now = time.time) -> None:
        self._now = now
        self._rows: dict[tuple[str, str], Control] = {}
        self._version = 0
        self._firsts: dict[str, float] = {}
        self._ends: list[tuple[float, str]] = []
        self._reports: dict[tuple[str, str], Control] = {}
        self._acts: deque[Act] = deque(maxlen=MOST_ACTS)
        self._listeners: list[Callable[[Snapshot], None]] = []

    async def change(
        self, put: Sequence[Control] = (), remove: Sequence[tuple[str, str]] = (), act: Act | None = None
    ) -> None:
        check_change(put, remove, act)
        now = self._now()
        gone = {*remove, *((kind, "") for kind, name in remove if not name)}
        kept = {key: row for key, row in self._rows.items() if key not in gone and (key[0], "") not in gone}
        ended = [key for key, row in kept.items() if row.expires is not None and row.expires <= now - KEPT_SECONDS]
        for key in sorted(ended, key=lambda key: _ends(kept[key]))[:-MOST_ENDED]:
            del kept[key]
        self._rows = kept
        self._rows |= {(row.kind, row.name): row for row in put}
        self._version = secrets.randbits(62)
        if act is not None:
            self._acts.appendleft(replace(act, at=now))
        for listener in self._listeners:
            listener(self.snapshot())

    async def watch(self, known: int) -> Snapshot | None:
        return None if known == self._version else self.snapshot()

    def snapshot(self) -> Snapshot:
        """Return all rows, also those that have ended."""
        rows = sorted(self._rows.values(), key=lambda row: (row.kind, row.name))
        return Snapshot(version=self._version, rows=tuple(rows))

    def listen(self, listener: Callable[[Snapshot], None]) -> None:
        """Call `listener` after each change: no other process makes any."""
        self._listeners.append(listener)

    async def first(self, key: str, seconds: float, report: Sequence[Control] = ()) -> bool:
        check_first(key, seconds)
        check_report(report)
        now = self._now()
        while self._ends and self._ends[0][0] <= now:
            until, ended = heappop(self._ends)
            if self._firsts.get(ended) == until:
                del self._firsts[ended]
        if key in self._firsts:
            return False
        self._firsts[key] = now + seconds
        heappush(self._ends, (now + seconds, key))
        self._put_reports(report)
        return True

    async def acts(self, most: int) -> Sequence[Act]:
        return list(self._acts)[:most]

    async def report(self, rows: Sequence[Control]) -> None:
        check_report(rows)
        self._put_reports(rows)

    def _put_reports(self, rows: Sequence[Control]) -> None:
        self._reports = {key: row for key, row in self._reports.items() if _ends(row) > self._now()}
        self._reports |= {(row.kind, row.name): row for row in rows}

    async def swap(self, known: str, row: Control) -> str:
        check_swap(row)
        found = self._reports.get((row.kind, row.name))
        value = "" if found is None or _ends(found) <= self._now() else found.value
        if value != known:
            return value
        self._reports[row.kind, row.name] = row
        return row.value

    async def reports(self, kind: str, name: str = "") -> Sequence[Control]:
        now = self._now()
        found = [
            row for row in self._reports.values() if row.kind == kind and name in ("", row.name) and _ends(row) > now
        ]
        return sorted(found, key=_ends, reverse=True)[:MOST_REPORTS]


def _ends(row: Control) -> float:
    return row.expires or 0.0
