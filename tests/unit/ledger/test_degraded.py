"""While the store is down, what was held in it beforehand is spent, and no more."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager

import looptime
import pytest
from example_counts import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stores_under_test import START, STORES, Clock, quick_directory
from switched_store import Switched

from chat_nest.core.errors import BudgetExceeded, ChatError, LimiterUnavailable
from chat_nest.ledger.journal import Entry, Journal
from chat_nest.ledger.delivery import Delivery
from chat_nest.ledger.ledger import Ledger
from chat_nest.core.limits import Limits
from chat_nest.limits.spec import Allowance
from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line
from chat_nest.core.records import Record
from chat_nest.ledger.allowance import check_allowance, posting
from chat_nest.stores.memory import MemoryStore
from chat_nest.ledger.degraded import DegradedMode
from chat_nest.core.usage import Usage

DAY = 1_000
"""Seconds: a short one."""
ALLOWANCE = Allowance(tokens=200, usd=0.000_02, requests=5, streams=3)
PRICE = 50
FOREVER = 1e9


def line(name, scope, limit, kind="window", now=START, unit="tokens", fixed=0, per_token=0):
    day = int((now - START) // DAY)
    key = f"{scope}:x:{name}:{day}" if kind == "window" else f"{scope}:x:{name}"
    return Line(
        name=name, scope=scope, key=key, unit=unit, kind=kind, limit=limit, fixed=fixed,
        per_million=per_token * 1_000_000, period=60 if kind == "rate" else 0,
        resets_at=START + (day + 1) * DAY if kind == "window" else 0.0,
    )  # fmt: skip


def shared(now, prompt=0, tokens=1_000):
    """The lines for all callers."""
    return [
        line("requests_per_minute", "all", 100, "rate", now, "requests", 1),
        line("concurrent_streams", "all", 20, "gauge", now, "streams", 1),
        line("tokens_per_day", "all", tokens, "window", now, "tokens", prompt, 1),
        line("usd_per_day", "all", 100_000, "window", now, "nanousd", PRICE * prompt, PRICE),
    ]


def own(now, prompt, limit=300):
    return [
        line("requests_per_minute", "caller", 50, "rate", now, "requests", 1),
        line("tokens_per_day", "caller", limit, "window", now, "tokens", prompt, 1),
        line("tokens_per_day", "group", 500, "window", now, "tokens", prompt, 1),
    ]


def claim(id, now, prompt=10, most=40, limit=300, lines=None):
    lines = tuple(lines or [*own(now, prompt, limit), *shared(now, prompt)])
    return Claim(id=id, fingerprint="f", lines=lines, max_output_tokens=most, min_output_tokens=5)


def refusal(claim, refused):
    line = claim.lines[refused.line]
    return BudgetExceeded(limit=f"{line.scope} {line.name}")


def clock():
    return START + asyncio.get_running_loop().time()


class Worker:
    """One process: a ledger, on an allowance, on a link to the store that all of them share."""

    def __init__(self, store, *, directory=None, lease=300.0, allowance=ALLOWANCE, how="on", now=clock, lines=shared):
        self.link = Switched(store, how)
        self.now = now
        self.delivery = Delivery(self.link, journal=None if directory is None else Journal(directory))
        self.mode = DegradedMode(self.link, allowance, lambda: lines(now()), self.delivery, now=now, lease=lease)
        self.ledger = Ledger(self.link, refusal, delivery=self.delivery, degraded=self.mode)
        self.ledger.start()

    @asynccontextmanager
    async def chat(self, id, tokens=None, **options):
        """One admitted request, which is settled with `tokens` for its answer; None sends nothing to a provider."""
        asked = claim(id, self.now(), **options)
        prompt = asked.lines[-2].fixed
        async with self.ledger.reserve(asked, prompt) as held:
            yield held
            if tokens is not None:
                held.asked = True
                held.reported = Usage(input_tokens=prompt, output_tokens=min(tokens, held.granted.output_tokens))

    async def close(self):
        await self.ledger.aclose(grace=1)


async def standing(store, name="tokens_per_day", scope="all", now=START):
    """(used, held) of the window of the day of `now`."""
    [found] = await store.peek([line(name, scope, 10_000, now=now)])
    return found.used, found.held


@asynccontextmanager
async def working(store=None, **options):
    worker = Worker(MemoryStore(clock, retention=FOREVER) if store is None else store, **options)
    await asyncio.sleep(0.01)
    try:
        yield worker
    finally:
        await worker.close()


quickly = pytest.mark.looptime(start=0)


@quickly
async def test_an_allowance_is_held_while_the_store_answers_and_given_back_at_the_end() -> None:
    store = MemoryStore(clock)
    async with working(store):
        assert await standing(store) == (0, 200)
        assert await standing(store, "usd_per_day") == (0, 20_000)
        assert await standing(store, scope="caller") == (0, 0)
        await asyncio.sleep(2_000)
        assert await standing(store, now=START + 2_000) == (0, 200)
        assert await standing(store) == (0, 0)
    assert await standing(store, now=START + 2_000) == (0, 0)


@quickly
async def test_requests_go_to_the_store_while_it_answers() -> None:
    store = MemoryStore(clock)
    async with working(store) as worker:
        async with worker.chat("a", 40):
            assert await standing(store) == (0, 250)
        assert await standing(store) == (50, 200)
        assert await standing(store, scope="caller") == (50, 0)


@pytest.mark.parametrize("how", ["fails", "hangs", "lost", "late"])
@quickly
async def test_row43_answers_during_an_outage_are_charged_after_it(how) -> None:
    store = MemoryStore(clock, retention=FOREVER)
    async with working(store) as worker:
        worker.link.how = how
        began = clock()
        for number in range(3):
            async with worker.chat(f"{number}", 20) as held:
                assert held.granted.output_tokens == 40
                assert len(held.granted.room) == len(held.claim.lines)
        assert clock() - began < 1
        with pytest.raises(LimiterUnavailable):
            await worker.ledger.peek([line("tokens_per_day", "caller", 300)])
        worker.link.how = "on"
        rates = []
        for _ in range(300):
            rates += await store.peek([line("requests_per_minute", "all", 100, "rate", unit="requests")])
            await asyncio.sleep(0.1)
        assert 0 < max(rate.used for rate in rates) <= 3
        for scope in ("all", "caller", "group"):
            assert await standing(store, scope=scope) == (90, 200 if scope == "all" else 0)
        assert await standing(store, "usd_per_day") == (150 * PRICE, 20_000)  # the whole hold: nobody tells the price
        async with worker.chat("4", 10):
            pass
        assert await standing(store, scope="caller") == (110, 0)
    assert await standing(store) == (110, 0)


@quickly
async def test_the_answer_is_clamped_to_the_allowance_and_refused_when_it_is_used_up() -> None:
    async with working(allowance=Allowance(tokens=100, usd=1e-5, requests=5, streams=3)) as worker:
        worker.link.how = "fails"
        async with worker.chat("a", 40) as first, worker.chat("b", prompt=20) as second:
            assert (first.granted.output_tokens, second.granted.output_tokens) == (40, 30)
            with pytest.raises(LimiterUnavailable):
                async with worker.chat("c", prompt=1):
                    pass


@quickly
async def test_requests_and_streams_of_the_allowance_are_counted() -> None:
    async with working(allowance=Allowance(tokens=200, usd=2e-5, requests=3, streams=2)) as worker:
        worker.link.how = "fails"
        async with worker.chat("a", 1), worker.chat("b", 1):
            with pytest.raises(LimiterUnavailable):
                async with worker.chat("c"):
                    pass
        async with worker.chat("d", 1):
            pass
        with pytest.raises(LimiterUnavailable):
            async with worker.chat("e"):
                pass


@quickly
async def test_a_callers_limit_refuses_by_its_name_unless_it_is_above_the_allowance() -> None:
    async with working() as worker:
        worker.link.how = "fails"
        with pytest.raises(BudgetExceeded) as refused:
            async with worker.chat("a", limit=12):
                pass
        assert refused.value.limit == "caller tokens_per_day"
        async with worker.chat("b", 40, limit=60):
            pass
        with pytest.raises(BudgetExceeded):
            async with worker.chat("c", limit=60):
                pass
        async with worker.chat("d", 40, limit=300), worker.chat("e", 40, limit=300), worker.chat("f", 40, limit=300):
            pass
        with pytest.raises(LimiterUnavailable):
            async with worker.chat("g", limit=300):
                pass


@quickly
async def test_spending_over_the_limit_of_a_caller_is_debt() -> None:
    store = MemoryStore(clock, retention=FOREVER)
    async with working(store) as worker:
        async with worker.chat("a", 40, limit=60):
            pass
        worker.link.how = "fails"
        async with worker.chat("b", 40, limit=60):
            pass
        worker.link.how = "on"
        await asyncio.sleep(30)
        assert await standing(store, scope="caller") == (100, 0)
        with pytest.raises(BudgetExceeded):
            async with worker.chat("c", limit=60):
                pass


@quickly
async def test_without_an_allowance_an_outage_is_one() -> None:
    async with working(how="fails") as worker:
        assert not worker.mode.can_admit
        with pytest.raises(LimiterUnavailable):
            async with worker.chat("a"):
                pass
        await asyncio.sleep(1)
        assert not {"reserve", "release"} & set(worker.link.asked)  # known to be down, it is not bothered
    full = MemoryStore(clock)
    await full.reserve(claim("x", START, lines=[line("tokens_per_day", "all", 1_000, fixed=900)]), 1e6)
    async with working(full) as worker:
        worker.link.how = "fails"
        with pytest.raises(LimiterUnavailable):
            async with worker.chat("a"):
                pass


@quickly
async def test_a_budget_outside_the_allowance_admits_no_request() -> None:
    async with working(allowance=Allowance(tokens=200, requests=5, streams=3)) as worker:
        assert worker.mode.can_admit
        worker.link.how = "fails"
        with pytest.raises(LimiterUnavailable):
            async with worker.chat("a"):
                pass


@quickly
async def test_an_allowance_ends_with_its_window_and_with_its_lease() -> None:
    async with working(lease=300) as worker:
        worker.link.how = "fails"
        await asyncio.sleep(270)
        async with worker.chat("a", 1):
            pass
        await asyncio.sleep(31)
        with pytest.raises(LimiterUnavailable):
            async with worker.chat("b"):
                pass
    async with working(lease=5_000) as worker:
        await asyncio.sleep(DAY - 1 - clock() % DAY)
        worker.link.how = "fails"
        async with worker.chat("a", 1):
            pass
        await asyncio.sleep(2)
        with pytest.raises(LimiterUnavailable):
            async with worker.chat("b"):
                pass


@quickly
async def test_an_unsent_request_costs_nothing_even_if_its_lease_ends_in_the_outage() -> None:
    store = MemoryStore(clock, retention=FOREVER)
    async with working(store) as worker:
        async with worker.chat("a"):
            worker.link.how = "fails"
        await asyncio.sleep(90)
        assert await standing(store, scope="caller") == (50, 0)
        worker.link.how = "on"
        await asyncio.sleep(10)
        assert await standing(store, scope="caller") == (0, 0)
        assert await standing(store) == (0, 200)
        assert await standing(store, "usd_per_day") == (0, 20_000)


@quickly
async def test_a_request_paid_by_the_allowance_is_not_charged_as_lost_too() -> None:
    """The store holds the claim and could not tell; the release of its id comes after the claim's lease."""
    store = MemoryStore(clock, retention=FOREVER)
    async with working(store) as worker:
        worker.link.how = "lost"
        async with worker.chat("a", 20):
            worker.link.how = "fails"
        await asyncio.sleep(90)
        assert await standing(store, scope="caller") == (50, 0)
        worker.link.how = "on"
        await asyncio.sleep(10)
        assert await standing(store, scope="caller") == (30, 0)
        assert await standing(store) == (30, 200)


