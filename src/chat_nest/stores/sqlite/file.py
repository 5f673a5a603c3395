"""One connection to the SQLite file of counters and reservations: its schema, and loading and saving a Book.

The file is long because the SQL of each table is beside what it loads and saves.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from chat_nest.core.controls import GRANT
from chat_nest.stores.epochs import Epochs
from chat_nest.stores.reports import BY, COLUMNS, NO_ERRORS, SQLITE, Question, request_row, started_us
from chat_nest.stores.rules import Book, Counter, StoredClaim
from chat_nest.stores.sqlite.controls import change_controls
from chat_nest.stores.sqlite.schema import RECORDS_SINCE, gone, migrate, version_of

_PART = "0"
_REMOVED = "the file was removed, and what was spent is not known any more"
_DROPPED = "a table of the file was dropped, and what was spent is not known any more"
_ACCEPTING = 10.0
"""Seconds to wait for the lock of a file that an operator accepts."""
_ROWS = 64
"""Rows a statement. Each statement releases the interpreter lock once: with one row a statement, a busy event loop
would take it each time, and each row would wait for its turn."""
_VALUES = 999
"""Values a statement: older versions of SQLite allow no more."""
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
ON CONFLICT (id) DO UPDATE SET state = excluded.state, output = excluded.output, reserved_at = excluded.reserved_at,
expires_at = excluded.expires_at, finished_at = excluded.finished_at, source = excluded.source, lines = excluded.lines,
record = excluded.record, owner = excluded.owner
"""
_NEW_EPOCH = "INSERT OR IGNORE INTO counters (key, kind, used, held, tat, ends_at) VALUES (?, 'rate', 0, 0, ?, 0)"
_SAVE_REQUESTS = f"INSERT OR REPLACE INTO requests ({COLUMNS}) VALUES "  # noqa: S608 - our own words
_EXTEND = "UPDATE reservations SET reserved_at = ?, expires_at = ? WHERE id IN (SELECT value FROM json_each(?))"
_PURGE_RESERVATIONS = """
DELETE FROM reservations WHERE seq IN (
  SELECT seq FROM (SELECT seq, state, finished_at FROM reservations ORDER BY seq LIMIT ?)
  WHERE state <> 'open' AND finished_at <= ?)
"""
_NEXT_KEYS = "SELECT max(key) FROM (SELECT key FROM counters WHERE key > ? ORDER BY key LIMIT ?)"
_PURGE_COUNTERS = "DELETE FROM counters WHERE key > ? AND key <= ? AND held = 0 AND max(tat, ends_at) <= ?"
_FORGET_REQUEST = "DELETE FROM requests WHERE started_at = ? AND id = ?"
_PURGE_REQUESTS = """
DELETE FROM requests WHERE started_at <= (
  SELECT max(started_at) FROM (SELECT started_at FROM requests WHERE started_at <= ? ORDER BY started_at LIMIT ?))
"""

_encode = msgspec.json.encode
_decode_reservations = msgspec.json.Decoder(list[StoredClaim]).decode
_decode_counters = msgspec.json.Decoder(list[Counter]).decode


EPOCH_KEY = ""
"""The key, which no line has, of the counter row that holds the file's epoch in `tat`: it disappears with the others
when that table is emptied. `used` is 1 if an operator has accepted it for callers that saw another one."""


