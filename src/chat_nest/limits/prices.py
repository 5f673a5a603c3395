"""Prices of models: the operator's own first, then those of genai-prices, if it is installed.

genai-prices (the extra `prices`) ships its table in the package, so nothing is fetched. A model in neither has no
price: its cost is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import cache
from importlib.util import find_spec
from ipaddress import ip_address
from time import time
from typing import Any
from urllib.parse import urlsplit

from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.extras import install
from chat_nest.core.protocols import Now
from chat_nest.core.usage import NANO, Price, Rates


def price(*, input: float, output: float, cached_input: float | None = None, cache_write: float | None = None) -> Price:
    """A price in dollars per million tokens. Tokens read from or written to a cache cost as `input` by default.

    Raises ValueError for a price that is negative, not a number or absurd.
    """
    rates = Rates(
        input=_nano(input),
        output=_nano(output),
        cached_input=_nano(input if cached_input is None else cached_input),
        cache_write=_nano(input if cache_write is None else cache_write),
    )
    return Price(rates=(rates,), version="own")


def nano_limit(usd: float) -> int:
    """Return a limit in dollars as nano-dollars, rounded down. Raises ValueError unless it is from 1 to 2**50."""
    amount = int((_decimal(usd) * NANO).to_integral_value(ROUND_FLOOR))
    if not 1 <= amount <= MAX_AMOUNT:
        raise ValueError("must be from 0.000000001 to 1125899 dollars")
    return amount


def how_to_add(model: str) -> str:
    """Return how the operator adds the price of PROVIDER:MODEL."""
    own = (
        f'add [prices."{model}"] with input and output, in dollars for a million tokens (in a program: '
        f'prices={{"{model}": price(input=..., output=...)}})'
    )
    return own if find_spec("genai_prices") else f"{own}, or install a list of prices: {install('prices')}"


class Prices:
    """Prices by PROVIDER:MODEL. `own` may also name `PROVIDER:*`, for all models of a provider.

    `urls` has each provider's base URL, if it has one: genai-prices then finds the price by URL, and by the provider's
    name only without a URL. A model's price is looked up once a day, since a list may hold one that begins later.
    """

    def __init__(
        self, own: Mapping[str, Price] | None = None, urls: Mapping[str, str] | None = None, now: Now = time
    ) -> None:
        self._own = dict(own or {})
        self._urls = dict(urls or {})
        self._now = now
        self._day = 0
        self._found: dict[str, Price | None] = {}

    def of(self, model: str) -> Price | None:
        """Return the price of PROVIDER:MODEL; None if it is unknown."""
        day = int(self._now() // 86_400)
        if day != self._day:
            self._day = day
            self._found.clear()
        if model not in self._found:
            self._found[model] = self._look_up(model)
        return self._found[model]

    def _look_up(self, model: str) -> Price | None:
        provider, _, name = model.partition(":")
        own = self._own.get(model) or self._own.get(f"{provider}:*")
        return own or _listed(name, provider, self._urls.get(provider, ""), datetime.fromtimestamp(self._now(), UTC))


def _decimal(usd: float) -> Decimal:
    """Return the number as it was written."""
    amount = Decimal(str(usd))
    if not amount.is_finite() or amount < 0:
        raise ValueError("must be a number of dollars, and not negative")
    return amount


def _nano(usd: float) -> int:
    amount = int((_decimal(usd) * NANO).to_integral_value(ROUND_CEILING))
    if amount > MAX_AMOUNT:
        raise ValueError("must be at most 1125899 dollars for a million tokens")
    return amount


@cache
def _table() -> Any:
    """Return the snapshot of genai-prices; None if it is not installed."""
    try:
        from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - an extra, and half a second to load
    except ImportError:
        return None
    return get_snapshot()


def _is_here(url: str) -> bool:
    """Return whether the URL is of a server on this machine: no list has its prices."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _listed(name: str, provider: str, url: str, at: datetime) -> Price | None:
    table = None if _is_here(url) else _table()
    if table is None:
        return None
    from importlib.metadata import version  # noqa: PLC0415 - as slow as the rest of this package

    try:
        _, found = table.find_provider_model(name, None, None if url else provider, url or None)
    except LookupError:
        return None
    prices: list[Any] = [found.get_prices(at)]
    if not hasattr(found.prices, "input_mtok"):  # a list: prices that depend on the hour count at the highest
        prices += [each.prices for each in found.prices if hasattr(each.constraint, "start_time")]
    rates = _rates(prices)
    return None if rates is None else Price(rates=rates, version=f"genai-prices {version('genai-prices')}")


def _rates(prices: list[Any]) -> tuple[Rates, ...] | None:
    """Return the highest of these prices, at each input size where one changes; None if one lacks a kind."""
    if not all(each.input_mtok is not None and each.output_mtok is not None for each in prices):
        return None
    sizes = {0}
    for each in prices:
        for value in (each.input_mtok, each.output_mtok, each.cache_read_mtok, each.cache_write_mtok):
            sizes |= {tier.start for tier in getattr(value, "tiers", ())}

    def dearest(kind: str, size: int) -> int:
        values = [each.input_mtok if getattr(each, kind) is None else getattr(each, kind) for each in prices]
        return max(_nano(float(_at(value, size))) for value in values)

    return tuple(
        Rates(
            input=dearest("input_mtok", size),
            output=dearest("output_mtok", size),
            cached_input=dearest("cache_read_mtok", size),
            cache_write=dearest("cache_write_mtok", size),
            above=size,
        )
        for size in sorted(sizes)
    )


def _at(value: Any, size: int) -> Any:
    """Return a price; of a tiered one, the price for inputs over `size` tokens."""
    applying = [tier.price for tier in getattr(value, "tiers", ()) if tier.start <= size]
    return applying[-1] if applying else getattr(value, "base", value)


FREE = price(input=0, output=0)
"""Return the price of a model on one's own machine."""
