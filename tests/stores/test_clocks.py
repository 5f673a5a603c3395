"""The wall clock is stepped by seconds, hours and a day, and set right again, while requests come, run, end and crash.

What the counters must have is worked out apart from the stores: what each request that was granted has used or holds,
by the keys of its lines.
"""

from __future__ import annotations

import asyncio
from zoneinfo import ZoneInfo

import pytest
from chat_nest.core.claims import Claim, Granted
from chat_nest.core.limits import Limits
from chat_nest.core.messages import Caller
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.spec import HardCaps, Profile
from example_counts import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stores_under_test import LEASE, STORES, Clock

ZONE = "Europe/Berlin"
DAY = 86_400.0
BEFORE_MIDNIGHT = 1_792_969_140.0
"""2026-10-25, 23:59 in Berlin: of the day on which an hour came twice, six days before the end of a month."""
FIRST_HOUR = 1_792_882_740.0
"""00:59 of the same day, in summer time."""
MONTHS_END = 1_793_487_570.0
"""2026-10-31, 23:59:30 in Berlin."""
PROFILE = Profile(
    name="one",
    model="m:m",
    requests_per_minute=6,
    requests_per_hour=7,
    requests_per_day=12,
    tokens_per_minute=2_000,
    tokens_per_hour=2_500,
    tokens_per_day=4_000,
    tokens_per_month=7_000,
    concurrent_streams=2,
    tokens_per_request=None,
    min_output_tokens=16,
    max_output_tokens=400,
)
SHARED = Limits(requests_per_day=15, tokens_per_day=5_000, concurrent_streams=3)
PROFILES = Profiles({"one": PROFILE}, SHARED, HardCaps(), ZONE)

steps = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 500), st.sampled_from(["settle", "run", "run", "crash"])),
    st.tuples(st.just("end"), st.integers(0, 900), st.booleans()),
    st.tuples(st.just("step"), st.sampled_from([-1.0, 1.0, -30.0, 30.0, -3_600.0, 3_600.0, -DAY, DAY]), st.none()),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 20.0, 59.0, 61.0, 1_800.0, 3_600.0]), st.none()),
    st.tuples(st.just("right"), st.none(), st.none()),
)


