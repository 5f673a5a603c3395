"""The most that callers can spend in a day: the limits bound it, whatever the clients send.

Example: two profiles have 300 and 500 tokens a day, and the requests of the second can use no more than 200. The bound
is 500, by both rule 1 and rule 2.

For one caller who may choose among several profiles, in requests, tokens and nano-dollars, the bound is the smallest of

1. for each counter that all the profiles have: its largest limit. A caller has one counter of a name for all profiles,
   so changing the profile never gets past the largest;
2. the sum, over the profiles, of each profile's tightest bound;
3. tokens: the requests times the most tokens of one request, and the dollars at the cheapest rate;
4. dollars: the tokens at the dearest rate;
5. the bound of all callers together, which comes from `[limits]` in the same way.

The bound of one counter in a day of H hours, for a limit L: a window of a day or a month gives L; a window of an hour
or a minute gives L times the windows that a day touches; a rate of R a minute (GCRA, burst R) gives R * (60 * H + 1),
so 1,441 R in 24 hours.

A day is the longest of the coming year: 25 hours if clocks change. The bound counts everything that requests admitted
in the day use, even after it. Two amounts are not in the bound. A provider may bill more than the request's limit; this
is charged as debt. While the store is down, the allowance of `[degraded]` may be spent; it belongs to no single caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from zoneinfo import ZoneInfo

from msgspec import Struct

from chat_nest.core.limits import COUNTERS, Limits, Unit, WindowKind
from chat_nest.core.media import MAX_PAGES
from chat_nest.core.usage import Rates
from chat_nest.counting.images import image_rule
from chat_nest.limits.counters import RATES, is_closed
from chat_nest.limits.prices import Prices, nano_limit
from chat_nest.limits.spec import Profile
from chat_nest.limits.windows import calendar_window

_MILLION = 1_000_000
_TOKENS_A_BYTE = 5
"""The most tokens that a family counts for a byte of a body, even after its bound rose: see `families` and `tokens`."""
_TEMPLATE = 1_000
"""The most tokens that a family's chat template and tools add."""


class Day(Struct, frozen=True, kw_only=True):
    """The length of a day, and the most windows of each kind in it."""

    minutes: int = 1_440
    hours: int = 24

    def windows(self, span: WindowKind) -> int:
        return {"minute": self.minutes, "hour": self.hours, "day": 1, "month": 1}[span]


DAY = Day()


class Most(Struct, frozen=True, kw_only=True):
    """Upper bounds; infinite if nothing limits them. `nanousd` is None if a price is unknown."""

    requests: float
    tokens: float
    nanousd: float | None

    @property
    def unlimited(self) -> bool:
        """Return whether the cost is unlimited: a free model's cost is not."""
        return self.tokens == inf if self.nanousd is None else self.nanousd == inf