@quickly
async def test_an_answer_that_runs_past_midnight_and_past_the_outage_is_charged_to_its_day() -> None:
    store = MemoryStore(clock, retention=FOREVER)
    async with working(store) as worker:
        await asyncio.sleep(DAY - 5)
        worker.link.how = "fails"
        async with worker.chat("a", 40):
            await asyncio.sleep(60)
            worker.link.how = "on"
            await asyncio.sleep(60)
            assert await standing(store) == (0, 200)
            assert await standing(store, now=START + DAY) == (0, 200)
        await asyncio.sleep(1)
        assert await standing(store) == (50, 0)
        assert await standing(store, now=START + DAY) == (0, 200)
        assert await standing(store, scope="caller") == (50, 0)


@quickly
async def test_a_worker_that_dies_is_charged_its_whole_allowance() -> None:
    store = MemoryStore(clock, retention=FOREVER)
    worker = Worker(store, lease=300)
    await asyncio.sleep(0.01)
    worker.link.how = "fails"
    async with worker.chat("a", 10):
        pass
    crash(worker)
    await asyncio.sleep(301)
    assert await store.sweep() == 1
    assert await standing(store) == (200, 0)


@quickly
async def test_unposted_usage_is_posted_by_the_next_process(tmp_path) -> None:
    store = MemoryStore(clock, retention=FOREVER)
    async with working(store, directory=tmp_path) as worker:
        worker.link.how = "fails"
        async with worker.chat("a", 10):
            pass
    assert len(list(tmp_path.iterdir())) == 1
    async with working(store, directory=tmp_path):
        await asyncio.sleep(1)
        assert await standing(store) == (20, 200)
        assert await standing(store, scope="caller") == (20, 0)
        assert list(tmp_path.iterdir()) == []