class SQLiteFile:
    """A file and, while it is open, the one connection to it. For one thread; its methods block.

    They raise sqlite3.Error, OSError or ValueError. The caller then rolls back, or closes; the next `begin` opens the
    file again. `begin` creates the file only if `epochs` remembers none: a file that was removed or emptied is a
    StoreEmptied, not an empty budget. Records are kept for `records_us`, reservations and counters for `retention_us`.
    """

    def __init__(self, path: Path, retention_us: int, records_us: int, epochs: Epochs) -> None:
        self._path = path
        self._epochs = epochs
        self._found = ""
        """The epoch that this transaction found."""
        self._retention_us = retention_us
        self._records_us = records_us
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._reads_only = False
        self._added = 0
        self._purged_to = ""

    def __str__(self) -> str:
        """Return the path."""
        return str(self._path)

    def begin(self, *, writes: bool) -> None:
        try:
            if self._connection is not None and self._identity != _identity(self._path):
                self.close()  # the file was replaced, by a backup perhaps
            if self._connection is None:
                self._connection = self._open()
        except FileNotFoundError:
            if self._epochs.known(_PART):
                raise self._epochs.emptied(_REMOVED) from None
            raise
        self._reads_only = not writes
        self._connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    def commit(self) -> None:
        self.execute("COMMIT")
        if self._found:
            self._epochs.believe(_PART, self._epochs.known(_PART), self._found)

    def rollback(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def load(self, ids: Iterable[str], keys: Iterable[str], now_us: int) -> tuple[Book, list[StoredClaim]]:
        """Return a Book of these reservations and counters and of those with expired leases; and the latter."""
        found = self._read(_LOAD_RESERVATIONS, (_json(list(ids)), now_us))
        reservations = {reservation.id: reservation for reservation in _decode_reservations(found)}
        wanted = {EPOCH_KEY, *keys, *(hold.key for reservation in reservations.values() for hold in reservation.holds)}
        found = self._read(_LOAD_COUNTERS, (_json(list(wanted)),))
        counters = {counter.key: counter for counter in _decode_counters(found)}
        self._check_epoch(counters.pop(EPOCH_KEY, None))
        overdue = [one for one in reservations.values() if one.state == "open" and one.expires_at <= now_us]

        def soonest(key: str) -> int | None:
            self.save(book)
            row = self.execute(_SOONEST, (f'"key":{_json(key)}',)).fetchone()
            return None if row is None else int(row[0])

        book = Book(counters, reservations, soonest)
        return book, overdue

    def accept(self) -> None:
        """Create a missing file, accept its epoch for all callers that have seen another one, and close it.

        Dropped tables are created again. If the counters are gone, so are the holds on them: a later settlement would
        take them from counters that never had them. So are the grants: they raised limits whose use is forgotten. If
        the reservations are gone, what they held is charged.
        """
        with contextlib.closing(self._open(anew=True)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for statement in gone(connection):
                connection.execute(statement)
            if connection.execute("SELECT 1 FROM counters WHERE key = ?", (EPOCH_KEY,)).fetchone() is None:
                connection.execute("DELETE FROM reservations WHERE state IN ('open', 'expired')")
                change_controls(connection.execute, 0, (), [(GRANT, "")], None)
            if connection.execute("SELECT 1 FROM reservations").fetchone() is None:
                connection.execute("UPDATE counters SET used = used + held WHERE kind = 'window'")
                connection.execute("UPDATE counters SET held = 0")
            connection.execute(_NEW_EPOCH, (EPOCH_KEY, secrets.randbits(62)))
            connection.execute("UPDATE counters SET used = 1 WHERE key = ?", (EPOCH_KEY,))
            connection.execute("COMMIT")

    def _check_epoch(self, row: Counter | None) -> None:
        """Find the file's epoch, and create one if no process has seen any. Raises StoreEmptied."""
        known = self._epochs.known(_PART)
        self._found = ""
        if row is None and not known and not self._reads_only:
            epoch = secrets.randbits(62)
            self.execute(_NEW_EPOCH, (EPOCH_KEY, epoch))
            self._found = str(epoch)
        elif row is not None and (known in ("", str(row.tat)) or row.used):
            self._found = str(row.tat)
        elif known:
            raise self._epochs.emptied()

    def save(self, book: Book) -> None:
        """Write what the Book changed since it was loaded or saved."""
        if not (book.changed or book.extended or book.set_back):
            return
        keys = {hold.key for reservation in book.changed for hold in reservation.holds}
        keys.update(counter.key for counter in book.set_back)
        counters = [book.counters[key] for key in keys if key in book.counters]
        self._write(_SAVE_COUNTERS, "", [(c.key, c.kind, c.used, c.held, c.tat, c.ends_at) for c in counters])
        changed = {reservation.id: reservation for reservation in book.changed}
        self._write(_SAVE_RESERVATIONS, _OR_UPDATE, [_row(reservation) for reservation in changed.values()])
        for reservation in book.revived:
            if reservation.record is not None:
                self.execute(_FORGET_REQUEST, (started_us(reservation.record), reservation.id))
        if self._records_us:
            over = {id(one): one for one in book.changed if one.state in ("settled", "expired")}.values()
            self._write(_SAVE_REQUESTS, "", [request_row(one.id, one.record) for one in over if one.record is not None])
        self._added += len(changed)
        leases: dict[
            tuple[int, int], list[str]
        ] = {}  # thousands of leases are renewed at once, most until the same time
        for reservation in book.extended:
            leases.setdefault((reservation.leased_at, reservation.expires_at), []).append(reservation.id)
        for times, ids in leases.items():
            self.execute(_EXTEND, (*times, _json(ids)))
        book.changed.clear()
        book.extended.clear()
        book.created.clear()
        book.revived.clear()
        book.set_back.clear()

    def purge(self, now_us: int, *, now: bool) -> None:
        """Delete some obsolete rows: twice as many as were added since, or more if `now`."""
        if not now and self._added < _PURGE_AFTER:
            return
        rows = 2 * self._added + 4 * _PURGE_AFTER
        self._added = 0
        before = now_us - self._retention_us
        self.execute(_PURGE_RESERVATIONS, (rows, before))
        [to] = self.execute(_NEXT_KEYS, (self._purged_to, rows)).fetchone()
        if to is not None:
            self.execute(_PURGE_COUNTERS, (self._purged_to, to, before))
        self._purged_to = to or ""
        self.execute(_PURGE_REQUESTS, (now_us - self._records_us, rows))

    def _write(self, insert: str, conflict: str, rows: Sequence[tuple[Any, ...]]) -> None:
        step = min(_ROWS, _VALUES // len(rows[0])) if rows else 1
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            self.execute(insert + _places(len(some), len(some[0])) + conflict, tuple(chain.from_iterable(some)))

    def _read(self, statement: str, values: tuple[Any, ...]) -> str:
        try:
            [found] = self.execute(statement, values).fetchone()
        except sqlite3.OperationalError as error:
            if (
                error.sqlite_errorcode == sqlite3.SQLITE_ERROR
                and self._connection is not None
                and gone(self._connection)
            ):
                raise self._epochs.emptied(_DROPPED) from None
            raise
        return str(found)

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one statement in the transaction."""
        if self._connection is None:
            raise sqlite3.ProgrammingError("the file is not open")
        return self._connection.execute(statement, values)

    def _open(self, *, anew: bool = False) -> sqlite3.Connection:
        if not anew and self._epochs.known(_PART):
            _identity(self._path)
        else:
            # Only ever create: to close a file that has a connection would drop that connection's POSIX locks.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        # The caller retries if the file is locked: more fairly among processes than SQLite's own waiting, whose steps
        # grow to 100 ms. An operator's command waits instead, among processes that try again and again. No open
        # statement is cached for fewer row counts than there are.
        waits = _ACCEPTING if anew else 0.0
        connection = sqlite3.connect(
            self._path.as_uri() + "?mode=rw", uri=True, timeout=waits, isolation_level=None, cached_statements=256
        )
        try:
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise sqlite3.NotSupportedError("the file's directory can't hold a write-ahead log")
            connection.execute("PRAGMA synchronous = FULL")
            migrate(connection)
            if not anew and gone(connection):
                raise self._epochs.emptied(_DROPPED)
            self._identity = _identity(self._path)
        except BaseException:
            connection.close()
            raise
        return connection


def read_usage(path: Path, asked: Question) -> list[Any]:
    """Run a report's query on the file, which is neither created nor changed, while another connection may write to it.

    Raises sqlite3.Error, or OSError if there is no file.
    """
    path.stat()
    given = {f"by_{name}": name in asked.by for name in BY}
    with contextlib.closing(sqlite3.connect(path.as_uri() + "?mode=ro", uri=True, timeout=5.0)) as connection:
        if version_of(connection) < RECORDS_SINCE:
            return []  # no store that keeps records has opened it yet
        return connection.execute(
            SQLITE,
            {
                **given,
                "spans": _json(asked.spans),
                "no_errors": _json(NO_ERRORS),
                "caller": asked.caller,
                "most": asked.most,
            },
        ).fetchall()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _row(reservation: StoredClaim) -> tuple[Any, ...]:
    return (
        reservation.id,
        reservation.fingerprint,
        reservation.state,
        reservation.output,
        reservation.leased_at,
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
