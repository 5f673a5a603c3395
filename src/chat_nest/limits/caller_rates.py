"""Rates of requests that reserve nothing: refused requests and reconnecting readers. In this process only."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from chat_nest.core.errors import RateLimited

MINUTE = 60.0
MOST_CALLERS = 10_000
"""The most callers whose rates are remembered; above it the longest unseen is forgotten."""


class CallerRates:
    """A rate of a caller's requests, `requests_per_minute`, refilled evenly (GCRA); `clock` is in seconds.

    The ledger counts admitted requests only. Other requests would cost this server work and the caller nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_until: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """The time at which a caller will have drained its counts, and the seconds that each takes."""

    def check(self, caller: str) -> None:
        """Raise RateLimited if the caller has no room for another request."""
        found = self._full_until.get(caller)
        if found is None:
            return
        until, each = found
        wait = until - self._clock() - (MINUTE - each)
        if wait > 1e-9:
            raise RateLimited(limit="requests_per_minute", retry_after=wait)

    def count(self, caller: str, per_minute: int | None) -> None:
        """Count one request; None is a caller without a rate, and 0 counts as 1."""
        if per_minute is None:
            return
        each = MINUTE / max(1, per_minute)
        until, _ = self._full_until.pop(caller, (0.0, 0.0))
        self._full_until[caller] = max(until, self._clock()) + each, each
        if len(self._full_until) > MOST_CALLERS:
            self._full_until.popitem(last=False)
