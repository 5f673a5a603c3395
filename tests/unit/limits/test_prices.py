"""Prices: the operator's first, then genai-prices by URL or by name; unknown is None."""

from __future__ import annotations

import subprocess
import sys
from datetime import time
from decimal import Decimal

import pytest
from genai_prices import types
from genai_prices.data_snapshot import get_snapshot

from chat_nest.limits.prices import FREE, Prices, _rates, nano_limit, price
from chat_nest.testing import FakeClock
from chat_nest.core.usage import NANO, Rates, Usage

OPENAI = {"openai": "https://api.openai.com/v1"}


def test_the_operators_price_wins():
    own = price(input=1, output=2)
    assert Prices({"openai:gpt-4o-mini": own}, OPENAI).of("openai:gpt-4o-mini") == own
    assert Prices({"openai:*": own}, OPENAI).of("openai:gpt-4o-mini") == own
    assert Prices({"openai:gpt-4o-mini": FREE, "openai:*": own}, OPENAI).of("openai:gpt-4o-mini") == FREE


def test_a_price_is_in_dollars_for_a_million_tokens():
    assert price(input=0.15, output=0.6).rates == (
        Rates(input=150_000_000, output=600_000_000, cached_input=150_000_000, cache_write=150_000_000),
    )
    assert price(input=0.15, output=0.6, cached_input=0.0, cache_write=1.1).rates[0].cached_input == 0
    assert price(input=0.1, output=0.7).cost(Usage(input_tokens=3, output_tokens=1)) == 300 + 700


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), 2e6])
def test_an_absurd_price_is_refused(bad):
    with pytest.raises(ValueError, match="dollars"):
        price(input=bad, output=1)


@pytest.mark.parametrize(
    ("usd", "nano"), [(0.1, 10**8), (0.3, 3 * 10**8), (20, 20 * 10**9), (1e-9, 1), (1.9999999999, 1_999_999_999)]
)
def test_a_limit_in_dollars_is_exact_and_rounded_down(usd, nano):
    assert nano_limit(usd) == nano


@pytest.mark.parametrize("bad", [0, -1, 1e-10, 2e6, float("nan"), float("inf")])
def test_a_limit_in_dollars_that_can_not_be_is_refused(bad):
    with pytest.raises(ValueError, match="dollars"):
        nano_limit(bad)


def test_a_known_model_has_the_lists_price_and_its_version():
    found = Prices(urls=OPENAI).of("openai:gpt-4o-mini")
    assert found.version.startswith("genai-prices ")
    [rates] = found.rates
    _, model = get_snapshot().find_provider_model("gpt-4o-mini", None, "openai", None)
    assert rates.input == int(model.prices.input_mtok * NANO)
    assert rates.cached_input == int(model.prices.cache_read_mtok * NANO) < rates.input


def test_a_url_outranks_a_name():
    """A server that is called openai, and is not, has nobody's prices."""
    prices = Prices(urls={"openai": "http://127.0.0.1:8080/v1", "mine": "https://api.openai.com/v1"})
    assert prices.of("openai:gpt-4o-mini") is None
    assert prices.of("mine:gpt-4o-mini") is not None


def test_without_a_url_the_name_counts():
    assert Prices().of("anthropic:claude-sonnet-4-5") is not None
    assert Prices().of("nobody:gpt-4o-mini") is None


def test_an_unknown_model_has_no_price():
    assert Prices(urls=OPENAI).of("openai:no-such-model") is None


def test_tiers_begin_above_their_size():
    tiered = types.ModelPrice(
        input_mtok=types.TieredPrices(base=Decimal("1.25"), tiers=[types.Tier(start=200_000, price=Decimal("2.5"))]),
        output_mtok=types.TieredPrices(base=Decimal(10), tiers=[types.Tier(start=100_000, price=Decimal(15))]),
    )
    assert [(rates.above, rates.input, rates.output) for rates in _rates([tiered])] == [
        (0, 1_250_000_000, 10 * NANO),
        (100_000, 1_250_000_000, 15 * NANO),
        (200_000, 2_500_000_000, 15 * NANO),
    ]


def test_of_prices_by_the_hour_the_dearest_counts():
    night = types.ModelPrice(input_mtok=Decimal("0.1"), output_mtok=Decimal(3))
    day = types.ModelPrice(input_mtok=Decimal("0.2"), output_mtok=Decimal(2))
    [rates] = _rates([night, day])  # type: ignore[misc]
    assert (rates.input, rates.output) == (200_000_000, 3 * NANO)


def test_a_price_that_lacks_a_kind_is_none():
    assert _rates([types.ModelPrice(input_mtok=Decimal(1))]) is None


def test_our_cost_equals_that_of_the_table():
    """The same usage of each priced chat model, by genai-prices itself and by us."""
    for provider, name in [("openai", "gpt-4o-mini"), ("anthropic", "claude-sonnet-4-5"), ("google", "gemini-2.5-pro")]:
        for size in (1_000, 200_001, 900_000):
            usage = Usage(input_tokens=size, output_tokens=777, cached_input_tokens=333)
            theirs = get_snapshot().calc(
                types.Usage(input_tokens=size, output_tokens=777, cache_read_tokens=333),
                name,
                provider,
                None,
                None,
                None,
            )
            assert abs(Prices().of(f"{provider}:{name}").cost(usage) - theirs.total_price * NANO) < 1, (name, size)


def test_a_price_that_begins_on_a_day_counts_from_that_day_on():
    before, after = 1_767_225_600.0, 1_795_000_000.0  # 2026-01-01 and 2026-11-18
    listed = next(
        (provider.id, model.id, model.prices[-1])
        for provider in get_snapshot().providers
        for model in provider.models
        if isinstance(model.prices, list)
        and len(model.prices) == 2
        and isinstance(model.prices[-1].constraint, types.StartDateConstraint)
        and "2026-01-01" < str(model.prices[-1].constraint.start_date) < "2026-11-18"
        and all(isinstance(each.prices.input_mtok, Decimal) and each.prices.output_mtok for each in model.prices)
        and model.prices[0].prices.input_mtok != model.prices[-1].prices.input_mtok
    )
    provider, model, last = listed
    clock = FakeClock(before)
    prices = Prices(now=clock)
    first = prices.of(f"{provider}:{model}")
    clock.advance(after - before)
    assert prices.of(f"{provider}:{model}").rates[0].input == int(last.prices.input_mtok * NANO) != first.rates[0].input


def test_without_the_extra_nothing_is_known():
    program = (
        "import sys; sys.modules['genai_prices'] = None\n"
        "from chat_nest.limits.prices import Prices; print(Prices().of('openai:gpt-4o-mini'))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "None\n"


def test_time_of_day_prices_are_found_in_a_list():
    """The shape that `_listed` looks for is the library's own."""
    assert hasattr(types.TimeOfDateConstraint(start_time=time(0), end_time=time(8)), "start_time")
