"""One connection to the SQLite file of counters and reservations: its schema, and a Book's way in and out of it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from chat_nest.stores.book import Book, Counter, Reservation
from chat_nest.stores.reports import BY, COLUMNS, NO_ERRORS, SQLITE, Question, request_row
from chat_nest.stores.sqlite_schema import RECORDS_SINCE, migrate, version_of

_ROWS = 64
"""Rows a statement. The interpreter lock is given up once a statement, not once a row: a busy event loop would take
it, and each row would then wait for its turn."""
_VALUES = 999
"""Values a statement: older SQLites take no more."""
_PURGE_AFTER = 256

_LOAD_RESERVATIONS = """
SELECT json_group_array(json_array(
  id, fingerprint, state, output, reserved_at, expires_at, finished_at, source, json(lines),
  json(record), owner))
FROM reservations
WHERE id IN (SELECT value FROM json_each(?)) OR (state = 'open' AND expires_at <= ?)
"""
_LOAD_COUNTERS = """
SELECT json_group_array(json_array(key, kind, used, held, tat, ends_at))
FROM counters WHERE key IN (SELECT value FROM json_each(?))
"""
_SOONEST = "SELECT expires_at FROM reservations WHERE state = 'open' AND instr(lines, ?) ORDER BY expires_at LIMIT 1"
_SAVE_COUNTERS = "INSERT OR REPLACE INTO counters (key, kind, used, held, tat, ends_at) VALUES "
_SAVE_RESERVATIONS = """
INSERT INTO reservations (id, fingerprint, state, output, reserved_at, expires_at, finished_at, source, lines,
record, owner)
VALUES """
_OR_UPDATE = """
ON CONFLICT (id) DO UPDATE SET state = excluded.state, expires_at = excluded.expires_at,
finished_at = excluded.finished_at, source = excluded.source, lines = excluded.lines,
record = excluded.record
"""
_SAVE_REQUESTS = f"INSERT OR REPLACE INTO requests ({COLUMNS}) VALUES "  # noqa: S608 - our own words
_EXTEND = "UPDATE reservations SET expires_at = ? WHERE id IN (SELECT value FROM json_each(?))"
_PURGE_RESERVATIONS = """
DELETE FROM reservations WHERE seq IN (
  SELECT seq FROM (SELECT seq, state, finished_at FROM reservations ORDER BY seq LIMIT ?)
  WHERE state <> 'open' AND finished_at <= ?)
"""
_NEXT_KEYS = "SELECT max(key) FROM (SELECT key FROM counters WHERE key > ? ORDER BY key LIMIT ?)"
_PURGE_COUNTERS = "DELETE FROM counters WHERE key > ? AND key <= ? AND held = 0 AND max(tat, ends_at) <= ?"
_PURGE_REQUESTS = """
DELETE FROM requests WHERE started_at <= (
  SELECT max(started_at) FROM (SELECT started_at FROM requests WHERE started_at <= ? ORDER BY started_at LIMIT ?))
