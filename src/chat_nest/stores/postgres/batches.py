"""Reservations and settlements of one worker that go to PostgreSQL in one call: see batches.sql."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, LiteralString, cast

import psycopg
from msgspec import Struct

from chat_nest.core.claims import Claim, Granted, Line, Refused
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.usage import Source
from chat_nest.limits.windows import US, gcra_wait
from chat_nest.stores.batches import CallBatches
from chat_nest.stores.postgres.connection import Row

RESERVE_ALL: Final[LiteralString] = (
    "SELECT chat_nest.guard(%s, %s), v_outcomes, v_outputs, v_rooms, v_lines, v_at, v_marks"
    " FROM chat_nest.reserve_all(%s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],"
    " %s::text[], %s::jsonb, %s, %s, %s::integer[], %s::text[], %s::text[], %s::text[], %s::text[],"
    " %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
)
SETTLE_ALL: Final[LiteralString] = (
    "SELECT chat_nest.guard(%s, %s), chat_nest.settle_all(%s::text[], %s::text[], %s::text[], %s::bigint[],"
    " %s::jsonb, %s::text[], %s::jsonb, %s)"
)


class ReserveCall(Struct, frozen=True, gc=False):
    """One call of `reserve`. `call` is the number by which the server recognizes it; `lease` is in microseconds."""

    claim: Claim
    call: str
    lease: int
    record: str | None


class SettleCall(Struct, frozen=True, gc=False):
    """One call of `settle`. `actual` and `record` are JSON."""

    claim: Claim
    call: str
    actual: str | None
    source: Source
    record: str | None


class Lanes(Struct, frozen=True):
    """The waiting calls of one event loop."""

    reserves: CallBatches[ReserveCall, Granted | Refused | None]
    settles: CallBatches[SettleCall, bool]

    async def drain(self) -> None:
        """Wait until all calls are answered."""
        await self.reserves.drain()
        await self.settles.drain()


def is_of_one_row(failure: LimiterUnavailable) -> bool:
    """Return whether one call of a batch may be the reason, so that the others succeed alone."""
    cause = failure.__cause__
    return isinstance(cause, psycopg.Error) and not isinstance(cause, psycopg.OperationalError)


def reserve_values(calls: Sequence[ReserveCall], *, recorded: str, now: str | None) -> tuple[str | None, ...]:
    """Return the values of RESERVE_ALL after the epoch's."""
    claims = [asked.claim for asked in calls]
    lines = [line for claim in claims for line in claim.lines]
    firsts = [1]
    for claim in claims:
        firsts.append(firsts[-1] + len(claim.lines))
    return (
        _text_array(claim.id for claim in claims),
        _text_array(claim.fingerprint for claim in claims),
        _literal(asked.call for asked in calls),
        int_array(claim.max_output_tokens for claim in claims),
        int_array(claim.min_output_tokens for claim in claims),
        int_array(asked.lease for asked in calls),
        _text_array(claim.owner for claim in claims),
        _json_array(asked.record for asked in calls),
        recorded,
        now,
        int_array(firsts),
        _text_array(line.name for line in lines),
        _text_array(line.key for line in lines),
        _literal(line.unit for line in lines),
        _literal(line.kind for line in lines),
        int_array(line.limit for line in lines),
        int_array(line.fixed for line in lines),
        int_array(line.per_million for line in lines),
        int_array(line.period for line in lines),
        int_array(int(line.resets_at * US) if line.kind == "window" else 0 for line in lines),
    )


def reserve_answers(calls: Sequence[ReserveCall], row: Row) -> list[Granted | Refused | None]:
    """Return the result of each call from the row of RESERVE_ALL; None if it is to be reserved alone."""
    outcomes, outputs, rooms, lines, now_us, marks = cast(
        "tuple[list[str], list[int], list[int], list[int], int, list[int | None]]", row
    )
    answers: list[Granted | Refused | None] = []
    first = 0
    for asked, outcome, output, index, mark in zip(calls, outcomes, outputs, lines, marks, strict=True):
        claim = asked.claim
        end = first + len(claim.lines)
        if outcome == "granted":
            answers.append(Granted(output_tokens=output, room=tuple(rooms[first:end])))
        elif outcome == "refused":
            wait = retry_after(claim.lines[index], claim, now_us, mark)
            answers.append(Refused(line=index, room=rooms[first + index], retry_after=wait))
        else:
            answers.append(None)
        first = end
    return answers


def settle_values(calls: Sequence[SettleCall], *, now: str | None) -> tuple[str | None, ...]:
    """Return the values of SETTLE_ALL after the epoch's."""
    claims = [asked.claim for asked in calls]
    return (
        _text_array(claim.id for claim in claims),
        _text_array(claim.fingerprint for claim in claims),
        _text_array(claim.owner for claim in claims),
        _literal(asked.call for asked in calls),
        _json_array(asked.actual for asked in calls),
        _literal(asked.source for asked in calls),
        _json_array(asked.record for asked in calls),
        now,
    )


def retry_after(line: Line, claim: Claim, now_us: int, mark: int | None) -> float:
    """Return the seconds until the line may have room.

    `mark` is a rate's tat, or the time at which the first lease on a gauge ends.
    """
    if line.kind == "window":
        return max(0.0, line.resets_at - now_us / US)
    if line.kind == "rate":
        return gcra_wait(mark or 0, now_us, line.amount(claim.min_output_tokens), line.limit, line.period)
    if line.kind == "gauge":
        return 1.0 if mark is None else max(1.0, (mark - now_us) / US)
    return 0.0


def int_array(numbers: Iterable[int]) -> str:
    """Return an array of PostgreSQL as text."""
    return _literal(map(str, numbers))


def _literal(words: Iterable[str]) -> str:
    """Return an array of numbers, or of words that need no quotes."""
    return "{" + ",".join(words) + "}"


def _text_array(texts: Iterable[str]) -> str:
    return _literal(f'"{_escaped(text)}"' for text in texts)


def _escaped(text: str) -> str:
    return text if '"' not in text and "\\" not in text else text.replace("\\", "\\\\").replace('"', '\\"')


def _json_array(values: Iterable[str | None]) -> str:
    return "[" + ",".join("null" if value is None else value for value in values) + "]"