@quickly
async def test_ids_are_distinguished_during_an_outage() -> None:
    async with working() as worker:
        worker.link.how = "fails"
        first = claim("a", clock())
        assert isinstance(await worker.mode.reserve(first, 60), Granted)
        assert await worker.mode.reserve(first, 60) == Duplicate(output_tokens=40, state="open")
        other = Claim(id="a", fingerprint="g", lines=first.lines, max_output_tokens=40)
        assert await worker.mode.reserve(other, 60) == Conflict()
        await worker.mode.end(Entry(ending="settle", claim=first, actual={"tokens": 11}))
        assert await worker.mode.reserve(first, 60) == Duplicate(output_tokens=40, state="settled")


@quickly
async def test_a_claim_that_breaks_a_rule_is_no_outage() -> None:
    async with working() as worker:
        with pytest.raises(ValueError):
            await worker.mode.reserve(claim("a\n", clock()), 60)
        assert not worker.mode.is_down


@pytest.mark.parametrize("kind", STORES)
async def test_every_store_accepts_the_debt_of_an_outage(kind) -> None:
    now = lambda: START  # noqa: E731
    async with STORES[kind](now) as store, working(store, now=now) as worker:
        while not worker.mode.can_admit:
            await asyncio.sleep(0.01)
        async with worker.chat("a", 40, limit=60):
            pass
        worker.link.how = "fails"
        async with worker.chat("b", 40, limit=60):
            pass
        worker.link.how = "on"
        while await standing(store) != (100, 200) or await standing(store, scope="caller") != (100, 0):
            await asyncio.sleep(0.01)
        await worker.close()
        assert await standing(store) == (100, 0)
        assert await standing(store, "usd_per_day") == (100 * PRICE, 0)


