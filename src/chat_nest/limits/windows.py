"""Calendar windows in a time zone, and the generic cell rate algorithm (GCRA, ITU-T I.371) in whole microseconds.

Everything here is a pure function of its arguments: every store computes the same answers from it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from math import floor
from typing import Literal
from zoneinfo import ZoneInfo

from msgspec import Struct

from chat_nest.core.limits import WindowKind


class Window(Struct, frozen=True):
    """One calendar window: `start` <= t < `end`, in whole Unix seconds. Its id is unique for its kind and zone."""

    id: str
    start: float
    end: float


_current: dict[tuple[WindowKind, ZoneInfo], Window] = {}
_MOST_KEPT = 4_096


def calendar_window(kind: WindowKind, now: float, zone: ZoneInfo) -> Window:
    """Return the window that `now` (Unix seconds) falls into. Windows of one kind and zone partition time.

    A day or month begins at the first instant whose local date has reached it, so a day that a zone skipped has no
    window and an evening that a zone repeats belongs to the day already begun. Minutes and hours also end where the
    zone's offset from UTC changes, and their ids carry the offset: the hour that comes twice in autumn is two windows.
    """
    window = _current.get((kind, zone))
    if window is not None and window.start <= now < window.end:
        return window
    at = floor(now)
    if kind == "minute":
        window = _clock_window(at, 60, "minutes", zone)
    elif kind == "hour":
        window = _clock_window(at, 3_600, "hours", zone)
    else:
        window = _date_window(at, _first_of_month if kind == "month" else _same_day, zone)
    if len(_current) >= _MOST_KEPT:
        _current.clear()
    _current[kind, zone] = window
    return window


def _clock_window(at: int, seconds: int, shown: Literal["minutes", "hours"], zone: ZoneInfo) -> Window:
    offset = _offset(at, zone)
    start = at - (at + offset) % seconds
    end = start + seconds
    if _offset(start, zone) != offset:
        start = _first(start, at, lambda t: _offset(t, zone) == offset)
    if _offset(end - 1, zone) != offset:
        end = _first(at, end - 1, lambda t: _offset(t, zone) != offset)
    return Window(datetime.fromtimestamp(at, zone).isoformat(timespec=shown), float(start), float(end))


def _date_window(at: int, first_day: Callable[[date], date], zone: ZoneInfo) -> Window:
    day = first_day(_date(at, zone))
    while True:
        after = first_day(day + timedelta(days=31 if first_day is _first_of_month else 1))
        end = _day_start(after, zone)
        if at < end:
            break
        day = after  # the clock went back over midnight: the date is yesterday's, but today had begun
    name = day.isoformat()
    return Window(name[:7] if first_day is _first_of_month else name, float(_day_start(day, zone)), float(end))


def _day_start(day: date, zone: ZoneInfo) -> int:
    """Return the first second whose local date is `day` or later."""
    midnight = int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())  # fold=0: the first of two
    if _date(midnight - 1, zone) < day:
        return midnight
    return _first(midnight - 2 * 86_400, midnight, lambda t: _date(t, zone) >= day)  # the clock skipped midnight


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Bisect for the first second in (low, high] at which `holds`, which fails at low and holds at high."""
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _same_day(day: date) -> date:
    return day


def _first_of_month(day: date) -> date:
    return day.replace(day=1)


def _date(at: int, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(at, zone).date()


def _offset(at: int, zone: ZoneInfo) -> int:
    offset = datetime.fromtimestamp(at, zone).utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


# GCRA. The state of a rate is `tat`, the theoretical arrival time, and `drawn_at`, the time of its last change, both in
# Unix microseconds. At tat the line will have drained if nothing more is drawn; at most one period lies between now and
# tat, unless there is debt. drawn_at only serves to detect a clock that was set back.

US = 1_000_000
_EXACT = 2**53
MAX_PER_MINUTE = (_EXACT - 1) // (60 * US)
"""The highest rate in a minute that doubles compute exactly: see check_rate."""


def check_rate(limit: int, period: int) -> None:
    """Raise ValueError unless a rate of `limit` units in `period` seconds can be computed exactly, also in doubles."""
    if limit < 1 or period < 1:
        raise ValueError("a rate's limit and period must be at least 1")
    if limit * period * US >= _EXACT:
        raise ValueError("a rate's limit times its period in microseconds must be below 2**53")


def gcra_cost(amount: int, limit: int, period: int) -> int:
    """Return the microseconds that `amount` units take to drain, rounded up.

    Multiples of the limit and the remainder are computed separately, so that a store that computes in doubles stays
    exact too.
    """
    whole, rest = divmod(amount, limit)
    return whole * period * US - (-rest * period * US // limit)


def gcra_seen(tat: int, drawn_at: int, now_us: int) -> int:
    """Return the tat by this clock. If the clock was set back since `drawn_at`, as much remains to drain as at that
    time.

    A difference up to a second is not a clock set back: calls overtake one another on their way to a counter.
    """
    return tat - (drawn_at - now_us) if drawn_at - now_us > US else tat


def gcra_drawn_at(drawn_at: int, now_us: int) -> int:
    """Return the new `drawn_at` for a change at this time."""
    return now_us if drawn_at - now_us > US else max(drawn_at, now_us)


def gcra_room(tat: int, now_us: int, limit: int, period: int) -> int:
    """Return the units that fit now, rounded down: at most `limit`, never below 0."""
    return max(0, now_us + period * US - max(tat, now_us)) * limit // (period * US)


def gcra_wait(tat: int, now_us: int, amount: int, limit: int, period: int) -> float:
    """Return the seconds after which `amount` units fit, if nothing else is drawn; `period` if they never can."""
    if amount > limit:
        return float(period)
    wait = max(tat, now_us) + gcra_cost(amount, limit, period) - period * US - now_us
    return (wait + 1) / US if wait > 0 else 0.0  # one more: a float clock may round down


def gcra_take(tat: int, now_us: int, cost: int) -> int:
    """Return the tat after drawing `cost` microseconds. A debt that lasts until the year 2255 grows no further."""
    return min(max(tat, now_us) + cost, _EXACT - 1)


def gcra_give(tat: int, now_us: int, cost: int, until: int) -> int:
    """Return the tat after giving back `cost`, at most what has not yet drained of a hold that drains at `until`."""
    return tat - min(cost, max(0, until - now_us))
