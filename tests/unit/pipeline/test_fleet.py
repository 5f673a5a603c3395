"""A provider's streams over several workers, on a clock that jumps: who is served when, and how many run at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_nest.controls import MemoryControls
from chat_nest.core.errors import LimiterUnavailable, Overloaded
from chat_nest.pipeline.board import EMPTY, exchange, positions, read, stamped, write
from chat_nest.limits.spec import Queue
from chat_nest.pipeline.fair_queue import FairQueue
from chat_nest.pipeline.fleet import LEASE


def now() -> float:
    return asyncio.get_running_loop().time()


async def silent(_position: int, _estimate: int | None) -> None:
    pass


class Store(MemoryControls):
    """Controls that several workers share: each call takes two milliseconds, and is counted."""

    def __init__(self) -> None:
        super().__init__(now=lambda: 0.0)
        self.calls = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def swap(self, known, row):
        await self._travel()
        found = await super().swap(known, row)
        await asyncio.sleep(0.001)
        return found

    async def reports(self, kind, name=""):
        await self._travel()
        found = await super().reports(kind, name)
        await asyncio.sleep(0.001)
        return found

    async def _travel(self) -> None:
        self.calls += 1
        await asyncio.sleep(0.001)
        await self.answers.wait()


class Provider:
    """Answers in a second, and notes how many it answers at once, and whom in which order."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.callers: list[str] = []

    @asynccontextmanager
    async def answers(self, caller: str):
        self.callers.append(caller)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield
        finally:
            self.running -= 1


class Fleet:
    """Workers with a queue each, on one store."""

    def __init__(self, workers: int, streams: int, *, seconds=100_000.0, length=10_000, names=("p",)) -> None:
        self.store, self.provider = Store(), Provider()
        limits = dict.fromkeys(names, streams)
        self.queues = [FairQueue(limits, seconds=seconds, length=length, shared=self.store) for _ in range(workers)]

    async def ask(self, worker: int, caller: str, seconds: float = 1.0, tell=silent, provider: str = "p") -> float:
        """Run one request; return how long it waited."""
        began = now()
        async with self.queues[worker].place(caller) as place:
            if not await place.take([provider]):
                await place.wait([provider], tell)
            waited = now() - began
            async with self.provider.answers(caller):
                place.opened()
                await asyncio.sleep(seconds)
        return waited

    def start(self, worker: int, caller: str, **options) -> asyncio.Task[float]:
        return asyncio.create_task(self.ask(worker, caller, **options))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_error) -> None:
        for queue in self.queues:
            await queue.aclose()


