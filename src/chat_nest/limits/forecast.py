"""Forecasts: what a calendar window will have used at its end, at the pace so far."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from msgspec import Struct

from chat_nest.core.claims import MAX_AMOUNT, Line

LEAST_SHARE = 0.02
"""The least part of a window that gives a pace: half an hour of a day, 15 hours of a month."""
_MONTH_SECONDS = 27 * 86_400


class Forecast(Struct, frozen=True):
    """The straight line through what a window has used until now."""

    expected: int
    """What will be used when the window ends, in the line's unit, if no limit refuses it."""
    full_at: float | None
    """Unix seconds at which the limit is reached; None if that is not in this window."""


def forecast(line: Line, used: int, now: float) -> Forecast | None:
    """Return the forecast of a calendar window with `used` of `line.limit`, by what its requests have settled.

    None if there is no pace: the line is no calendar window, nothing was used, or less than LEAST_SHARE of the window
    is over. A window that has used its limit is full `now`. Pure.
    """
    if line.kind != "window" or line.period <= 0 or used <= 0:
        return None
    start = line.resets_at - line.period
    elapsed = now - start
    if not LEAST_SHARE * line.period <= elapsed <= line.period:
        return None
    expected = max(used, min(round(used * (line.period / elapsed)), MAX_AMOUNT))
    if used >= line.limit:
        return Forecast(expected, now)
    full_at = start + elapsed * (line.limit / used)
    return Forecast(expected, max(now, full_at) if full_at < line.resets_at else None)


def pace_text(line: Line, found: Forecast | None, zone: ZoneInfo) -> str:
    """Return "at this pace the limit is reached on 23 November", or that it is not; "" without a forecast."""
    if found is None:
        return ""
    if found.full_at is None:
        share = 100 * found.expected // line.limit if line.limit else 100
        return f"at this pace {share} % of the limit are used by {moment_text(line.resets_at, line, zone)}"
    return f"at this pace the limit is reached {_preposition(line)} {moment_text(found.full_at, line, zone)}"


def moment_text(at: float, line: Line, zone: ZoneInfo) -> str:
    """Return a time as exactly as a window of this length needs: "23 November" in a month, else "18:40"."""
    when = datetime.fromtimestamp(at, zone)
    return f"{when.day} {when:%B}" if line.period >= _MONTH_SECONDS else f"{when:%H:%M}"


def _preposition(line: Line) -> str:
    return "on" if line.period >= _MONTH_SECONDS else "at"
