"""A circuit breaker and a retry budget, which limit the effect of a provider's outage. Each process has one per
provider.

Time is an argument, in seconds of any clock that does not go back.
"""

from __future__ import annotations

from typing import Final, Literal

Verdict = Literal["well", "ill", "limited", "unknown"]
"""How an attempt ended: with an answer, a failure, a refusal for too many requests, or in a way that is unknown."""

HALF_LIFE: Final = 10.0
"""Seconds after which an outcome counts half."""
STORM: Final = 10
"""The breaker opens after this many failures, if there are at least as many failures as answers."""
LIMITED_IN_A_ROW: Final = 20
"""The breaker also opens after this many refusals for too many requests without an answer in between."""
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 60.0
PROBE_WAIT: Final = 1.0
"""Retry-After while a probe is in flight, in seconds."""

CAPACITY: Final = 100
RETRY_COST: Final = 5
UNCERTAIN_RETRY_COST: Final = 10
"""The cost of a retry after an attempt with an unknown end: that attempt may still be running at the provider."""


class Breaker:
    """A circuit breaker, closed at first. A storm of failures opens it: after a pause without calls, one attempt
    probes.

    A successful probe closes it. A failed probe opens it again for twice as long, up to a minute.
    """

    def __init__(self) -> None:
        self.era = 0
        """Outcomes of attempts that were admitted in another era are ignored."""
        self._well = 0.0
        self._ill = 0.0
        self._limited = 0
        self._counted_at = 0.0
        self._pause = 0.0
        self._until = 0.0
        self._probing = False

    @property
    def state(self) -> Literal["closed", "open", "probing"]:
        """The current state. An open breaker probes on the first `admit` after its pause."""
        return "probing" if self._probing else "open" if self._pause else "closed"

    def admit(self, now: float) -> float:
        """Return 0 if the provider may be called now. The caller then notes `era`, and reports the result to `ended`.

        Otherwise return the seconds after which a new try may succeed.
        """
        if not self._pause:
            return 0.0
        if self._probing:
            return PROBE_WAIT
        if now < self._until:
            return self._until - now
        self._probing = True
        self.era += 1
        return 0.0

    def ended(self, era: int, outcome: Verdict, now: float, retry_after: float | None = None) -> None:
        """Record the end of an attempt of this era. `retry_after` is the provider's, in seconds."""
        if era != self.era:
            return
        if self._pause:
            self._probed(outcome, now, retry_after)
            return
        kept = 0.5 ** ((now - self._counted_at) / HALF_LIFE)
        self._counted_at = now
        self._well *= kept
        self._ill *= kept
        if outcome == "well":
            self._well += 1
            self._limited = 0
        elif outcome == "ill":
            self._ill += 1
            if self._ill > STORM - 0.5 and self._ill >= self._well:
                self._open(now, FIRST_PAUSE)
        elif outcome == "limited":
            self._limited += 1
            if self._limited >= LIMITED_IN_A_ROW:
                self._open(now, max(retry_after or 0.0, FIRST_PAUSE))

    def _probed(self, outcome: Verdict, now: float, retry_after: float | None) -> None:
        self._probing = False
        if outcome == "well":
            self._pause = self._well = self._ill = 0.0
            self._limited = 0
        elif outcome == "ill":
            self._open(now, 2 * self._pause)
        elif outcome == "limited":
            self._open(now, max(retry_after or 0.0, self._pause))

    def _open(self, now: float, pause: float) -> None:
        self.era += 1
        self._pause = min(pause, LONGEST_PAUSE)
        self._until = now + self._pause


class RetryBudget:
    """Allows retries while most requests succeed: a retry costs more than an answer earns.

    During an outage the provider then sees little more than the incoming requests, not three times as many.
    """

    def __init__(self) -> None:
        self.left = CAPACITY

    def spend(self, cost: int) -> bool:
        """Pay for one retry. Returns False, without a change, if the budget is too small."""
        if self.left < cost:
            return False
        self.left -= cost
        return True

    def succeeded(self, paid: int = 0) -> None:
        """Record an answered attempt, and refund what was `paid` for it."""
        self.left = min(self.left + max(paid, 1), CAPACITY)