@pytest.mark.parametrize(
    ("allowance", "limits", "says"),
    [
        (Allowance(tokens=5), Limits(), "such as limits.tokens_per_day"),
        (Allowance(requests=5), Limits(requests_per_minute=9), "such as limits.tokens_per_day"),
        (Allowance(streams=5), Limits(concurrent_streams=9), "such as limits.tokens_per_day"),
        (Allowance(requests=5), Limits(tokens_per_day=9), "degraded.tokens must be set"),
        (Allowance(tokens=5), Limits(tokens_per_day=9, requests_per_minute=9), "degraded.requests must be set"),
        (Allowance(tokens=5), Limits(tokens_per_day=9, concurrent_streams=9), "degraded.streams must be set"),
        (Allowance(tokens=5), Limits(tokens_per_day=9, usd_per_month=9), "degraded.usd must be set"),
        (Allowance(tokens=9), Limits(tokens_per_day=9), "degraded.tokens must be below limits.tokens_per_day"),
        (Allowance(usd=0.5), Limits(usd_per_day=0.5), "degraded.usd must be below limits.usd_per_day"),
        (Allowance(tokens=5, usd=1), Limits(tokens_per_day=9), "degraded.usd has nothing"),
    ],
)
@quickly
async def test_an_allowance_that_the_limits_cant_hold_is_refused(allowance, limits, says) -> None:
    with pytest.raises(ValueError, match=says):
        check_allowance(allowance, limits)


@quickly
async def test_an_allowance_that_the_limits_hold() -> None:
    check_allowance(Allowance(tokens=5, requests=3), Limits(tokens_per_day=9))
    check_allowance(Allowance(usd=0.5), Limits(usd_per_day=0.6))


