"""Encoding of lines and records for the Redis store's scripts, and decoding of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct, msgpack
from msgspec.structs import replace

from chat_nest.core.claims import Claim, Conflict, Duplicate, Line, Refused, Standing
from chat_nest.core.records import Record
from chat_nest.limits.windows import US, gcra_wait
from chat_nest.stores.rules import Book, Counter


class _Kept(Struct, frozen=True, array_like=True):
    """The stored record of a request. `fixed` and `per_million` are those of its first line in dollars, if any."""

    record: Record
    fixed: int | None = None
    per_million: int = 0


_encode = msgpack.Encoder().encode
_decode = msgpack.Decoder(_Kept).decode


def record_word(record: Record | None, lines: Sequence[Line] = ()) -> bytes | None:
    """Return the record as the scripts keep it, opaque to them."""
    if record is None:
        return None
    money = next((line for line in lines if line.unit == "nanousd" and line.kind != "request"), None)
    return _encode(_Kept(record) if money is None else _Kept(record, money.fixed, money.per_million))


def kept_record(word: bytes) -> Record:
    """Return the record of a claim, as `record_word` made it."""
    return _decode(word).record


def not_granted(
    answer: bytes, found: Sequence[Any], claim: Claim, indices: Sequence[int], now_us: int
) -> Refused | Duplicate | Conflict:
    """Return the meaning of a reservation's answer; `indices` are the positions of the script's lines in the claim."""
    if answer == b"conflict":
        return Conflict()
    if answer == b"duplicate":
        output, state, kept, lost = found
        return Duplicate(output_tokens=output, state=state.decode(), record=_record(kept, output if lost else None))
    number, room, first = (int(each) for each in found)
    index = indices[number - 1]
    return Refused(line=index, room=room, retry_after=_retry_after(claim.lines[index], claim, first, now_us))


def _record(kept: bytes, lost_output: int | None) -> Record | None:
    """Return the stored record; a lost one gets the cost that was charged for that much output."""
    if not kept:
        return None
    found = _decode(kept)
    if lost_output is None:
        return found.record
    usage = replace(found.record.usage, output_tokens=lost_output)
    cost = None if found.fixed is None else found.fixed - (-lost_output * found.per_million // 1_000_000)
    return replace(found.record, usage=usage, cost=cost)


def _retry_after(line: Line, claim: Claim, first: int, now_us: int) -> float:
    """Return seconds; `first` is a rate's tat, or the end of the first lease on a gauge, 0 if there is none."""
    if line.kind == "window":
        return max(0.0, line.resets_at - now_us / US)
    if line.kind == "rate":
        return gcra_wait(first, now_us, line.amount(claim.min_output_tokens), line.limit, line.period)
    if line.kind == "gauge":
        return max(1.0, (first - now_us) / US)
    return 0.0


def standing(line: Line, used: int, held: int, tat: int, now_us: int) -> Standing:
    counter = Counter(line.key, line.kind, used, held, tat)
    return Book({line.key: counter}, {}, lambda _: None).peek([line], (), now_us)[0]
