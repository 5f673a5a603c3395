"""What the counters have learned about models, kept in the store for restarts and for other workers.

A model's bound rises in steps of 5 % over its family's bound, at most ten. Each step is stored as a claim for one unit
of a window of a year. So every store can keep it, workers that learn the same step at once count it once, and the store
refuses an eleventh step. A bound that is read back is limited again, whatever the store contains.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from chat_nest.core.claims import Claim, Granted, Line
from chat_nest.core.protocols import Now, Store
from chat_nest.counting.tokens import LEARNED_MOST, TokenCounters

log = logging.getLogger("chat_nest.ledger")

STEP: Final = 5
"""Hundredths of a family's bound."""
MOST_STEPS: Final = (LEARNED_MOST - 100) // STEP
MOST_MODELS: Final = 64
"""Models of one process whose bounds are shared."""
_LEASE: Final = 60.0


class Learned:
    """Exchanges with the store what `counters` learned here and what other processes learned."""

    def __init__(self, store: Store, counters: TokenCounters, now: Now) -> None:
        self._store = store
        self._counters = counters
        self._now = now
        self._failing = False

    async def exchange(self, patience: float) -> None:
        """Read every bound and share those that have risen here, within `patience` seconds. Raises nothing.

        Sends nothing to the store unless some model is counted by a bound that can rise.
        """
        learned = dict(list(self._counters.learned().items())[:MOST_MODELS])
        if not learned:
            return
        try:
            async with asyncio.timeout(patience):
                await self._exchange(learned)
        except Exception as error:
            if not self._failing:
                log.info("what was learned of the models' tokens is not shared now: %s", type(error).__name__)
            self._failing = True
        else:
            self._failing = False

    async def _exchange(self, learned: Mapping[str, int]) -> None:
        lines = [_line(model, self._now()) for model in learned]
        standings = await self._store.peek(lines)
        for (model, here), line, standing in zip(learned.items(), lines, standings, strict=True):
            shared = min(max(standing.used + standing.held, 0), MOST_STEPS)
            self._counters.raise_to(model, 100 + STEP * shared)
            for step in range(shared, min(-(-(here - 100) // STEP), MOST_STEPS)):
                claim = Claim(
                    id=f"{line.key}:{step}",
                    fingerprint="learned",
                    lines=(line,),
                    max_output_tokens=0,
                    min_output_tokens=0,
                )
                if isinstance(await self._store.reserve(claim, _LEASE), Granted):
                    await self._store.settle(claim, None, "estimated")


def _line(model: str, now: float) -> Line:
    year = datetime.fromtimestamp(now, UTC).year
    return Line(
        name="learned",
        scope="all",
        key=f"learned:{year}:{sha256(model.encode()).hexdigest()[:16]}",
        unit="requests",
        kind="window",
        limit=MOST_STEPS,
        fixed=1,
        resets_at=datetime(year + 1, 1, 1, tzinfo=UTC).timestamp(),
    )