async def modest_first(workers: int, greedy: int, streams: int = 4) -> tuple[float, int]:
    """Let 20 callers ask once each, after one has sent `greedy` requests to each worker.

    Return the longest wait of these 20, and how many answers the greedy one got before the last of them.
    """
    async with Fleet(workers, streams) as fleet:
        first = [fleet.start(worker, "greedy") for _ in range(greedy) for worker in range(workers)]
        await asyncio.sleep(0.5)
        before = len(fleet.provider.callers)
        modest = [fleet.start(number % workers, f"modest-{number}") for number in range(20)]
        waits = await asyncio.gather(*modest)
        callers = fleet.provider.callers[before:]
        last = max(index for index, caller in enumerate(callers) if caller != "greedy")
        for task in first:
            task.cancel()
        await asyncio.wait(first)
        assert fleet.provider.most == streams
    return max(waits), callers[:last].count("greedy")


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_how_long_modest_callers_wait_does_not_depend_on_a_greedy_one_that_sends_to_every_worker(workers):
    for greedy in (4, 40, 160):
        wait, ahead = await modest_first(workers, greedy)
        assert ahead <= 2, "one turn a round, however many workers it sends to"
        assert wait <= 21 / 4 + 2, "a round of all callers over four streams, and how long a worker takes to look"


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_two_workers_take_turns_at_a_single_stream():
    async with Fleet(2, 1) as fleet:
        tasks = [fleet.start(worker, f"{worker}") for _ in range(5) for worker in (0, 1)]
        await asyncio.gather(*tasks)
        assert fleet.provider.most == 1
        print(fleet.provider.callers, now())
        assert fleet.provider.callers[1:] in (list("010101011"), list("101010101"), list("101010100"))
        assert now() <= 10 * (1 + 0.11), "a stream changes the worker within a tenth of a second"


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_without_waiting_requests_a_stream_needs_no_call_of_the_store():
    async with Fleet(2, 8) as fleet:
        await asyncio.gather(*(fleet.ask(0, "a", seconds=0.01) for _ in range(3)))
        before = fleet.store.calls
        for _ in range(50):
            assert await fleet.ask(0, "a", seconds=0.01) == 0
        assert fleet.store.calls - before <= 2, "one look a second"
        await asyncio.sleep(3)
        quiet = fleet.store.calls
        await asyncio.sleep(60)
        assert fleet.store.calls == quiet, "a worker without streams does not even look"


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_streams_that_a_worker_no_longer_uses_are_given_to_the_others():
    async with Fleet(2, 4) as fleet:
        await asyncio.gather(*(fleet.ask(0, "a") for _ in range(4)))
        waits = await asyncio.gather(*(fleet.ask(1, "b") for _ in range(4)))
        assert max(waits) <= 2.5


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_the_streams_of_a_worker_that_died_are_free_after_the_lease():
    async with Fleet(2, 2) as fleet:
        dead = [fleet.start(0, "a", seconds=1_000) for _ in range(2)]
        await asyncio.sleep(1)
        for each in fleet.queues[0]._fleets.values():
            each.stop()
        waited = fleet.start(1, "b")
        await asyncio.sleep(LEASE / 2)
        assert not waited.done()
        assert await waited <= LEASE + 5
        for task in dead:
            task.cancel()


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_a_live_worker_keeps_its_streams_for_longer_than_the_lease():
    async with Fleet(2, 2) as fleet:
        long = [fleet.start(0, "a", seconds=5 * LEASE) for _ in range(2)]
        await asyncio.sleep(1)
        assert await fleet.ask(1, "b") >= 4.5 * LEASE
        assert fleet.provider.most == 2
        await asyncio.gather(*long)


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_without_the_store_a_worker_uses_its_streams_and_refuses_more():
    async with Fleet(2, 4) as fleet:
        running = [fleet.start(0, "a", seconds=30) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert await fleet.ask(0, "a", seconds=0.1) == pytest.approx(0, abs=0.01)
        fleet.store.answers.clear()
        assert await fleet.ask(0, "a", seconds=0.1) == 0, "a stream that it still has"
        for _ in range(2):
            began = now()
            with pytest.raises(LimiterUnavailable):
                await fleet.ask(1, "b")
            assert now() - began < 1
        await asyncio.sleep(2)
        fleet.store.answers.set()
        await asyncio.sleep(2)
        assert await fleet.ask(1, "b", seconds=0.1) < 0.1
        await asyncio.gather(*running)
        assert fleet.provider.most <= 4


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_in_an_outage_that_is_longer_than_the_lease_a_worker_uses_an_even_part():
    async with Fleet(2, 4) as fleet:
        running = [fleet.start(worker, "a", seconds=60) for worker in (0, 1)]
        await asyncio.sleep(2)
        fleet.store.answers.clear()
        with pytest.raises(LimiterUnavailable):
            await fleet.ask(1, "b")
        await asyncio.sleep(LEASE + 2)
        assert await fleet.ask(1, "b", seconds=0.1) == 0
        assert fleet.queues[1].bottleneck("p").fleet.room == 2
        fleet.store.answers.set()
        await asyncio.gather(*running)


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_without_a_queue_what_is_free_is_used_and_the_rest_refused_at_once():
    async with Fleet(2, 4, seconds=0.0, length=0) as fleet:
        tasks = [fleet.start(number % 2, f"{number}") for number in range(10)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert Counter(type(each) for each in done) == {float: 4, Overloaded: 6}
        assert fleet.provider.most == 4


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_the_length_of_a_queue_counts_those_that_wait_and_not_those_that_get_what_is_free():
    async with Fleet(1, 20, length=3) as fleet:
        done = await asyncio.gather(*(fleet.start(0, f"{number}") for number in range(30)), return_exceptions=True)
        assert Counter(type(each) for each in done) == {float: 23, Overloaded: 7}


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_positions_count_the_requests_at_other_workers():
    told: list[int] = []

    async def tell(position: int, _estimate: int | None) -> None:
        told.append(position)

    async with Fleet(2, 1) as fleet:
        first = fleet.start(0, "first", seconds=3)
        await asyncio.sleep(0.1)
        others = [fleet.start(0, f"{number}") for number in range(3)]
        await asyncio.sleep(0.1)
        last = fleet.start(1, "last", tell=tell)
        await asyncio.gather(first, last, *others)
    assert told == [4, 3, 2, 1]


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_leaving_while_a_stream_is_being_granted_loses_no_stream():
    async with Fleet(2, 1) as fleet:
        first = fleet.start(0, "a", seconds=2)
        await asyncio.sleep(0.1)
        gone, stays = fleet.start(1, "b"), fleet.start(0, "c")
        await asyncio.sleep(1.905)  # the first one's stream was just given to b
        gone.cancel()
        assert await stays <= 3.5
        assert fleet.provider.most == 1
        await first


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_each_provider_has_separate_streams():
    async with Fleet(2, 1, names=("p", "q")) as fleet:
        first = fleet.start(0, "a", seconds=9)
        await asyncio.sleep(0.1)
        assert await fleet.ask(1, "b", provider="q") < 0.1
        await first


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_a_worker_that_is_full_takes_no_stream_that_another_one_could_use():
    async with Fleet(2, 4) as fleet:
        fleet.queues[0].limit_worker(lambda: 1)
        tasks = [fleet.start(0, f"a{number}", seconds=5) for number in range(4)]
        await asyncio.sleep(0.1)
        assert max(await asyncio.gather(*(fleet.ask(1, f"b{number}") for number in range(3)))) < 0.1
        await asyncio.gather(*tasks)


@pytest.mark.asyncio
@pytest.mark.looptime(start=0)
async def test_limits_that_change_while_requests_run_and_wait():
    async with Fleet(2, 2) as fleet:
        tasks = [fleet.start(number % 2, f"{number}", seconds=3) for number in range(4)]
        await asyncio.sleep(1)
        for queue in fleet.queues:
            queue.adjust({"p": 3}, Queue(seconds=100, length=10))
        await asyncio.sleep(0.5)
        assert fleet.provider.running == 3
        for queue in fleet.queues:
            queue.adjust({}, Queue(seconds=100, length=10))
        assert await fleet.ask(0, "without a limit") == 0
        await asyncio.gather(*tasks)
        await asyncio.sleep(3)
        quiet = fleet.store.calls
        await asyncio.sleep(30)
        assert fleet.store.calls == quiet
        for queue in fleet.queues:
            queue.adjust({"p": 1}, Queue(seconds=100, length=10))
        waits = await asyncio.gather(*(fleet.ask(number, f"{number}") for number in range(2)))
        assert min(waits) < LEASE + 1 < 30 and max(waits) >= 1, "one after the other"


class Model:
    """Workers, as far as the board is concerned."""

    def __init__(self, streams: int, workers: int) -> None:
        self.board, self.streams = EMPTY, streams
        self.running = dict.fromkeys(map(str, range(workers)), 0)
        self.waiting: dict[str, list[str]] = {name: [] for name in self.running}
        self.served: list[str] = []

    def exchange(self, worker: str) -> None:
        board, turns = exchange(self.board, worker, self.streams, self.running[worker], self.waiting[worker])
        for caller in turns:
            self.waiting[worker].remove(caller)
            self.running[worker] += 1
            self.served.append(caller)
        self.board = read(write(stamped(board, worker, 1)))
        assert sum(share.streams for share in self.board.shares.values()) <= self.streams
        assert sum(self.running.values()) <= self.streams
        held = {name: share.streams for name, share in self.board.shares.items()}
        assert all(number <= held.get(name, 0) for name, number in self.running.items())


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "end", "leave", "exchange"]), st.integers(0, 2), st.integers(0, 3)), max_size=60
)


