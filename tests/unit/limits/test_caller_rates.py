from __future__ import annotations

import pytest

from chat_nest.limits.caller_rates import MOST_CALLERS, CallerRates
from chat_nest.core.errors import RateLimited


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_as_many_a_minute_refilled_evenly() -> None:
    clock = Clock()
    rates = CallerRates(clock)
    for _ in range(30):
        rates.check("ada")
        rates.count("ada", 30)
    with pytest.raises(RateLimited) as refused:
        rates.check("ada")
    assert refused.value.retry_after == pytest.approx(2.0)
    assert refused.value.limit == "requests_per_minute"
    rates.check("eve")
    clock.now += 1.9
    with pytest.raises(RateLimited):
        rates.check("ada")
    clock.now += 0.1
    rates.check("ada")
    rates.count("ada", 30)
    with pytest.raises(RateLimited):
        rates.check("ada")
    clock.now += 60
    for _ in range(30):
        rates.check("ada")
        rates.count("ada", 30)


def test_a_caller_without_a_rate_is_not_counted() -> None:
    rates = CallerRates(Clock())
    for _ in range(1_000):
        rates.count("ada", None)
    rates.check("ada")


def test_a_rate_of_nothing_is_no_division_by_it() -> None:
    rates = CallerRates(Clock())
    rates.count("ada", 0)
    with pytest.raises(RateLimited):
        rates.check("ada")


def test_made_up_callers_take_bounded_memory() -> None:
    rates = CallerRates(Clock())
    for number in range(3 * MOST_CALLERS):
        rates.count("often", 1)
        rates.count(str(number), 1)
    assert len(rates._full_until) == MOST_CALLERS
    with pytest.raises(RateLimited):
        rates.check("often")
