from __future__ import annotations

import io
import struct
import zoneinfo
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from example_counts import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chat_nest.limits import windows
from chat_nest.limits.windows import (
    calendar_window,
    check_rate,
    gcra_cost,
    gcra_drawn_at,
    gcra_give,
    gcra_room,
    gcra_seen,
    gcra_take,
    gcra_wait,
)

ZONES = sorted(zoneinfo.available_timezones() - {"localtime"})
KINDS = ["minute", "hour", "day", "month"]
US = 1_000_000


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    monkeypatch.setattr(windows, "_current", {})


def test_a_plain_day_and_its_neighbours():
    zone = ZoneInfo("Europe/Berlin")
    day = calendar_window("day", at("2026-07-01T12:00"), zone)
    assert day == windows.Window("2026-07-01", at("2026-06-30T22:00"), at("2026-07-01T22:00"))
    assert calendar_window("day", day.end, zone).id == "2026-07-02"
    assert calendar_window("month", day.start, zone).id == "2026-07"
    assert calendar_window("month", day.start - 0.001, zone).id == "2026-06"
    assert calendar_window("hour", day.start, zone).id == "2026-07-01T00+02:00"
    assert calendar_window("minute", day.start + 61, zone).id == "2026-07-01T00:01+02:00"


def test_december_is_followed_by_january():
    month = calendar_window("month", at("2026-12-31T23:59:59"), ZoneInfo("UTC"))
    assert (month.id, month.end) == ("2026-12", at("2027-01-01T00:00"))


@pytest.mark.parametrize(
    ("zone", "when", "id", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25T12:00", "2026-10-25", 25),
        ("Australia/Lord_Howe", "2026-04-04T20:00", "2026-04-05", 24.5),
        ("America/Sao_Paulo", "2018-11-04T12:00", "2018-11-04", 23),  # began at 01:00
        ("America/Havana", "2026-11-01T12:00", "2026-11-01", 25),  # midnight comes twice
        ("Asia/Pyongyang", "2018-05-04T12:00", "2018-05-04", 23.5),  # 23:30 became midnight
        ("Africa/Monrovia", "1972-01-07T12:00", "1972-01-07", 24 - (44 * 60 + 30) / 3600),
    ],
)
def test_days_that_are_longer_or_shorter(zone, when, id, hours):
    day = calendar_window("day", at(when), ZoneInfo(zone))
    assert day.id == id
    assert (day.end - day.start) / 3600 == hours


def test_a_skipped_day_has_no_window():
    zone = ZoneInfo("Pacific/Apia")
    before = calendar_window("day", at("2011-12-30T09:59:59"), zone)
    after = calendar_window("day", at("2011-12-30T10:00"), zone)
    assert (before.id, after.id) == ("2011-12-29", "2011-12-31")
    assert before.end == after.start == at("2011-12-30T10:00")
    assert after.end - after.start == 86_400


def test_the_last_minutes_of_a_day_that_come_twice_belong_to_the_day_begun():
    zone = ZoneInfo("America/St_Johns")  # at 00:01 on 2006-10-29 the clock went back to 23:01 on the 28th
    begun = at("2006-10-29T02:30")
    assert calendar_window("day", begun - 1, zone).id == "2006-10-28"
    again = begun + 30 * 60
    assert datetime.fromtimestamp(again, zone).day == 28
    assert calendar_window("day", again, zone) == calendar_window("day", begun, zone)
    assert calendar_window("day", again, zone).id == "2006-10-29"


def test_the_hour_that_comes_twice_is_two_windows():
    zone = ZoneInfo("Europe/Berlin")
    first, second = (calendar_window("hour", at(f"2026-10-25T0{hour}:30"), zone) for hour in (0, 1))
    assert (first.id, second.id) == ("2026-10-25T02+02:00", "2026-10-25T02+01:00")
    assert first.end == second.start


def test_an_hour_cut_by_a_half_hour_change():
    zone = ZoneInfo("Australia/Lord_Howe")  # at 02:00+11:00 the clock went back to 01:30+10:30
    second = calendar_window("hour", at("2026-04-04T15:10"), zone)
    assert second.id == "2026-04-05T01+10:30"
    assert (second.start, second.end) == (at("2026-04-04T15:00"), at("2026-04-04T15:30"))
    first = calendar_window("hour", second.start - 1, zone)
    assert (first.id, first.end - first.start, first.end) == ("2026-04-05T01+11:00", 3600, second.start)


def test_a_day_with_a_skipped_midnight_begins_with_the_skip():
    """No zone has done so yet. At 23:30+00:00 the clock goes forward to 00:30+01:00: a file as of RFC 9636."""
    skip = int(at("2026-07-01T23:30"))
    head = struct.pack(">4sx15x6l", b"TZif", 0, 0, 0, 1, 2, 8)
    body = struct.pack(">lB lBB lBB", skip, 1, 0, 0, 0, 3_600, 0, 4)
    zone = ZoneInfo.from_file(io.BytesIO(head + body + b"AAA\0BBB\0"))
    before, after = calendar_window("day", skip - 1, zone), calendar_window("day", skip, zone)
    assert (before.id, before.end) == ("2026-07-01", skip)
    assert (after.id, after.start, after.end) == ("2026-07-02", skip, at("2026-07-02T23:00"))


