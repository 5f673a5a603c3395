"""Copies of an SQLite store: a backup, made while servers write, and its restore, made while none runs."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from msgspec import Struct

from chat_nest.stores.epochs import Epochs
from chat_nest.stores.reports import COLUMNS
from chat_nest.stores.sqlite.file import EPOCH_KEY
from chat_nest.stores.sqlite.schema import migrate, version_of

_WAITING = 10.0
"""Seconds to wait for the lock of a file that others write to."""
_LOCKS_AT, _LOCKS = 0x4000_0000, 512
"""The bytes of the file that SQLite locks (sqlite.org/fileformat2.html#the_lock_byte_page)."""
_NEWEST = "SELECT max(max(reserved_at), coalesce(max(finished_at), 0)) FROM reservations"
_CARRY_COUNTERS = """
INSERT INTO main.counters (key, kind, used, held, tat, ends_at)
SELECT key, kind, CASE kind WHEN 'window' THEN used + held ELSE 0 END, 0, tat, ends_at FROM present.counters
WHERE key <> ? AND kind <> 'gauge'
ON CONFLICT (key) DO UPDATE SET
  used = CASE kind WHEN 'window' THEN max(used, excluded.used - held) ELSE used END,
  tat = max(tat, excluded.tat), ends_at = max(ends_at, excluded.ends_at)
WHERE max(used, excluded.used - held) > used OR excluded.tat > tat
"""
_CARRY_REQUESTS = f"INSERT OR IGNORE INTO main.requests ({COLUMNS}) SELECT {COLUMNS} FROM present.requests"  # noqa: S608 - our own words
_CARRIED = {
    "controls": "kind, name, value, reason, expires_at",
    "firsts": "key, expires_at",
    "acts": "seq, at, operator, act, target, reason, detail",
}
"""Tables, with their columns, of which the replaced file has the newer state: pauses, blocks, the trail of acts."""
_END_GRANTS = "DELETE FROM controls WHERE kind = 'grant'"
"""They raise limits whose use is not known any more."""


class CopyFailed(Exception):
    """The reason why a backup or a restore was not made, for its user. Nothing was changed."""


class Restored(Struct, frozen=True, kw_only=True):
    newest_us: int
    """The time of the backup's newest entry, in Unix microseconds; 0 if it has none."""
    carried: int = 0
    """Counters of the replaced file that had counted more, and replaced those of the backup."""
    kept: Path | None = None
    """Where the replaced file is now."""
    lost: bool = False
    """Whether the spending since the backup is unknown, because no replaced file could be read."""


def back_up(path: Path, to: Path) -> int:
    """Copy the store at `path` into a new file `to`, mode 0600, and return its size in bytes.

    The copy is of one moment, one file and checked. Servers go on writing meanwhile. Raises CopyFailed.
    """
    if not path.exists():
        raise CopyFailed(f"there is no file {path}: a server creates it with its first request")
    if to.exists():
        raise CopyFailed(f"{to} exists: a backup replaces no file")
    part = to.with_name(f".{to.name}.part")
    try:
        _copy(path, part)
        _sync(part)
        part.rename(to)
        _sync(to.parent)
    except (sqlite3.Error, OSError) as error:
        part.unlink(missing_ok=True)
        raise CopyFailed(f"{to} can't be written: {_reason(error)}") from error
    return to.stat().st_size


def restore(path: Path, backup: Path, epochs: Epochs, stamp: str, *, accept_loss: bool) -> Restored:
    """Replace the store at `path` by a backup; rename the replaced file, with `stamp` at its end.

    What the replaced file counted in windows that still run, and its records, are kept, so that a restore gives nothing
    back that was spent. If that file is missing or can't be read, the spending since the backup is unknown, and
    `accept_loss` must be true. No server may have the file open. Raises CopyFailed.
    """
    part = path.with_name(f".{path.name}.restoring")
    try:
        newest = _read_backup(backup, part)
        _refuse_if_open(path)
        carried = _carry_over(path, part)
        if carried is None and not accept_loss:
            raise CopyFailed(
                f"{path} can't be read, so what was spent after the backup is unknown, and callers could spend it "
                "again: to accept that, repeat the command with --accept-loss"
            )
        _accept_epoch(part, epochs, lost=carried is None)
        _own_like(part, path)
        _sync(part)
        kept = _set_aside(path, stamp)
        part.rename(path)
        _sync(path.parent)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise CopyFailed(f"{backup} can't be restored: {_reason(error)}") from error
    finally:
        part.unlink(missing_ok=True)
    return Restored(newest_us=newest, carried=carried or 0, kept=kept, lost=carried is None)


def _copy(path: Path, to: Path) -> None:
    """Copy a database as it is at one moment into one file, and check the copy."""
    to.unlink(missing_ok=True)
    os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    uri = path.absolute().as_uri() + "?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_WAITING)) as source,
        contextlib.closing(sqlite3.connect(to, isolation_level=None)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # no second file belongs to the copy
        [said] = copy.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise CopyFailed(f"{path} is damaged: restore its last backup")


def _read_backup(backup: Path, part: Path) -> int:
    """Copy the backup to `part`, and update its schema; return the time of its newest entry."""
    if not backup.is_file():
        raise CopyFailed(f"there is no file {backup}")
    try:
        _copy(backup, part)
        with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
            if version_of(copy) and copy.execute("SELECT 1 FROM counters WHERE key = ?", (EPOCH_KEY,)).fetchone():
                migrate(copy)
                return int(copy.execute(_NEWEST).fetchone()[0] or 0)
    except sqlite3.NotSupportedError:
        raise
    except sqlite3.DatabaseError as error:
        raise CopyFailed(f"{backup} is no backup of a store: {_reason(error)}") from error
    raise CopyFailed(f"{backup} is no backup of a store: it has no counters")


def _refuse_if_open(path: Path) -> None:
    """Refuse if another process has the file open: it would go on with the answers that the backup does not know."""
    try:
        import fcntl  # noqa: PLC0415 - not there on Windows, which renames no open file
    except ImportError:
        return
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKS, _LOCKS_AT)
        except BlockingIOError:
            raise CopyFailed(f"{path} is in use: stop the servers first") from None


def _carry_over(path: Path, part: Path) -> int | None:
    """Keep in `part` what the present file counted beyond it; return how many counters. None if it can't be read."""
    if not path.exists():
        return None
    uri = path.absolute().as_uri() + "?mode=rw"
    with contextlib.closing(sqlite3.connect(f"{part.absolute().as_uri()}?mode=rw", uri=True)) as copy:
        copy.isolation_level = None
        try:
            copy.execute("ATTACH ? AS present", (uri,))
            copy.execute("BEGIN IMMEDIATE")
            carried = copy.execute(_CARRY_COUNTERS, (EPOCH_KEY,)).rowcount
            there = {name for (name,) in copy.execute("SELECT name FROM present.sqlite_master")}
            if "requests" in there:
                copy.execute(_CARRY_REQUESTS)
            for table in _CARRIED.keys() & there:
                columns = _CARRIED[table]
                copy.execute(f"DELETE FROM main.{table}")  # noqa: S608 - our own words
                copy.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM present.{table}")  # noqa: S608
            copy.execute("COMMIT")
        except sqlite3.DatabaseError:
            return None
    return carried


def _accept_epoch(part: Path, epochs: Epochs, *, lost: bool) -> None:
    """Let processes that remember another epoch accept this file's. The operator has just chosen it."""
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
        [epoch] = copy.execute("SELECT tat FROM counters WHERE key = ?", (EPOCH_KEY,)).fetchone()
        if lost:
            copy.execute(_END_GRANTS)
        if epochs.known() not in ("", str(epoch)):
            copy.execute("UPDATE counters SET used = 1 WHERE key = ?", (EPOCH_KEY,))


def _own_like(part: Path, path: Path) -> None:
    """Give the new file the owner of the old one, or of its directory, if root restores it."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        status = (path if path.exists() else path.parent).stat()
        os.chown(part, status.st_uid, status.st_gid)


def _set_aside(path: Path, stamp: str) -> Path | None:
    """Rename the file and its write-ahead log, which must never meet another file; return the new name."""
    kept = path.with_name(f"{path.name}.replaced-{stamp}")
    moved = False
    for end in ("-shm", "-wal", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(kept.with_name(kept.name + end))
            moved = not end
    return kept if moved else None


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some systems can't sync a directory
            os.fsync(fd)
    finally:
        os.close(fd)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or getattr(error, "sqlite_errorname", "") or error)
