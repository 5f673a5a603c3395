"""The ledger's invariants, on random histories, with crashes: reservations that nobody ever settles."""

from __future__ import annotations

import asyncio

import pytest
from chat_nest.core.claims import Conflict, Duplicate, Granted, Refused
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore
from chat_nest.limits.windows import gcra_cost
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from stores_under_test import START, STORES, Clock, claim, gauge, quick_directory, rate, request, window

US = 1_000_000
IDS = [f"id-{n}" for n in range(12)]
FOREVER = 1e9
LIMITS = {"caller:d1": 500, "all:d1": 900, "caller:d2": 400, "usd": 90_000, "streams": 3, "all-streams": 5}


def lines_for(fixed, day):
    """A hierarchy: a caller's lines and everybody's, of every kind."""
    end = START + 100 * int(day[1])
    return [
        request(300, fixed=fixed),
        rate(5, key="rpm"),
        rate(600, fixed, 1, unit="tokens", key="tpm"),
        window(LIMITS.get(f"caller:{day}", 400), fixed=fixed, key=f"caller:{day}", resets_at=end),
        window(900, fixed=fixed, key="all:d1", resets_at=START + 100),
        window(90_000, fixed=fixed, per_token=130, key="usd", unit="nanousd", resets_at=START + 200),
        gauge(3),
        gauge(5, key="all-streams"),
    ]


PEEKED = [
    *(window(limit, key=key, resets_at=START + 100) for key, limit in LIMITS.items() if "streams" not in key),
    gauge(3),
    gauge(5, key="all-streams"),
    rate(5, key="rpm"),
    rate(600, unit="tokens", key="tpm"),
]

claims = st.builds(
    lambda id, fingerprint, fixed, day, chosen, least, more: claim(
        id,
        *(line for line, take in zip(lines_for(fixed, day), chosen, strict=True) if take),
        least=least,
        most=least + more,
        fingerprint=fingerprint,
    ),
    st.sampled_from(IDS),
    st.sampled_from(["same", "same", "same", "other"]),
    st.integers(0, 60),
    st.sampled_from(["d1", "d1", "d2"]),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.integers(0, 30),
    st.integers(0, 300),
)
leases = st.sampled_from([0.5, 5.0, 30.0, 60.0])
actuals = st.none() | st.dictionaries(
    st.sampled_from(["tokens", "requests", "nanousd", "streams"]), st.integers(0, 700), max_size=3
)
sources = st.sampled_from(["reported", "estimated", "assumed"])


LIVES = {"open", "expired"}


class Told:
    """What one granted claim must have done to the counters, worked out apart from the stores."""

    def __init__(self, claim, output, leased, lease):
        self.claim = claim
        self.output = output
        self.leased = leased
        self.expires = leased + lease
        self.state = "open"
        self.outlived = False
        """Its lease had ended, and it holds again."""
        self.held = {line.key: (line, line.amount(output)) for line in claim.lines if line.kind in {"window", "gauge"}}
        self.spent = {}


