"""Every limit by name: what it counts, its window, and its valid numbers.

None is no limit; files and environment variables write it as "none". 0 closes: no request is admitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isfinite
from operator import attrgetter
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.limits import COUNTERS, NO_LIMIT, Limits, LimitSpec
from chat_nest.limits.spec import HardCaps, Profile
from chat_nest.limits.windows import MAX_PER_MINUTE

RATES = tuple(each.name for each in COUNTERS if each.refills)
"""They refill evenly; all other windows are calendar windows."""
MONEY = tuple(each.name for each in COUNTERS if each.unit == "nanousd")
OWN = ("tokens_per_request", "tokens_per_conversation", "turns_per_conversation")
"""The limits that only a profile has."""
LIMITS = (*OWN, *(each.name for each in COUNTERS))
_OF_PROFILE = attrgetter(*LIMITS)
_OF_ALL = attrgetter(*(each.name for each in COUNTERS))
"""The limits that close at 0, and those that can be switched off."""

LEAST_USD = 0.000_000_001
MOST_USD = 1_000_000


class Range(Struct, frozen=True, kw_only=True):
    """The valid numbers of a key: of this kind, from `least` to `most`; `optional`: or no limit."""

    least: float = 0
    most: float
    kind: str = "a whole number"
    optional: bool = True

    @property
    def whole(self) -> bool:
        return self.kind == "a whole number"

    @property
    def rule(self) -> str:
        """Return what completes the sentence "must be ..."."""
        said = f"{self.kind} from {self.least} to {self.most}"
        if self.kind == "dollars":
            said = f"0, or a number of dollars from {LEAST_USD:.9f} to {self.most}"
        return f'{said}, or "{NO_LIMIT}"' if self.optional else said

    def holds(self, value: object) -> bool:
        """Return whether `value` is one of these numbers, and of their type."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if not isfinite(value) or not self.least <= value <= self.most:
            return False
        return self.kind != "dollars" or value == 0 or value >= LEAST_USD


_SHARED: Mapping[str, Range] = {
    **{each.name: Range(most=MAX_AMOUNT) for each in COUNTERS},
    **dict.fromkeys(RATES, Range(most=MAX_PER_MINUTE)),
    **dict.fromkeys(MONEY, Range(most=MOST_USD, kind="dollars")),
}
_OWN: Mapping[str, Range] = {
    **_SHARED,
    **{name: Range(most=MAX_AMOUNT) for name in OWN},
    "temperature": Range(most=2, kind="a number", optional=False),
}
RANGES: Mapping[type[Profile | Limits | HardCaps], Mapping[str, Range]] = {
    Limits: _SHARED,
    Profile: {
        **_OWN,
        **dict.fromkeys(
            ("max_output_tokens", "min_output_tokens", "max_messages"), Range(least=1, most=MAX_AMOUNT, optional=False)
        ),
        "max_images": Range(least=1, most=100, optional=False),
        "max_image_bytes": Range(least=1_024, most=20_000_000, optional=False),
    },
    HardCaps: {
        **{name: each for name, each in _OWN.items() if name in HardCaps.__struct_fields__},
        **dict.fromkeys(("max_output_tokens", "max_messages"), Range(least=1, most=MAX_AMOUNT)),
    },
}
"""By the struct that has the key."""


def check_numbers(where: str, numbers: Profile | Limits | HardCaps) -> None:
    """Raise ValueError, which names the key and the rule, for an invalid number."""
    ranges = next(ranges for kind, ranges in RANGES.items() if isinstance(numbers, kind))
    for name, value in asdict(numbers).items():
        known = ranges.get(name)
        if known is not None and not known.holds(value) and not (value is None and known.optional):
            raise ValueError(f"{where}: {name} must be {known.rule}")


@lru_cache(maxsize=256)
def configured(limits: Profile | Limits) -> Sequence[tuple[LimitSpec, Any]]:
    """Return the counters that have a limit, with it, in the order of COUNTERS."""
    limited = zip(COUNTERS, _OF_ALL(limits), strict=True)
    return tuple((spec, limit) for spec, limit in limited if limit is not None)


def is_closed(limits: Profile | Limits) -> bool:
    """Return whether one of the limits is 0, so that no request can be admitted."""
    return 0 in (_OF_PROFILE(limits) if isinstance(limits, Profile) else _OF_ALL(limits))