"""

_encode = msgspec.json.encode
_decode_reservations = msgspec.json.Decoder(list[Reservation]).decode
_decode_counters = msgspec.json.Decoder(list[Counter]).decode


class SQLiteFile:
    """A file and, while it is open, the one connection to it. For one thread; its methods block.

    They raise sqlite3.Error, OSError or ValueError. The caller then rolls back, or closes; the next `begin` opens the
    file again. `begin` creates the file when it opens it for the first time, and never again: a file that was removed
    under a running process is an error, not an empty budget. Records are kept for `records_us`, reservations and
    counters for `retention_us`.
    """

    def __init__(self, path: Path, retention_us: int, records_us: int) -> None:
        self._path = path
        self._retention_us = retention_us
        self._records_us = records_us
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._added = 0
        self._purged_to = ""

    def begin(self, *, writes: bool) -> None:
        if self._connection is not None and self._identity != _identity(self._path):
            self.close()  # the file was replaced, by a backup perhaps
        if self._connection is None:
            self._connection = self._open()
        self._connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    def commit(self) -> None:
        self._execute("COMMIT")

    def rollback(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def load(self, ids: Iterable[str], keys: Iterable[str], now_us: int) -> tuple[Book, list[Reservation]]:
        """Return a Book of these reservations and counters, and of those whose leases have run out; and the latter."""
        [found] = self._execute(_LOAD_RESERVATIONS, (_json(list(ids)), now_us)).fetchone()
        reservations = {reservation.id: reservation for reservation in _decode_reservations(found)}
        wanted = {*keys, *(hold.key for reservation in reservations.values() for hold in reservation.holds)}
        [found] = self._execute(_LOAD_COUNTERS, (_json(list(wanted)),)).fetchone()
        counters = {counter.key: counter for counter in _decode_counters(found)}
        overdue = [one for one in reservations.values() if one.state == "open" and one.expires_at <= now_us]

        def soonest(key: str) -> int | None:
            self.save(book)
            row = self._execute(_SOONEST, (f'"key":{_json(key)}',)).fetchone()
            return None if row is None else int(row[0])

        book = Book(counters, reservations, soonest)
        return book, overdue

    def save(self, book: Book) -> None:
        """Write what the Book changed since it was loaded or saved."""
        if not (book.changed or book.extended):
            return
        keys = {hold.key for reservation in book.changed for hold in reservation.holds}
        counters = [book.counters[key] for key in keys if key in book.counters]
        self._write(_SAVE_COUNTERS, "", [(c.key, c.kind, c.used, c.held, c.tat, c.ends_at) for c in counters])
        changed = {reservation.id: reservation for reservation in book.changed}
        self._write(_SAVE_RESERVATIONS, _OR_UPDATE, [_row(reservation) for reservation in changed.values()])
        if self._records_us:
            over = [one for one in changed.values() if one.state in ("settled", "expired")]
            self._write(_SAVE_REQUESTS, "", [request_row(one.id, one.record) for one in over if one.record is not None])
        self._added += len(changed)
        leases: dict[int, list[str]] = {}  # thousands of leases are renewed at once, most until the same time
        for reservation in book.extended:
            leases.setdefault(reservation.expires_at, []).append(reservation.id)
        for expires_at, ids in leases.items():
            self._execute(_EXTEND, (expires_at, _json(ids)))
        book.changed.clear()
        book.extended.clear()
        book.created.clear()

    def purge(self, now_us: int, *, now: bool) -> None:
        """Delete some rows that nobody asks for any more: twice as many as were added since, or more if `now`."""
        if not now and self._added < _PURGE_AFTER:
            return
        rows = 2 * self._added + 4 * _PURGE_AFTER
        self._added = 0
        before = now_us - self._retention_us
        self._execute(_PURGE_RESERVATIONS, (rows, before))
        [to] = self._execute(_NEXT_KEYS, (self._purged_to, rows)).fetchone()
        if to is not None:
            self._execute(_PURGE_COUNTERS, (self._purged_to, to, before))
        self._purged_to = to or ""
        self._execute(_PURGE_REQUESTS, (now_us - self._records_us, rows))

    def _write(self, insert: str, conflict: str, rows: Sequence[tuple[Any, ...]]) -> None:
        step = min(_ROWS, _VALUES // len(rows[0])) if rows else 1
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            self._execute(insert + _places(len(some), len(some[0])) + conflict, tuple(chain.from_iterable(some)))

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        if self._connection is None:
            raise sqlite3.ProgrammingError("the file is not open")
        return self._connection.execute(statement, values)

    def _open(self) -> sqlite3.Connection:
        if self._identity is None:
            # Only ever create: to close a file that has a connection would drop that connection's POSIX locks.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        # The caller retries where the file is locked: more fairly among processes than SQLite's own waiting, whose
        # steps grow to 100 ms. No open statement is cached for fewer row counts than there are.
        connection = sqlite3.connect(
            self._path.as_uri() + "?mode=rw", uri=True, timeout=0, isolation_level=None, cached_statements=256
        )
        try:
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise sqlite3.NotSupportedError("the file's directory can't hold a write-ahead log")
            connection.execute("PRAGMA synchronous = FULL")
            migrate(connection)
            self._identity = _identity(self._path)
        except BaseException:
            connection.close()
            raise
        return connection


def read_usage(path: Path, asked: Question) -> list[Any]:
    """Answer a report's question from the file, which is neither created nor changed, besides whoever writes to it.

    Raises sqlite3.Error, or OSError where there is no file.
    """
    path.stat()
    given = {f"by_{name}": name in asked.by for name in BY}
    with contextlib.closing(sqlite3.connect(path.as_uri() + "?mode=ro", uri=True, timeout=5.0)) as connection:
        if version_of(connection) < RECORDS_SINCE:
            return []  # no store that keeps records has opened it yet
        return connection.execute(
            SQLITE,
            {**given, "spans": _json(asked.spans), "no_errors": _json(NO_ERRORS), "caller": asked.caller},
        ).fetchall()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _row(reservation: Reservation) -> tuple[Any, ...]:
    return (
        reservation.id,
        reservation.fingerprint,
        reservation.state,
        reservation.output,
        reservation.reserved_at,
        reservation.expires_at,
        reservation.finished_at,
        reservation.source,
        _json(reservation.holds),
        None if reservation.record is None else _json(reservation.record),
        reservation.owner,
    )


def _json(value: Any) -> str:
    return _encode(value).decode()


@cache
def _places(rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return ", ".join([row] * rows)
