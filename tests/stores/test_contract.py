"""What every store promises, sentence by sentence (chat_nest.core.protocols.Store)."""

from __future__ import annotations

import asyncio

import pytest
from chat_nest.core.claims import Conflict, Duplicate, Granted, Line, Refused, Standing
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from msgspec.structs import replace
from stores_under_test import LEASE, START, claim, gauge, rate, request, standing, window


def retention_of(store):
    """Seconds that the store remembers what has ended; Redis counts them by its server's clock."""
    return getattr(store, "_retention_us", None) and store._retention_us / 1e6 or 3 * 86_400.0


# reserve: all lines or none


async def test_a_claim_holds_every_line_and_returns_the_remaining_limits(store):
    day, minute, streams = window(1_000, fixed=50), rate(30), gauge(3)
    answer = await store.reserve(claim("a", day, minute, streams, request(200, fixed=50)), LEASE)
    assert answer == Granted(output_tokens=100, room=(850, 29, 2, 50))
    assert await store.peek([day, minute, streams]) == (
        Standing(used=0, held=150, room=850, resets_at=START + 86_400),
        Standing(used=1, held=0, room=29, resets_at=START + 2),
        Standing(used=0, held=1, room=2, resets_at=0.0),
    )


async def test_the_output_is_clamped_to_the_tightest_line(store):
    lines = window(500, fixed=20), window(90, fixed=20, key="all"), request(300, fixed=20)
    answer = await store.reserve(claim("a", *lines), LEASE)
    assert answer == Granted(output_tokens=70, room=(410, 0, 210))
    assert await standing(store, lines[0]) == (0, 90)


async def test_a_rate_of_tokens_clamps_too(store, clock):
    per_minute = rate(600, fixed=100, per_token=1, unit="tokens", key="tpm")
    assert await store.reserve(claim("a", per_minute, most=450), LEASE) == Granted(output_tokens=450, room=(50,))
    assert await store.reserve(claim("b", per_minute), LEASE) == Refused(
        line=0, room=50, retry_after=pytest.approx(5.1)
    )
    clock.advance(6)  # 60 tokens
    assert await store.reserve(claim("c", per_minute), LEASE) == Granted(output_tokens=10, room=(0,))


async def test_a_price_per_token_that_is_not_whole_is_rounded_up(store):
    money = Line(
        name="usd", scope="caller", key="usd", unit="nanousd", kind="window", limit=100, fixed=1, per_million=1_500_001,
        resets_at=START + 60,
    )  # fmt: skip
    answer = await store.reserve(claim("a", money, most=1_000), LEASE)
    assert answer == Granted(output_tokens=65, room=(1,))  # 1 + 97.500065 -> 99


async def test_a_line_on_which_output_is_free_does_not_clamp(store):
    assert await store.reserve(claim("a", rate(5), most=3_000), LEASE) == Granted(output_tokens=3_000, room=(4,))


async def test_a_claim_without_lines_is_granted(store):
    assert await store.reserve(claim("a"), LEASE) == Granted(output_tokens=100, room=())
    assert await store.settle(claim("a"), None, "reported")


async def test_exactly_the_least_is_enough_and_one_less_is_not(store):
    line = window(26, fixed=10)
    assert await store.reserve(claim("a", line, least=17), LEASE) == Refused(line=0, room=26, retry_after=86_400.0)
    assert await store.reserve(claim("a", line, least=16), LEASE) == Granted(output_tokens=16, room=(0,))


async def test_a_refusal_names_the_first_line_without_room(store):
    lines = window(1_000, key="roomy"), window(5, key="tight"), window(1, key="tighter"), gauge(0)
    answer = await store.reserve(claim("a", *lines, least=10), LEASE)
    assert answer == Refused(line=1, room=5, retry_after=86_400.0)


async def test_a_refusal_changes_nothing(store):
    lines = [window(1_000), rate(10), gauge(4), window(5, key="tight"), rate(3, key="other")]
    before = await store.peek(lines)
    refused = claim("a", *lines, least=10)
    for _ in range(5):
        assert isinstance(await store.reserve(refused, LEASE), Refused)
    assert await store.peek(lines) == before
    assert await store.settle(refused, {"tokens": 7}, "reported") is False
    assert await store.extend([refused], LEASE) == frozenset()
    assert await store.peek(lines) == before
    assert isinstance(await store.reserve(claim("a", lines[0], least=10), LEASE), Granted)  # the id is still free


async def test_retry_after_a_full_window_is_its_end(store, clock):
    line = window(0, resets_at=START + 12.5)
    assert (await store.reserve(claim("a", line), LEASE)).retry_after == 12.5
    clock.advance(13)
    assert (await store.reserve(claim("a", line), LEASE)).retry_after == 0.0


async def test_retry_after_a_full_rate_is_enough(store, clock):
    line = rate(600, fixed=50, per_token=1, unit="tokens")
    await store.reserve(claim("a", line, most=550), LEASE)
    answer = await store.reserve(claim("b", line, most=100, least=40), LEASE)
    assert answer == Refused(line=0, room=0, retry_after=pytest.approx(9.0, abs=1e-4))
    clock.advance(answer.retry_after - 0.001)
    assert isinstance(await store.reserve(claim("b", line, most=100, least=40), LEASE), Refused)
    clock.advance(0.001)
    assert await store.reserve(claim("b", line, most=100, least=40), LEASE) == Granted(output_tokens=40, room=(0,))


async def test_retry_after_of_a_claim_that_never_fits_a_rate_is_the_period(store):
    line = rate(10, fixed=11, period=7)
    assert await store.reserve(claim("a", line), LEASE) == Refused(line=0, room=10, retry_after=7.0)


