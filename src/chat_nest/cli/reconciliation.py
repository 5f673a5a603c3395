"""The comparison of the ledger's records with what a provider has counted and billed itself, by UTC day and model."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence

from msgspec import Struct

from chat_nest.core.usage import NANO
from chat_nest.providers.reported_usage import EVERY_MODEL, VendorReport, VendorUsage

_SNAPSHOT = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8})$")
"""The date at the end of a model's name, which a provider adds to an alias."""
ROUNDING = NANO // 100
"""A cent: providers round what they show."""
FEW_TOKENS = 100
_NOTHING = VendorUsage(input_tokens=0, output_tokens=0, cost=0)


class Difference(Struct, frozen=True, kw_only=True):
    """One day and model: ours and the provider's. An empty model is the whole day."""

    day: str
    model: str
    ours: VendorUsage
    theirs: VendorUsage
    percent: float
    """The largest difference of tokens or cost, of the larger figure."""


def compare(ours: Mapping[tuple[str, str], VendorUsage], theirs: VendorReport) -> list[Difference]:
    """Compare by day and model, in this order.

    A provider's snapshot, such as gpt-4o-2024-08-06, counts for the alias if the ledger has no such model. What the
    provider gives for whole days only is compared with the sum of all models. A model that one side lacks differs by
    100 %. Differences of up to a cent, and of up to 100 tokens, are none: they are rounding.
    """
    known = {model for _, model in ours}
    found: VendorReport = {}
    for (day, model), figures in theirs.items():
        alias = _SNAPSHOT.sub("", model)
        key = (day, alias if model not in known and alias in known else model)
        found[key] = found[key] + figures if key in found else figures
    days = {day for day, model in found if model == EVERY_MODEL}
    return [_difference(day, model, ours, found, days) for day, model in sorted({*ours, *found})]


def _difference(
    day: str, model: str, ours: Mapping[tuple[str, str], VendorUsage], theirs: VendorReport, days: Container[str]
) -> Difference:
    """Compare one day and model. `days` are those whose costs the provider gives as a whole."""
    own = ours.get((day, model), _NOTHING)
    if model == EVERY_MODEL:
        own = _total([each for (when, _), each in ours.items() if when == day])
    missing = VendorUsage(input_tokens=0, output_tokens=0, cost=None if day in days else 0)
    other = theirs.get((day, model), missing)
    return Difference(day=day, model=model, ours=own, theirs=other, percent=_percent(own, other))


def _total(figures: Sequence[VendorUsage]) -> VendorUsage:
    """Return the sum; its cost is not known if that of any is not."""
    return VendorUsage(
        input_tokens=sum(each.input_tokens or 0 for each in figures),
        output_tokens=sum(each.output_tokens or 0 for each in figures),
        cost=None if any(each.cost is None for each in figures) else sum(each.cost or 0 for each in figures),
    )


def _percent(ours: VendorUsage, theirs: VendorUsage) -> float:
    pairs = (
        (ours.input_tokens, theirs.input_tokens, FEW_TOKENS),
        (ours.output_tokens, theirs.output_tokens, FEW_TOKENS),
        (ours.cost, theirs.cost, ROUNDING),
    )
    return max(
        (
            100 * abs(one - other) / max(one, other)
            for one, other, least in pairs
            if one is not None and other is not None and abs(one - other) > least
        ),
        default=0.0,
    )
