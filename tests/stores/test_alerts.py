"""The outbox of alerts in every store: claimed once, tried until delivered, by whichever process is there."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from stores_under_test import START

from chat_nest.alerts.events import Crossing
from chat_nest.alerts.outbox import ATTEMPT_SECONDS, KEPT_SECONDS, WAITS, Outbox

BOTH = ("webhook", "email")
CROSSING = Crossing(
    key="alert:all:usd_per_month:2026-11:100:80",
    seconds=86_400,
    type="budget.threshold",
    text="naïve {} text",
    data={"p": 80},
)


@pytest.fixture
def boxes(store, clock):
    """The outboxes of ten processes."""
    return [Outbox(store.controls, clock) for _ in range(10)]


async def post(outbox, crossing=CROSSING, channels=BOTH, at=START):
    return await outbox.post(crossing, crossing.alert(at, ""), channels)


async def test_of_ten_processes_one_writes_the_alert_with_a_row_for_each_channel(boxes):
    assert sorted(await asyncio.gather(*map(post, boxes))) == [False] * 9 + [True]
    found = await boxes[3].pending()
    assert sorted(each.channel for each in found) == ["email", "webhook"]
    assert {each.alert.text for each in found} == {"naïve {} text"}
    assert {each.alert.data["p"] for each in found} == {80}
    assert len({each.alert.id for each in found}) == 1


async def test_a_condition_comes_again_after_its_time_and_has_another_id(boxes, clock):
    assert await post(boxes[0], replace(CROSSING, key="alert:store.down:", type="store.down", seconds=60), ["webhook"])
    clock.advance(61)
    again = replace(CROSSING, key="alert:store.down:", type="store.down", seconds=60)
    assert await post(boxes[1], again, ["webhook"], clock())
    first, second = await boxes[0].pending()
    assert first.alert.id != second.alert.id


async def test_an_attempt_is_made_by_one_process(boxes):
    await post(boxes[0], channels=["webhook"])
    [entry] = await boxes[0].pending()
    assert sorted(await asyncio.gather(*(box.take(entry) for box in boxes))) == [False] * 9 + [True]


async def test_an_attempt_of_a_dead_process_is_taken_over_with_the_same_id(boxes, clock):
    await post(boxes[0], channels=["webhook"])
    [entry] = await boxes[0].pending()
    assert await boxes[0].take(entry)  # and is killed
    clock.advance(ATTEMPT_SECONDS - 1)
    assert not await boxes[1].take(entry)
    clock.advance(2)
    [same] = await boxes[1].pending()
    assert same == entry
    assert await boxes[1].take(same)


async def test_a_delivered_alert_is_not_taken_by_a_process_that_read_it_before(boxes, clock):
    await post(boxes[0], channels=["webhook"])
    [entry] = await boxes[1].pending()
    assert await boxes[0].take(entry)
    await boxes[0].remove(entry)
    clock.advance(ATTEMPT_SECONDS + 1)  # the key of the attempt is free again
    assert not await boxes[1].take(entry)
    assert await boxes[0].pending() == []


async def test_a_failed_attempt_is_put_off_longer_and_longer_and_given_up_after_three_days(boxes, clock):
    await post(boxes[0], channels=["webhook"])
    [entry] = await boxes[0].pending()
    waited, begun = [], clock()
    while entry is not None:
        assert await boxes[len(waited) % 10].take(entry)
        entry = await boxes[0].put_off(entry)
        if entry is not None:
            assert await boxes[5].pending() == [entry]
            waited.append(entry.due - clock())
            clock.advance(waited[-1])
    assert waited[: len(WAITS)] == list(WAITS)
    assert set(waited[len(WAITS) :]) == {WAITS[-1]}
    assert KEPT_SECONDS - WAITS[-1] < clock() - begun <= KEPT_SECONDS
    assert await boxes[0].pending() == []


async def test_retry_after_of_a_receiver_is_honoured(boxes):
    await post(boxes[0], channels=["webhook"])
    [entry] = await boxes[0].pending()
    assert (await boxes[0].put_off(entry, 1_000.0)).due == START + 1_000.0
