"""A rate of bad requests by IP address. Above it a connection is reset without an answer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from chat_nest.core.errors import RateLimited
from chat_nest.identity.guarded import is_public
from chat_nest.limits.caller_rates import CallerRates

log = logging.getLogger("chat_nest.server")

REFUSED_PER_MINUTE = 300
"""For one IPv4 address or IPv6 /64: far more than a broken client sends, or an office full of them."""
WARN_SECONDS = 60.0


class RefusalRates:
    """Counts the refusals of requests that no application sees, in this worker.

    Valid requests are never refused for it: other people may share the address. `clock` is in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rates = CallerRates(clock)
        self._warned_at = -math.inf

    def count(self, address: str | None, name: Callable[[], str]) -> bool:
        """Count a refusal, and return whether it may be answered.

        None and private addresses, which may be a proxy's, are not counted. `name` returns its name in
        the log.
        """
        if address is None or not is_public(address):
            return True
        try:
            self._rates.check(address)
        except RateLimited:
            self._warn(name)
            return False
        self._rates.count(address, REFUSED_PER_MINUTE)
        return True

    def _warn(self, name: Callable[[], str]) -> None:
        """Log a warning, at most once a minute."""
        now = self._clock()
        if now - self._warned_at >= WARN_SECONDS:
            self._warned_at = now
            said = "caller=%s sends more than %d bad requests a minute: further ones get no answer"
            log.warning(said, name() or "-", REFUSED_PER_MINUTE)