async def test_retry_after_a_full_gauge_is_its_first_lease(store, clock):
    line, other = gauge(2), gauge(9, key="other")
    await store.reserve(claim("a", line), 40.0)
    clock.advance(1)
    await store.reserve(claim("b", line), 20.0)
    await store.reserve(claim("c", other), 5.0)
    assert await store.reserve(claim("d", line), LEASE) == Refused(line=0, room=0, retry_after=20.0)
    await store.extend([claim("b", line)], 50.0)
    assert (await store.reserve(claim("d", line), LEASE)).retry_after == 39.0
    await store.settle(claim("a", line), None, "reported")
    await store.reserve(claim("d", line), 0.5)
    assert (await store.reserve(claim("e", line), LEASE)).retry_after == 1.0  # at least


async def test_retry_after_a_gauge_that_allows_none_is_a_second(store):
    assert await store.reserve(claim("a", gauge(0)), LEASE) == Refused(line=0, room=0, retry_after=1.0)


async def test_no_wait_helps_a_request_that_is_too_large(store):
    assert await store.reserve(claim("a", request(40, fixed=50)), LEASE) == Refused(line=0, room=40, retry_after=0.0)


async def test_a_gauge_counts_current_holders(store):
    line = gauge(2)
    claims = [claim(id, line) for id in "abc"]
    assert (await store.reserve(claims[0], LEASE)).room == (1,)
    assert (await store.reserve(claims[1], LEASE)).room == (0,)
    assert isinstance(await store.reserve(claims[2], LEASE), Refused)
    assert await store.settle(claims[0], {"tokens": 5}, "reported")
    assert await standing(store, line) == (0, 1)
    assert isinstance(await store.reserve(claims[2], LEASE), Granted)


async def test_a_rate_refills_evenly(store, clock):
    line = rate(3)
    answers = [await store.reserve(claim(f"{n}", line), LEASE) for n in range(4)]
    assert [type(answer) for answer in answers] == [Granted, Granted, Granted, Refused]
    clock.advance(19.99)
    assert isinstance(await store.reserve(claim("x", line), LEASE), Refused)
    clock.advance(0.02)
    assert isinstance(await store.reserve(claim("x", line), LEASE), Granted)
    assert isinstance(await store.reserve(claim("y", line), LEASE), Refused)


async def test_a_lowered_limit_leaves_no_room_and_a_raised_one_some(store):
    await store.reserve(claim("a", window(100)), LEASE)
    [lowered, raised] = await store.peek([window(60), window(160)])
    assert (lowered.room, raised.room) == (0, 60)
    assert isinstance(await store.reserve(claim("b", window(60)), LEASE), Refused)
    assert await store.reserve(claim("b", window(160)), LEASE) == Granted(output_tokens=60, room=(0,))


# reserve: idempotent by id


async def test_the_same_claim_again_gets_the_first_answer(store):
    line = window(70)
    first = claim("a", line)
    assert await store.reserve(first, LEASE) == Granted(output_tokens=70, room=(0,))
    assert await store.reserve(first, LEASE) == Duplicate(output_tokens=70, state="open")
    assert await standing(store, line) == (0, 70)
    await store.settle(first, {"tokens": 10}, "reported")
    assert await store.reserve(first, LEASE) == Duplicate(output_tokens=70, state="settled")
    assert await standing(store, line) == (10, 0)


async def test_the_same_id_for_something_else_is_a_conflict(store):
    line = window(1_000)
    await store.reserve(claim("a", line), LEASE)
    for answer in [await store.reserve(claim("a", line, fingerprint="other"), LEASE) for _ in range(2)]:
        assert answer == Conflict()
    assert await standing(store, line) == (0, 100)


async def test_an_expired_claim_is_a_duplicate(store, clock):
    await store.reserve(claim("a", window(50)), LEASE)
    clock.advance(LEASE)
    assert await store.reserve(claim("a", window(50)), LEASE) == Duplicate(output_tokens=50, state="expired")


async def test_a_released_claim_can_not_be_reserved_again(store):
    line = window(50)
    await store.reserve(claim("a", line), LEASE)
    await store.release(claim("a", line))
    assert await store.reserve(claim("a", line), LEASE) == Duplicate(output_tokens=0, state="released")
    assert await standing(store, line) == (0, 0)


async def test_an_id_released_before_it_was_seen_can_not_be_reserved(store):
    line = window(50)
    assert await store.release(claim("a", line)) is False
    assert await store.reserve(claim("a", line), LEASE) == Duplicate(output_tokens=0, state="released")
    assert await store.reserve(claim("a", line, fingerprint="other"), LEASE) == Conflict()
    assert await store.settle(claim("a", line), {"tokens": 5}, "reported") is False
    assert await store.release(claim("a", line)) is False
    assert await standing(store, line) == (0, 0)


async def test_another_claims_fingerprint_moves_nothing(store):
    line = window(500)
    await store.reserve(claim("a", line), LEASE)
    foreign = claim("a", line, fingerprint="other")
    assert await store.settle(foreign, {"tokens": 1}, "reported") is False
    assert await store.release(foreign) is False
    assert await store.extend([foreign], LEASE) == frozenset()
    assert await standing(store, line) == (0, 100)


# settle


async def test_settling_charges_the_actual_and_frees_the_rest(store):
    day, everyone, streams = window(1_000, fixed=50), window(5_000, fixed=50, key="all"), gauge(1)
    one = claim("a", day, everyone, streams)
    await store.reserve(one, LEASE)
    assert await store.settle(one, {"tokens": 72}, "reported") is True
    assert await standing(store, day) == (72, 0)
    assert await standing(store, everyone) == (72, 0)
    assert await standing(store, streams) == (0, 0)


