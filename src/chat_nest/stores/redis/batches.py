"""Reservations and settlements of one worker that go to Redis in one script: see reserve.lua and finish.lua.

A batch is one MessagePack argument, of lists without names: a script gets these sooner than arguments of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Raw, Struct, msgpack

from chat_nest.core.claims import Claim, Line
from chat_nest.core.records import Record
from chat_nest.limits.windows import US
from chat_nest.stores.redis.codec import record_word

EndState = Literal["settled", "released", "undone"]
ScriptAnswer = tuple[int, Sequence[Any]]
"""The server's time in microseconds, and what a script answers to one call."""
OF_ONE_CALL = "ALONE"
"""The code of an error of a batch that one call is the reason of: the others succeed alone."""


class ReserveCall(Struct, frozen=True, gc=False):
    """The lines of a claim in one partition. `lease` is in microseconds; `home` if the partition keeps the record."""

    claim: Claim
    attempt: str
    lease: int
    output: int
    lines: Sequence[Line]
    home: bool


class FinishCall(Struct, frozen=True, gc=False):
    """The end of a claim in one partition."""

    claim: Claim
    ending: EndState
    source: str
    spent: Mapping[Any, int]
    record: Record | None


class _Line(Struct, gc=False, array_like=True):
    kind: str
    key: str
    unit: str
    limit: int
    fixed: int
    per: int
    period: int
    ends: int


class _Reserved(Struct, gc=False, array_like=True):
    id: str
    print: str
    owner: str
    attempt: str
    lease: int
    most: int
    least: int
    lines: Sequence[int]
    record: Raw | None
    away: bool


class _Finished(Struct, gc=False, array_like=True):
    id: str
    print: str
    owner: str
    wanted: EndState
    source: str
    spent: Mapping[Any, int]
    record: Raw | None
    free: bool


_encode = msgpack.Encoder().encode


def reserve_word(calls: Sequence[ReserveCall]) -> bytes:
    """Return the argument of reserve.lua; a line that several claims draw on is in it once."""
    numbers: dict[Line, int] = {}
    claims = [
        _Reserved(
            id=call.claim.id,
            print=call.claim.fingerprint,
            owner=call.claim.owner,
            attempt=call.attempt,
            lease=call.lease,
            most=call.output,
            least=call.claim.min_output_tokens,
            lines=[numbers.setdefault(line, len(numbers) + 1) for line in call.lines],
            record=_raw(record_word(call.claim.record, call.claim.lines)) if call.home else None,
            away=not call.home,
        )
        for call in calls
    ]
    return _encode(([_line(line) for line in numbers], claims))


def finish_word(calls: Sequence[FinishCall]) -> bytes:
    """Return the argument of finish.lua."""
    return _encode(
        [
            _Finished(
                id=call.claim.id,
                print=call.claim.fingerprint,
                owner=call.claim.owner,
                wanted=call.ending,
                source=call.source,
                spent=call.spent,
                record=_raw(record_word(call.record)),
                free=call.record is not None and call.record.spent_nothing,
            )
            for call in calls
        ]
    )


def _raw(record: bytes | None) -> Raw | None:
    """Return the record as a string of MessagePack: Redis knows no binary data there."""
    return None if record is None else Raw(b"\xdb" + len(record).to_bytes(4) + record)


def _line(line: Line) -> _Line:
    return _Line(
        kind=line.kind,
        key=line.key,
        unit=line.unit,
        limit=line.limit,
        fixed=line.fixed,
        per=line.per_million,
        period=line.period,
        ends=int(line.resets_at * US) if line.kind == "window" else 0,
    )
