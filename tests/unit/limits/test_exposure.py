"""The most that callers can spend in a day, beside a greedy caller on the memory store."""

from __future__ import annotations

import asyncio
import random
from math import inf
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_nest.core.attachments import Attachment
from chat_nest.core.media import MAX_PAGES
from chat_nest.counting.images import attachment_bound, image_rule
from chat_nest.core.limits import COUNTERS
from chat_nest.limits.exposure import Day, Exposure, longest_day
from chat_nest.core.claims import Claim, Granted
from chat_nest.core.limits import Limits
from chat_nest.limits.spec import HardCaps, Profile
from chat_nest.core.messages import Caller
from chat_nest.limits.prices import FREE, Prices, price
from chat_nest.limits.profiles import Profiles
from chat_nest.stores.memory import MemoryStore

UTC = ZoneInfo("UTC")
MIDNIGHT = 1_772_323_200.0  # 2026-03-01 00:00 UTC
OWN = Prices({"p:cheap": price(input=1, output=2), "p:dear": price(input=3, output=30), "p:free": FREE})
BODY = 1_000


def most(profiles: list[Profile], limits: Limits = Limits()) -> Exposure:
    return Exposure(limits, OWN, BODY)


def open_profile(name: str = "balanced", **numbers: Any) -> Profile:
    off: dict[str, Any] = dict.fromkeys(("tokens_per_request", "requests_per_minute", "tokens_per_day"))
    return Profile(name=name, **{"open": True, "model": "p:cheap", "max_output_tokens": 100, **off, **numbers})


