"""Counters in an SQLite file: one machine, any number of processes, and nothing forgotten when one is killed."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing
from chat_nest.core.limits import Unit
from chat_nest.core.protocols import Now
from chat_nest.core.records import RECORDS_DAYS, By, Record, UsageRow
from chat_nest.core.usage import Source
from chat_nest.limits.windows import US
from chat_nest.stores.checks import check_actual, check_claim, check_line, check_record, check_text, lease_us
from chat_nest.stores.epochs import ACCEPT, Epochs
from chat_nest.stores.reports import question, records_us, usage_rows
from chat_nest.stores.rules import SET_BACK_US, newest_first
from chat_nest.stores.sqlite.controls import SQLiteControls
from chat_nest.stores.sqlite.file import SQLiteFile, read_usage
from chat_nest.stores.sqlite.writer import Call, Page, Writer, unavailable

_SHORTEN_LEASES = (
    "UPDATE reservations SET expires_at = expires_at - (reserved_at - ?), reserved_at = ?"
    " WHERE state = 'open' AND expires_at > ? AND reserved_at > ?"
)
"""Those that a clock ahead of this one has given last as long from now as they were to last then."""

Answer = TypeVar("Answer")


class SQLiteStore:
    """A Store in the file at `path`, which is created with mode 0600; its directory must exist.

    Durability: a call is answered after its transaction was committed to the write-ahead log and synced to disk
    (synchronous=FULL). So neither kill -9 nor a power failure undoes an answered call, as far as the disk honours fsync
    (macOS's does not wait for the drive's cache). With synchronous=NORMAL, kill -9 would be as harmless, but a power
    failure would lose the last seconds' reservations, and a budget would be spent twice. Waiting calls are committed
    together, so they share a sync. A call without an answer may or may not have run: a reservation that no process
    knows of is charged when its lease ends.

    One thread runs the calls in their order. It starts with the first call and ends with `aclose`; a call after that
    starts it again. A cancelled call may still run. Use one event loop at a time, and fork before the first call.
    Several stores, in several processes too, share the file.

    A call raises LimiterUnavailable with the reason as `__cause__`, and changes nothing, if the file's lock is not free
    within `lock_timeout` seconds, the disk is full, or the file is read-only, not a database, or made by a newer
    version. If the file was removed or emptied it is a StoreEmptied, which names the command `accept`: the file's epoch
    is kept beside it, in `.NAME.epoch`. The next call tries again. A claim, line, amount or lease that breaks a rule
    raises ValueError. Finished reservations, past windows and drained rates are kept for `retention` seconds, each
    request's record for `records_days` days; 0 keeps none.
    """

    remedy = "check that the file is there and a database, its rights, and the disk"
    calls_at_once = 32
    """Calls that wait together share a commit."""

    def __init__(
        self,
        path: str | Path,
        now: Now = time.time,
        *,
        retention: float = 3 * 86_400.0,
        records_days: float = RECORDS_DAYS,
        lock_timeout: float = 0.8,
        accept: str = ACCEPT,
    ) -> None:
        self.path = Path(path).absolute()
        if self.path.name == ":memory:":
            raise ValueError("an SQLite store needs a file; use MemoryStore to keep counters in memory")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the directory of the SQLite file does not exist: {self.path.parent}")
        if self.path.is_dir():
            raise IsADirectoryError(f"the SQLite file is a directory: {self.path}")
        self.epochs = Epochs(self.path.with_name(f".{self.path.name}.epoch"), accept)
        self.place = f"the SQLite store {self.path}"
        self._now = now
        self._retention_us = int(retention * US)
        self._records_us = records_us(records_days)
        self._lock_timeout = lock_timeout
        self._writer: Writer | None = None
        self.controls = SQLiteControls(
            lambda step: self._call(lambda page: step(page.execute, page.now_us)),
            lambda step: self._call(lambda page: step(page.execute, page.now_us), writes=False),
        )

    async def reserve(self, claim: Claim, lease: float) -> Granted | Refused | Duplicate | Conflict:
        check_claim(claim)
        us = lease_us(lease)
        keys = [line.key for line in claim.lines if line.kind != "request"]
        return await self._call(lambda page: page.book.reserve(claim, us, page.now_us), [claim.id], keys)

    async def extend(self, claims: Sequence[Claim], lease: float) -> frozenset[str]:
        us = lease_us(lease)
        for claim in claims:
            check_text(claim.id, "claim.id")
        ids = [claim.id for claim in claims]
        return await self._call(lambda page: page.book.extend(claims, us, page.now_us), ids)

    async def settle(
        self, claim: Claim, actual: Mapping[Unit, int] | None, source: Source, record: Record | None = None
    ) -> bool:
        check_text(claim.id, "claim.id")
        check_actual(actual)
        check_record(record)
        spent = None if actual is None else dict(actual)  # the caller may go on counting
        return await self._call(lambda page: page.book.settle(claim, spent, source, record, page.now_us), [claim.id])

    async def release(self, claim: Claim) -> bool:
        check_claim(claim)
        return await self._call(lambda page: page.book.release(claim, page.now_us), [claim.id])

    async def peek(self, lines: Sequence[Line]) -> tuple[Standing, ...]:
        for index, line in enumerate(lines):
            check_line(line, index)
        keys = [line.key for line in lines if line.kind != "request"]
        return await self._call(lambda page: page.book.peek(lines, page.overdue, page.now_us), (), keys, writes=False)

    async def sweep(self) -> int:
        return await self._call(_sweep)

    async def running(self, most: int) -> Sequence[Record]:
        """See ListsRunning."""
        found: list[Record] = await self._call(lambda page: page.running(most), writes=False)
        return newest_first(found, most)

    async def ping(self) -> None:
        """Return if the file can be opened and locked for writing."""
        await self._call(lambda _: None)

    async def accept(self) -> None:
        """Let all processes use the file as it is, or a new one, though it was emptied or removed.

        Raises LimiterUnavailable.
        """
        file = SQLiteFile(self.path, self._retention_us, self._records_us, self.epochs)
        try:
            await asyncio.to_thread(file.accept)
        except (sqlite3.Error, OSError, ValueError) as error:
            raise unavailable(error) from error
        await self.ping()

    async def usage(
        self,
        since: float,
        until: float,
        by: Sequence[By],
        zone: ZoneInfo,
        caller: str | None = None,
        most: int | None = None,
    ) -> list[UsageRow]:
        """See Reports. Reads while the thread writes, and blocks no other call."""
        asked = question(since, until, by, zone, caller, most)
        try:
            return usage_rows(asked, await asyncio.to_thread(read_usage, self.path, asked))
        except (sqlite3.Error, OSError) as error:
            raise unavailable(error) from error

    async def aclose(self) -> None:
        """Run the waiting calls, then close the file and end the thread."""
        if self._writer is not None:
            await self._writer.stop()

    async def _call(
        self,
        run: Callable[[Page], Answer],
        ids: Sequence[str] = (),
        keys: Sequence[str] = (),
        *,
        writes: bool = True,
    ) -> Answer:
        if self._writer is None or self._writer.stopping:
            file = SQLiteFile(self.path, self._retention_us, self._records_us, self.epochs)
            self._writer = Writer(file, self._now, self._lock_timeout)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._writer.calls.put(Call(run, ids, keys, writes, answer))
        return await answer


def _sweep(page: Page) -> int:
    charged, page.charged = page.charged, 0
    ahead = page.now_us + SET_BACK_US
    page.execute(_SHORTEN_LEASES, (page.now_us, page.now_us, ahead, ahead))
    page.swept = True
    return charged
