"""What only the memory store has: bounds."""

from __future__ import annotations

import pytest
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.claims import Duplicate, Granted, Refused
from chat_nest.stores.memory import MemoryStore
from stores_under_test import LEASE, START, claim, gauge, rate, request, standing, window


def caller(number, clock):
    end = clock.now // 86_400 * 86_400 + 86_400
    return claim(
        f"{number}",
        rate(30, key=f"{number}:rpm"),
        request(400, key=f"{number}:request"),
        window(1_000, key=f"{number}:{end}", resets_at=end),
        gauge(2, key=f"{number}:streams"),
        window(10**9, key=f"all:{end}", resets_at=end),
    )


async def test_a_flood_of_made_up_callers_is_forgotten(clock):
    store = MemoryStore(clock, retention=60.0)
    most = 0
    for number in range(100_000):
        one = caller(number, clock)
        assert isinstance(await store.reserve(one, LEASE), Granted)
        await store.settle(one, {"tokens": 10}, "reported")
        clock.advance(10)  # 8,640 callers a day
        most = max(most, len(store))
    assert most < 2 * 8_640 + 1_000  # of two days' callers one window each, and a few rates
    clock.advance(2 * 86_400)
    for _ in range(20):
        await store.sweep()
    assert len(store) == 0
    for kept in (store._book.reservations, store._leases, store._finished, store._dying, store._streams):
        assert len(kept) == 0


async def test_with_too_many_counters_new_ones_are_refused_and_known_ones_are_not(clock):
    store = MemoryStore(clock, max_keys=10)
    for number in range(5):
        await store.reserve(claim(f"{number}", window(1_000, key=f"{number}"), rate(9, key=f"r{number}")), LEASE)
    assert len(store) == 10
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("x", window(1_000, key="0"), window(1_000, key="new")), LEASE)
    assert await standing(store, window(1_000, key="0")) == (0, 100)
    assert len(store) == 10
    known = claim("y", window(1_000, key="0"), request(100), rate(9, key="r1"))
    assert isinstance(await store.reserve(known, LEASE), Granted)
    assert await store.settle(known, None, "reported")
    clock.advance(3_660)  # the rates have drained, and the retention is over
    assert isinstance(await store.reserve(claim("z", window(1_000, key="new")), LEASE), Granted)


async def test_without_room_only_windows_that_ended_long_ago_are_forgotten(clock):
    store = MemoryStore(clock, max_keys=4, retention=10.0)
    indebted = claim("a", rate(600, 0, 1, unit="tokens", key="debt"))
    await store.reserve(indebted, LEASE)
    await store.settle(indebted, {"tokens": 600_000}, "reported")
    for id, key, ends in (("b", "long ago", 1), ("c", "used", 1), ("d", "just now", 995)):
        one = claim(id, window(1_000, key=key, resets_at=START + ends))
        await store.reserve(one, 2_000.0)
        if key != "used":
            await store.settle(one, {"tokens": 5}, "reported")
    clock.advance(1_000)
    assert isinstance(await store.reserve(claim("e", window(1_000, key="new")), LEASE), Granted)
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("f", window(1_000, key="newer")), LEASE)
    assert await standing(store, window(1_000, key="used")) == (0, 100)
    assert await standing(store, window(1_000, key="just now")) == (5, 0)
    assert (await store.peek([rate(600, unit="tokens", key="debt")]))[0].room == 0


async def test_remembered_claims_are_bounded_too(clock):
    store = MemoryStore(clock, max_keys=100)
    line = window(10**9)
    for number in range(1_000):
        one = claim(f"{number}", line)
        assert isinstance(await store.reserve(one, LEASE), Granted)
        await store.settle(one, {"tokens": 1}, "reported")
    for number in range(1_000):
        await store.release(claim(f"unseen-{number}", line))
    assert len(store._book.reservations) == 100
    for number in range(100):
        assert isinstance(await store.reserve(claim(f"open-{number}", line), LEASE), Granted)
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("one more", line), LEASE)
    with pytest.raises(LimiterUnavailable):
        await store.release(claim("one more", line))
    assert await standing(store, line) == (1_000, 10_000)


async def test_a_finished_claim_is_remembered_for_the_retention(clock):
    store = MemoryStore(clock, retention=100.0)
    line = window(10_000)
    await store.reserve(claim("a", line), LEASE)
    await store.settle(claim("a", line), None, "reported")
    clock.advance(99)
    await store.reserve(claim("b", line), LEASE)
    assert await store.reserve(claim("a", line), LEASE) == Duplicate(output_tokens=100, state="settled")
    clock.advance(1)
    assert isinstance(await store.reserve(claim("a", line), LEASE), Granted)


async def test_an_expired_claim_can_be_corrected_for_the_retention(clock):
    store = MemoryStore(clock, retention=100.0)
    line = window(10_000)
    for id in ("a", "b"):
        await store.reserve(claim(id, line), 10.0)
    clock.advance(10)
    await store.sweep()
    clock.advance(99)
    await store.sweep()
    assert await store.settle(claim("a", line), {"tokens": 1}, "reported") is True
    clock.advance(1)
    await store.sweep()
    assert await store.settle(claim("b", line), {"tokens": 1}, "reported") is False
    assert await store.reserve(claim("a", line), LEASE) == Duplicate(output_tokens=100, state="settled")
    assert await standing(store, line) == (101, 0)


