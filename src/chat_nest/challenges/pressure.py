"""Whether all callers together are close to a limit, or requests are refused unusually often."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from chat_nest.core.claims import Line, Standing
from chat_nest.core.errors import ChatError, RateLimited
from chat_nest.limits.caller_rates import CallerRates

LOOK_SECONDS = 1.0
"""How old the known state of the limits may be."""

Peek = Callable[[], Awaitable[Sequence[tuple[Line, Standing]]]]
"""Return the limits for all callers, and their state. Raises ChatError."""


class Pressure:
    """Reports pressure: a limit for all callers of which more than `share` is used or held, or many refusals.

    The state of the limits is the store's, read by at most one request a second. The refusals are those of this
    process. If the store does not answer, the last known state counts.
    """

    def __init__(
        self, share: float, refusals_per_minute: int | None, peek: Peek, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share = share
        self._refusals_per_minute = refusals_per_minute
        self._peek = peek
        self._clock = clock
        self._refusals = CallerRates(clock)
        self._looked = -LOOK_SECONDS
        self._is_full = False

    async def is_high(self) -> bool:
        """Return whether visitors must pass a challenge now."""
        try:
            self._refusals.check("")
        except RateLimited:
            return True
        now = self._clock()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now  # before the read: other requests use the last known state meanwhile
            try:
                self._is_full = any(self._is_over(line, standing) for line, standing in await self._peek())
            except ChatError:
                return self._is_full
        return self._is_full

    def count_refused(self) -> None:
        """Count a request that a limit refused."""
        self._refusals.count("", self._refusals_per_minute)

    def _is_over(self, line: Line, standing: Standing) -> bool:
        return standing.used + standing.held > self._share * line.limit