@pytest.mark.parametrize("actual", [None, {}, {"requests": 3}])
async def test_unknown_usage_is_charged_the_whole_hold(store, actual):
    line = window(1_000, fixed=50)
    await store.reserve(claim("a", line), LEASE)
    assert await store.settle(claim("a", line), actual, "assumed") is True
    assert await standing(store, line) == (150, 0)


async def test_each_unit_is_settled_apart(store):
    tokens, requests = window(1_000), window(10, fixed=2, per_token=0, key="requests", unit="requests")
    money = window(9_000, per_token=7, key="usd", unit="nanousd")
    one = claim("a", tokens, requests, money)
    await store.reserve(one, LEASE)
    await store.settle(one, {"tokens": 30, "nanousd": 0}, "reported")
    assert [await standing(store, line) for line in (tokens, requests, money)] == [(30, 0), (2, 0), (0, 0)]


async def test_more_than_was_held_is_debt(store):
    line = window(150)
    await store.reserve(claim("a", line), LEASE)
    await store.settle(claim("a", line), {"tokens": 400}, "reported")
    [found] = await store.peek([line])
    assert (found.used, found.held, found.room) == (400, 0, 0)
    assert isinstance(await store.reserve(claim("b", line), LEASE), Refused)


async def test_settling_twice_is_one_settlement(store):
    line = window(1_000)
    await store.reserve(claim("a", line), LEASE)
    answers = [await store.settle(claim("a", line), {"tokens": tokens}, "reported") for tokens in (30, 30, 90)]
    assert answers == [True, False, False]
    assert await standing(store, line) == (30, 0)


async def test_settling_an_unknown_reservation_charges_nothing(store):
    line = window(1_000)
    assert await store.settle(claim("a", line), {"tokens": 30}, "reported") is False
    assert await standing(store, line) == (0, 0)


async def test_a_rate_regains_unused_units(store):
    line = rate(600, fixed=100, per_token=1, unit="tokens")
    await store.reserve(claim("a", line, most=500), LEASE)
    await store.settle(claim("a", line), {"tokens": 250}, "reported")
    [found] = await store.peek([line])
    assert found.room == 350


async def test_a_rate_does_not_regain_drained_units(store, clock):
    line = rate(600, fixed=600, unit="tokens")
    await store.reserve(claim("a", line), LEASE)
    clock.advance(45)  # 450 have drained, 150 have not
    await store.settle(claim("a", line), {"tokens": 0}, "reported")
    assert (await store.peek([line]))[0].room == 600
    await store.reserve(claim("b", line), LEASE)
    assert (await store.peek([line]))[0].room == 0


async def test_drained_units_of_a_rate_are_not_given_to_others(store, clock):
    line = rate(600, fixed=0, per_token=1, unit="tokens")
    await store.reserve(claim("a", line, most=300), LEASE)
    clock.advance(20)  # 200 have drained, 100 have not
    await store.reserve(claim("b", line, most=300), LEASE)
    await store.settle(claim("a", line), {"tokens": 0}, "reported")
    assert (await store.peek([line]))[0].room == 300, "what b holds"


async def test_a_rate_is_charged_for_more_than_was_held(store, clock):
    line = rate(600, fixed=100, unit="tokens")
    await store.reserve(claim("a", line), LEASE)
    await store.settle(claim("a", line), {"tokens": 1_200}, "reported")
    [found] = await store.peek([line])
    assert (found.room, found.resets_at) == (0, START + 120)
    clock.advance(60)
    assert (await store.peek([line]))[0].room == 0
    clock.advance(30)
    assert (await store.peek([line]))[0].room == 300


async def test_a_rate_that_had_drained_is_charged_for_the_excess(store, clock):
    line = rate(600, fixed=100, unit="tokens")
    one = claim("a", line)
    await store.reserve(one, 10_000.0)
    clock.advance(5_000)
    await store.sweep()
    await store.settle(one, {"tokens": 400}, "reported")
    assert (await store.peek([line]))[0].room == 300


# release


async def test_releasing_gives_everything_back(store):
    lines = [window(1_000, fixed=50), rate(30), gauge(3), rate(6_000, 0, 1, unit="tokens", key="tpm")]
    before = await store.peek(lines)
    await store.reserve(claim("a", *lines), LEASE)
    assert await store.peek(lines) != before
    assert await store.release(claim("a", *lines)) is True
    assert await store.peek(lines) == before
    assert await store.release(claim("a", *lines)) is False
    assert await store.peek(lines) == before


async def test_a_settled_reservation_is_not_released(store):
    line = window(1_000)
    await store.reserve(claim("a", line), LEASE)
    await store.settle(claim("a", line), {"tokens": 30}, "reported")
    assert await store.release(claim("a", line)) is False
    assert await standing(store, line) == (30, 0)


async def test_a_released_reservation_is_not_settled(store):
    line = window(1_000)
    await store.reserve(claim("a", line), LEASE)
    await store.release(claim("a", line))
    assert await store.settle(claim("a", line), {"tokens": 30}, "reported") is False
    assert await standing(store, line) == (0, 0)


async def test_an_expired_reservation_is_not_released(store, clock):
    line = window(1_000)
    await store.reserve(claim("a", line), LEASE)
    clock.advance(LEASE)
    assert await store.release(claim("a", line)) is False
    assert await standing(store, line) == (100, 0)


# leases


async def test_a_lease_lives_until_just_before_its_end(store, clock):
    one = claim("a", gauge(1))
    await store.reserve(one, LEASE)
    clock.advance(LEASE - 0.01)
    assert await store.sweep() == 0
    assert await store.extend([one], 0.01) == frozenset("a")
    clock.advance(0.01)
    assert await store.sweep() == 1


