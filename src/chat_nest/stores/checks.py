"""Check what a store is given: claims, lines, records and leases. A part that breaks a rule is a bug of its caller."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from msgspec.structs import astuple

from chat_nest.core.claims import MAX_AMOUNT, Claim, Line
from chat_nest.core.limits import Unit
from chat_nest.core.records import Record
from chat_nest.limits.windows import US, check_rate

_LONGEST_TEXT = 1_024
_LONGEST_LEASE = 366 * 86_400.0
_LATEST = 2**33
"""Unix seconds, in the year 2242: in microseconds it is still exact in a double."""


def check_claim(claim: Claim) -> None:
    """Raise ValueError, which names the field and the rule, unless every store can hold the claim exactly."""
    # Together, since each text costs a call; alone only to name the field.
    texts = (claim.id, claim.fingerprint, claim.owner or "-", *[line.key for line in claim.lines])
    if not (all(texts) and len(together := "".join(texts)) <= _LONGEST_TEXT and together.isprintable()):
        check_text(claim.id, "claim.id")
        check_text(claim.fingerprint, "claim.fingerprint")
        check_owner(claim.owner)
        for index, line in enumerate(claim.lines):
            check_text(line.key, f"lines[{index}].key")
    if not 0 <= claim.min_output_tokens <= claim.max_output_tokens <= MAX_AMOUNT:
        raise ValueError("claim: 0 <= min_output_tokens <= max_output_tokens <= 2**50 must hold")
    if len({line.key for line in claim.lines}) != len(claim.lines):
        raise ValueError("claim.lines must not name the same key twice")
    check_record(claim.record)
    for index, line in enumerate(claim.lines):
        _check_amounts(line, index)
        if line.fixed + (line.per_million * claim.max_output_tokens // 1_000_000) > MAX_AMOUNT:
            raise ValueError(f"lines[{index}] must not amount to more than 2**50 at claim.max_output_tokens")


def check_line(line: Line, index: int) -> None:
    check_text(line.key, f"lines[{index}].key")
    _check_amounts(line, index)


def _check_amounts(line: Line, index: int) -> None:
    if not (0 <= line.limit <= MAX_AMOUNT and 0 <= line.fixed <= MAX_AMOUNT and 0 <= line.per_million <= MAX_AMOUNT):
        raise ValueError(f"lines[{index}]: limit, fixed and per_million must be between 0 and 2**50")
    if line.kind == "rate":
        check_rate(line.limit, line.period)
    elif line.kind == "window" and not 0 < line.resets_at <= _LATEST:
        raise ValueError(f"lines[{index}].resets_at must be the window's end in Unix seconds")


def check_text(text: str, field: str) -> None:
    if not 0 < len(text) <= _LONGEST_TEXT or not text.isprintable():
        raise ValueError(f"{field} must be 1 to {_LONGEST_TEXT} printable characters")


def check_owner(owner: str) -> None:
    if owner:
        check_text(owner, "claim.owner")


def check_record(record: Record | None) -> None:
    """Raise ValueError, which names the field and the rule, unless every store can keep the record exactly."""
    if record is None:
        return
    texts = (record.run, record.caller, record.group, record.profile, record.model, record.price, record.ending)
    together = "".join(texts)
    if len(together) > _LONGEST_TEXT or not together.isprintable():
        for field, text in zip(("run", "caller", "group", "profile", "model", "price", "ending"), texts, strict=True):
            if len(text) > _LONGEST_TEXT or "\0" in text or _has_surrogates(text):
                said = f"record.{field} must be at most {_LONGEST_TEXT} characters, without U+0000 and surrogates"
                raise ValueError(said)
    amounts = (*astuple(record.usage), record.cost or 0)
    if min(amounts) < 0 or max(amounts) > MAX_AMOUNT:
        raise ValueError("record.usage and record.cost must be amounts between 0 and 2**50")
    if not 0 <= record.started_at <= _LATEST:
        raise ValueError("record.started_at must be a time in Unix seconds")
    if not (isfinite(record.seconds) and isfinite(record.first_token_seconds or 0.0)):
        raise ValueError("record.seconds and record.first_token_seconds must be finite")


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def check_actual(actual: Mapping[Unit, int] | None) -> None:
    if actual is not None and not all(0 <= amount <= MAX_AMOUNT for amount in actual.values()):
        raise ValueError("actual must be amounts between 0 and 2**50")


def lease_us(lease: float) -> int:
    """Return the lease in microseconds. Raises ValueError unless it is positive and at most a year."""
    if not 0 < lease <= _LONGEST_LEASE or not isfinite(lease):
        raise ValueError("lease must be a positive number of seconds, at most a year")
    return max(1, int(lease * US))