def crash(worker) -> None:
    """What SIGKILL does: no task of the worker runs on, and no file of it is written any more."""
    journal, worker.delivery._journal = worker.delivery._journal, None
    for task in (worker.mode._keeper, worker.ledger._keeper, *worker.mode._ending, *worker.delivery._tasks):
        if task is not None:
            task.cancel()
    if journal is not None:
        journal.close()


# Any history.

HOWS = st.sampled_from(["on", "fails", "hangs", "lost", "late"])


def few(now, prompt=0):
    """So few tokens for all callers that two allowances leave hardly any."""
    return [one for one in shared(now, prompt, 300) if one.unit in ("tokens", "streams")]


class Outlived(MemoryStore):
    """Knows which claims outlived their leases: who still runs holds a gauge again, though it is full by now."""

    def __init__(self, now):
        super().__init__(now, retention=FOREVER)
        self.outlived = set()

    async def extend(self, claims, lease):
        await self.sweep()
        known = self._book.reservations
        expired = {one.id for one in claims if one.id in known and known[one.id].state == "expired"}
        live = await super().extend(claims, lease)
        self.outlived |= expired & live
        return live

    def excess(self, key):
        """How far over its limit such claims may bring a gauge."""
        again = (one for id in self.outlived if (one := self._book.reservations[id]).state == "open")
        return sum(hold.held for one in again for hold in one.holds if hold.key == key and hold.kind == "gauge")


async def inline(call, *args):
    """Threads would make the history that Hypothesis repeats another one."""
    return call(*args)