async def test_a_window_is_kept_until_its_end_even_if_nothing_is_held(clock):
    store = MemoryStore(clock, retention=1.0)
    line = window(1_000, resets_at=START + 86_400)
    await store.reserve(claim("a", line), LEASE)
    await store.settle(claim("a", line), {"tokens": 1_000}, "reported")
    clock.advance(86_399)
    for _ in range(10):
        await store.sweep()
    assert isinstance(await store.reserve(claim("b", line), LEASE), Refused)


async def test_a_rate_is_kept_until_it_has_drained(clock):
    store = MemoryStore(clock, retention=10.0)
    line = rate(1)
    await store.reserve(claim("a", line), LEASE)
    clock.advance(65)
    await store.reserve(claim("b", line), LEASE)  # drained at 125
    clock.advance(55)
    await store.sweep()
    assert isinstance(await store.reserve(claim("c", line), LEASE), Refused)
    clock.advance(20)
    await store.sweep()
    assert len(store) == 0


async def test_a_window_in_use_is_kept_after_its_end(clock):
    store = MemoryStore(clock, retention=10.0)
    line = window(1_000, resets_at=START + 10)
    await store.reserve(claim("a", line), 1_000.0)
    for _ in range(10):
        clock.advance(10)
        await store.sweep()
    assert await standing(store, line) == (0, 100)
    await store.settle(claim("a", line), {"tokens": 5}, "reported")
    assert await standing(store, line) == (5, 0)
    clock.advance(90_000)
    await store.sweep()
    assert len(store) == 0


async def test_long_leases_of_forgotten_claims_do_not_pile_up(clock):
    store = MemoryStore(clock, retention=1.0)
    line = window(10**9)
    for number in range(5_000):
        one = claim(f"{number}", line)
        await store.reserve(one, 30 * 86_400.0)
        await store.settle(one, {"tokens": 1}, "reported")
        clock.advance(1)
    assert len(store._leases) < 1_100


async def test_a_finished_claim_is_forgotten_exactly_an_hour_later(clock):
    store = MemoryStore(clock)
    line = request(1_000)
    await store.reserve(claim("a", line), LEASE)
    await store.settle(claim("a", line), None, "reported")
    clock.advance(3_599.5)
    assert isinstance(await store.reserve(claim("a", line), LEASE), Duplicate)
    clock.advance(0.5)
    assert isinstance(await store.reserve(claim("a", line), LEASE), Granted)


@pytest.mark.parametrize(
    ("line", "retention", "over"),
    [
        (rate(2), 10.0, 40),
        (window(1_000, resets_at=START + 20), 10.0, 90_020),
        (window(1_000, resets_at=START), 10.0, 90_000),
        (window(1_000, resets_at=START + 20), 100_000.0, 100_020),
    ],
)
async def test_a_counter_is_forgotten_exactly_its_time_after_it_means_nothing(clock, line, retention, over):
    store = MemoryStore(clock, retention=retention)
    await store.reserve(claim("a", line), LEASE)
    await store.settle(claim("a", line), None, "reported")
    clock.advance(over - 0.5)
    await store.sweep()
    assert len(store) == 1
    clock.advance(0.5)
    await store.sweep()
    assert len(store) == 0


async def test_a_gauge_is_forgotten_when_its_last_stream_ends(clock):
    store = MemoryStore(clock)
    one, other = claim("a", gauge(2)), claim("b", gauge(2))
    await store.reserve(one, LEASE)
    await store.reserve(other, LEASE)
    await store.settle(one, None, "reported")
    assert (len(store), await standing(store, gauge(2))) == (1, (0, 1))
    await store.release(other)
    assert (len(store), await standing(store, gauge(2))) == (0, (0, 0))


async def test_the_oldest_finished_claim_makes_room_for_a_new_one(clock):
    store = MemoryStore(clock, max_keys=2)
    for id in ("a", "b"):
        await store.reserve(claim(id), LEASE)
        await store.settle(claim(id), None, "reported")
    await store.reserve(claim("c"), LEASE)
    assert isinstance(await store.reserve(claim("b"), LEASE), Duplicate)
    assert isinstance(await store.reserve(claim("a"), LEASE), Granted)


async def test_a_claim_that_was_settled_late_is_remembered_from_then_on(clock):
    store = MemoryStore(clock, retention=10.0)
    line = request(1_000)
    await store.reserve(claim("a", line), 1.0)
    clock.advance(1)
    assert await store.sweep() == 1
    clock.advance(9.5)
    assert await store.settle(claim("a", line), None, "reported") is True
    clock.advance(9.5)
    assert await store.reserve(claim("a", line), LEASE) == Duplicate(output_tokens=100, state="settled")
    clock.advance(0.5)
    assert isinstance(await store.reserve(claim("a", line), LEASE), Granted)


async def test_counters_that_fill_the_store_exactly_are_admitted(clock):
    store = MemoryStore(clock, max_keys=3)
    assert isinstance(await store.reserve(claim("a", gauge(2), window(1_000), rate(9)), LEASE), Granted)
    assert isinstance(await store.reserve(claim("b", gauge(2), request(1_000), window(1_000)), LEASE), Granted)
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("c", window(1_000, key="new")), LEASE)
