"""The money and tokens spent, from the records in the store: by day, and by caller.

The cost for the store is bounded: a range of days on the primary key, a maximum of rows, and one query at a time in a
process. Past days are read once in ten minutes, today once in ten seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final, Literal, cast, get_args
from zoneinfo import ZoneInfo

from chat_nest.core.errors import BadRequest, NotFound
from chat_nest.core.protocols import Reports
from chat_nest.core.records import By, UsageRow
from chat_nest.core.usage import NANO
from chat_nest.limits.windows import calendar_window
from chat_nest.server.app import ServerApp

Of = Literal["model", "profile", "group"]
OF: Final[tuple[Of, ...]] = get_args(Of)
MOST_DAYS: Final = 92
MOST_CALLERS: Final = 100
MOST_SERIES: Final = 8
"""Named in a chart; the rest is `other`."""
_MOST_ROWS: Final = 20_000
_OVER_SECONDS: Final = 600.0
_TODAY_SECONDS: Final = 10.0

NOT_KEPT: Final = (
    "The store keeps no records of requests: let [store] url name a sqlite:// or postgresql:// store, and let "
    "records_days be above 0"
)


class Spend:
    """Answers questions about spending, and remembers the answers for a while. Clocks are in seconds."""

    def __init__(self, app: ServerApp, now: Callable[[], float] = time.time) -> None:
        self._app = app
        self._now = now
        self._known: dict[tuple[object, ...], tuple[float, list[UsageRow]]] = {}
        self._lock = asyncio.Lock()

    async def by_day(self, of: str, days: int) -> dict[str, Any]:
        """Return the dollars, tokens and requests of each day, by model, profile or group.

        Raises BadRequest, NotFound if the store keeps no records, and LimiterUnavailable.
        """
        if of not in OF:
            raise BadRequest(f"must be one of {', '.join(OF)}", field="by")
        zone = self._zone
        today = calendar_window("day", self._now(), zone)
        first = _days_before(today.id, days - 1)
        rows: list[UsageRow] = []
        if days > 1:
            rows += await self._rows(_start(first, zone), today.start, ("day", of), _OVER_SECONDS, _MOST_ROWS)
        rows += await self._rows(today.start, today.end, ("day", of), _TODAY_SECONDS, _MOST_ROWS)
        dates = [_days_before(today.id, days - 1 - index).isoformat() for index in range(days)]
        series = _series(rows, dates)
        named, rest = series[:MOST_SERIES], series[MOST_SERIES:]
        if rest:
            named.append({"name": None, "others": len(rest), **_sum(rest, len(dates))})
        return {
            "by": of,
            "time_zone": zone.key,
            "dates": dates,
            "series": named,
            "unpriced": sum(row.unpriced for row in rows),
            "complete": len(rows) < _MOST_ROWS,
        }

    async def callers(self, days: int, most: int) -> dict[str, Any]:
        """Return the callers with the highest cost of the last days, today among them. Raises as `by_day` does."""
        today = calendar_window("day", self._now(), self._zone)
        since = _start(_days_before(today.id, days - 1), self._zone)
        rows = await self._rows(since, today.end, ("caller", "group"), _TODAY_SECONDS, most)
        shown = [
            {
                "caller": row.by[0],
                **({"group": row.by[1]} if row.by[1] else {}),
                "requests": row.requests,
                "errors": row.errors,
                "tokens": row.input_tokens + row.output_tokens,
                "usd": row.cost / NANO,
                "unpriced": row.unpriced,
            }
            for row in rows
        ]
        return {"days": days, "callers": shown}

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self._app.config.server.time_zone)

    async def _rows(self, since: float, until: float, by: tuple[By, ...], fresh: float, most: int) -> list[UsageRow]:
        store = self._app.handler.store
        if not hasattr(store, "usage") or not self._app.config.records_days:
            raise NotFound(NOT_KEPT)
        key = (since, until, by, most)
        async with self._lock:
            now = self._now()
            self._known = {each: kept for each, kept in self._known.items() if now - kept[0] < _OVER_SECONDS}
            kept = self._known.get(key)
            if kept is None or now - kept[0] >= fresh:
                rows = await cast("Reports", store).usage(since, until, by, self._zone, None, most)
                kept = self._known[key] = (now, rows)
            return kept[1]


def _days_before(day: str, days: int) -> date:
    return date.fromisoformat(day) - timedelta(days=days)


def _start(day: date, zone: ZoneInfo) -> float:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=zone).timestamp()
    return calendar_window("day", noon, zone).start


def _series(rows: Sequence[UsageRow], dates: Sequence[str]) -> list[dict[str, Any]]:
    """Return each name's days, the highest cost first, then the most tokens."""
    places = {day: index for index, day in enumerate(dates)}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        day, name = row.by
        one = found.setdefault(name, {"name": name, **_empty(len(dates))})
        place = places[day]
        one["usd"][place] += row.cost / NANO
        one["tokens"][place] += row.input_tokens + row.output_tokens
        one["requests"][place] += row.requests
    return sorted(found.values(), key=lambda one: (-sum(one["usd"]), -sum(one["tokens"]), one["name"]))


def _empty(days: int) -> dict[str, Any]:
    return {"usd": [0.0] * days, "tokens": [0] * days, "requests": [0] * days}


def _sum(series: Sequence[dict[str, Any]], days: int) -> dict[str, Any]:
    return {name: [sum(one[name][index] for one in series) for index in range(days)] for name in _empty(0)}
