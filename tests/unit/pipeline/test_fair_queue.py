"""The queue in front of a shared limit, on a clock that jumps: who is served when, and who is refused."""

from __future__ import annotations

import asyncio

import pytest

from chat_nest.core.errors import ChatError, Overloaded, Shutdown
from chat_nest.pipeline.fair_queue import FairQueue

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime(start=0)]


def now() -> float:
    return asyncio.get_running_loop().time()


async def silent(_position: int, _estimate: int | None) -> None:
    pass


async def answered(queue: FairQueue, caller: str, seconds: float = 1.0, tell=silent, provider: str = "p") -> float:
    """Run one request; return how long it waited."""
    began = now()
    async with queue.place(caller) as place:
        if not await place.take([provider]):
            await place.wait([provider], tell)
        waited = now() - began
        place.opened()
        await asyncio.sleep(seconds)
    return waited


async def modest_waits(greedy: int) -> list[float]:
    """The waits of 99 callers with one request each, behind one with `greedy` requests."""
    queue = FairQueue({"p": 4}, seconds=100_000, length=10_000)
    first = [asyncio.create_task(answered(queue, "greedy")) for _ in range(greedy)]
    await asyncio.sleep(0.5)
    modest = [asyncio.create_task(answered(queue, f"modest-{number}")) for number in range(99)]
    waits = list(await asyncio.gather(*modest))
    await asyncio.gather(*first)
    return waits


async def test_how_long_99_modest_callers_wait_does_not_depend_on_the_requests_of_a_greedy_one() -> None:
    few, many = await modest_waits(greedy=10), await modest_waits(greedy=300)
    assert sorted(few) == pytest.approx(sorted(many))
    assert max(many) <= 100 / 4 + 1, "a round of all callers, over four streams"


async def test_in_a_full_queue_the_newest_request_of_the_greediest_makes_room() -> None:
    queue = FairQueue({"p": 1}, seconds=1_000, length=5)
    greedy = [asyncio.create_task(answered(queue, "greedy")) for _ in range(6)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await answered(queue, "greedy")
    modest = [asyncio.create_task(answered(queue, f"modest-{number}")) for number in range(4)]
    await asyncio.gather(*modest)
    done = await asyncio.gather(*greedy, return_exceptions=True)
    assert [isinstance(each, Overloaded) for each in done] == [False, False, True, True, True, True]


async def test_positions_and_estimates_are_sent_each_second_as_they_change() -> None:
    queue = FairQueue({"p": 1}, seconds=1_000, length=10)
    await answered(queue, "before", seconds=4)
    told: list[tuple[float, int, int | None]] = []

    async def tell(position: int, estimate: int | None) -> None:
        told.append((now(), position, estimate))

    others = [asyncio.create_task(answered(queue, each, seconds=4)) for each in ("a", "b")]
    await asyncio.sleep(0)
    assert await answered(queue, "c", tell=tell) == 8
    await asyncio.gather(*others)
    assert told == [(5.0, 2, 8), (9.0, 1, 4)]


async def test_a_position_that_stays_is_repeated_for_the_proxies_between() -> None:
    queue = FairQueue({"p": 1}, seconds=1_000, length=10)
    first = asyncio.create_task(answered(queue, "a", seconds=25.5))
    await asyncio.sleep(0)
    told: list[float] = []

    async def tell(_position: int, _estimate: int | None) -> None:
        told.append(now())

    await answered(queue, "b", tell=tell)
    await first
    assert told == [1.0, 11.0, 21.0]


async def test_a_request_that_leaves_frees_its_place_at_once() -> None:
    queue = FairQueue({"p": 1}, seconds=1_000, length=10)
    tasks = [asyncio.create_task(answered(queue, each, seconds=9)) for each in "abc"]
    await asyncio.sleep(1)
    tasks[1].cancel()  # while it waits
    await asyncio.sleep(0)
    assert queue.waiting == 1
    tasks[0].cancel()  # while it is answered
    assert await tasks[2] == 1


async def test_cancelled_in_the_turn_of_the_loop_that_serves_it_nothing_is_lost() -> None:
    queue = FairQueue({"p": 1}, seconds=1_000, length=10)
    first, second, third = (asyncio.create_task(answered(queue, each, seconds=1)) for each in "abc")
    await first
    second.cancel()  # it was given the stream, and has not run since
    assert await third <= 2
    assert queue.bottleneck("p").running == 0


async def test_the_wait_ends_after_its_seconds() -> None:
    queue = FairQueue({"p": 1}, seconds=3, length=10)
    first = asyncio.create_task(answered(queue, "a", seconds=60))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await answered(queue, "b")
    assert now() == 3
    first.cancel()


async def test_a_drain_empties_the_queue_and_refuses_new_requests() -> None:
    queue = FairQueue({"p": 1}, seconds=1_000, length=10)
    tasks = [asyncio.create_task(answered(queue, each)) for each in "abc"]
    await asyncio.sleep(0.5)
    queue.drain()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in done] == [float, Shutdown, Shutdown]
    assert now() == 1
    async with queue.place("d") as place:
        assert await place.take(["p"]), "one that needs not wait is the handler's to refuse"
        with pytest.raises(Shutdown):
            await answered(queue, "e")


async def test_after_a_pause_one_request_tries_then_two_then_four() -> None:
    queue = FairQueue(seconds=60, length=100)
    queue.pause("p", 10)
    began: list[float] = []

    async def request(caller: str) -> None:
        async with queue.place(caller) as place:
            if not await place.take(["p"]):
                await place.wait(["p"], silent)
            began.append(now())
            await asyncio.sleep(1)  # the provider takes a second to accept it
            place.opened()
            await asyncio.sleep(100)

    tasks = [asyncio.create_task(request(f"{number}")) for number in range(7)]
    await asyncio.sleep(20)
    assert began == [10, 11, 11, 12, 12, 12, 12]
    for task in tasks:
        task.cancel()


async def test_another_provider_is_not_held_up() -> None:
    queue = FairQueue({"p": 1}, seconds=60, length=100)
    first = asyncio.create_task(answered(queue, "a", seconds=30))
    await asyncio.sleep(0)
    second = asyncio.create_task(answered(queue, "b"))
    await asyncio.sleep(0)
    assert await answered(queue, "c", provider="q") == 0
    assert await second == 30
    await first


async def test_without_a_queue_a_full_provider_refuses_at_once_and_a_pause_is_not_kept() -> None:
    queue = FairQueue({"p": 1})
    queue.pause("q", 1)
    assert await answered(queue, "a", provider="q") == 0
    first = asyncio.create_task(answered(queue, "a"))
    await asyncio.sleep(0)
    with pytest.raises(ChatError):
        await answered(queue, "b")
    await first


async def test_the_worker_is_a_limit_over_all_providers() -> None:
    queue = FairQueue(seconds=60, length=100)
    queue.limit_worker(lambda: 2)
    waits = await asyncio.gather(*(answered(queue, "a", provider=each) for each in "pqrs"))
    assert waits == [0, 0, 1, 1]
