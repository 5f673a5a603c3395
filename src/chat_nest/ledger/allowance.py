"""The allowance that one process holds in its store for outages: its claims, and what they cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import token_hex

from msgspec.structs import replace

from chat_nest.core.claims import MAX_AMOUNT, Claim, Line
from chat_nest.core.limits import COUNTERS, UNITS, Limits, Unit
from chat_nest.core.records import Record
from chat_nest.core.usage import NANO
from chat_nest.limits.spec import Allowance

CAN_HOLD = ("window", "gauge")
"""The line kinds that can hold an allowance. A rate refills by itself, so a hold on it has no meaning."""


def check_allowance(allowance: Allowance, limits: Limits) -> None:
    """Raise ValueError, which names the key, unless the limits for all callers can hold the allowance."""
    amounts = amounts_of(allowance)
    given = [spec for spec in COUNTERS if getattr(limits, spec.name) is not None]
    counted: dict[str, Unit] = {spec.name: spec.unit for spec in given}
    if not any(spec.window is not None and not spec.refills for spec in given):
        raise ValueError("degraded needs a budget for all callers to be held in, such as limits.tokens_per_day")
    for name, unit in counted.items():
        limit = getattr(limits, name)
        if unit not in amounts:
            raise ValueError(f"degraded.{UNITS[unit].name} must be set, because there is limits.{name}")
        if amounts[unit] >= (limit * NANO if unit == "nanousd" else limit):
            raise ValueError(f"degraded.{UNITS[unit].name} must be below limits.{name}: every process holds as much")
    for unit in amounts:
        if unit != "requests" and unit not in counted.values():
            name = UNITS[unit].name
            raise ValueError(f"degraded.{name} has nothing to be held in: there is no limits.{name}_per_day or alike")


def amounts_of(allowance: Allowance) -> dict[Unit, int]:
    """Return the amounts by unit."""
    usd = None if allowance.usd is None else round(allowance.usd * NANO)
    found: dict[Unit, int | None] = {
        "tokens": allowance.tokens,
        "nanousd": usd,
        "requests": allowance.requests,
        "streams": allowance.streams,
    }
    return {unit: amount for unit, amount in found.items() if amount is not None}


class Fund:
    """One allowance, held by one claim on the real store, and the amounts drawn on it."""

    def __init__(self, claim: Claim, good_until: float) -> None:
        self.claim = claim
        self.good_until = good_until
        self.keys = frozenset(line.key for line in claim.lines)
        self.drawing: set[str] = set()
        """The requests that draw on it and have not ended."""
        self.spent: dict[Unit, int] = {line.unit: 0 for line in claim.lines}
        self.touched = False

    @property
    def ends_at(self) -> float:
        """The Unix time at which the first of its windows ends."""
        return min((line.resets_at for line in self.claim.lines if line.kind == "window"), default=0.0)


def funding_claim(lines: Sequence[Line], amounts: Mapping[Unit, int]) -> Claim:
    """Return the claim that holds the amounts on these lines."""
    held = [replace(line, fixed=amounts[line.unit], per_million=0) for line in lines]
    name = f"allowance-{token_hex(12)}"
    return Claim(id=name, fingerprint=name, lines=tuple(held), max_output_tokens=0, min_output_tokens=0)


def requests_line(fund: Fund, limit: int) -> Line:
    return Line(
        name="requests",
        scope="all",
        key=f"{fund.claim.id}:requests",
        unit="requests",
        kind="window",
        limit=limit,
        fixed=1,
        resets_at=fund.ends_at,
    )


def posting(claim: Claim, spent: Mapping[Unit, int], record: Record | None) -> Claim:
    """Return the claim that charges what was spent to the lines that the store did not guard, even over their limits.

    A window holds the whole amount before it is settled, so it is charged even if no process settles it. The claim has
    an id of its own: the store may know the request's id as released.
    """
    lines: list[Line] = []
    for line in claim.lines:
        if line.kind == "rate":
            lines.append(replace(line, fixed=0, per_million=0))
        elif line.kind == "window" and line.scope != "all":
            lines.append(replace(line, limit=MAX_AMOUNT, fixed=spent[line.unit], per_million=0))
    return replace(
        claim,
        id=f"{claim.id}.{token_hex(6)}",
        lines=tuple(lines),
        max_output_tokens=0 if record is None else record.usage.output_tokens,  # which a lost posting is recorded with
        min_output_tokens=0,
        record=record or claim.record,
    )
