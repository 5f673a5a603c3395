"""The watch: one task looks every few seconds at what this process can see, and posts the alerts that are due.

No request waits for it, and it calls nothing for a request. Each process of a fleet looks; the outbox decides which one
writes the alert.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from chat_nest.alerts.counts import OF_KEYS, Counts
from chat_nest.alerts.events import Crossing, budget_crossing, debt_crossing
from chat_nest.alerts.outbox import Rows
from chat_nest.alerts.settings import AlertType, Bounds
from chat_nest.alerts.spikes import MINUTES, Spikes
from chat_nest.core.errors import LimiterUnavailable, failure_name
from chat_nest.core.parts import failure_text
from chat_nest.core.protocols import Budget, HasFigures, Now, PoolsKeys, Store
from chat_nest.stores.places import place_of, remedy_of

log = logging.getLogger("chat_nest.alerts")

LOOK_SECONDS: Final = 5.0
STORE_SECONDS: Final = 2.0
NEAR: Final = 0.9
"""The used share of a limit from which its refusals mean that it is used up: the rest is too small for a request."""
_KEY_CODES: Final = frozenset(error.code for error in OF_KEYS)

Post = Callable[[Crossing], Awaitable[bool]]


class Watch:
    """Looks at the budgets, the store, the providers and the counts of one process. `post` writes an alert."""

    def __init__(
        self,
        counts: Counts,
        store: Store,
        controls: Rows,
        providers: Callable[[], Mapping[str, object]],
        post: Post,
        now: Now = time.time,
    ) -> None:
        self._counts = counts
        self._store = store
        self._controls = controls
        self._providers = providers
        self._post_to = post
        self._now = now
        self._spikes = Spikes(controls)
        self._probe = f"alert-look:{secrets.token_hex(8)}"
        self._bounds = Bounds()
        self._events: frozenset[AlertType] = frozenset()
        self._zone = ZoneInfo("UTC")
        self._posted: dict[str, float] = {}
        """The keys that were claimed, by this process or another one, each with the end of its time."""
        self._since: dict[str, float] = {}
        """Conditions that hold now, each with the time since which."""
        self._windows: dict[tuple[str, str, str], Budget] = {}
        """The windows of the last look, by scope, group and name."""

    def adopt(self, bounds: Bounds, events: frozenset[AlertType], zone: ZoneInfo) -> None:
        """Put these settings in force, from the next look on."""
        self._bounds, self._events, self._zone = bounds, events, zone

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look once. A part that fails leaves the others alone."""
        figures, now = self._counts.figures, self._now()
        if figures is None:
            return
        self._posted = {key: until for key, until in self._posted.items() if until > now}
        for part in (self._look_at_store, self._look_at_budgets, self._look_at_providers, self._look_at_counts):
            try:
                await part(figures, now)
            except (LimiterUnavailable, TimeoutError):
                continue  # the look at the store tells
            except Exception as error:
                log.warning("a part of the watch failed: %s", failure_text(error))

    async def _look_at_store(self, figures: HasFigures, now: float) -> None:
        bounds, why = self._bounds, ""
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await self._controls.first(self._probe, LOOK_SECONDS)  # a ping writes nothing: a full disk passes it
        except Exception as error:
            why = failure_name(error.__cause__ or error)
        if self._holds("store", bool(why), now) >= bounds.store_seconds and why:
            place, since = place_of(self._store), datetime.fromtimestamp(self._since["store"], self._zone)
            said = f"{place} does not answer since {since:%H:%M:%S} ({why}): {remedy_of(self._store)}"
            await self._post("store.down", "", said, {"reason": why, "since": int(self._since["store"])}, now)
        pending = figures.figures().unsettled
        if self._holds("pending", pending > 0, now) >= bounds.pending_seconds and pending:
            minutes = int((now - self._since["pending"]) // 60)
            said = f"one process has {pending} settlements that the store did not take for {minutes} minutes"
            await self._post("settlements.pending", "", said, {"pending": pending}, now)

    async def _look_at_budgets(self, figures: HasFigures, now: float) -> None:
        async with asyncio.timeout(STORE_SECONDS):
            budgets = await figures.budgets()
        full, self._counts.full = self._counts.full, set()
        found: dict[tuple[str, str, str], Budget] = {
            (each.line.scope, each.group, each.line.name): each
            for each in budgets
            if each.line.kind == "window" and each.line.limit > 0
        }
        for name, budget in found.items():
            await self._look_at(budget, now, full=name in full)
        ended = [old for name, old in self._windows.items() if name in found and found[name].line.key != old.line.key]
        self._windows = found
        if ended:  # what was charged between the last look and the window's end
            standings = await self._store.peek([each.line for each in ended])
            for old, standing in zip(ended, standings, strict=True):
                await self._look_at(Budget(old.line, standing, old.group), now, full=False)

    async def _look_at(self, budget: Budget, now: float, *, full: bool) -> None:
        """Post the highest share that is reached, and take those below it, which say nothing more."""
        line, used = budget.line, budget.standing.used
        is_full = full and used >= NEAR * line.limit
        reached = [
            each for each in self._bounds.percents if 100 * used >= each * line.limit or (is_full and each >= 100)
        ]
        crossings = [budget_crossing(budget, each, now, self._zone, full=is_full) for each in sorted(reached)]
        if crossings and await self._claim(crossings[-1], now):
            for below in crossings[:-1]:
                await self._controls.first(below.key, below.seconds)
        if used > line.limit:
            await self._claim(debt_crossing(budget, now), now)

    async def _look_at_providers(self, figures: HasFigures, now: float) -> None:
        refused, self._counts.keys = self._counts.keys, {}
        for name, provider in self._providers().items():
            count, rests = provider.key_rests() if isinstance(provider, PoolsKeys) else (1, ())
            resting = [each.reason for each in rests if each.reason in _KEY_CODES]
            code = refused.get(name) or next(iter(resting), "")
            if code:
                which = f"{len(resting)} of its {count} keys" if count > 1 and resting else "the key"
                data = {"provider": name, "reason": code, "keys": count, "resting": len(resting)}
                await self._post("provider.key_refused", name, f"{name} refuses {which}: {code}", data, now)
        for name, state in figures.figures().breakers.items():
            seconds = self._holds(f"breaker {name}", state != "closed", now)
            if state != "closed" and seconds >= self._bounds.breaker_seconds:
                said = f"{name} has failed for {int(seconds // 60)} minutes: its circuit breaker is {state}"
                await self._post("provider.breaker_open", name, said, {"provider": name, "state": state}, now)

    async def _look_at_counts(self, _: HasFigures, now: float) -> None:
        counts, bounds = self._counts, self._bounds
        refusals, visitors = counts.refusals, counts.visitors
        counts.refusals, counts.visitors = Counter(), 0
        async with asyncio.timeout(STORE_SECONDS):
            totals = await self._spikes.add(refusals, visitors, now)
        refused = sum(totals.refusals.values())
        if 0 < bounds.refused_per_minute * MINUTES < refused:
            codes = ", ".join(f"{code} {n:,}" for code, n in list(totals.refusals.items())[:3])
            said = f"{refused:,} requests were refused in {MINUTES} minutes: {codes}"
            await self._post("requests.refused", "", said, {"refused": refused, "codes": totals.refusals}, now)
        if 0 < bounds.visitors_per_minute * MINUTES < totals.visitors:
            said = f"{totals.visitors:,} new visitors came in {MINUTES} minutes"
            await self._post("visitors.new", "", said, {"visitors": totals.visitors}, now)

    def _holds(self, name: str, holds: bool, now: float) -> float:
        """Note whether a condition holds, and return for how many seconds it has."""
        if not holds:
            self._since.pop(name, None)
            return 0.0
        return now - self._since.setdefault(name, now)

    async def _post(self, type: AlertType, subject: str, text: str, data: Mapping[str, Any], now: float) -> None:
        key = f"alert:{type}:{subject}"
        crossing = Crossing(key=key, seconds=self._bounds.repeat_seconds, type=type, text=text, data=data)
        await self._claim(crossing, now)

    async def _claim(self, crossing: Crossing, now: float) -> bool:
        """Post an alert, unless it is known to be posted, or not wanted."""
        if crossing.type not in self._events or crossing.key in self._posted:
            return False
        posted = await self._post_to(crossing)
        self._posted[crossing.key] = now + crossing.seconds
        return posted