class History(RuleBasedStateMachine):
    """One random history, told to the memory store, to SQLite and to a plain account of what must be true."""

    granted = Bundle("granted")

    @initialize()
    def open(self):
        self.clock = Clock()
        self.runner = asyncio.Runner()
        self.directory = quick_directory()
        self.path = self.directory.__enter__() / "store.db"
        self.memory = MemoryStore(self.clock, retention=FOREVER)
        self.sqlite = SQLiteStore(self.path, self.clock, retention=FOREVER)
        self.told = {}
        self.tombs = {}

    def teardown(self):
        if not hasattr(self, "runner"):
            return
        self.sweep()
        self.clock.advance(10_000)  # whoever has not settled by now crashed
        self.sweep()
        for peeked in self.both(lambda store: store.peek(PEEKED)):
            assert peeked.held == 0
        self.agree_with_the_account()
        self.run(self.sqlite.aclose())
        self.runner.close()
        self.directory.__exit__(None, None, None)

    def run(self, call):
        return self.runner.run(call)

    def both(self, call):
        """Every store gives the same answer."""
        answer, other = self.run(call(self.memory)), self.run(call(self.sqlite))
        assert answer == other
        return answer

    def now_us(self):
        return int(self.clock.now * US)

    def expire(self):
        overdue = [told for told in self.told.values() if told.state == "open" and told.expires <= self.now_us()]
        for told in overdue:
            told.state, told.spent = "expired", {key: held for key, (_, held) in told.held.items()}
        return len(overdue)

    @rule(target=granted, asked=claims, lease=leases)
    def reserve(self, asked, lease):
        before = self.both(lambda store: store.peek(PEEKED))
        answer = self.both(lambda store: store.reserve(asked, lease))
        self.expire()
        known = self.told.get(asked.id)
        first = self.tombs.get(asked.id) or (known and known.claim)
        if first is not None:
            if first.fingerprint != asked.fingerprint:
                assert answer == Conflict()
            elif asked.id in self.tombs or known.state == "released":
                assert answer == Duplicate(output_tokens=0, state="released")
            else:
                assert answer == Duplicate(output_tokens=known.output, state=known.state)
        elif isinstance(answer, Granted):
            assert asked.min_output_tokens <= answer.output_tokens <= asked.max_output_tokens
            assert all(room >= 0 for room in answer.room)
            self.told[asked.id] = Told(asked, answer.output_tokens, self.now_us(), int(lease * US))
        else:
            assert isinstance(answer, Refused)
            line = asked.lines[answer.line]
            assert line.amount(asked.min_output_tokens) > answer.room
            assert answer.retry_after >= 0
        if not isinstance(answer, Granted):
            assert self.both(lambda store: store.peek(PEEKED)) == before
            return multiple()
        return asked

    @rule(asked=granted | claims, actual=actuals, source=sources)
    def settle(self, asked, actual, source):
        self.expire()
        told = self.told.get(asked.id)
        live = told is not None and told.claim.fingerprint == asked.fingerprint and told.state in {"open", "expired"}
        assert self.both(lambda store: store.settle(asked, actual, source)) is live
        if live:
            told.state = "settled"
            told.spent = {key: (actual or {}).get(line.unit, held) for key, (line, held) in told.held.items()}

    @rule(asked=granted | claims)
    def release(self, asked):
        self.expire()
        told = self.told.get(asked.id)
        live = told is not None and told.claim.fingerprint == asked.fingerprint and told.state == "open"
        assert self.both(lambda store: store.release(asked)) is live
        if live:
            told.state, told.spent = "released", {}
        elif told is None:
            self.tombs.setdefault(asked.id, asked)

    @rule(asked=st.lists(granted | claims, max_size=4), lease=leases)
    def extend(self, asked, lease):
        self.expire()
        live = set()
        for one in asked:
            told = self.told.get(one.id)
            if told is not None and told.claim.fingerprint == one.fingerprint and told.state in LIVES:
                told.outlived |= told.state == "expired"
                told.state, told.spent = "open", {}
                told.leased, told.expires = self.now_us(), self.now_us() + int(lease * US)
                live.add(one.id)
        assert self.both(lambda store: store.extend(asked, lease)) == live

    @rule()
    def sweep(self):
        assert self.both(lambda store: store.sweep()) == self.expire()
        for told in self.told.values():
            ahead = told.leased - self.now_us()
            if told.state == "open" and ahead > 60 * US:  # a clock that was set back since gave this lease
                told.leased, told.expires = self.now_us(), told.expires - ahead

    @rule(seconds=st.sampled_from([0.001, 0.5, 4.0, 30.0, 61.0]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-20, -20, -3_600, 3_600, -86_400, 86_400]))
    def the_clock_steps(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def the_process_is_replaced(self):
        self.run(self.sqlite.aclose())
        self.sqlite = SQLiteStore(self.path, self.clock, retention=FOREVER)

    @invariant()
    def agree_with_the_account(self):
        if not hasattr(self, "told"):
            return
        now = self.now_us()
        for line, found in zip(PEEKED, self.both(lambda store: store.peek(PEEKED)), strict=True):
            if line.kind == "rate":
                assert 0 <= found.room <= line.limit
                continue
            used = held = over = produced = 0
            for told in self.told.values():
                if line.key not in told.held:
                    continue
                amount = told.held[line.key][1]
                overdue = told.state == "open" and told.expires <= now
                if told.state == "open" and not overdue:
                    held += amount
                    over += amount if told.outlived and line.kind == "gauge" else 0
                elif line.kind == "window":
                    spent = amount if overdue else told.spent.get(line.key, 0)
                    used += spent
                    over += max(0, spent - amount)
                if told.state in {"open", "expired"} and line.kind == "window":
                    produced += amount  # what the provider may have been asked for
            assert (found.used, found.held) == (used, held)
            assert 0 <= found.held
            assert found.used + found.held <= line.limit + over
            assert found.used + found.held >= produced


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=examples(40), stateful_step_count=40)