def test_an_hour_in_which_the_clock_goes_forward_ends_there():
    zone = ZoneInfo("Asia/Pyongyang")  # at 23:30+08:30 the clock went forward to 00:00+09:00
    hour = calendar_window("hour", at("2018-05-04T14:40"), zone)
    assert (hour.id, hour.start, hour.end) == ("2018-05-04T23+08:30", at("2018-05-04T14:30"), at("2018-05-04T15:00"))


TRANSITIONS = [at("2011-12-30T10:00"), at("2006-10-29T03:31"), at("2026-10-25T01:00"), at("2018-05-04T15:00")]


@settings(deadline=None, max_examples=examples(400))
@given(
    st.sampled_from(ZONES),
    st.sampled_from(KINDS),
    st.floats(0, at("2040-01-01"), allow_nan=False)
    | st.builds(lambda base, off: base + off, st.sampled_from(TRANSITIONS), st.integers(-90_000, 90_000)),
)
@example("Pacific/Apia", "day", at("2011-12-30T10:00"))
@example("America/St_Johns", "day", at("2006-10-29T02:31"))
@example("Africa/Monrovia", "day", at("1972-01-07T00:44"))
@example("Asia/Kathmandu", "hour", at("1985-12-31T18:35"))
def test_windows_partition_time(name, kind, now):
    zone = ZoneInfo(name)
    window = cold_window(kind, now, zone)
    assert window.start <= now < window.end
    inside = [window.start, window.end - 1, window.end - 0.001, (window.start + window.end) / 2]
    assert {cold_window(kind, moment, zone) for moment in inside} == {window}
    after, before = cold_window(kind, window.end, zone), cold_window(kind, window.start - 0.001, zone)
    assert after.start == window.end  # no gap, no overlap
    assert before.end == window.start
    assert len({before.id, window.id, after.id}) == 3


def cold_window(kind, now, zone):
    windows._current.clear()
    return calendar_window(kind, now, zone)


@pytest.mark.parametrize(
    "name", ["America/St_Johns", "Africa/Casablanca", "Antarctica/Troll", "Asia/Gaza", "Pacific/Apia"]
)
@pytest.mark.parametrize("kind", ["day", "month"])
def test_a_chain_of_windows_never_repeats_an_id(name, kind):
    zone, moment, seen = ZoneInfo(name), at("1985-01-01"), []
    while moment < at("2030-01-01"):
        window = calendar_window(kind, moment, zone)
        assert window.start == moment if seen else window.start <= moment
        assert moment < window.end
        seen.append(window.id)
        moment = window.end
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(
    "name", ["Australia/Lord_Howe", "America/St_Johns", "Asia/Pyongyang", "Asia/Kathmandu", "Pacific/Apia"]
)
@pytest.mark.parametrize("start", ["1985-12-31", "2006-10-28", "2011-12-29", "2018-05-04", "2026-04-04"])
@pytest.mark.parametrize("kind", ["minute", "hour"])
def test_a_chain_of_clock_windows_never_repeats_an_id(name, start, kind):
    zone, moment, end, seen = ZoneInfo(name), at(start), at(start) + 2 * 86_400, []
    while moment < end:
        window = calendar_window(kind, moment, zone)
        assert window.start == moment if seen else window.start <= moment
        assert moment < window.end
        seen.append(window.id)
        moment = window.end
    assert len(seen) == len(set(seen))


def test_the_kept_window_is_not_used_outside_itself():
    zone = ZoneInfo("UTC")
    first = calendar_window("minute", 120.0, zone)
    assert calendar_window("minute", 179.999, zone) is first
    assert calendar_window("minute", 180.0, zone).start == 180
    assert calendar_window("minute", 119.999, zone).start == 60
    assert calendar_window("hour", 120.0, zone).end == 3600


def test_a_flood_of_zones_is_not_kept():
    for _ in range(5_000):
        calendar_window("day", 0.0, ZoneInfo.no_cache("UTC"))
    assert len(windows._current) <= 4_096


# GCRA

rates = st.tuples(st.integers(1, 10**7), st.sampled_from([1, 7, 60, 600])).filter(lambda r: r[0] * r[1] * US < 2**53)


def test_a_burst_of_the_limit_then_an_even_refill():
    now, tat = 1_000 * US, 0
    assert gcra_room(tat, now, 30, 60) == 30
    tat = gcra_take(tat, now, gcra_cost(30, 30, 60))
    assert gcra_room(tat, now, 30, 60) == 0
    assert gcra_wait(tat, now, 1, 30, 60) == pytest.approx(2.0, abs=1e-5)
    assert gcra_room(tat, now + 2 * US - 1, 30, 60) == 0
    assert gcra_room(tat, now + 2 * US, 30, 60) == 1
    assert gcra_room(tat, now + 60 * US, 30, 60) == 30
    assert gcra_room(tat, now + 6_000 * US, 30, 60) == 30