@settings(max_examples=200)
@given(STEPS, st.integers(1, 4))
def test_no_order_of_steps_gives_more_streams_than_there_are_or_loses_one(steps, streams):
    model = Model(streams, 3)
    for what, number, caller in steps:
        worker = str(number)
        if what == "ask":
            model.waiting[worker].append(f"{caller}")
        elif what == "end":
            model.running[worker] = max(0, model.running[worker] - 1)
        elif what == "leave" and model.waiting[worker]:
            model.waiting[worker].pop()
        else:
            model.exchange(worker)
    left = sum(map(len, model.waiting.values()))
    for _ in range(2 * left + 3):  # all that run end, and all that wait are served
        for worker in model.running:
            model.running[worker] = 0
            model.exchange(worker)
    assert not any(model.waiting.values())
    assert not any(model.running.values()) or sum(model.running.values()) <= streams


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=60), st.integers(1, 3))
def test_callers_take_turns_whichever_worker_their_requests_wait_at(asked, streams):
    model = Model(streams, 3)
    for number, caller in asked:
        model.waiting[str(number)].append(f"{caller}")
    model.streams = 0  # all wait, and are shown, before the first is served
    for worker in model.running:
        model.exchange(worker)
    told = positions(model.board)
    assert sorted(each for found in told.values() for each in found) == list(range(1, len(asked) + 1))
    model.streams = streams
    while any(model.waiting.values()):
        for worker in model.running:
            model.running[worker] = 0
            model.exchange(worker)
    wanted = Counter(f"{caller}" for _, caller in asked)
    counts: Counter[str] = Counter()
    for caller in model.served:
        counts[caller] += 1
        behind = [other for other in wanted if counts[other] < wanted[other]]
        assert all(counts[caller] - counts[other] <= 1 + streams for other in behind)
