"""Forecasts: a straight line through what a window has used until now."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from chat_nest.core.claims import MAX_AMOUNT, Line
from chat_nest.limits.forecast import LEAST_SHARE, forecast, pace_text
from chat_nest.limits.windows import calendar_window

PARIS = ZoneInfo("Europe/Paris")
START = 1_790_000_000.0
PERIODS = st.sampled_from([3_600, 23 * 3_600, 86_400, 25 * 3_600, 28 * 86_400, 31 * 86_400])
AMOUNTS = st.integers(1, MAX_AMOUNT)
SHARES = st.floats(LEAST_SHARE, 1)


def line(limit: int, period: int, *, kind="window", unit="tokens") -> Line:
    return Line(
        name="x", scope="all", key="all:x:1", unit=unit, kind=kind, limit=limit, fixed=0, period=period,
        resets_at=START + period,
    )  # fmt: skip


@given(AMOUNTS, AMOUNTS, PERIODS, SHARES)
def test_the_limit_is_reached_in_the_window_if_and_only_if_as_much_is_expected(limit, used, period, share):
    now = START + share * period
    assume(now - START >= LEAST_SHARE * period)
    found = forecast(line(limit, period), used, now)
    assert found.expected >= used
    if found.full_at is None:
        assert found.expected <= limit or found.expected - limit <= limit / 10**9  # rounding, at the very end
    else:
        assert now <= found.full_at <= START + period
        assert found.expected >= limit or limit - found.expected <= limit / 10**9 + 1


@given(AMOUNTS, AMOUNTS, AMOUNTS, PERIODS, SHARES)
def test_higher_usage_exhausts_a_limit_no_later(limit, one, other, period, share):
    now = START + share * period
    assume(now - START >= LEAST_SHARE * period)
    less, more = (forecast(line(limit, period), used, now) for used in sorted((one, other)))
    assert less.expected <= more.expected
    if less.full_at is not None:
        assert more.full_at is not None
        assert more.full_at <= less.full_at


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(2, 1_000), PERIODS, SHARES)
def test_the_unit_does_not_matter(limit, used, scale, period, share):
    now = START + share * period
    assume(now - START >= LEAST_SHARE * period)
    small = forecast(line(limit, period), used, now)
    large = forecast(line(scale * limit, period), scale * used, now)
    assert abs(large.expected - scale * small.expected) <= scale
    if small.full_at is not None and large.full_at is not None:
        assert abs(large.full_at - small.full_at) < 0.01


@given(AMOUNTS, st.floats(LEAST_SHARE, 0.999), st.floats(0.001, 1), PERIODS)
def test_a_constant_pace_gives_the_same_forecast_at_each_time(limit, early, later, period):
    pace = limit / period * 2  # full in the middle of the window
    late = early + later * (0.5 - early) if early < 0.5 else None
    assume(late is not None and limit > 1_000)
    times = [START + share * period for share in (early, late)]
    assume(times[0] - START >= LEAST_SHARE * period)
    found = [forecast(line(limit, period), int(pace * (now - START)), now) for now in times]
    for each in found:
        assert abs(each.full_at - (START + period / 2)) <= period * (2 / (LEAST_SHARE * limit) + 0.001)


def test_without_a_pace_there_is_no_forecast():
    at = START + 43_200
    assert forecast(line(100, 86_400), 0, at) is None
    assert forecast(line(100, 86_400, kind="rate"), 50, at) is None
    assert forecast(line(100, 86_400), 50, START + 60) is None  # too early
    assert forecast(line(100, 86_400), 50, START - 60) is None  # a clock that was set back
    assert forecast(line(100, 86_400), 50, START + 86_401) is None  # the window is over


def test_a_used_limit_is_full_now():
    assert forecast(line(100, 86_400), 100, START + 43_200).full_at == START + 43_200
    assert forecast(line(0, 86_400), 1, START + 43_200).full_at == START + 43_200


def test_the_text_names_the_day_of_a_month_and_the_hour_of_a_day():
    now = datetime(2026, 11, 12, 12, tzinfo=PARIS).timestamp()
    month, day = calendar_window("month", now, PARIS), calendar_window("day", now, PARIS)
    of_month = replace(line(100, int(month.end - month.start)), resets_at=month.end)
    of_day = replace(line(100, 86_400), resets_at=day.end)
    said = pace_text(of_month, forecast(of_month, 52, now), PARIS)
    assert said == "at this pace the limit is reached on 23 November"
    assert (
        pace_text(of_month, forecast(of_month, 20, now), PARIS)
        == "at this pace 52 % of the limit are used by 1 December"
    )
    assert pace_text(of_day, forecast(of_day, 75, now), PARIS) == "at this pace the limit is reached at 16:00"
    assert pace_text(of_day, None, PARIS) == ""
