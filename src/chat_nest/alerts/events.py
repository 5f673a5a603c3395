"""Alerts: their content, and the once-only key that makes each one an alert of the whole fleet.

An alert holds no text of a chat and no caller, only names of the configuration: limits, groups, providers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, get_args
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from chat_nest.alerts.settings import AlertType
from chat_nest.core.claims import Line
from chat_nest.core.protocols import Budget
from chat_nest.core.usage import NANO
from chat_nest.limits.forecast import forecast, pace_text

EVENTS: Final[tuple[AlertType, ...]] = tuple(event for event in get_args(AlertType) if event != "test")
"""Those that a configuration can choose."""


class Alert(Struct, frozen=True, kw_only=True):
    """One alert. `id` stays the same for each attempt to deliver it, so that a receiver can drop a second one."""

    id: str
    type: AlertType
    at: float
    """Unix seconds."""
    text: str
    """One sentence for people."""
    data: Mapping[str, Any] = {}
    """The same for programs."""


class Crossing(Struct, frozen=True, kw_only=True):
    """What has happened. In the whole fleet one process claims `key`, for `seconds`, and sends the alert."""

    key: str
    seconds: float
    type: AlertType
    text: str
    data: Mapping[str, Any] = {}

    def alert(self, now: float, name: str) -> Alert:
        """Return the alert. Its id depends on the key and the time only: processes without a store agree on it."""
        start = self.key if self.type.startswith("budget.") else f"{self.key} {now // self.seconds}"
        id = f"msg_{sha256(start.encode()).hexdigest()[:32]}"
        data = {"server": name, **self.data} if name else self.data
        return Alert(id=id, type=self.type, at=now, text=f"{name}: {self.text}" if name else self.text, data=data)


def payload(alert: Alert) -> bytes:
    """Return the body of a webhook: type, timestamp and data, as Standard Webhooks has them, and a text."""
    at = datetime.fromtimestamp(alert.at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return msgspec.json.encode({"type": alert.type, "timestamp": at, "text": alert.text, "data": alert.data})


def budget_crossing(budget: Budget, percent: int, now: float, zone: ZoneInfo, *, full: bool) -> Crossing:
    """Return the crossing of a share of a limit. `full`: requests are refused, with a rest too small for one."""
    line, standing = budget.line, budget.standing
    found = forecast(line, standing.used, now)
    share = 100 * standing.used // line.limit if line.limit else 100
    amounts = f"{shown(line, standing.used)} of {shown(line, line.limit)}"
    ends = datetime.fromtimestamp(line.resets_at, zone).isoformat(timespec="minutes")
    if percent >= 100 or full:
        said = f"{owner(budget)}: {line.name} is used up ({amounts}): requests are refused until {ends}"
    else:
        pace = pace_text(line, found, zone)
        said = f"{owner(budget)}: {line.name} is at {share} % ({amounts}){f'; {pace}' if pace else ''}"
    return Crossing(
        key=f"alert:{line.key}:{line.limit}:{percent}",
        seconds=_left(line, now),
        type="budget.used_up" if percent >= 100 else "budget.threshold",
        text=said,
        data={**budget_data(budget), "percent": percent, "full_at": found.full_at if found else None},
    )


def debt_crossing(budget: Budget, now: float) -> Crossing:
    """Return that more than a limit was charged."""
    line, standing = budget.line, budget.standing
    debt = shown(line, standing.used - line.limit)
    why = "a provider reported more than the request's limit, or the limit was lowered"
    return Crossing(
        key=f"alert:{line.key}:{line.limit}:debt",
        seconds=_left(line, now),
        type="budget.debt",
        text=f"{owner(budget)}: {line.name} is overdrawn by {debt}: {why}",
        data=budget_data(budget),
    )


def _left(line: Line, now: float) -> float:
    """Return for how long a key of this window stays taken: until its end and a day, for clocks that differ."""
    return min(max(0.0, line.resets_at - now) + 86_400.0, 365 * 86_400.0)


def owner(budget: Budget) -> str:
    """Return the owner of the limit."""
    return f"group {budget.group}" if budget.group else "all callers"


def budget_data(budget: Budget) -> dict[str, Any]:
    """Return a limit and its state, in dollars if it is one of dollars."""
    line, standing = budget.line, budget.standing
    scale = NANO if line.unit == "nanousd" else 1
    amounts = {"limit": line.limit, "used": standing.used, "held": standing.held}
    return {
        "name": line.name,
        "scope": line.scope,
        **({"group": budget.group} if budget.group else {}),
        "unit": "usd" if line.unit == "nanousd" else line.unit,
        **({name: amount / scale for name, amount in amounts.items()} if scale > 1 else amounts),
        "resets_at": int(line.resets_at),
    }


def shown(line: Line, amount: int) -> str:
    """Return an amount with its unit."""
    return f"${amount / NANO:,.2f}" if line.unit == "nanousd" else f"{amount:,} {line.unit}"
