"""How the shared limits stand, and when they will be used up at the pace so far: for the command line and operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zoneinfo import ZoneInfo

from chat_nest.alerts.events import budget_data
from chat_nest.core.protocols import Budget
from chat_nest.core.usage import NANO
from chat_nest.limits.forecast import forecast, pace_text


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