@pytest.mark.parametrize("kind", STORES)
@settings(max_examples=examples(25))
@given(
    st.lists(st.tuples(claims, actuals, st.integers(0, 3), st.booleans(), st.booleans()), min_size=2, max_size=40),
    st.randoms(use_true_random=False),
)
def test_any_interleaving_keeps_the_budget(kind, chats, random):
    """Requests run side by side, and some crash: they never settle."""
    ended = []

    async def chat(store, asked, actual, pauses, crashes, twice):
        for _ in range(pauses):
            await asyncio.sleep(0)
        answer = await store.reserve(asked, 60.0)
        if not isinstance(answer, Granted):
            return
        for _ in range(random.randint(0, 3)):
            await asyncio.sleep(0)
        await store.extend([asked], 60.0)
        if crashes:
            ended.append((asked, answer.output_tokens, None))
            return
        settled = await asyncio.gather(*(store.settle(asked, actual, "reported") for _ in range(1 + twice)))
        assert settled.count(True) == 1
        ended.append((asked, answer.output_tokens, actual))

    async def watch(store):
        while True:
            for line, found in zip(PEEKED, await store.peek(PEEKED), strict=True):
                assert 0 <= found.held <= line.limit
            await asyncio.sleep(0)

    async def run():
        clock = Clock()
        async with STORES[kind](clock) as store:
            watcher = asyncio.create_task(watch(store))
            tasks = [asyncio.create_task(chat(store, *each)) for each in chats]
            try:
                await asyncio.gather(*tasks)
                assert not watcher.done() or watcher.result()
            finally:  # Hypothesis may stop an example inside one of them: no other may use the store after its end
                for task in (watcher, *tasks):
                    task.cancel()
                await asyncio.wait([watcher, *tasks])
            clock.advance(100)
            await store.sweep()
            for line, found in zip(PEEKED, await store.peek(PEEKED), strict=True):
                if line.kind == "rate":
                    continue
                assert found.held == 0
                used = over = 0
                for asked, output, actual in ended:
                    for one in asked.lines:
                        if one.key == line.key and line.kind == "window":
                            spent = (actual or {}).get(one.unit, one.amount(output))
                            used += spent
                            over += max(0, spent - one.amount(output))
                assert found.used == used
                assert found.used <= line.limit + over

    asyncio.run(run())


@settings(max_examples=examples(150))
@given(
    st.lists(
        st.tuples(st.integers(0, 120), st.integers(0, 120), st.sampled_from([0.0, 0.3, 3.0, 20.0]), st.booleans()),
        max_size=40,
    )
)
def test_a_rate_that_gives_back_never_admits_more_than_its_limit_and_its_refill(steps):
    """In doubt about what has drained, a rate may give back too late, but in the long run never too much."""
    line = rate(100, 0, 1, unit="tokens", key="tpm")

    async def run():
        clock, cost, waiting = Clock(), 0, []
        store = MemoryStore(clock)
        for number, (asked, actual, pause, settles_now) in enumerate(steps):
            one = claim(f"{number}", line, most=asked, least=min(asked, 1))
            answer = await store.reserve(one, 1_000.0)
            if isinstance(answer, Granted):
                waiting.append((one, min(actual, answer.output_tokens)))
                cost += gcra_cost(min(actual, answer.output_tokens), line.limit, line.period)
                assert cost <= (clock.now - START + line.period) * US + len(steps)
            if settles_now and waiting:
                settled, tokens = waiting.pop(0)
                await store.settle(settled, {"tokens": tokens}, "reported")
            clock.advance(pause)

    asyncio.run(run())
