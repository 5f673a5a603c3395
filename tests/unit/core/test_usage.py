"""What usage costs: to the nano-dollar, by the size of the input, and never more than was held for it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.core.claims import Line
from chat_nest.core.usage import Price, Rates, Usage, most_it_can_cost

FLAT = Price(
    rates=(Rates(input=150_000_000, output=600_000_000, cached_input=75_000_000, cache_write=200_000_000),), version="t"
)
TIERED = Price(
    rates=(
        Rates(input=1_250_000_000, output=10_000_000_000, cached_input=125_000_000, cache_write=1_250_000_000),
        Rates(
            input=2_500_000_000,
            output=15_000_000_000,
            cached_input=250_000_000,
            cache_write=2_500_000_000,
            above=200_000,
        ),
    ),
    version="t",
)


@pytest.mark.parametrize(
    ("price", "usage", "nano"),
    [
        (FLAT, Usage(), 0),
        (FLAT, Usage(input_tokens=1_000_000), 150_000_000),
        (FLAT, Usage(output_tokens=1), 600),
        (FLAT, Usage(input_tokens=10, cached_input_tokens=4), 6 * 150 + 4 * 75),
        (FLAT, Usage(input_tokens=10, cached_input_tokens=4, cache_write_tokens=3), 3 * 150 + 4 * 75 + 3 * 200),
        (FLAT, Usage(input_tokens=10, cached_input_tokens=99, cache_write_tokens=99), 10 * 75),
        (TIERED, Usage(input_tokens=200_000, output_tokens=10), 200_000 * 1_250 + 10 * 10_000),
        (TIERED, Usage(input_tokens=200_001, output_tokens=10), 200_001 * 2_500 + 10 * 15_000),
    ],
)
def test_a_usage_costs(price, usage, nano):
    assert price.cost(usage) == nano


def test_a_part_of_a_nano_dollar_is_a_whole_one():
    thin = Price(rates=(Rates(input=1, output=1, cached_input=1, cache_write=1),), version="t")
    assert thin.cost(Usage(input_tokens=1)) == 1


amounts = st.integers(0, 10**7)
per_million = st.integers(0, 10**12)
rates = st.builds(Rates, input=per_million, output=per_million, cached_input=per_million, cache_write=per_million)
prices = st.lists(st.tuples(rates, st.integers(1, 10**6)), min_size=1, max_size=3).map(
    lambda found: Price(
        rates=tuple(
            Rates(
                input=each.input,
                output=each.output,
                cached_input=each.cached_input,
                cache_write=each.cache_write,
                above=0 if number == 0 else above,
            )
            for number, (each, above) in enumerate(sorted(found, key=lambda pair: pair[1]))
        ),
        version="t",
    )
)


@given(st.lists(prices, min_size=1, max_size=3), st.data())
def test_nothing_costs_more_than_was_held(offered, data):
    """Whichever model answers, within the input's bound and the output's cap, from whatever cache."""
    bound, cap = data.draw(amounts), data.draw(amounts)
    fixed, output = most_it_can_cost(offered, bound)
    line = Line(
        name="usd_per_day",
        scope="all",
        key="k",
        unit="nanousd",
        kind="window",
        limit=2**50,
        fixed=fixed,
        per_million=output,
    )
    usage = Usage(
        input_tokens=data.draw(st.integers(0, bound)),
        output_tokens=data.draw(st.integers(0, cap)),
        cached_input_tokens=data.draw(amounts),
        cache_write_tokens=data.draw(amounts),
    )
    for price in offered:
        assert price.cost(usage) <= line.amount(cap)


@given(prices, amounts, amounts)
def test_a_cost_is_exact_and_rounded_up_once(price, input_tokens, output_tokens):
    due = [each for each in price.rates if not each.above or input_tokens > each.above][-1]
    exact = Fraction(input_tokens * due.input + output_tokens * due.output, 10**6)
    assert 0 <= price.cost(Usage(input_tokens=input_tokens, output_tokens=output_tokens)) - exact < 1


def test_no_price_holds_nothing():
    assert most_it_can_cost([], 1_000) == (0, 0)