async def test_extending_renews_the_live_and_only_those(store, clock):
    line = window(1_000)
    live, released, gone = (claim(id, line) for id in ("live", "released", "gone"))
    await store.reserve(released, 10.0)
    await store.reserve(gone, LEASE)
    await store.settle(gone, {"tokens": 1}, "reported")
    await store.release(released)
    clock.advance(10)
    await store.reserve(live, LEASE)
    assert await store.extend([claim("unknown", line), released, gone, live, gone], LEASE) == frozenset({"live"})
    assert await store.reserve(released, LEASE) == Duplicate(output_tokens=0, state="released")
    assert await standing(store, line) == (1, 100)
    clock.advance(LEASE - 1)
    assert await store.sweep() == 0


@pytest.mark.parametrize("swept", [True, False])
async def test_a_request_that_outlived_its_lease_holds_again_what_it_held(store, clock, swept):
    day, minute, streams = window(1_000, fixed=50), rate(600, 0, 1, unit="tokens"), gauge(1)
    one = claim("a", day, minute, streams)
    await store.reserve(one, LEASE)
    clock.advance(LEASE)
    if swept:
        assert await store.sweep() == 1
        assert await standing(store, day) == (150, 0)
    room = (await store.peek([minute]))[0].room
    assert await store.extend([one], LEASE) == frozenset("a")
    assert await standing(store, day) == (0, 150)
    assert await standing(store, streams) == (0, 1)
    assert (await store.peek([minute]))[0].room == room
    assert isinstance(await store.reserve(claim("b", streams), LEASE), Refused)
    assert await store.reserve(one, LEASE) == Duplicate(output_tokens=100, state="open")
    assert await store.settle(one, {"tokens": 70}, "reported") is True
    assert await standing(store, day) == (70, 0)
    assert await standing(store, streams) == (0, 0)


async def test_a_request_that_outlived_its_lease_holds_again_beside_others(store, clock):
    day = window(1_000)
    one, other = claim("a", day), claim("b", day, most=30)
    await store.reserve(one, LEASE)
    await store.reserve(other, 3 * LEASE)
    clock.advance(LEASE)
    assert await store.sweep() == 1
    assert await store.extend([one], LEASE) == frozenset("a")
    assert await standing(store, day) == (0, 130)


async def test_a_request_that_outlived_its_lease_holds_a_full_gauge_again(store, clock):
    streams = gauge(2)
    old, new = [claim(f"old{n}", streams) for n in range(2)], [claim(f"new{n}", streams) for n in range(2)]
    for one in old:
        await store.reserve(one, LEASE)
    clock.advance(LEASE)
    for one in new:
        assert isinstance(await store.reserve(one, LEASE), Granted)
    assert await store.extend(old, LEASE) == {"old0", "old1"}
    assert await standing(store, streams) == (0, 4)
    for one in (*old, new[0]):
        assert isinstance(await store.reserve(claim("next", streams), LEASE), Refused)
        await store.settle(one, None, "reported")
    assert await standing(store, streams) == (0, 1)
    assert isinstance(await store.reserve(claim("next", streams), LEASE), Granted)


async def test_a_lease_that_ends_again_is_charged_again(store, clock):
    day, streams = window(1_000), gauge(1)
    one = claim("a", day, streams)
    await store.reserve(one, LEASE)
    clock.advance(LEASE)
    await store.extend([one], LEASE)
    clock.advance(LEASE)
    assert await store.sweep() == 1
    assert await standing(store, day) == (100, 0)
    assert await standing(store, streams) == (0, 0)
    await store.extend([one], LEASE)
    assert await store.release(one) is True
    assert await standing(store, day) == (0, 0)


async def test_an_extended_lease_runs_out_in_the_end(store, clock):
    one, line = claim("a", window(1_000), gauge(1)), window(1_000)
    await store.reserve(one, 10.0)
    clock.advance(9)
    assert await store.extend([one], 10.0) == frozenset("a")
    clock.advance(9)
    assert isinstance(await store.reserve(claim("b", gauge(1)), LEASE), Refused)
    assert await store.sweep() == 0
    clock.advance(1)
    assert await store.sweep() == 1
    assert await standing(store, line) == (100, 0)


async def test_an_extended_lease_lasts_from_then_on_whatever_it_was_before(store, clock):
    one = claim("a", gauge(1))
    await store.reserve(one, LEASE)
    assert await store.extend([one, one], 2 * LEASE) == frozenset("a")
    assert await store.extend([], LEASE) == frozenset()
    clock.advance(2 * LEASE - 1)
    assert await store.sweep() == 0
    assert await store.extend([one], 2.0) == frozenset("a")
    clock.advance(2)
    assert await store.sweep() == 1


@pytest.mark.parametrize("ahead", [3_600.0, 86_400.0])
async def test_a_renewal_after_a_clock_was_set_back_does_not_last_until_the_wrong_time(store, clock, ahead):
    one, day, streams = claim("a", window(1_000), gauge(1)), window(1_000), gauge(1)
    clock.advance(ahead)
    await store.reserve(one, LEASE)
    clock.advance(-ahead)
    assert await store.extend([one], LEASE) == frozenset("a")
    clock.advance(LEASE - 1)
    assert await store.sweep() == 0
    assert await standing(store, streams) == (0, 1)
    clock.advance(1)
    assert isinstance(await store.reserve(claim("b", gauge(1)), LEASE), Granted)
    assert await standing(store, day) == (100, 0)


