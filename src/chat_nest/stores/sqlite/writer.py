"""The thread that writes to the SQLite file: calls that wait together share one transaction."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from queue import SimpleQueue
from typing import Any

import msgspec
from msgspec import Struct

from chat_nest.core.errors import LimiterUnavailable, StoreEmptied
from chat_nest.core.protocols import Now
from chat_nest.core.records import Record
from chat_nest.limits.windows import US
from chat_nest.stores.rules import Book, StoredClaim
from chat_nest.stores.sqlite.controls import Execute
from chat_nest.stores.sqlite.file import SQLiteFile

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


class Call(Struct, frozen=True):
    run: Callable[[Page], Any]
    ids: Sequence[str]
    """The reservations that it needs."""
    keys: Sequence[str]
    """The counters that it needs, besides those of its reservations."""
    writes: bool
    answer: asyncio.Future[Any]


class Writer:
    """The thread that runs calls: all that wait in one transaction, answered after its commit."""

    def __init__(self, file: SQLiteFile, now: Now, lock_timeout: float) -> None:
        self.calls: SimpleQueue[Call | None] = SimpleQueue()
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
            calls: list[Call] = []
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

    def _answer(self, calls: Sequence[Call]) -> list[Any]:
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
                return [unavailable(error) for _ in calls]
            if self._failing and any(call.writes for call in calls):  # reading may work all along
                _log.warning("The SQLite store %s answers again", self._file)
                self._failing = False
            return answers

    def _transact(self, calls: Sequence[Call]) -> list[Any]:
        file = self._file
        writes = any(call.writes for call in calls)
        file.begin(writes=writes)
        now_us = int(self._now() * US)
        ids = {id for call in calls for id in call.ids}
        book, overdue = file.load(ids, {key for call in calls for key in call.keys}, now_us)
        page = Page(book, now_us, overdue, file.execute)
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


def _deliver(calls: Sequence[Call], answers: Sequence[Any]) -> None:
    pairs = zip(calls, answers, strict=True)
    for loop, group in groupby(pairs, key=lambda pair: pair[0].answer.get_loop()):
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits
            loop.call_soon_threadsafe(_resolve, list(group))


def _resolve(pairs: Sequence[tuple[Call, Any]]) -> None:
    for call, answer in pairs:
        if call.answer.done():
            continue  # cancelled
        if isinstance(answer, Exception):
            call.answer.set_exception(answer)
        else:
            call.answer.set_result(answer)


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


class Page(Struct):
    """The data that one transaction works on."""

    book: Book
    now_us: int
    overdue: Sequence[StoredClaim]
    """Expired leases without a charge: none if the transaction writes."""
    execute: Execute
    charged: int = 0
    """Leases that this transaction charged."""
    swept: bool = False

    def running(self, most: int) -> list[Record]:
        """Return the records of open claims."""
        return [_decode_record(text) for (text,) in self.execute(_RUNNING, (self.now_us, most))]


def _name(error: Exception) -> str:
    if isinstance(error, StoreEmptied):
        return error.advice
    return str(getattr(error, "sqlite_errorname", "")) or type(error).__name__


def unavailable(cause: Exception) -> LimiterUnavailable:
    if isinstance(cause, StoreEmptied):
        return cause
    error = LimiterUnavailable()
    error.__cause__ = cause
    return error
