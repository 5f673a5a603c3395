"""Counters in an SQLite file: one machine, any number of processes, and nothing forgotten when one is killed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing, Unit
from chat_nest.core.errors import LimiterUnavailable, StoreEmptied
from chat_nest.core.protocols import Now
from chat_nest.core.records import RECORDS_DAYS, By, Record, UsageRow
from chat_nest.core.usage import Source
from chat_nest.limits.windows import US
from chat_nest.stores.epochs import ACCEPT, Epochs
from chat_nest.stores.reports import question, records_us, usage_rows
from chat_nest.stores.rules import (
    Book,
    Reservation,
    check_actual,
    check_claim,
    check_line,
    check_record,
    check_text,
    lease_us,
    newest_first,
)
from chat_nest.stores.sqlite.controls import Execute, SQLiteControls
from chat_nest.stores.sqlite.file import SQLiteFile, read_usage

_log = logging.getLogger(__name__)
_MOST_CALLS = 512
"""Calls in one transaction."""
_PAUSE = 0.001
"""Seconds between two attempts to lock the file."""

_RUNNING = (
    "SELECT json(record) FROM reservations WHERE state = 'open' AND expires_at > ? AND record IS NOT NULL"
    " ORDER BY seq DESC LIMIT ?"
)

_decode_record = msgspec.json.Decoder(Record).decode

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
        self._writer: _Writer | None = None
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
            raise _unavailable(error) from error
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
            raise _unavailable(error) from error

    async def aclose(self) -> None:
        """Run the waiting calls, then close the file and end the thread."""
        if self._writer is not None:
            await self._writer.stop()

    async def _call(
        self,
        run: Callable[[_Page], Answer],
        ids: Sequence[str] = (),
        keys: Sequence[str] = (),
        *,
        writes: bool = True,
    ) -> Answer:
        if self._writer is None or self._writer.stopping:
            file = SQLiteFile(self.path, self._retention_us, self._records_us, self.epochs)
            self._writer = _Writer(file, self._now, self._lock_timeout)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._writer.calls.put(_Call(run, ids, keys, writes, answer))
        return await answer


class _Page(Struct):
    """The data that one transaction works on."""

    book: Book
    now_us: int
    overdue: Sequence[Reservation]
    """Expired leases without a charge: none if the transaction writes."""
    execute: Execute
    charged: int = 0
    """Leases that this transaction charged."""
    swept: bool = False

    def running(self, most: int) -> list[Record]:
        """Return the records of open claims."""
        return [_decode_record(text) for (text,) in self.execute(_RUNNING, (self.now_us, most))]


def _sweep(page: _Page) -> int:
    charged, page.charged = page.charged, 0
    page.swept = True
    return charged


class _Call(Struct, frozen=True):
    run: Callable[[_Page], Any]
    ids: Sequence[str]
    """The reservations that it needs."""
    keys: Sequence[str]
    """The counters that it needs, besides those of its reservations."""
    writes: bool
    answer: asyncio.Future[Any]


class _Writer:
    """The thread that runs calls: all that wait in one transaction, answered after its commit."""

    def __init__(self, file: SQLiteFile, now: Now, lock_timeout: float) -> None:
        self.calls: SimpleQueue[_Call | None] = SimpleQueue()
        self.stopping = False
        self._file = file
        self._now = now
        self._lock_timeout = lock_timeout
        self._failing = False
        self._stopped: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon, so that a store left open does not keep the process alive; to stop at any point is safe.
        threading.Thread(target=self._work, name="chat-nest-sqlite", daemon=True).start()

    async def stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self.calls.put(None)
        await asyncio.shield(asyncio.wrap_future(self._stopped))

    def _work(self) -> None:
        more = True
        while more:
            calls: list[_Call] = []
            while more and len(calls) < _MOST_CALLS and not (calls and self.calls.empty()):
                call = self.calls.get()
                if call is None:
                    more = False
                else:
                    calls.append(call)
            if calls:
                _deliver(calls, self._answer(calls))
        with contextlib.suppress(sqlite3.Error):
            self._file.close()
        self._stopped.set_result(None)

    def _answer(self, calls: Sequence[_Call]) -> list[Any]:
        """Return an answer or an exception for each call."""
        give_up = time.monotonic() + self._lock_timeout
        while True:
            try:
                answers = self._transact(calls)
            except Exception as error:
                busy = _is_busy(error)
                with contextlib.suppress(sqlite3.Error):
                    self._file.rollback() if busy else self._file.close()
                if busy and time.monotonic() < give_up:
                    time.sleep(_PAUSE)
                    continue
                if not self._failing:
                    _log.warning("The SQLite store %s does not answer: %s", self._file, _name(error))
                self._failing = True
                return [_unavailable(error) for _ in calls]
            if self._failing and any(call.writes for call in calls):  # reading may work all along
                _log.warning("The SQLite store %s answers again", self._file)
                self._failing = False
            return answers

    def _transact(self, calls: Sequence[_Call]) -> list[Any]:
        file = self._file
        writes = any(call.writes for call in calls)
        file.begin(writes=writes)
        now_us = int(self._now() * US)
        ids = {id for call in calls for id in call.ids}
        book, overdue = file.load(ids, {key for call in calls for key in call.keys}, now_us)
        page = _Page(book, now_us, overdue, file.execute)
        if writes:
            book.expire(overdue, now_us)
            page.charged, page.overdue = len(overdue), ()
        answers: list[Any] = []
        for call in calls:
            try:
                answers.append(call.run(page))
            except sqlite3.Error:
                raise
            except Exception as error:  # a Book changes nothing before it is sure: the other calls stand
                answers.append(error)
        if writes:
            file.save(book)
            file.purge(now_us, now=page.swept)
        file.commit()
        return answers


def _deliver(calls: Sequence[_Call], answers: Sequence[Any]) -> None:
    pairs = zip(calls, answers, strict=True)
    for loop, group in groupby(pairs, key=lambda pair: pair[0].answer.get_loop()):
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits
            loop.call_soon_threadsafe(_resolve, list(group))


def _resolve(pairs: Sequence[tuple[_Call, Any]]) -> None:
    for call, answer in pairs:
        if call.answer.done():
            continue  # cancelled
        if isinstance(answer, Exception):
            call.answer.set_exception(answer)
        else:
            call.answer.set_result(answer)


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _name(error: Exception) -> str:
    if isinstance(error, StoreEmptied):
        return error.advice
    return str(getattr(error, "sqlite_errorname", "")) or type(error).__name__


def _unavailable(cause: Exception) -> LimiterUnavailable:
    if isinstance(cause, StoreEmptied):
        return cause
    error = LimiterUnavailable()
    error.__cause__ = cause
    return error