@pytest.mark.parametrize("ahead", [120.0, 3_600.0, 86_400.0])
@pytest.mark.parametrize("renewed", [False, True])
async def test_a_lease_that_a_clock_ahead_gave_ends_a_lease_after_it_is_right(store, clock, ahead, renewed):
    one, day, streams = claim("a", window(1_000), gauge(1)), window(1_000), gauge(1)
    if renewed:
        await store.reserve(one, LEASE)
    clock.advance(ahead)
    if renewed:
        assert await store.extend([one], LEASE) == frozenset("a"), "its lease had ended, and it holds again"
    else:
        await store.reserve(one, LEASE)
    clock.advance(-ahead)
    assert await store.sweep() == 0, "who reserved it may be dead"
    clock.advance(LEASE - 1)
    assert await store.sweep() == 0
    assert await standing(store, streams) == (0, 1)
    assert await store.reserve(claim("b", gauge(1)), LEASE) == Refused(line=0, room=0, retry_after=1.0)
    clock.advance(1)
    assert isinstance(await store.reserve(claim("c", gauge(1)), LEASE), Granted)
    assert await standing(store, day) == (100, 0)


async def test_sweeping_leaves_a_long_lease_as_it_is(store, clock):
    await store.reserve(claim("a", gauge(2)), 7_200.0)
    clock.advance(7_100)
    assert await store.sweep() == 0
    assert await standing(store, gauge(2)) == (0, 1)
    clock.advance(100)
    assert await store.sweep() == 1


async def test_sweeping_charges_expired_leases_in_full(store, clock):
    day, minute, streams = window(1_000, fixed=50), rate(600, 0, 1, unit="tokens"), gauge(3)
    for id, lease in (("a", 10.0), ("b", 20.0), ("c", 30.0)):
        await store.reserve(claim(id, day, minute, streams), lease)
    clock.advance(20)
    assert await store.sweep() == 2
    assert await store.sweep() == 0
    assert await standing(store, day) == (300, 150)
    assert await standing(store, streams) == (0, 1)
    assert (await store.peek([minute]))[0].room == 500  # drained by a third since, charged no second time


async def test_reserving_charges_expired_leases_first(store, clock):
    day, streams = window(1_000), gauge(1)
    await store.reserve(claim("a", day, streams), LEASE)
    assert isinstance(await store.reserve(claim("b", day, streams), LEASE), Refused)
    clock.advance(LEASE)
    assert isinstance(await store.reserve(claim("b", day, streams), LEASE), Granted)
    assert await standing(store, day) == (100, 100)
    assert await store.sweep() == 0


@pytest.mark.parametrize(("actual", "used"), [({"tokens": 30}, 30), ({"tokens": 250}, 250), (None, 100), ({}, 100)])
@pytest.mark.parametrize("swept", [True, False])
async def test_a_late_settlement_corrects_to_the_actual(store, clock, swept, actual, used):
    day, streams = window(1_000), gauge(2)
    late, other = claim("late", day, streams), claim("other", day, streams)
    await store.reserve(late, LEASE)
    await store.reserve(other, 10 * LEASE)
    clock.advance(LEASE)
    if swept:
        assert await store.sweep() == 1
    assert await store.settle(late, actual, "estimated") is True
    assert await standing(store, day) == (used, 100)
    assert await standing(store, streams) == (0, 1)
    assert await store.settle(late, {"tokens": 5}, "reported") is False
    assert await store.reserve(late, LEASE) == Duplicate(output_tokens=100, state="settled")
    assert await standing(store, day) == (used, 100)


async def test_a_late_settlement_corrects_a_rate(store, clock):
    line = rate(600, 600, unit="tokens")
    await store.reserve(claim("a", line), 10.0)
    clock.advance(10)
    await store.sweep()
    assert (await store.peek([line]))[0].room == 100
    await store.settle(claim("a", line), {"tokens": 100}, "reported")
    assert (await store.peek([line]))[0].room == 600


async def test_an_answer_that_ends_after_midnight_is_charged_to_its_day(store, clock):
    today, tomorrow = window(1_000, key="d1", resets_at=START + 10), window(1_000, key="d2", resets_at=START + 86_410)
    await store.reserve(claim("a", today), LEASE)
    clock.advance(20)
    await store.settle(claim("a", today), {"tokens": 40}, "reported")
    assert await standing(store, today) == (40, 0)
    assert await standing(store, tomorrow) == (0, 0)


async def test_a_window_is_kept_until_the_latest_end_that_any_claim_knew(store, clock):
    kept = retention_of(store)
    early, late = window(1_000, resets_at=START + 3_600), window(1_000, resets_at=START + 12 * 3_600)
    for id, line in (("a", early), ("b", late), ("c", early)):
        await store.reserve(claim(id, line), LEASE)
        await store.settle(claim(id, line), {"tokens": 30}, "reported")
    clock.advance(3_600 + kept + 1)
    await store.sweep()
    assert await standing(store, late) == (90, 0)


# clocks


async def test_a_clock_that_was_ahead_for_one_request_takes_no_more_of_a_rate_than_the_request(store, clock):
    line = rate(10)
    clock.advance(86_400)
    await store.reserve(claim("ahead", line), LEASE)
    await store.settle(claim("ahead", line), None, "reported")
    clock.advance(-86_400)
    assert (await store.peek([line]))[0] == Standing(used=1, held=0, room=9, resets_at=START + 6)
    answers = [await store.reserve(claim(f"{n}", line), LEASE) for n in range(10)]
    assert [type(answer) for answer in answers] == [Granted] * 9 + [Refused]
    assert answers[-1].retry_after == pytest.approx(6.0, abs=1e-4)
    clock.advance(60)
    assert (await store.peek([line]))[0].room == 10


async def test_a_clock_that_is_set_back_forgets_no_debt(store, clock):
    line = rate(600, fixed=100, unit="tokens")
    one = claim("a", line)
    clock.advance(86_400)
    await store.reserve(one, LEASE)
    await store.settle(one, {"tokens": 1_200}, "reported")
    clock.advance(-86_400)
    assert (await store.peek([line]))[0] == Standing(used=600, held=0, room=0, resets_at=START + 120)
    refused = await store.reserve(claim("b", line, most=1, least=1), LEASE)
    assert refused == Refused(line=0, room=0, retry_after=pytest.approx(70.0, abs=1e-4))
    clock.advance(90)
    assert (await store.peek([line]))[0].room == 300
    assert isinstance(await store.reserve(claim("b", line), LEASE), Granted)


