"""The last hour of this process, minute by minute: answers, refusals, failures, and each provider's calls.

This observer counts: a handful of increments for a request, none for a token. Its keys are codes, limits and providers,
so its size is bounded. The counts end with the process; the store's records remain.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import Struct, field

from chat_nest.core.errors import ChatError, ClientGone, Stopped
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Ending, Report

MINUTES: Final = 60
BOUNDS: Final = tuple(round(0.05 * 1.3**step, 4) for step in range(28))
"""Upper bounds of the counted first-token times, in seconds: from 50 ms to a minute."""
_NOT_COUNTED: Final = ("replayed", "followed")
_NO_FAILURES: Final = (ClientGone.code, Stopped.code)


class CallCounts(Struct, array_like=True, gc=False):
    """The calls of one provider. `first` counts the first-token times by BOUNDS, the last one those above."""

    count: int = 0
    failed: int = 0
    first: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def add(self, other: CallCounts) -> None:
        """Add other calls of this provider. Theirs may lack the times."""
        self.count += other.count
        self.failed += other.failed
        for index, number in enumerate(other.first[: len(self.first)]):
            self.first[index] += number


class Refusals(Struct, array_like=True, frozen=True, gc=False):
    """Why requests were refused. `limit` and `scope` are empty unless a limit refused."""

    code: str
    limit: str
    scope: str


class FinishedCounts(Struct, kw_only=True):
    """What was done in some time."""

    answered: int = 0
    refused: Counter[Refusals] = field(default_factory=Counter[Refusals])
    failed: Counter[str] = field(default_factory=Counter[str])
    calls: dict[str, CallCounts] = field(default_factory=dict[str, CallCounts])

    def of(self, provider: str) -> CallCounts:
        """Return the calls of a provider, which can be added to."""
        return self.calls.setdefault(provider, CallCounts())


class Tally:
    """Counts the requests of this process. `now` is in Unix seconds."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._minutes: deque[tuple[int, FinishedCounts]] = deque(maxlen=MINUTES)

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None:
        """Count nothing: see `reported`."""

    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None:
        """Count nothing: see `reported`."""

    def finished(self, ending: Ending) -> None:
        """Count nothing: see `reported`."""

    def reported(self, report: Report) -> None:
        """Count one request that is over."""
        if report.code in _NOT_COUNTED:
            return
        done, steps, ending = self._this_minute(), report.steps, report.ending
        if ending is None:
            limit = str(getattr(report.error, "limit", ""))
            scope = str(getattr(report.error, "scope", "")) if limit else ""
            done.refused[Refusals(report.code, limit, scope)] += 1
            return
        failed = report.error is not None and report.code not in _NO_FAILURES
        if failed:
            done.failed[report.code] += 1
        else:
            done.answered += 1
        if steps.asked_at is not None:
            calls = done.of(ending.model.partition(":")[0])
            calls.count += 1
            calls.failed += failed
            if steps.opened_at is not None:
                calls.first[_place(steps.opened_at - steps.began_at)] += 1

    def _this_minute(self) -> FinishedCounts:
        minute = int(self._now() // 60)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, FinishedCounts()))
        return self._minutes[-1][1]

    def minutes(self) -> list[tuple[int, int, int, int]]:
        """Return the minutes of the last hour in which there was a request: its number since 1970, and how many were
        answered, refused and failed.
        """
        return [
            (minute, done.answered, done.refused.total(), done.failed.total()) for minute, done in self._last_hour()
        ]

    def total(self) -> FinishedCounts:
        """Return the sum of the last hour."""
        total = FinishedCounts()
        for _, done in self._last_hour():
            total.answered += done.answered
            total.refused.update(done.refused)
            total.failed.update(done.failed)
            for provider, calls in done.calls.items():
                total.of(provider).add(calls)
        return total

    def _last_hour(self) -> Iterable[tuple[int, FinishedCounts]]:
        oldest = int(self._now() // 60) - MINUTES
        return [each for each in self._minutes if each[0] > oldest]


def _place(seconds: float) -> int:
    return next((index for index, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))


def quantile(first: Sequence[int], share: float) -> float | None:
    """Return about how many seconds this share of the first tokens took at most; None if there were none."""
    wanted, seen = share * sum(first), 0
    if not wanted:
        return None
    for index, number in enumerate(first):
        if seen + number >= wanted:
            if index == len(BOUNDS):
                break
            lower = BOUNDS[index - 1] if index else 0.0
            return round(lower + (BOUNDS[index] - lower) * (wanted - seen) / number, 3)
        seen += number
    return BOUNDS[-1]