def test_a_claim_that_never_fits_waits_a_period():
    assert gcra_wait(0, 0, 31, 30, 60) == 60.0


def test_a_claim_that_fits_does_not_wait():
    assert gcra_wait(0, 5 * US, 30, 30, 60) == 0.0


@given(rates, st.integers(0, 2**51), st.integers(-(10**9), 10**9), st.data())
def test_room_is_exactly_the_largest_claim_that_fits(rate, now, ahead, data):
    tat = max(0, now + ahead)
    room = gcra_room(tat, now, *rate)
    assert 0 <= room <= rate[0]
    if tat <= now + rate[1] * US:
        assert gcra_take(tat, now, gcra_cost(room, *rate)) <= now + rate[1] * US
        assert gcra_take(tat, now, gcra_cost(room + 1, *rate)) > now + rate[1] * US or room == rate[0]
    else:
        assert room == 0


@given(rates, st.integers(0, 2**51), st.integers(0, 10**9), st.data())
def test_after_the_wait_there_is_room(rate, now, ahead, data):
    amount = data.draw(st.integers(1, rate[0]))
    wait = gcra_wait(now + ahead, now, amount, *rate)
    later = int((now / US + wait) * US)  # as a float clock has it
    assert gcra_room(now + ahead, later, *rate) >= amount
    if wait > 1e-5:
        assert gcra_room(now + ahead, now + int(wait * US) - 2, *rate) < amount


@given(rates, st.integers(0, 2**50))
def test_cost_is_rounded_up_and_no_product_leaves_the_doubles(rate, amount):
    limit, period = rate
    assert gcra_cost(amount, limit, period) == -(-amount * period * US // limit)
    assert (amount % limit) * period * US < 2**53


def test_debt_ends_within_the_doubles():
    tat = gcra_take(0, 1_800_000_000 * US, gcra_cost(2**50, 1, 60))
    assert tat == 2**53 - 1
    assert gcra_room(tat, 1_800_000_000 * US, 1, 60) == 0


def test_drained_units_are_not_given_back():
    cost = gcra_cost(30, 30, 60)
    until = gcra_take(0, 0, cost)
    assert gcra_room(gcra_give(until, 0, cost, until), 0, 30, 60) == 30
    halfway = 30 * US
    tat = gcra_give(until, halfway, cost, until)
    assert tat == halfway
    assert gcra_give(until, 90 * US, cost, until) == until


@pytest.mark.parametrize(
    ("limit", "period"), [(0, 60), (-1, 60), (1, 0), (1, -1), (2**50, 60), (2**53 // (60 * US) + 1, 60)]
)
def test_rates_that_could_not_be_exact_are_refused(limit, period):
    with pytest.raises(ValueError, match="rate"):
        check_rate(limit, period)


@pytest.mark.parametrize(("limit", "period"), [(2**53 // (60 * US), 60), (1, 1), (1, 2**53 // US)])
def test_the_least_and_the_largest_rates_are_allowed(limit, period):
    check_rate(limit, period)


def test_the_rule_for_a_rate_is_named():
    with pytest.raises(ValueError, match="^a rate's limit and period must be at least 1$"):
        check_rate(0, 60)
    with pytest.raises(ValueError, match=r"^a rate's limit times its period in microseconds must be below 2\*\*53$"):
        check_rate(2**50, 60)


def test_the_wait_is_to_the_microsecond():
    full = gcra_take(0, 0, gcra_cost(30, 30, 60))
    assert gcra_wait(full, 0, 1, 30, 60) == 2.000001
    assert gcra_wait(full, 2 * US - 1, 1, 30, 60) == 0.000002
    assert gcra_wait(full, 2 * US, 1, 30, 60) == 0.0


def test_a_full_rate_of_more_than_a_unit_a_microsecond_has_no_room():
    assert gcra_room(US, 0, 10**7, 1) == 0
    assert gcra_room(US, 1, 10**7, 1) == 10


@pytest.mark.parametrize(
    ("now", "seen", "drawn_at"),
    [
        (1_000 * US, 1_060 * US, 1_000 * US),
        (1_001 * US, 1_060 * US, 1_001 * US),
        (999 * US, 1_060 * US, 1_000 * US),  # a call that was overtaken
        (999 * US - 1, 1_059 * US - 1, 999 * US - 1),
        (400 * US, 460 * US, 400 * US),
    ],
)
def test_a_clock_that_was_set_back_by_more_than_a_second_leaves_as_much_to_drain(now, seen, drawn_at):
    assert gcra_seen(1_060 * US, 1_000 * US, now) == seen
    assert gcra_drawn_at(1_000 * US, now) == drawn_at
