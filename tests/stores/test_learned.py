"""What was learned of the models' tokens, in each store: shared, bounded, and never in a request's way."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores_under_test import START, Clock

from chat_nest.core.claims import Claim, Granted
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.counting.tokens import FamilyCounter, TokenCounters
from chat_nest.ledger.learned import MOST_MODELS, MOST_STEPS, Learned, _line
from chat_nest.stores.memory import MemoryStore

MODEL = "p:claude-sonnet-4"


class Worker:
    """A process that counts some models."""

    def __init__(self, store, now, *models: str) -> None:
        self.counters = TokenCounters()
        for model in (MODEL, *models):
            self.counters.of(model)
        self.learned = Learned(store, self.counters, now)

    def learn(self, hundredths: int, model: str = MODEL) -> None:
        """See a prompt of so many times its count, less the margin of 5."""
        counter = self.counters.of(model)
        assert isinstance(counter, FamilyCounter)
        counter.learn(1_000, 10 * (hundredths - 5))

    async def exchange(self) -> int:
        """The bound of MODEL in hundredths of its family's, after an exchange."""
        await self.learned.exchange(60.0)
        return self.counters.learned()[MODEL]


async def test_workers_and_restarts_share_learned_steps(store, clock):
    first, second = Worker(store, clock), Worker(store, clock)
    first.learn(120)
    assert await first.exchange() == 120
    assert await second.exchange() == 120
    second.learn(111)
    assert await second.exchange() == pytest.approx(133, abs=2), "a bound that was too low again rises further"
    assert await first.exchange() == 135, "shared in steps of five, rounded up"
    assert await Worker(store, clock).exchange() == 135
    clock.advance(86_400)
    assert await Worker(store, clock).exchange() == 135


async def test_the_same_that_is_learned_at_once_is_learned_once(store, clock):
    workers = [Worker(store, clock) for _ in range(6)]
    for worker, hundredths in zip(workers, (110, 115, 115, 120, 120, 120), strict=True):
        worker.learn(hundredths)
    await asyncio.gather(*(worker.exchange() for worker in workers))
    assert {await worker.exchange() for worker in workers} == {120}


async def test_a_bound_rises_by_half_at_most_whatever_is_learned_or_stored(store, clock):
    workers = [Worker(store, clock) for _ in range(3)]
    for _ in range(10):
        for worker in workers:
            worker.learn(550)
        assert {await worker.exchange() for worker in workers} <= {150}
    [standing] = await store.peek([_line(MODEL, clock())])
    assert (standing.used, standing.held) == (MOST_STEPS, 0)
    # A larger number than ours, as a store of another version might hold.
    line = _line("p:claude-opus-4", clock())
    huge = Claim(
        id="huge",
        fingerprint="f",
        lines=(type(line)(**{**{name: getattr(line, name) for name in line.__struct_fields__}, "limit": 2**50, "fixed": 2**49}),),
        max_output_tokens=0,
        min_output_tokens=0,
    )  # fmt: skip
    assert isinstance(await store.reserve(huge, 60.0), Granted)
    await store.settle(huge, None, "estimated")
    worker = Worker(store, clock, "p:claude-opus-4")
    await worker.exchange()
    assert worker.counters.learned()["p:claude-opus-4"] == 150


async def test_a_model_teaches_nothing_of_another_and_exact_ones_are_not_kept(store, clock):
    worker = Worker(store, clock, "p:claude-opus-4", "p:gpt-4o", "q:claude-sonnet-4")
    worker.learn(130)
    await worker.exchange()
    other = Worker(store, clock, "p:claude-opus-4", "p:gpt-4o", "q:claude-sonnet-4")
    await other.exchange()
    assert other.counters.learned() == {MODEL: 130, "p:claude-opus-4": 100, "q:claude-sonnet-4": 100}


class Asked(MemoryStore):
    """A store that notes what it is asked, and may fail."""

    def __init__(self, now) -> None:
        super().__init__(now)
        self.calls: list[str] = []
        self.failure: Exception | None = None

    async def peek(self, lines):
        self.calls.append("peek")
        if self.failure is not None:
            raise self.failure
        assert len(lines) <= MOST_MODELS
        return await super().peek(lines)

    async def reserve(self, claim, lease):
        self.calls.append("reserve")
        return await super().reserve(claim, lease)


async def test_a_store_that_is_away_changes_nothing(caplog):
    clock = Clock()
    store = Asked(clock)
    worker = Worker(store, clock)
    worker.learn(120)
    store.failure = LimiterUnavailable()
    with caplog.at_level("INFO"):
        for _ in range(3):
            assert await worker.exchange() == 120
    assert caplog.text.count("is not shared now: LimiterUnavailable") == 1
    store.failure = None
    await worker.exchange()
    assert await Worker(store, clock).exchange() == 120


async def test_a_known_step_is_not_written_again_and_exact_counters_read_nothing():
    clock = Clock()
    store = Asked(clock)
    worker = Worker(store, clock)
    for _ in range(3):
        await worker.exchange()
    assert store.calls == ["peek"] * 3
    worker.learn(110)
    for _ in range(3):
        await worker.exchange()
    assert store.calls[3:] == ["peek", "reserve", "reserve", "peek", "peek"]
    store.calls.clear()
    exact = TokenCounters({"q": "bytes"})
    exact.of("p:gpt-4o")
    exact.of("q:claude-opus-4")
    await Learned(store, exact, clock).exchange(60.0)
    assert store.calls == []


async def test_a_process_with_many_models_shares_some_of_them():
    clock = Clock()
    worker = Worker(Asked(clock), clock, *(f"p:claude-{number}" for number in range(1_000)))
    await worker.exchange()


async def test_a_new_year_keeps_what_running_processes_know():
    clock = Clock(START)
    store = MemoryStore(clock)
    worker = Worker(store, clock)
    worker.learn(120)
    await worker.exchange()
    clock.advance(366 * 86_400)
    assert await Worker(store, clock).exchange() == 100
    await worker.exchange()
    assert await Worker(store, clock).exchange() == 120


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(-(2**60), 2**60), st.integers(-(2**60), 2**60) | st.integers(128, 9_000)
        ),
        max_size=30,
    )
)
def test_no_report_moves_a_bound_out_of_its_range(reports):
    async def run() -> None:
        clock = Clock()
        store = MemoryStore(clock)
        workers = [Worker(store, clock) for _ in range(3)]
        for number, counted, reported in reports:
            before = workers[number].counters.learned()[MODEL]
            counter = workers[number].counters.of(MODEL)
            assert isinstance(counter, FamilyCounter)
            counter.learn(counted, reported)
            after = await workers[number].exchange()
            assert 100 <= before <= after <= 150
        shared = [await worker.exchange() for worker in workers]
        assert max(shared) - min(shared) < 5, "apart from the rounding they know the same"

    asyncio.run(run())
