"""Usage of one request in tokens, and its cost in nano-dollars: integers, so that sums are exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

Source = Literal["reported", "estimated", "assumed"]
"""The source of a count: reported by the provider, counted here, or unknown, so the whole hold is charged."""

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""
_MILLION = 1_000_000


class Usage(Struct, frozen=True, kw_only=True, gc=False):
    """Tokens, in inclusive buckets: cached and cache-writing tokens are part of the input, reasoning of the output."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Return input and output together: what token budgets are charged."""
        return self.input_tokens + self.output_tokens


class Rates(Struct, frozen=True, kw_only=True):
    """Nano-dollars per million tokens of each kind, for requests with more input tokens than `above`."""

    input: int
    output: int
    cached_input: int
    cache_write: int
    above: int = 0


class Price(Struct, frozen=True, kw_only=True):
    """A model's price: rates by the size of the input, smallest `above` first; `version` is its source and date."""

    rates: tuple[Rates, ...]
    version: str

    def cost(self, usage: Usage) -> int:
        """Return the price of this usage in nano-dollars, rounded up."""
        rates = next(rates for rates in reversed(self.rates) if usage.input_tokens > rates.above or not rates.above)
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        written = min(usage.cache_write_tokens, usage.input_tokens - cached)
        millionths = (
            (usage.input_tokens - cached - written) * rates.input
            + cached * rates.cached_input
            + written * rates.cache_write
            + usage.output_tokens * rates.output
        )
        return -(-millionths // _MILLION)


def most_it_can_cost(prices: Sequence[Price], input_tokens: int) -> tuple[int, int]:
    """Return an upper bound for a request with at most `input_tokens`, at the highest of the prices that may apply.

    Returns the nano-dollars of the input, and those of a million output tokens.
    """
    due = [rates for price in prices for rates in price.rates if input_tokens > rates.above or not rates.above]
    dearest = max((max(rates.input, rates.cached_input, rates.cache_write) for rates in due), default=0)
    return -(-input_tokens * dearest // _MILLION), max((rates.output for rates in due), default=0)
