"""The controls in the SQLite file: their statements, and the calls that run them in the store's transactions."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

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
from chat_nest.limits.windows import US

_KEPT_US = int(KEPT_SECONDS * US)
_PURGED = 10
"""Old keys that one new key deletes."""

Result = TypeVar("Result")
Execute = Callable[[str, tuple[Any, ...]], sqlite3.Cursor]
Step = Callable[[Execute, int], Result]
"""A step of a transaction, at a time in microseconds."""


class SQLiteControls:
    """Controls in the file of an SQLiteStore. `write` and `read` run a step in one of the store's transactions."""

    def __init__(
        self, write: Callable[[Step[Any]], Awaitable[Any]], read: Callable[[Step[Any]], Awaitable[Any]]
    ) -> None:
        self._write = write
        self._read = read

    async def change(
        self, put: Sequence[Control] = (), remove: Sequence[tuple[str, str]] = (), act: Act | None = None
    ) -> None:
        check_change(put, remove, act)
        await self._write(lambda execute, now_us: change_controls(execute, now_us, put, remove, act))

    async def watch(self, known: int) -> Snapshot | None:
        found: Snapshot | None = await self._read(lambda execute, _: _watch(execute, known))
        return found

    async def first(self, key: str, seconds: float, report: Sequence[Control] = ()) -> bool:
        check_first(key, seconds)
        check_report(report)
        us = int(seconds * US)
        return bool(await self._write(lambda execute, now_us: _first(execute, now_us, key, us, report)))

    async def acts(self, most: int) -> Sequence[Act]:
        found: list[Act] = await self._read(lambda execute, _: _acts(execute, most))
        return found

    async def report(self, rows: Sequence[Control]) -> None:
        check_report(rows)
        await self._write(lambda execute, now_us: _report(execute, now_us, rows))

    async def swap(self, known: str, row: Control) -> str:
        check_swap(row)
        return str(await self._write(lambda execute, now_us: _swap(execute, now_us, known, row)))

    async def reports(self, kind: str, name: str = "") -> Sequence[Control]:
        found: list[Control] = await self._read(lambda execute, now_us: _reports(execute, now_us, kind, name))
        return found


def change_controls(
    execute: Execute, now_us: int, put: Sequence[Control], remove: Sequence[tuple[str, str]], act: Act | None
) -> None:
    """Make one change of the rows."""
    execute(
        "DELETE FROM controls WHERE (kind, name) IN (SELECT kind, name FROM controls WHERE expires_at <= ?"
        " ORDER BY expires_at DESC LIMIT -1 OFFSET ?)",
        (now_us - _KEPT_US, MOST_ENDED),
    )
    for kind, name in remove:
        execute("DELETE FROM controls WHERE kind = ? AND (name = ? OR ? = '')", (kind, name, name))
    insert = "INSERT OR REPLACE INTO controls (kind, name, value, reason, expires_at) VALUES (?, ?, ?, ?, ?)"
    for row in put:
        execute(insert, (row.kind, row.name, row.value, row.reason, row.expires and int(row.expires * US)))
    execute(insert, ("", "", str(secrets.randbits(62)), "", None))
    if act is not None:
        execute(
            "INSERT INTO acts (at, operator, act, target, reason, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (now_us, act.by, act.act, act.target, act.reason, act.detail),
        )
        execute("DELETE FROM acts WHERE seq <= (SELECT max(seq) FROM acts) - ?", (MOST_ACTS,))


def _watch(execute: Execute, known: int) -> Snapshot | None:
    row = execute("SELECT value FROM controls WHERE kind = ''", ()).fetchone()
    version = 0 if row is None else int(row[0])
    if version == known:
        return None
    found = execute(
        "SELECT kind, name, value, reason, expires_at FROM controls WHERE kind <> '' ORDER BY kind, name", ()
    )
    rows = (
        Control(kind=kind, name=name, value=value, reason=reason, expires=until and until / US)
        for kind, name, value, reason, until in found
    )
    return Snapshot(version=version, rows=tuple(rows))


def _first(execute: Execute, now_us: int, key: str, us: int, report: Sequence[Control]) -> bool:
    execute(
        "DELETE FROM firsts WHERE key IN (SELECT key FROM firsts WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
        (now_us, _PURGED),
    )
    taken = execute(
        "INSERT INTO firsts (key, expires_at) VALUES (?, ?) ON CONFLICT (key)"
        " DO UPDATE SET expires_at = excluded.expires_at WHERE expires_at <= ?",
        (key, now_us + us, now_us),
    )
    if taken.rowcount != 1:
        return False
    if report:
        _report(execute, now_us, report)
    return True


def _acts(execute: Execute, most: int) -> list[Act]:
    found = execute("SELECT at, operator, act, target, reason, detail FROM acts ORDER BY seq DESC LIMIT ?", (most,))
    return [
        Act(by=by, act=act, target=target, reason=reason, detail=detail, at=at / US)
        for at, by, act, target, reason, detail in found
    ]


def _report(execute: Execute, now_us: int, rows: Sequence[Control]) -> None:
    execute(
        "DELETE FROM reports WHERE (kind, name) IN"
        " (SELECT kind, name FROM reports WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
        (now_us, 2 * len(rows) + _PURGED),
    )
    for row in rows:
        execute(
            "INSERT OR REPLACE INTO reports (kind, name, value, expires_at) VALUES (?, ?, ?, ?)",
            (row.kind, row.name, row.value, int((row.expires or 0.0) * US)),
        )


def _swap(execute: Execute, now_us: int, known: str, row: Control) -> str:
    found = execute(
        "SELECT value FROM reports WHERE kind = ? AND name = ? AND expires_at > ?", (row.kind, row.name, now_us)
    ).fetchone()
    value = "" if found is None else str(found[0])
    if value != known:
        return value
    execute(
        "INSERT OR REPLACE INTO reports (kind, name, value, expires_at) VALUES (?, ?, ?, ?)",
        (row.kind, row.name, row.value, int((row.expires or 0.0) * US)),
    )
    return row.value


def _reports(execute: Execute, now_us: int, kind: str, name: str) -> list[Control]:
    found = execute(
        "SELECT name, value, expires_at FROM reports WHERE kind = ? AND (name = ? OR ? = '') AND expires_at > ?"
        " ORDER BY expires_at DESC LIMIT ?",
        (kind, name, name, now_us, MOST_REPORTS),
    )
    return [Control(kind=kind, name=name, value=value, expires=until / US) for name, value, until in found]
