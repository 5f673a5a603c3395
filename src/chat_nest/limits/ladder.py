"""A profile's ladder: cheaper answers before a limit is reached.

Example: a ladder has the rungs 0.5 and 0.2. A request with 30% of a limit left is answered on the rung 0.5, and one
with 10% left on the rung 0.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from msgspec.structs import replace

from chat_nest.core.claims import MAX_AMOUNT, Line, Standing
from chat_nest.limits.spec import Profile, Rung


def check_ladder(where: str, profile: Profile) -> None:
    """Raise ValueError, which names the key and the rule, for a ladder that can't be used."""
    for number, rung in enumerate(profile.ladder):
        here = f"{where}: ladder[{number}]"
        if not (isfinite(rung.below) and 0 < rung.below <= 1):
            raise ValueError(f"{here}.below must be a number above 0 and at most 1")
        if rung.model is None and rung.max_output_tokens is None:
            raise ValueError(f"{here} needs model, max_output_tokens or both")
        if rung.model is None and rung.fallbacks:
            raise ValueError(f"{here}.fallbacks needs a model: without one the profile's fallbacks stay")
        if rung.max_output_tokens is not None and not 1 <= rung.max_output_tokens <= MAX_AMOUNT:
            raise ValueError(f"{here}.max_output_tokens must be a whole number from 1 to {MAX_AMOUNT}")
    if len({rung.below for rung in profile.ladder}) < len(profile.ladder):
        raise ValueError(f"{where}: ladder must have another `below` in each of its tables")


def lines_of_ladder(lines: Sequence[Line]) -> list[Line]:
    """Return the lines whose room moves a request down a ladder: budgets and rates, not concurrent answers."""
    return [line for line in lines if line.kind in ("window", "rate") and line.limit]


def rung_of(profile: Profile, lines: Sequence[Line], standings: Sequence[Standing]) -> Rung | None:
    """Return the rung for the line with the smallest share left; None if the profile's own model answers."""
    left = min((each.room / line.limit for line, each in zip(lines, standings, strict=True)), default=1.0)
    below = [rung for rung in profile.ladder if left < rung.below]
    return min(below, key=lambda rung: rung.below, default=None)


def lowest(profile: Profile) -> Rung:
    """Return the lowest rung, for a request of which nothing is known."""
    return min(profile.ladder, key=lambda rung: rung.below)


def on_rung(profile: Profile, rung: Rung, *, with_model: bool) -> Profile:
    """Return the profile on this rung: it can lower the answer's length, and with `with_model` it sets the models."""
    most = profile.max_output_tokens
    if rung.max_output_tokens is not None:
        most = min(most, rung.max_output_tokens)
    model, fallbacks = profile.model, profile.fallbacks
    if with_model and rung.model is not None:
        model, fallbacks = rung.model, rung.fallbacks
    least = min(profile.min_output_tokens, most)
    return replace(
        profile, model=model, fallbacks=fallbacks, max_output_tokens=most, min_output_tokens=least, ladder=()
    )