class World:
    """A store, workers whose clock is that of the store, and an account of what was granted."""

    def __init__(self, store, clock, began, wrong):
        self.store = store
        self.clock = clock
        self.least, self.most = (0.0, DAY) if wrong == "ahead" else (-DAY, 0.0)
        self.true = began
        self.error = 0.0
        self.running = {}
        self.lost = {}
        self.settled = []
        self.lines = {}
        self.number = 0

    def tell(self):
        self.clock.now = self.true + self.error

    def claim(self, prompt):
        self.number += 1
        lines = PROFILES.lines(Caller(id="someone"), PROFILE, prompt, self.clock.now)
        return Claim(
            id=f"request-{self.number}",
            fingerprint="f",
            owner=f"owner-{self.number}",
            lines=lines,
            max_output_tokens=400,
            min_output_tokens=16,
        )

    async def step(self, seconds):
        wrong = self.error + seconds
        self.error = wrong if self.least <= wrong <= self.most else 0.0
        self.tell()
        await self.keep()

    async def right(self):
        self.error = 0.0
        self.tell()
        await self.keep()

    async def let_pass(self, seconds):
        """Time goes by, and workers renew the leases of what runs, as often as they do."""
        while seconds > 0:
            some = min(seconds, LEASE / 3)
            self.true += some
            seconds -= some
            self.tell()
            await self.keep()

    async def keep(self):
        if self.running:
            live = await self.store.extend([claim for claim, _ in self.running.values()], LEASE)
            assert live == frozenset(self.running), "a running answer was forgotten"
        await self.store.sweep()

    async def ask(self, prompt, then):
        asked = self.claim(prompt)
        before = {key: self.drawn(key) for key in (line.key for line in asked.lines)}
        answer = await self.store.reserve(asked, LEASE)
        if not isinstance(answer, Granted):
            return answer
        for line in asked.lines:
            if line.kind == "window":
                self.lines[line.key] = line
                drawn = before[line.key] + line.amount(answer.output_tokens)
                assert drawn <= line.limit + self.debt(line.key), f"{line.key}: a budget became whole again"
        match then:
            case "run":
                self.running[asked.id] = asked, answer.output_tokens
            case "crash":
                self.lost[asked.id] = asked, answer.output_tokens
            case "settle":
                await self.settle(asked, answer.output_tokens, prompt + answer.output_tokens)
        return answer

    async def settle(self, claim, output, tokens):
        assert await self.store.settle(claim, {"tokens": tokens}, "reported") is True
        assert await self.store.settle(claim, {"tokens": tokens + 1}, "reported") is False
        self.settled.append((claim, output, tokens))

    async def end_one(self, tokens, released):
        if not self.running:
            return
        claim, output = self.running.pop(min(self.running))
        if released:
            assert await self.store.release(claim) is True
        else:
            await self.settle(claim, output, tokens)

    def drawn(self, key, among=None):
        """What was drawn on a line: used by whoever has settled, held by all others."""
        total = 0
        for claim, output in [*self.running.values(), *self.lost.values()] if among is None else among:
            total += sum(line.amount(output) for line in claim.lines if line.key == key)
        if among is None:
            for claim, output, tokens in self.settled:
                for line in claim.lines:
                    if line.key == key:
                        total += tokens if line.unit == "tokens" else line.amount(output)
        return total

    def debt(self, key):
        return sum(
            max(0, tokens - line.amount(output))
            for claim, output, tokens in self.settled
            for line in claim.lines
            if line.key == key and line.unit == "tokens"
        )

    async def agree(self):
        """The clock is right, and was for more than a lease: everything is as if it had never been wrong."""
        await self.right()
        await self.let_pass(LEASE + 1)
        kept = [line for line in self.lines.values() if line.resets_at > self.true + self.least]
        for line, found in zip(kept, await self.store.peek(kept), strict=True):
            held = self.drawn(line.key, self.running.values())
            assert (line.key, found.held, found.used) == (line.key, held, self.drawn(line.key) - held)
        gauges = [line for line in self.claim(1).lines if line.kind == "gauge"]
        for line, found in zip(gauges, await self.store.peek(gauges), strict=True):
            assert (line.key, found.held) == (line.key, len(self.running)), "a dead request holds a place"
        await self.ask(1, "settle")  # a rate that a clock ahead has drawn on drains from the next request on
        await self.let_pass(240.0)  # of at most four minutes' debt
        asked = self.claim(1)
        for line in asked.lines:
            if line.kind == "gauge" and len(self.running) >= line.limit:
                return
            if line.kind == "window" and self.drawn(line.key) + line.amount(16) > line.limit:
                return
        answer = await self.ask(1, "settle")
        assert isinstance(answer, Granted), f"refused for {asked.lines[answer.line].key} though there is room"


@pytest.mark.parametrize("kind", [kind for kind in STORES if kind != "cluster"])  # which has 65 partitions to sweep
@settings(max_examples=examples(40))
@given(
    st.sampled_from([BEFORE_MIDNIGHT, FIRST_HOUR, MONTHS_END]),
    st.sampled_from(["ahead", "behind"]),
    st.lists(steps, min_size=4, max_size=30),
)
@example(BEFORE_MIDNIGHT - 43_200, "ahead", [("ask", 400, "settle")] * 5 + [("step", DAY, None), ("ask", 1, "settle")])
@example(
    BEFORE_MIDNIGHT, "behind", [("ask", 400, "settle")] * 5 + [("step", -DAY, None)] + [("ask", 400, "settle")] * 5
)
@example(FIRST_HOUR, "ahead", [("step", DAY, None), ("ask", 9, "crash"), ("ask", 9, "crash"), ("right", None, None)])
def test_a_wrong_clock_gives_no_budget_twice_and_blocks_no_caller_once_it_is_right(kind, began, wrong, script):
    async def run():
        clock = Clock(began)
        async with STORES[kind](clock) as store:
            world = World(store, clock, began, wrong)
            world.tell()
            for what, first, second in script:
                match what:
                    case "ask":
                        await world.ask(first, second)
                    case "end":
                        await world.end_one(first, second)
                    case "step":
                        await world.step(first)
                    case "pass":
                        await world.let_pass(first)
                    case "right":
                        await world.right()
            await world.agree()
            while world.running:
                await world.end_one(10, released=False)
            await world.agree()

    asyncio.run(run())


def test_the_constants_are_the_documented_times():
    from datetime import datetime

    said = [datetime.fromtimestamp(at, ZoneInfo(ZONE)).isoformat() for at in (BEFORE_MIDNIGHT, FIRST_HOUR, MONTHS_END)]
    assert said == ["2026-10-25T23:59:00+01:00", "2026-10-25T00:59:00+02:00", "2026-10-31T23:59:30+01:00"]