class Greedy:
    """Callers who ask for all that they may, at every moment that they come, in every profile."""

    def __init__(self, profiles: list[Profile], limits: Limits, zone: str = "UTC") -> None:
        self.now = MIDNIGHT
        self.store = MemoryStore(lambda: self.now)
        rules = Profiles({each.name: each for each in profiles}, limits, HardCaps(), zone, profiles[0].name, prices=OWN)
        self.rules = rules
        self.spent = {"requests": 0, "tokens": 0, "nanousd": 0}
        self.asked = 0

    async def ask(self, caller: str, profile: Profile, prompt: int) -> bool:
        """Whether the request was admitted; it uses all that it holds."""
        self.asked += 1
        lines = self.rules.lines(Caller(id=caller), profile, prompt, self.now)
        claim = Claim(id=str(self.asked), fingerprint="f", lines=lines, max_output_tokens=profile.max_output_tokens)
        granted = await self.store.reserve(claim, 60)
        if not isinstance(granted, Granted):
            return False
        price = OWN.of(profile.model)
        assert price is not None
        rates = price.rates[0]
        tokens = prompt + granted.output_tokens
        cost = -(-(prompt * rates.input + granted.output_tokens * rates.output) // 1_000_000)
        await self.store.settle(claim, {"tokens": tokens, "nanousd": cost}, "reported")
        for unit, amount in (("requests", 1), ("tokens", tokens), ("nanousd", cost)):
            self.spent[unit] += amount
        return True

    async def come(self, callers: list[str], chance: random.Random, most_requests: int = 200) -> None:
        """At this moment: ask with prompts of several sizes, until all of them are refused."""
        tries = [(caller, each) for caller in callers for each in self.rules.open]
        chance.shuffle(tries)
        for caller, profile in tries:
            longest = BODY if profile.tokens_per_request is None else max(1, profile.tokens_per_request - 1)
            for prompt in (longest, chance.randint(1, longest), 1):
                for _ in range(most_requests):
                    if not await self.ask(caller, profile, prompt):
                        break


amounts = st.one_of(st.none(), st.integers(1, 3_000))
dollars = st.one_of(st.none(), st.integers(1, 500).map(lambda number: number / 100_000))
RARE = ("requests_per_hour", "requests_per_day", "tokens_per_hour", "tokens_per_day", "tokens_per_month")


def some_limits() -> st.SearchStrategy[dict[str, Any]]:
    numbers: dict[str, Any] = dict.fromkeys((*RARE, "tokens_per_minute", "requests_per_month"), amounts)
    numbers |= {"requests_per_minute": st.one_of(st.none(), st.integers(1, 5))}
    numbers |= {each.name: dollars for each in COUNTERS if each.unit == "nanousd"}
    return st.fixed_dictionaries({}, optional=numbers)


some_profile = st.builds(
    lambda numbers, request, output, model: open_profile(
        model=model, tokens_per_request=request, max_output_tokens=output, **numbers
    ),
    some_limits(),
    st.one_of(st.none(), st.integers(2, 2_000)),
    st.integers(1, 200),
    st.sampled_from(["p:cheap", "p:dear", "p:free"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(some_profile, min_size=1, max_size=3),
    some_limits(),
    st.lists(st.integers(0, 86_399), min_size=1, max_size=12),
    st.integers(0, 2**32),
)
def test_no_greedy_caller_spends_more(
    several: list[Profile], shared: dict[str, Any], times: list[int], seed: int
) -> None:
    profiles = [open_profile(**{**_numbers(each), "name": f"p{index}"}) for index, each in enumerate(several)]
    limits = Limits(**shared)

    async def a_day(callers: list[str]) -> dict[str, int]:
        greedy = Greedy(profiles, limits)
        for time in sorted(times):
            greedy.now = MIDNIGHT + time
            await greedy.come(callers, random.Random(seed), 40)
        return greedy.spent

    exposure = most(profiles, limits)
    alone, together = exposure.alone(profiles), exposure.together(profiles)
    for spent, bound in ((asyncio.run(a_day(["a"])), alone), (asyncio.run(a_day(["a", "b", "c"])), together)):
        assert bound.nanousd is not None
        assert spent["requests"] <= bound.requests
        assert spent["tokens"] <= bound.tokens
        assert spent["nanousd"] <= bound.nanousd
    assert alone.tokens <= together.tokens


def _numbers(profile: Profile) -> dict[str, Any]:
    return {name: getattr(profile, name) for name in profile.__struct_fields__}


async def spent_by(profiles: list[Profile], moments: list[float], limits: Limits = Limits()) -> dict[str, int]:
    """What one caller spends who asks for each profile in turn, as it stands in the list."""
    greedy = Greedy(profiles, limits)
    for moment in moments:
        greedy.now = MIDNIGHT + moment
        for profile in profiles:
            longest = BODY if profile.tokens_per_request is None else profile.tokens_per_request - 100
            while await greedy.ask("a", profile, longest):
                pass
    return greedy.spent


async def test_hours_are_reached_to_the_token() -> None:
    profiles = [open_profile(tokens_per_hour=500, tokens_per_request=500)]
    spent = await spent_by(profiles, [3_600.0 * hour for hour in range(24)])
    bound = most(profiles).alone(profiles)
    assert spent["tokens"] == bound.tokens == 24 * 500
    # 400 in at 1 and 100 out at 2 dollars a million: less than all at the dearest rate.
    assert (spent["nanousd"], bound.nanousd) == (24 * 600_000, 24 * 500 * 2_000 + 24 * 500)


async def test_two_profiles_share_a_counter_and_no_more_than_the_larger_is_spent() -> None:
    small = open_profile("small", tokens_per_day=300, tokens_per_request=300)
    large = open_profile("large", tokens_per_day=500, tokens_per_request=101, requests_per_day=2)
    spent = await spent_by([small, large], [0.0])
    bound = most([]).alone([small, large])
    assert bound.tokens == 500
    assert 300 + 2 * 100 <= spent["tokens"] <= 500


async def test_profiles_that_share_no_counter_add_up() -> None:
    by_tokens = open_profile("tokens", tokens_per_day=600, tokens_per_request=600)
    by_requests = open_profile("requests", requests_per_day=3, tokens_per_request=300)
    spent = await spent_by([by_tokens, by_requests], [0.0])
    assert spent["tokens"] == most([]).alone([by_tokens, by_requests]).tokens == 600 + 3 * 300


async def test_a_rate_admits_its_burst_and_then_what_refills() -> None:
    profiles = [open_profile(requests_per_minute=2, tokens_per_request=101)]
    spent = await spent_by(profiles, [30.0 * step for step in range(2 * 1_440 + 1)])
    bound = most(profiles).alone(profiles)
    assert spent["requests"] == bound.requests == 1_441 * 2
    assert bound.tokens == 1_441 * 2 * 101


def test_what_bounds_nothing() -> None:
    free, dear = open_profile(model="p:free"), open_profile(model="p:dear")
    assert (most([]).alone([dear]).tokens, most([]).alone([dear]).nanousd, most([]).alone([dear]).unlimited) == (
        *(inf, inf),
        True,
    )
    nothing_to_pay = most([]).together([free])
    assert (nothing_to_pay.tokens, nothing_to_pay.nanousd, nothing_to_pay.unlimited) == (inf, 0, False)
    unknown = most([]).alone([open_profile(model="p:new", tokens_per_day=5)])
    assert (unknown.tokens, unknown.nanousd, unknown.unlimited) == (5, None, False)
    assert most([]).together([open_profile(model="p:new", tokens_per_day=5)]).unlimited
    assert most([]).unpriced([free, open_profile(model="p:new", fallbacks=("p:dear", "p:newer"))]) == [
        *("p:new", "p:newer"),
    ]


def test_dollars_bound_tokens_and_a_body_bounds_a_request() -> None:
    in_dollars = most([]).alone([open_profile(usd_per_day=0.5)])
    assert (in_dollars.tokens, in_dollars.nanousd) == (500_000, 500_000_000)
    assert most([]).alone([open_profile(requests_per_day=3)]).tokens == 3 * (5 * BODY + 1_000 + 100)


@pytest.mark.parametrize("closed", [{"tokens_per_day": 0}, {"requests_per_minute": 0}, {"usd_per_month": 0}])
def test_a_closed_profile_spends_nothing_and_avoids_no_limit(closed: dict[str, Any]) -> None:
    shut, other = open_profile("shut", **closed), open_profile("other", tokens_per_day=7)
    assert most([]).alone([shut]).tokens == 0
    assert most([]).alone([shut, other]).tokens == 7
    assert most([], Limits(tokens_per_day=0)).together([other]).tokens == 0
    assert most([]).alone([]).tokens == most([]).together([]).tokens == 0


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("UTC", Day()),
        ("Asia/Kolkata", Day()),
        ("Europe/Berlin", Day(minutes=25 * 60 + 1, hours=25)),
        ("Australia/Lord_Howe", Day(minutes=24 * 60 + 30 + 1, hours=25)),
    ],
)
def test_the_longest_day_of_a_zone(zone: str, day: Day) -> None:
    assert longest_day(ZoneInfo(zone), MIDNIGHT) == day


def test_dollars_of_profiles_that_share_no_counter_add_up_below_those_of_all_callers() -> None:
    by_day, by_month = open_profile("day", usd_per_day=1), open_profile("month", usd_per_month=2)
    assert most([]).alone([by_day, by_month]).nanousd == 3_000_000_000
    assert most([], Limits(usd_per_day=2.5)).alone([by_day, by_month]).nanousd == 2_500_000_000
    assert most([], Limits(usd_per_day=3.5)).alone([by_day, by_month]).nanousd == 3_000_000_000
    free = open_profile(model="p:free", requests_per_day=9)
    assert most([], Limits(requests_per_day=2)).alone([free]).requests == 2


def test_a_limit_in_dollars_bounds_a_model_without_a_price() -> None:
    new = open_profile(model="p:new", usd_per_day=1)
    assert most([]).alone([new]).nanousd == 1_000_000_000
    assert not most([]).alone([new]).unlimited


def test_a_closed_chat_costs_nothing() -> None:
    assert most([], Limits(tokens_per_day=0)).together([open_profile()]).nanousd == 0


def test_the_tightest_limit_of_an_address_its_network_and_all_callers_bounds_any_number_of_visitors() -> None:
    profiles = [open_profile(tokens_per_day=10)]
    at, beside = Limits(tokens_per_day=700, requests_per_day=90), Limits(tokens_per_day=800, requests_per_day=80)
    found = most([], Limits(requests_per_day=70)).of_address(profiles, at, beside)
    assert (found.requests, found.tokens) == (70, 700)
    found = most([]).of_address(profiles, Limits(), beside)
    assert (found.requests, found.tokens) == (80, 800)
    for closed in (Limits(tokens_per_day=0), beside), (at, Limits(requests_per_day=0)):
        assert most([]).of_address(profiles, *closed).tokens == 0
    assert most([]).of_address(profiles, Limits(), Limits()).unlimited


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4o:latest", "unheard-of"])
def test_a_request_may_bring_its_images_and_documents(name: str) -> None:
    prices = Prices({f"p:{name}": price(input=1, output=2)})
    seen = open_profile(model=f"p:{name}", requests_per_day=1, allow_images=True, max_images=3)
    rule = image_rule(name)
    document = Attachment(at=0, media_type="application/pdf", pages=MAX_PAGES)
    largest = Attachment(at=0, media_type="image/png", width=9_999, height=9_999, detail="original")
    most_tokens = max(attachment_bound(each, rule) for each in (document, largest))
    bound = Exposure(Limits(), prices, BODY).alone([seen]).tokens
    assert bound >= 5 * BODY + 1_000 + 100 + 3 * most_tokens
    assert bound == 5 * BODY + 1_000 + 100 + 3 * max(MAX_PAGES * rule.page, 4 * rule.most)


@pytest.mark.parametrize(
    ("given", "dearest", "cheapest"),
    [
        ({"input": 4, "output": 3, "cached_input": 9, "cache_write": 5}, 9, 3),
        ({"input": 4, "output": 5, "cached_input": 3, "cache_write": 9}, 9, 3),
        ({"input": 4, "output": 9, "cached_input": 5, "cache_write": 3}, 9, 3),
        ({"input": 9, "output": 4, "cached_input": 5, "cache_write": 6}, 9, 4),
    ],
)
def test_the_dearest_of_the_rates_bounds_dollars_and_the_cheapest_tokens(
    given: dict[str, float], dearest: int, cheapest: int
) -> None:
    exposure = Exposure(Limits(), Prices({"p:m": price(**given)}), BODY)
    tokens = exposure.alone([open_profile(model="p:m", tokens_per_day=1_000, requests_per_day=1)])
    assert tokens.nanousd == 1_000 * dearest * 1_000 + 1
    dollars = exposure.alone([open_profile(model="p:m", usd_per_day=1)])
    assert dollars.tokens == 1_000_000 // cheapest


def test_a_part_of_a_nano_dollar_counts_as_one() -> None:
    exposure = Exposure(Limits(), Prices({"p:m": price(input=0.0001, output=0.0001)}), BODY)
    assert exposure.alone([open_profile(model="p:m", tokens_per_day=15, requests_per_day=1)]).nanousd == 2 + 1