class Exposure:
    """The bounds of these profiles under the limits for all callers. `max_body_bytes` bounds a request's prompt."""

    def __init__(self, shared: Limits, prices: Prices, max_body_bytes: int, day: Day = DAY) -> None:
        self._shared = shared
        self._prices = prices
        self._day = day
        self._longest_prompt = _TOKENS_A_BYTE * max_body_bytes + _TEMPLATE

    def together(self, profiles: Sequence[Profile]) -> Most:
        """Return the bound of all callers together, for any number of them, in the profiles that they may choose."""
        usable = self._usable(profiles)
        return self._most(usable, {unit: self._by_counters(self._shared, unit) for unit in _UNITS})

    def alone(self, profiles: Sequence[Profile]) -> Most:
        """Return the bound of one caller who may choose among the profiles."""
        usable = self._usable(profiles)
        own = [self._most([each], {unit: self._by_counters(each, unit) for unit in _UNITS}) for each in usable]
        common = {unit: self._by_common_counters(usable, unit) for unit in _UNITS}
        found: dict[Unit, float] = {
            "requests": min(common["requests"], sum(each.requests for each in own)),
            "tokens": min(common["tokens"], sum(each.tokens for each in own)),
            "nanousd": min(common["nanousd"], sum(inf if each.nanousd is None else each.nanousd for each in own)),
        }
        together = self.together(usable)
        found["requests"] = min(found["requests"], together.requests)
        found["tokens"] = min(found["tokens"], together.tokens)
        found["nanousd"] = min(found["nanousd"], inf if together.nanousd is None else together.nanousd)
        return self._most(usable, found)

    def of_address(self, profiles: Sequence[Profile], addresses: Limits, networks: Limits) -> Most:
        """Return the bound of all visitors of one IP address together, for any number of them.

        The limits of a profile bound a visitor, and not an address: anybody can be many visitors.
        """
        usable = [] if is_closed(addresses) or is_closed(networks) else self._usable(profiles)
        shared = (addresses, networks, self._shared)
        return self._most(usable, {unit: min(self._by_counters(each, unit) for each in shared) for unit in _UNITS})

    def unpriced(self, profiles: Sequence[Profile]) -> list[str]:
        """Return the models, PROVIDER:MODEL, without a known price."""
        models = [model for each in profiles for model in each.models]
        return [model for model in dict.fromkeys(models) if self._prices.of(model) is None]

    def _usable(self, profiles: Sequence[Profile]) -> list[Profile]:
        return [] if is_closed(self._shared) else [each for each in profiles if not is_closed(each)]

    def _most(self, profiles: Sequence[Profile], found: dict[Unit, float]) -> Most:
        """Add the bounds of one unit that follow from another."""
        if not profiles:
            return Most(requests=0, tokens=0, nanousd=0)
        rates = self._rates(profiles)
        tokens = min(found["tokens"], found["requests"] * max(map(self._longest, profiles)))
        if rates is None:
            known = found["nanousd"] < inf
            return Most(requests=found["requests"], tokens=tokens, nanousd=found["nanousd"] if known else None)
        cheapest = min(map(_cheapest, rates))
        if cheapest and found["nanousd"] < inf:
            tokens = min(tokens, found["nanousd"] * _MILLION // cheapest)
        costing = min(found["requests"], tokens)  # a request that costs something has a token
        nanousd = min(found["nanousd"], _cost(tokens, costing, max(map(_dearest, rates))))
        return Most(requests=found["requests"], tokens=tokens, nanousd=nanousd)

    def _by_counters(self, limits: Profile | Limits, unit: Unit) -> float:
        return self._by_common_counters([limits], unit)

    def _by_common_counters(self, several: Sequence[Profile | Limits], unit: Unit) -> float:
        """Return the tightest counter of the unit that all of them have, at its largest limit."""
        bounds: list[float] = [inf]
        for spec in COUNTERS:
            name, counted, span = spec.name, spec.unit, spec.window
            limits = [getattr(each, name) for each in several]
            if counted == unit and span is not None and limits and None not in limits:
                bounds.append(self._in_a_day(name, span, max(limits)))
        return min(bounds)

    def _in_a_day(self, name: str, span: WindowKind, limit: float) -> float:
        if name in RATES:
            return limit * (self._day.minutes + 1)
        whole = nano_limit(limit) if name.startswith("usd_") and limit else limit
        return whole * self._day.windows(span)

    def _longest(self, profile: Profile) -> int:
        if profile.tokens_per_request is not None:
            return profile.tokens_per_request
        images = 0
        if profile.allow_images:
            rules = [image_rule(model.partition(":")[2]) for model in profile.models]
            images = profile.max_images * max(max(4 * rule.most, MAX_PAGES * rule.page) for rule in rules)
        return self._longest_prompt + images + profile.max_output_tokens

    def _rates(self, profiles: Sequence[Profile]) -> list[Rates] | None:
        """Return the possible costs of a token in these profiles; None if a price is unknown."""
        if self.unpriced(profiles):
            return None
        prices = [self._prices.of(model) for each in profiles for model in each.models]
        return [rates for price in prices if price is not None for rates in price.rates]


_UNITS: tuple[Unit, ...] = ("requests", "tokens", "nanousd")


def longest_day(zone: ZoneInfo, now: float) -> Day:
    """Return the longest day in this zone of the year from `now` (Unix seconds) on."""
    longest = DAY
    for _ in range(366):
        window = calendar_window("day", now, zone)
        if window.end - window.start != 86_400 or _offset_changes(window.start, window.end, zone):
            hours, at = 0, window.start
            while at < window.end:
                hours, at = hours + 1, calendar_window("hour", at, zone).end
            minutes = ceil((window.end - window.start) / 60) + 1  # one more: a minute may be cut in two
            longest = Day(minutes=max(longest.minutes, minutes), hours=max(longest.hours, hours))
        now = window.end
    return longest


def _offset_changes(start: float, end: float, zone: ZoneInfo) -> bool:
    first, last = (calendar_window("hour", at, zone).id[13:] for at in (start, end - 1))
    return first != last


def _cost(tokens: float, requests: float, rate: int) -> float:
    """Return the nano-dollars of the tokens at a rate per million; each request is rounded up."""
    if not rate:
        return 0
    return inf if tokens == inf else -(-tokens * rate // _MILLION) + requests


def _dearest(rates: Rates) -> int:
    return max(rates.input, rates.output, rates.cached_input, rates.cache_write)


def _cheapest(rates: Rates) -> int:
    return min(rates.input, rates.output, rates.cached_input, rates.cache_write)