async def test_a_rate_regains_units_held_before_the_clock_was_set_back(store, clock):
    line = rate(600, fixed=600, unit="tokens")
    clock.advance(3_600)
    await store.reserve(claim("a", line), 2 * 3_600)
    clock.advance(-3_600)
    await store.settle(claim("a", line), {"tokens": 60}, "reported")
    assert (await store.peek([line]))[0].room == 540


# peek


async def test_an_unused_line_is_whole(store):
    assert await store.peek([window(9), rate(8), gauge(7), request(6)]) == (
        Standing(used=0, held=0, room=9, resets_at=START + 86_400),
        Standing(used=0, held=0, room=8, resets_at=START),
        Standing(used=0, held=0, room=7, resets_at=0.0),
        Standing(used=0, held=0, room=6, resets_at=0.0),
    )
    assert await store.peek([]) == ()


async def test_peeking_changes_nothing_and_sees_expired_leases_as_charged(store, clock):
    day, streams = window(1_000), gauge(2)
    await store.reserve(claim("a", day, streams), LEASE)
    await store.reserve(claim("b", day, streams), 2 * LEASE)
    clock.advance(LEASE)
    for _ in range(2):
        assert await store.peek([day, streams]) == (
            Standing(used=100, held=100, room=800, resets_at=START + 86_400),
            Standing(used=0, held=1, room=1, resets_at=0.0),
        )
    assert await store.sweep() == 1
    assert await standing(store, day) == (100, 100)


# many at once


async def test_of_many_racing_claims_exactly_as_many_are_granted_as_there_is_room_for(store):
    line = window(4 * 150, fixed=50)
    claims = [claim(f"{n}", line, least=100) for n in range(100)]
    answers = await asyncio.gather(*(store.reserve(one, LEASE) for one in claims))
    granted = [answer for answer in answers if isinstance(answer, Granted)]
    assert len(granted) == 4
    assert sum(isinstance(answer, Refused) for answer in answers) == 96
    assert await standing(store, line) == (0, 600)


async def test_of_racing_duplicates_one_is_granted(store):
    line = window(100_000)
    answers = await asyncio.gather(*(store.reserve(claim("a", line), LEASE) for _ in range(50)))
    assert answers.count(Granted(output_tokens=100, room=(99_900,))) == 1
    assert answers.count(Duplicate(output_tokens=100, state="open")) == 49
    assert await standing(store, line) == (0, 100)


async def test_twelve_racing_settlements_count_once(store):
    line = window(100_000)
    await store.reserve(claim("a", line), LEASE)
    answers = await asyncio.gather(*(store.settle(claim("a", line), {"tokens": 10 + n}, "reported") for n in range(12)))
    assert answers.count(True) == 1
    assert await standing(store, line) == (10 + answers.index(True), 0)


async def test_racing_release_and_settlement_end_it_once(store):
    line, streams = window(100_000), gauge(5)
    one = claim("a", line, streams)
    await store.reserve(one, LEASE)
    answers = await asyncio.gather(store.release(one), store.settle(one, {"tokens": 10}, "reported"))
    assert sorted(answers) == [False, True]
    assert await standing(store, line) in {(0, 0), (10, 0)}
    assert await standing(store, streams) == (0, 0)


# the rest


async def test_it_answers_a_ping(store):
    assert await store.ping() is None


async def test_closing_twice_is_harmless(store):
    await store.reserve(claim("a", window(1_000)), LEASE)
    await store.aclose()
    await store.aclose()


async def test_closing_at_once_and_twice_loses_no_call(store):
    line = window(100_000)
    answers = await asyncio.gather(
        *(store.reserve(claim(f"{n}", line), LEASE) for n in range(20)), store.aclose(), store.aclose()
    )
    assert sum(isinstance(answer, Granted) for answer in answers) == 20
    assert await standing(store, line) == (0, 2_000)


BIG = 2**50 + 1


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (claim("a", window(10), window(20)), "same key"),
        (claim("a", window(BIG)), r"lines\[0\].*limit"),
        (claim("a", gauge(1), window(-1)), r"lines\[1\].*limit"),
        (claim("a", window(10, fixed=-1)), "fixed"),
        (claim("a", window(10, fixed=BIG)), "fixed"),
        (claim("a", window(10, per_token=-1)), "per_million"),
        (claim("a", window(10, per_token=2**40), most=2**20), r"lines\[0\]"),
        (claim("a", window(10, resets_at=0.0)), "resets_at"),
        (claim("a", window(10, resets_at=float("nan"))), "resets_at"),
        (claim("a", window(10, resets_at=1e12)), "resets_at"),
        (claim("a", rate(0)), "limit"),
        (claim("a", rate(10, period=0)), "period"),
        (claim("a", rate(2**50)), "limit"),
        (claim("a", window(10, key="")), r"lines\[0\].key"),
        (claim("a", window(10, key="a\nb")), r"lines\[0\].key"),
        (claim("a", window(10, key="\ud800")), r"lines\[0\].key"),
        (claim("a", window(10), least=-1, most=5), "min_output_tokens"),
        (claim("a", window(10), least=6, most=5), "min_output_tokens"),
        (claim("a", window(10), most=BIG), "max_output_tokens"),
        (claim("", window(10)), "claim.id"),
        (claim("a\0", window(10)), "claim.id"),
        (claim("a" * 2_000, window(10)), "claim.id"),
        (claim("a", window(10), fingerprint=""), "claim.fingerprint"),
    ],
)
async def test_a_claim_that_breaks_a_rule_is_named_and_nothing_is_held(store, bad, says):
    with pytest.raises(ValueError, match=says) as failure:
        await store.reserve(bad, LEASE)
    assert str(BIG) not in str(failure.value)
    assert await standing(store, window(10)) == (0, 0)
    assert isinstance(await store.reserve(claim("b", window(10)), LEASE), Granted)


