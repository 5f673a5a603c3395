"""What a handler has to do now, and how the shared limits stand: for observers that measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chat_nest.controls.grants import Grants
from chat_nest.core.protocols import Budget, Figures, Now
from chat_nest.ledger.ledger import Ledger
from chat_nest.pipeline.fair_queue import FairQueue
from chat_nest.pipeline.terms import CurrentTerms
from chat_nest.stores.places import kind_of_store


class HandlerFigures:
    """The figures of one handler (protocols.HasFigures), under the terms in force. `running` counts its answers."""

    def __init__(
        self,
        ledger: Ledger,
        queue: FairQueue,
        terms: CurrentTerms,
        grants: Grants,
        running: Callable[[], int],
        now: Now,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._terms = terms
        self._grants = grants
        self._running = running
        self._now = now

    @property
    def store_kind(self) -> str:
        return kind_of_store(self._ledger.store)

    def figures(self) -> Figures:
        breakers = self._terms.now.upstream.breakers
        return Figures(
            streams=self._running(),
            queued=self._ledger.queued + self._queue.waiting,
            unsettled=self._ledger.unsettled,
            expired=self._ledger.expired,
            breakers={name: breaker.state for name, breaker in breakers.items()},
        )

    async def budgets(self) -> Sequence[Budget]:
        """Return how the limits of all callers and of the configured groups stand, with what was granted and reset.

        Raises LimiterUnavailable.
        """
        now, profiles = self._now(), self._terms.now.profiles
        shared = [("", line) for line in profiles.shared_lines(now)]
        shared += [(group, line) for group, lines in profiles.group_lines(now).items() for line in lines]
        if not shared:
            return ()
        lines = self._grants.raised([line for _, line in shared])
        standings = await self._ledger.peek(lines)
        shown = [self._grants.shown(line, each) for line, each in zip(lines, standings, strict=True)]
        return [Budget(line, each, group) for (group, _), (line, each) in zip(shared, shown, strict=True)]
