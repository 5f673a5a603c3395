"""The controls in Redis: on a Cluster all in one slot, that of all callers."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

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
from chat_nest.stores.redis.resp import Word

ControlScript = Literal["change_controls", "watch_controls", "first", "acts", "report", "reports", "swap"]

_encode = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(tuple[str, str, str, str, int | None]).decode
_decode_act = msgspec.json.Decoder(Act).decode


class RedisControls:
    """Controls beside the counters of a RedisStore. `run` runs a script, and returns the time and its answer."""

    def __init__(self, run: Callable[[ControlScript, Sequence[Word]], Awaitable[tuple[int, list[Any]]]]) -> None:
        self._run = run

    async def change(
        self, put: Sequence[Control] = (), remove: Sequence[tuple[str, str]] = (), act: Act | None = None
    ) -> None:
        check_change(put, remove, act)
        words: list[Word] = [str(secrets.randbits(62)), b"" if act is None else _encode(act), len(remove)]
        for kind, name in remove:
            words += (kind, name)
        for row in put:
            until = None if row.expires is None else int(row.expires * US)
            packed = _encode((row.kind, row.name, row.value, row.reason, until))
            words += (row.kind, row.name, packed, "" if until is None else until)
        await self._run("change_controls", words)

    async def watch(self, known: int) -> Snapshot | None:
        _, [version, *found] = await self._run("watch_controls", [str(known or "")])
        if int(version or 0) == known:
            return None
        rows = (
            Control(kind=kind, name=name, value=value, reason=reason, expires=until and until / US)
            for kind, name, value, reason, until in (_decode_row(row) for row in found)
        )
        ordered = sorted(rows, key=lambda row: (row.kind, row.name))
        return Snapshot(version=int(version or 0), rows=tuple(ordered))

    async def first(self, key: str, seconds: float, report: Sequence[Control] = ()) -> bool:
        check_first(key, seconds)
        check_report(report)
        _, [first] = await self._run("first", [key, secrets.randbits(62), int(seconds * US), *_words(report)])
        return bool(first)

    async def acts(self, most: int) -> Sequence[Act]:
        _, found = await self._run("acts", [most])
        acts = (line.split(b" ", 1) for line in found)
        return [replace(_decode_act(act), at=int(at) / US) for at, act in acts]

    async def report(self, rows: Sequence[Control]) -> None:
        check_report(rows)
        await self._run("report", _words(rows))

    async def swap(self, known: str, row: Control) -> str:
        check_swap(row)
        words: list[Word] = [row.kind, row.name, known, row.value, int((row.expires or 0.0) * US)]
        _, [value] = await self._run("swap", words)
        return str(value.decode())

    async def reports(self, kind: str, name: str = "") -> Sequence[Control]:
        now_us, found = await self._run("reports", [kind, name, MOST_REPORTS])
        reports: list[Control] = []
        for which, line in zip(found[::2], found[1::2], strict=True):
            until, _, value = line.partition(b" ")
            if int(until) > now_us:
                row = Control(kind=kind, name=which.decode(), value=value.decode(), expires=int(until) / US)
                reports.append(row)
        return reports


def _words(rows: Sequence[Control]) -> list[Word]:
    words: list[Word] = []
    for row in rows:
        words += (row.kind, row.name, row.value, int((row.expires or 0.0) * US))
    return words
