"""How the shared limits stand, and when they will be used up at the pace so far: for the command line and operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from chat_nest.alerts.events import budget_data
from chat_nest.controls.grants import Grants
from chat_nest.controls.live import LiveControls
from chat_nest.core.limits import Limits
from chat_nest.core.protocols import Budget, HasControls, Store
from chat_nest.core.usage import NANO
from chat_nest.limits.forecast import forecast, pace_text
from chat_nest.limits.prices import nano_limit
from chat_nest.limits.profiles import OTHERS
from chat_nest.server.operator import owner_key, window_lines


async def shared_budgets(
    store: Store, limits: Limits, groups: Mapping[str, Limits], now: float, zone: ZoneInfo
) -> list[Budget]:
    """Return how the calendar windows of all callers and of each group stand in a store, with what was granted.

    For a process without a handler. Raises LimiterUnavailable.
    """
    owners = [("", "all", limits)]
    owners += [(name, owner_key("group", name), each) for name, each in groups.items() if name != OTHERS]
    found = [
        (group, replace(line, limit=nano_limit(limit) if line.unit == "nanousd" else limit))
        for group, owner, each in owners
        for line in window_lines(owner, zone, now)
        if (limit := getattr(each, line.name)) is not None
    ]
    if not found or not isinstance(store, HasControls):
        return []
    live = LiveControls(store.controls)
    try:
        await live.ready()
        grants = Grants(live)
        lines = grants.raised([line for _, line in found])
        standings = await store.peek(lines)
    finally:
        await live.aclose()
    shown = [grants.shown(line, standing) for line, standing in zip(lines, standings, strict=True)]
    return [Budget(line, standing, group) for (group, _), (line, standing) in zip(found, shown, strict=True)]


def forecasts(budgets: Sequence[Budget], now: float, zone: ZoneInfo) -> list[dict[str, Any]]:
    """Return the calendar windows as JSON's values, each with what it will have used at its end, and `full_at`.

    Both are null without a forecast, and `full_at` if the limit is not reached in the window. `text` is for people.
    """
    shown: list[dict[str, Any]] = []
    for budget in budgets:
        line = budget.line
        if line.kind != "window":
            continue
        found = forecast(line, budget.standing.used, now)
        expected = None if found is None else found.expected
        shown.append(
            {
                **budget_data(budget),
                "expected": expected / NANO if expected is not None and line.unit == "nanousd" else expected,
                "full_at": None if found is None or found.full_at is None else int(found.full_at),
                "text": pace_text(line, found, zone),
            }
        )
    return shown
