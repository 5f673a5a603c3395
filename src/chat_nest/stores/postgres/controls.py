"""The controls in the schema `chat_nest`."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, LiteralString, Protocol

import msgspec

from chat_nest.core.controls import (
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

_CHANGE = (
    "SELECT chat_nest.guard(%s, %s), chat_nest.change_controls(%s::jsonb, %s::text[], %s::text[], %s::jsonb, %s, %s)"
)
_WATCH = "SELECT chat_nest.guard(%s, %s), * FROM chat_nest.watch_controls(%s, %s)"
_FIRST = "SELECT chat_nest.guard(%s, %s), chat_nest.first(%s, %s, %s, %s)"
_FIRST_WITH_REPORT = (
    "SELECT chat_nest.guard(%s, %s), CASE WHEN chat_nest.first(%s, %s, %s, %s)"
    " THEN chat_nest.report(%s::jsonb, %s) ELSE false END"
)
_ACTS = "SELECT chat_nest.guard(%s, %s), chat_nest.newest_acts(%s)"
_REPORT = "SELECT chat_nest.guard(%s, %s), chat_nest.report(%s::jsonb, %s)"
_SWAP = "SELECT chat_nest.guard(%s, %s), chat_nest.swap(%s, %s, %s, %s, %s, %s)"
_REPORTS = "SELECT chat_nest.guard(%s, %s), chat_nest.reports(%s, %s, %s, %s)"

_decode_rows = msgspec.json.Decoder(list[tuple[str, str, str, str, int | None]]).decode
_decode_reports = msgspec.json.Decoder(list[tuple[str, str, int]]).decode
_decode_acts = msgspec.json.Decoder(list[Act]).decode


class Call(Protocol):
    """Calls a function of the schema: the query begins with its guard, whose values are not among these."""

    def __call__(self, query: LiteralString, *values: str | list[str] | None) -> Awaitable[tuple[Any, ...]]: ...


class PostgresControls:
    """Controls in the database of a PostgresStore. `time` returns None for the server's time, or microseconds."""

    def __init__(self, call: Call, time: Callable[[], str | None]) -> None:
        self._call = call
        self._time = time

    async def change(
        self, put: Sequence[Control] = (), remove: Sequence[tuple[str, str]] = (), act: Act | None = None
    ) -> None:
        check_change(put, remove, act)
        rows = {
            (row.kind, row.name): (row.kind, row.name, row.value, row.reason, row.expires and int(row.expires * US))
            for row in put
        }
        await self._call(
            _CHANGE,
            msgspec.json.encode(list(rows.values())).decode(),
            [kind for kind, _ in remove],
            [name for _, name in remove],
            None if act is None else msgspec.json.encode(act).decode(),
            str(secrets.randbits(62)),
            self._time(),
        )

    async def watch(self, known: int) -> Snapshot | None:
        [version, found] = await self._call(_WATCH, str(known), self._time())
        if found is None:
            return None
        rows = (
            Control(kind=kind, name=name, value=value, reason=reason, expires=until and until / US)
            for kind, name, value, reason, until in _decode_rows(found)
        )
        return Snapshot(version=version, rows=tuple(rows))

    async def first(self, key: str, seconds: float, report: Sequence[Control] = ()) -> bool:
        check_first(key, seconds)
        check_report(report)
        time = self._time()
        values = (key, str(int(seconds * US)), str(secrets.randbits(62)), time)
        if report:
            [first] = await self._call(_FIRST_WITH_REPORT, *values, _reported(report), time)
        else:
            [first] = await self._call(_FIRST, *values)
        return bool(first)

    async def acts(self, most: int) -> Sequence[Act]:
        [found] = await self._call(_ACTS, str(most))
        return _decode_acts(found)

    async def report(self, rows: Sequence[Control]) -> None:
        check_report(rows)
        await self._call(_REPORT, _reported(rows), self._time())

    async def swap(self, known: str, row: Control) -> str:
        check_swap(row)
        ends = str(int((row.expires or 0.0) * US))
        [value] = await self._call(_SWAP, row.kind, row.name, known, row.value, ends, self._time())
        return str(value)

    async def reports(self, kind: str, name: str = "") -> Sequence[Control]:
        [found] = await self._call(_REPORTS, kind, name, str(MOST_REPORTS), self._time())
        return [
            Control(kind=kind, name=name, value=value, expires=until / US)
            for name, value, until in _decode_reports(found)
        ]


def _reported(rows: Sequence[Control]) -> str:
    words = {(row.kind, row.name): (row.kind, row.name, row.value, int((row.expires or 0.0) * US)) for row in rows}
    return msgspec.json.encode(list(words.values())).decode()