@pytest.mark.parametrize("lease", [0, -1.0, float("nan"), float("inf"), 1e9])
async def test_a_lease_must_be_a_positive_time(store, lease):
    with pytest.raises(ValueError, match="lease"):
        await store.reserve(claim("a", window(10)), lease)
    with pytest.raises(ValueError, match="lease"):
        await store.extend([claim("a", window(10))], lease)


@pytest.mark.parametrize("tokens", [-1, BIG])
async def test_an_actual_amount_must_be_possible(store, tokens):
    await store.reserve(claim("a", window(10)), LEASE)
    with pytest.raises(ValueError, match="actual"):
        await store.settle(claim("a", window(10)), {"tokens": tokens}, "reported")
    assert await standing(store, window(10)) == (0, 10)


async def test_the_largest_amounts_are_exact(store):
    line, limit = window(2**50, fixed=2**50 - 3), 2**50
    answer = await store.reserve(claim("a", line, most=3), LEASE)
    assert answer == Granted(output_tokens=3, room=(0,))
    await store.settle(claim("a", line), {"tokens": limit}, "reported")
    assert await standing(store, line) == (limit, 0)


async def test_keys_may_hold_any_printable_text(store):
    lines = [window(1_000, key=key) for key in ['"quoted", \\back', "emoji 🐣", "O'Brien; --", "%_?", '"key":"day"']]
    one = claim('id with "quotes" and ünïcode', *lines, gauge(1, key='g"\\'))
    await store.reserve(one, LEASE)
    assert [await standing(store, line) for line in lines] == [(0, 100)] * 5
    assert (await store.reserve(claim("b", gauge(1, key='g"\\')), LEASE)).retry_after == LEASE
    await store.settle(one, {"tokens": 1}, "reported")
    assert [await standing(store, line) for line in lines] == [(1, 0)] * 5


# Owners: who asks for the same id again must not end what the first one has.


async def test_another_owners_claim_is_a_duplicate_and_moves_nothing(store):
    line = window(1_000)
    first = replace(claim("a", line), owner="one")
    other = replace(first, owner="two")
    await store.reserve(first, LEASE)
    assert await store.reserve(other, LEASE) == Duplicate(output_tokens=100, state="open")
    assert not await store.release(other)
    assert not await store.settle(other, {"tokens": 1}, "reported")
    assert await store.extend([other], LEASE) == frozenset()
    assert await standing(store, line) == (0, 100)
    assert await store.extend([first], LEASE) == {"a"}
    assert await store.settle(first, {"tokens": 7}, "reported")
    assert await standing(store, line) == (7, 0)


async def test_an_id_released_before_it_was_seen_is_free_for_other_owners(store):
    line = window(1_000)
    one, two = (replace(claim("a", line), owner=owner) for owner in ("one", "two"))
    await store.release(two)
    assert await store.reserve(two, LEASE) == Duplicate(output_tokens=0, state="released")
    assert await store.reserve(replace(one, fingerprint="other"), LEASE) == Conflict()
    assert isinstance(await store.reserve(one, LEASE), Granted)
    assert await store.reserve(two, LEASE) == Duplicate(output_tokens=100, state="open")
    assert await standing(store, line) == (0, 100)


async def test_an_owner_that_released_a_free_id_can_not_reserve_it_later(store):
    line = window(1_000)
    first, late = (replace(claim("a", line), owner=owner) for owner in ("first", "late"))
    await store.reserve(first, LEASE)
    await store.release(first)
    assert await store.release(late) is False
    assert await store.reserve(late, LEASE) == Duplicate(output_tokens=0, state="released")
    assert await standing(store, line) == (0, 0)


async def test_a_key_is_free_after_any_number_of_attempts_that_spent_nothing(store):
    line, requests = window(1_000), window(100, per_token=0, fixed=1, key="requests", unit="requests")
    nothing = replace(ANSWERED, usage=Usage(), cost=0, ending="upstream_auth", spent_nothing=True)
    for number in range(12):
        one = replace(asking("a", line, requests), owner=f"owner {number}")
        assert isinstance(await store.reserve(one, LEASE), Granted)
        if number % 2:
            assert await store.release(one)
        else:
            assert await store.settle(one, {"tokens": 0}, "reported", nothing)
            assert await store.reserve(one, LEASE) == Duplicate(output_tokens=100, state="settled", record=nothing)
        assert await standing(store, line) == (0, 0)
    assert await standing(store, requests) == (6, 0)
    paid = replace(asking("a", line, requests), owner="who pays")
    assert await store.reserve(paid, LEASE) == Granted(output_tokens=100, room=(900, 93))
    assert await store.settle(paid, {"tokens": 30}, "reported", ANSWERED)
    again = replace(paid, owner="who asks again")
    assert await store.reserve(again, LEASE) == Duplicate(output_tokens=100, state="settled", record=ANSWERED)
    assert await standing(store, line) == (30, 0)


