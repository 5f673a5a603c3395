"""The outbox of one machine, for alerts that the fleet's store can't take: an SQLite file of its own.

The file is created when the first such alert comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chat_nest.core.controls import Control
from chat_nest.core.errors import StoreEmptied
from chat_nest.stores.sqlite import SQLiteStore

FILE = "alerts.db"


class LocalRows:
    """The rows of the file at `path`. Calls raise LimiterUnavailable or OSError if the disk is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store: SQLiteStore | None = None

    async def first(self, key: str, seconds: float, report: Sequence[Control] = ()) -> bool:
        """See Controls."""
        try:
            return await self._open().controls.first(key, seconds, report)
        except StoreEmptied:  # the file was removed
            await self._open().accept()
            return await self._open().controls.first(key, seconds, report)

    async def report(self, rows: Sequence[Control]) -> None:
        """See Controls."""
        await self._open().controls.report(rows)

    async def reports(self, kind: str, name: str = "") -> Sequence[Control]:
        """See Controls. Without a file there are none."""
        return await self._open().controls.reports(kind, name) if self._path.exists() else ()

    async def aclose(self) -> None:
        if self._store is not None:
            await self._store.aclose()

    def _open(self) -> SQLiteStore:
        if self._store is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._store = SQLiteStore(self._path, records_days=0)
        return self._store