class Outages(RuleBasedStateMachine):
    """Two workers with an allowance each, whose links to one store come and go, as requests do and time."""

    @initialize()
    def open(self):
        logging.disable()  # each attempt of a whole day's outage is a line
        self.threads, asyncio.to_thread = asyncio.to_thread, inline  # type: ignore[assignment]
        # Nothing comes from outside of this loop, so the clock need not wait some turns for it before it goes on.
        self.runner = asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0, noop_cycles=0))
        self.loop = self.runner.get_loop()
        self.directory = quick_directory()
        self.path = self.directory.__enter__()
        self.store = Outlived(self.now)
        self.chats = {}
        self.spent = 0
        self.number = 0
        self.crashed = False
        self.run(self.begin())

    def now(self):
        return START + self.loop.time()

    async def begin(self):
        self.workers = [self.worker(), self.worker()]

    def worker(self, how="on"):
        allowance = Allowance(tokens=100, streams=8)
        return Worker(self.store, directory=self.path, now=self.now, how=how, allowance=allowance, lines=few, lease=60)

    def run(self, call):
        async def then_settle():
            await call
            await asyncio.sleep(0.01)

        self.runner.run(then_settle())

    @rule(
        which=st.integers(0, 1), prompts=st.lists(st.integers(0, 20), min_size=1, max_size=4), most=st.integers(5, 60)
    )
    def requests_come(self, which, prompts, most):
        self.come(which, prompts, most)

    def come(self, which, prompts, most):
        async def come():
            for prompt in prompts:
                self.number += 1
                end = asyncio.get_running_loop().create_future()
                task = asyncio.create_task(self.chat(self.workers[which], f"{self.number}", prompt, most, end))
                self.chats[self.number] = (task, end)
            await asyncio.sleep(0.6)  # a request may find out only then that the store is down

        self.run(come())

    async def chat(self, worker, id, prompt, most, end):
        mine = line("tokens_per_day", "caller", 100_000, now=self.now(), fixed=prompt, per_token=1)
        asked = claim(id, self.now(), most=most, lines=[mine, *few(self.now(), prompt)])
        try:
            async with worker.ledger.reserve(asked, prompt) as held:
                part = await end
                if part is not None:
                    output = int(held.granted.output_tokens * part)
                    held.asked = True
                    held.reported = Usage(input_tokens=prompt, output_tokens=output)
                    self.spent += prompt + output
        except ChatError:
            return

    @precondition(lambda self: self.chats)
    @rule(data=st.data(), part=st.sampled_from([None, 0, 0.5, 1, 1]))
    def a_request_ends(self, data, part):
        number = data.draw(st.sampled_from(sorted(self.chats)))
        task, end = self.chats.pop(number)

        async def finish():
            if not end.done():
                end.set_result(part)

        self.run(finish())

    @rule(
        which=st.integers(0, 1),
        how=HOWS,
        prompts=st.lists(st.integers(0, 20), max_size=3),
        most=st.integers(5, 40),
    )
    def a_link_changes(self, which, how, prompts, most):
        self.workers[which].link.how = how
        self.come(which, prompts, most)

    @rule(which=st.integers(0, 1))
    def a_link_is_mended(self, which):
        self.workers[which].link.how = "on"
        self.run(asyncio.sleep(2.1))

    @rule(seconds=st.sampled_from([0.3, 2, 25]))
    def time_passes(self, seconds):
        self.run(asyncio.sleep(seconds))

    @rule()
    def leases_run_out(self):
        self.run(asyncio.sleep(61))

    @rule(before=st.sampled_from([0.2, 3]))
    def midnight_is_near(self, before):
        self.run(asyncio.sleep(max(0, DAY - before - self.loop.time() % DAY)))

    @rule(which=st.integers(0, 1), how=HOWS)
    def a_worker_is_replaced(self, which, how):
        async def replace():
            for _, end in self.chats.values():
                if not end.done():
                    end.set_result(1)
            self.chats.clear()
            await asyncio.sleep(1.1)
            await self.workers[which].close()
            self.workers[which] = self.worker(how)

        self.run(replace())

    @invariant()
    def budgets_for_all_hold(self):
        if not hasattr(self, "workers"):
            return
        for day in range(int(self.loop.time() // DAY) + 1):
            lines = few(START + day * DAY)
            for one, found in zip(lines, self.runner.run(self.store.peek(lines)), strict=True):
                assert found.used + found.held <= one.limit + self.store.excess(one.key), (one.name, found)
                assert found.held >= 0

    def teardown(self):
        if not hasattr(self, "workers"):
            return
        try:
            for worker in self.workers:
                worker.link.how = "on"

            async def end():
                for _, end in self.chats.values():
                    if not end.done():
                        end.set_result(1)
                await asyncio.sleep(70)
                for worker in self.workers:
                    await worker.close()
                await asyncio.sleep(70)
                await self.store.sweep()

            self.run(end())
            everybodys, callers = self.total("all"), self.total("caller")
            assert everybodys >= self.spent
            if not self.crashed:
                assert (everybodys, callers) == (self.spent, self.spent)
            assert list(self.path.iterdir()) == []
        finally:
            self.runner.close()
            asyncio.to_thread = self.threads
            logging.disable(logging.NOTSET)
            self.directory.__exit__(None, None, None)

    def total(self, scope):
        used = 0
        for day in range(int(self.loop.time() // DAY) + 1):
            used_now, held = self.runner.run(standing(self.store, scope=scope, now=START + day * DAY))
            assert held == 0
            used += used_now
        return used


class Crashes(Outages):
    """The same, and workers are killed."""

    @rule(which=st.integers(0, 1), how=HOWS)
    def a_worker_is_killed(self, which, how):
        async def kill():
            worker = self.workers[which]
            self.crashed = True
            await self.cancel_chats(worker)
            crash(worker)
            self.workers[which] = self.worker(how)

        self.run(kill())

    async def cancel_chats(self, worker):
        """Its requests end with it, and settle nothing: they are all ours, so we end those of both."""
        deliver, worker.delivery.deliver = worker.delivery.deliver, lambda *_: asyncio.create_task(asyncio.sleep(0))
        for task, _ in self.chats.values():
            task.cancel()
        await asyncio.sleep(0)
        self.chats.clear()
        worker.delivery.deliver = deliver


TestOutages = Outages.TestCase
TestOutages.settings = settings(max_examples=examples(30), stateful_step_count=25)
TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(max_examples=examples(30), stateful_step_count=25)


async def test_a_posting_that_no_process_settles_is_recorded_as_it_is_charged() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    usage = Usage(input_tokens=56, output_tokens=42)
    record = Record(run="r", caller="c", profile="p", model="p:m", started_at=START, usage=usage)
    day = line("tokens_per_day", "caller", 300)
    asked = Claim(id="r", fingerprint="f", lines=(day,), max_output_tokens=40)
    post = posting(asked, {"tokens": 98}, record)
    await store.reserve(post, 60)
    clock.advance(61)
    await store.sweep()
    again = await store.reserve(post, 60)
    assert isinstance(again, Duplicate)
    assert again.record is not None
    [found] = await store.peek([day])
    assert (found.used, again.record.usage.total_tokens) == (98, 98)