@pytest.mark.parametrize("released", [True, False])
async def test_a_key_is_charged_once_until_the_retention_after_its_last_attempt(store, clock, released):
    kept, line = retention_of(store), window(1_000, resets_at=START + 30 * 86_400)
    nothing = replace(ANSWERED, usage=Usage(), cost=0, ending="upstream_auth", spent_nothing=True)
    first, paid, third = (replace(asking("a", line), owner=owner) for owner in ("first", "paid", "third"))
    await store.reserve(first, LEASE)
    if released:
        await store.release(first)
    else:
        await store.settle(first, {"tokens": 0}, "reported", nothing)
    clock.advance(kept / 2)
    assert isinstance(await store.reserve(paid, 2 * kept), Granted)
    clock.advance(kept / 2 + 1)  # the first attempt is forgotten by now
    await store.sweep()
    assert await store.reserve(third, LEASE) == Duplicate(output_tokens=100, state="open")
    await store.settle(paid, {"tokens": 30}, "reported", ANSWERED)
    clock.advance(kept - 1)
    await store.sweep()
    assert await store.reserve(third, LEASE) == Duplicate(output_tokens=100, state="settled", record=ANSWERED)
    assert await standing(store, line) == (30, 0)


@pytest.mark.parametrize("ended", ["released", "settled", "expired"])
async def test_a_repeated_key_draws_on_the_lines_of_the_new_attempt(store, clock, ended):
    """Those of another session, or of the model of another profile."""
    caller, old, new = (window(1_000, key=key) for key in ("caller", "session:one", "session:two"))
    nothing = replace(ANSWERED, usage=Usage(), cost=0, ending="upstream_auth", spent_nothing=True)
    first = replace(asking("a", caller, old), owner="first")
    second = replace(asking("a", caller, new, most=50), owner="second")
    await store.reserve(first, LEASE)
    if ended == "released":
        await store.release(first)
    else:
        if ended == "expired":
            clock.advance(LEASE + 1)
            await store.sweep()
            assert await standing(store, old) == (100, 0)
        await store.settle(first, {"tokens": 0}, "reported", nothing)
    assert await store.reserve(second, LEASE) == Granted(output_tokens=50, room=(950, 950))
    assert not await store.settle(first, {"tokens": 90}, "reported", ANSWERED)
    assert [await standing(store, line) for line in (caller, old, new)] == [(0, 50), (0, 0), (0, 50)]
    assert await store.settle(second, {"tokens": 30}, "reported", ANSWERED)
    assert [await standing(store, line) for line in (caller, old, new)] == [(30, 0), (0, 0), (30, 0)]


async def test_a_refused_attempt_leaves_a_free_id_as_it_was(store):
    roomy, full = window(1_000), window(0, key="full")
    first, refused, third = (replace(claim("a", line), owner=line.key) for line in (roomy, full, gauge(1)))
    await store.reserve(first, LEASE)
    await store.release(first)
    assert isinstance(await store.reserve(refused, LEASE), Refused)
    assert await store.reserve(first, LEASE) == Duplicate(output_tokens=0, state="released")
    assert isinstance(await store.reserve(third, LEASE), Granted)


# Records.

ASKED = Record(run="r", caller="c" * 16, group="acme", profile="balanced", model="p:m", started_at=START)
ANSWERED = Record(
    run="r",
    caller="c" * 16,
    group="acme",
    profile="balanced",
    model="p:other",
    started_at=START,
    seconds=1.25,
    first_token_seconds=0.5,
    usage=Usage(input_tokens=7, output_tokens=2**50, cached_input_tokens=3, cache_write_tokens=1, reasoning_tokens=2),
    cost=2**50,
    price="own",
    source="reported",
    ending="stop",
)


def asking(id, *lines, record=ASKED, most=100):
    return replace(claim(id, *lines, most=most), record=record)


async def kept(store, one):
    again = await store.reserve(one, LEASE)
    return again.state, again.record


async def test_a_settlement_keeps_its_record_for_a_repeated_request(store):
    one = asking("a", window(1_000))
    await store.reserve(one, LEASE)
    assert await kept(store, one) == ("open", None)
    await store.settle(one, {"tokens": 9}, "reported", ANSWERED)
    assert await kept(store, one) == ("settled", ANSWERED)


async def test_the_record_of_the_first_settlement_counts(store):
    one = asking("a", window(1_000))
    await store.reserve(one, LEASE)
    await store.settle(one, {"tokens": 9}, "reported", ANSWERED)
    assert not await store.settle(one, {"tokens": 8}, "estimated", replace(ANSWERED, ending="other"))
    assert await kept(store, one) == ("settled", ANSWERED)


async def test_a_settlement_without_a_record_keeps_the_claims(store):
    one = asking("a", window(1_000))
    await store.reserve(one, LEASE)
    await store.settle(one, None, "assumed")
    assert await kept(store, one) == ("settled", ASKED)


async def test_a_claim_without_a_record_has_none(store):
    one = asking("a", window(1_000), record=None)
    await store.reserve(one, LEASE)
    await store.settle(one, {"tokens": 9}, "reported")
    assert await kept(store, one) == ("settled", None)


@pytest.mark.parametrize("paid", [False, True])
async def test_the_record_of_a_lost_request_has_the_charge(store, clock, paid):
    record = replace(ASKED, usage=Usage(input_tokens=7, output_tokens=100))
    money = [window(10**6, fixed=70, per_token=10, key="money", unit="nanousd")] if paid else []
    one = asking("a", window(57, fixed=7), *money, record=record)
    await store.reserve(one, LEASE)
    clock.advance(LEASE)
    lost = replace(record, usage=Usage(input_tokens=7, output_tokens=50), cost=570 if paid else None)
    assert await kept(store, one) == ("expired", lost)
    await store.settle(one, {"tokens": 9, "nanousd": 90}, "reported", ANSWERED)
    assert await kept(store, one) == ("settled", ANSWERED)


async def test_a_released_reservation_has_no_record(store):
    one = asking("a", window(1_000))
    await store.reserve(one, LEASE)
    await store.release(one)
    assert await kept(store, one) == ("released", None)
