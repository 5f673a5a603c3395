"""What keeps a provider's outage small: a circuit breaker, and a budget of retries. One of each a provider and process.

Time is an argument, in seconds of any clock that does not go back.
"""

from __future__ import annotations

from typing import Final, Literal

Outcome = Literal["well", "ill", "limited", "unknown"]
"""How an attempt ended: the provider answered, it failed, it has too much to do, or that can't be told."""

HALF_LIFE: Final = 10.0
"""Seconds after which an outcome counts half."""
STORM: Final = 10
"""So many failures, and at least as many failures as answers, open the breaker."""
LIMITED_IN_A_ROW: Final = 20
"""So many refusals for too many requests, and no answer in between, open it, too."""
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 60.0
PROBE_WAIT: Final = 1.0
"""What those are told who come while one attempt finds out whether the provider is back."""

CAPACITY: Final = 100
RETRY_COST: Final = 5
UNCERTAIN_RETRY_COST: Final = 10
"""An attempt of which nobody knows how it ended may still be running at the provider: the next one weighs more."""


class Breaker:
    """Closed at first. A storm of failures opens it: nobody asks the provider for a while, then one attempt probes.

    The probe's answer closes it; its failure opens it again, for twice as long, up to a minute.
    """

    def __init__(self) -> None:
        self.era = 0
        """Outcomes of attempts that were admitted in another era say nothing about this one."""
        self._well = 0.0
        self._ill = 0.0
        self._limited = 0
        self._counted_at = 0.0
        self._pause = 0.0
        self._until = 0.0
        self._probing = False

    @property
    def state(self) -> Literal["closed", "open", "probing"]:
        """An open breaker probes as soon as it is asked after its pause."""
        return "probing" if self._probing else "open" if self._pause else "closed"

    def admit(self, now: float) -> float:
        """0 where the provider may be asked now; the caller then notes `era`, and tells how that `ended`.

        Else the seconds after which it may be worth asking.
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

    def ended(self, era: int, outcome: Outcome, now: float, retry_after: float | None = None) -> None:
        """An attempt of this era ended. `retry_after`: how long the provider asked for, in seconds."""
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

    def _probed(self, outcome: Outcome, now: float, retry_after: float | None) -> None:
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
    """Retries for so long as most requests succeed: each costs more than an answer brings in.

    In an outage the provider then sees little more than the requests that come, and not three times as many.
    """

    def __init__(self) -> None:
        self.left = CAPACITY

    def spend(self, cost: int) -> bool:
        """Pay for one retry; False, and nothing changes, where there is too little."""
        if self.left < cost:
            return False
        self.left -= cost
        return True

    def succeeded(self, paid: int = 0) -> None:
        """An attempt got its answer, and gives back what was `paid` for it."""
        self.left = min(self.left + max(paid, 1), CAPACITY)
