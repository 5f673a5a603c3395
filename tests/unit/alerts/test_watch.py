"""The watch: which alerts are posted, from what a process can see."""

from __future__ import annotations

from collections import Counter
from zoneinfo import ZoneInfo


from chat_nest.alerts.counts import Counts
from chat_nest.alerts.events import EVENTS
from chat_nest.alerts.outbox import Outbox
from chat_nest.alerts.settings import Bounds
from chat_nest.alerts.watch import Watch
from chat_nest.core.claims import Line, Standing
from chat_nest.core.errors import LimiterUnavailable, RateLimited, UpstreamAuth
from chat_nest.core.messages import Caller, Visit
from chat_nest.core.protocols import Budget, Figures, KeyRest
from chat_nest.limits.windows import calendar_window
from chat_nest.stores.memory import MemoryStore

UTC = ZoneInfo("UTC")
NOW = 1_795_608_000.0  # 25 November 2026, noon
NANO = 10**9


class Clock:
    now = NOW

    def __call__(self):
        return self.now


class Handler:
    """The figures of a handler, as a test sets them."""

    store_kind = "memory"

    def __init__(self):
        self.used = {}
        self.limit = 100 * NANO
        self.breakers = {}
        self.unsettled = 0
        self.down = False

    def figures(self):
        return Figures(streams=0, queued=0, unsettled=self.unsettled, expired=0, breakers=self.breakers)

    async def budgets(self):
        if self.down:
            raise LimiterUnavailable
        return [budget(group, self.limit, used) for group, used in self.used.items()]


def budget(group, limit, used, now=NOW):
    month = calendar_window("month", now, UTC)
    owner = f"group:{group}" if group else "all"
    line = Line(
        name="usd_per_month", scope="group" if group else "all", key=f"{owner}:usd_per_month:{month.id}", unit="nanousd",
        kind="window", limit=limit, fixed=0, period=int(month.end - month.start), resets_at=month.end,
    )  # fmt: skip
    return Budget(line, Standing(used=used, held=0, room=max(0, limit - used), resets_at=month.end), group)


class Pool:
    """A provider with three keys."""

    rests = ()

    def key_rests(self):
        return 3, self.rests


class World:
    """A process on a store: what it sees, and what it has posted."""

    def __init__(self, store=None, clock=None, **bounds):
        self.clock = clock or Clock()
        self.store = MemoryStore(self.clock) if store is None else store
        self.handler, self.counts, self.pool = Handler(), Counts(), Pool()
        self.counts.watch(self.handler)
        self.posted = []
        outbox = Outbox(self.store.controls, self.clock)

        async def post(crossing):
            first = await outbox.post(crossing, crossing.alert(self.clock(), ""), ["webhook"])
            if first:
                self.posted.append(crossing)
            return first

        self.watch = Watch(self.counts, self.store, self.store.controls, lambda: {"p": self.pool}, post, self.clock)
        self.watch.adopt(Bounds(**bounds), frozenset(EVENTS), UTC)

    async def look(self):
        """Look, and return what was posted by it."""
        before = len(self.posted)
        await self.watch.look()
        return [(each.type, each.text) for each in self.posted[before:]]


async def test_each_share_of_a_limit_is_posted_once():
    world = World()
    said = []
    for dollars in (0, 10, 49, 50, 51, 79, 80, 85, 99, 100, 100):
        world.handler.used = {"": dollars * NANO}
        said += await world.look()
    assert said == [
        ("budget.threshold", "all callers: usd_per_month is at 50 % ($50.00 of $100.00); at this pace 61 % of the limit "
         "are used by 1 December"),
        ("budget.threshold", "all callers: usd_per_month is at 80 % ($80.00 of $100.00); at this pace 97 % of the limit "
         "are used by 1 December"),
        ("budget.used_up", "all callers: usd_per_month is used up ($100.00 of $100.00): requests are refused until "
         "2026-12-01T00:00+00:00"),
    ]  # fmt: skip


async def test_of_several_shares_at_once_the_highest_is_posted_and_the_others_never():
    world = World()
    world.handler.used = {"": 85 * NANO}
    assert [text[:36] for _, text in await world.look()] == ["all callers: usd_per_month is at 85 "]
    world.handler.used = {"": 60 * NANO}  # a charge was corrected
    assert await world.look() == []


async def test_two_processes_post_one_alert_together_and_each_group_has_a_separate_one():
    one = World()
    other = World(one.store, one.clock)
    for world in (one, other):
        world.handler.used = {"": 81 * NANO, "lab": 51 * NANO}
    assert [len(await one.look()), len(await other.look())] == [2, 0]
    assert {each.data.get("group") for each in one.posted} == {None, "lab"}


async def test_the_pace_is_in_the_text():
    world = World(percents=(30,))
    world.handler.limit, world.handler.used = 30 * NANO, {"lab": 25 * NANO}
    [(_, text)] = await world.look()
    assert (
        text
        == "group lab: usd_per_month is at 83 % ($25.00 of $30.00); at this pace the limit is reached on 30 November"
    )


async def test_a_rest_too_small_for_a_request_is_a_used_up_limit():
    world = World()
    world.handler.used = {"lab": 95 * NANO}
    await world.look()
    error = RateLimited(limit="usd_per_month")
    error.scope = "group"
    world.counts.refused("r", Caller(id="x", group="lab"), error)
    [(type, text)] = await world.look()
    assert type == "budget.used_up"
    assert "used up ($95.00 of $100.00)" in text


async def test_a_refusal_of_a_large_request_is_none():
    world = World()
    world.handler.used = {"": 60 * NANO}
    await world.look()
    error = RateLimited(limit="usd_per_month")
    error.scope = "all"
    world.counts.refused("r", Caller(id="x"), error)
    assert await world.look() == []


async def test_debt_is_posted_once_a_window():
    world = World()
    world.handler.used = {"": 112 * NANO}
    assert sorted(type for type, _ in await world.look()) == ["budget.debt", "budget.used_up"]
    assert "overdrawn by $12.00" in next(each.text for each in world.posted if each.type == "budget.debt")
    world.handler.used = {"": 113 * NANO}
    assert await world.look() == []


async def test_what_was_charged_at_the_very_end_of_a_window_is_seen():
    world = World()
    world.handler.used = {"": 79 * NANO}
    await world.look()
    ended = budget("", 100 * NANO, 90 * NANO)

    async def peek(lines):
        assert [line.key for line in lines] == [ended.line.key]
        return [ended.standing]

    world.store.peek = peek
    world.clock.now = ended.line.resets_at + 2

    async def budgets():
        return [budget("", 100 * NANO, 0, world.clock.now)]

    world.handler.budgets = budgets
    [(_, text)] = await world.look()
    assert "is at 90 %" in text


async def test_a_raised_limit_is_a_new_limit():
    world = World()
    world.handler.used = {"": 100 * NANO}
    assert len(await world.look()) == 1
    world.handler.limit = 125 * NANO
    assert [text[:35] for _, text in await world.look()] == ["all callers: usd_per_month is at 80"]


class Failing:
    """Controls of a store that takes no rows while `down`."""

    down = True

    def __init__(self, controls):
        self._controls = controls

    async def first(self, key, seconds, report=()):
        if self.down:
            raise LimiterUnavailable from TimeoutError()
        return await self._controls.first(key, seconds, report)

    def __getattr__(self, name):
        return getattr(self._controls, name)


async def test_a_store_that_is_down_alerts_after_a_while():
    world = World()
    world.watch._controls = Failing(world.store.controls)  # the test's outbox goes on, as a machine's own does
    world.handler.down = True
    assert await world.look() == []
    world.clock.now += 29
    assert await world.look() == []
    world.clock.now += 1
    [(type, text)] = await world.look()
    assert type == "store.down"
    assert "does not answer since 12:00:00 (TimeoutError)" in text
    world.clock.now += 60
    assert await world.look() == []
    world.clock.now += 3_600
    assert [type for type, _ in await world.look()] == ["store.down"]  # it lasts


async def test_a_store_that_came_back_begins_anew():
    world = World()
    failing = world.watch._controls = Failing(world.store.controls)
    for down in (True, False, True):
        failing.down = down
        assert await world.look() == []
        world.clock.now += 20


async def test_waiting_settlements_alert_after_five_minutes():
    world = World()
    world.handler.unsettled = 7
    await world.look()
    world.clock.now += 300
    [(type, text)] = await world.look()
    assert (type, text) == (
        "settlements.pending",
        "one process has 7 settlements that the store did not take for 5 minutes",
    )


async def test_a_breaker_that_stays_open_alerts_and_one_that_closes_does_not():
    world = World()
    world.handler.breakers = {"p": "open", "q": "open"}
    await world.look()
    world.clock.now += 60
    world.handler.breakers = {"p": "probing", "q": "closed"}
    assert await world.look() == []
    world.clock.now += 60
    world.handler.breakers = {"p": "open", "q": "open"}
    assert await world.look() == [("provider.breaker_open", "p has failed for 2 minutes: its circuit breaker is open")]


async def test_a_refused_key_alerts_once_an_hour():
    world = World()
    ending = type("Ending", (), {"error": UpstreamAuth(), "model": "p:gpt"})()
    world.counts.finished(ending)
    assert await world.look() == [("provider.key_refused", "p refuses the key: upstream_auth")]
    world.counts.finished(ending)
    assert await world.look() == []
    world.clock.now += 3_601
    world.pool.rests = (KeyRest("", 60.0, "upstream_quota"), KeyRest("m", 5.0, "upstream_rate_limited"))  # type: ignore[assignment]
    assert await world.look() == [("provider.key_refused", "p refuses 1 of its 3 keys: upstream_quota")]


async def test_refusals_are_added_up_over_the_processes_and_five_minutes():
    one = World(refused_per_minute=10)
    other = World(one.store, one.clock, refused_per_minute=10)
    for number in range(26):
        for world in (one, other):
            world.counts.refused("r", None, RateLimited() if number else LimiterUnavailable())
    assert await one.look() == []  # 26 of its own
    [(type, text)] = await other.look()
    assert type == "requests.refused"
    assert text == "52 requests were refused in 5 minutes: rate_limited 50, limiter_unavailable 2"
    one.clock.now += 301
    assert await one.look() == []


async def test_new_visitors_are_counted_and_returning_ones_are_not():
    world = World(visitors_per_minute=1)
    for number in range(6):
        new = Caller(id=f"v{number}", visit=Visit(id="0" * 32, issued=1, counted_as="203.0.113.9"))
        known = Caller(id="v", visit=Visit(id="0" * 32, issued=1))
        for caller in (new, known, Caller(id="key:ada")):
            world.counts.started("r", caller, "balanced", "p:m")
    assert await world.look() == [("visitors.new", "6 new visitors came in 5 minutes")]


async def test_only_chosen_events_are_posted():
    world = World()
    world.watch.adopt(Bounds(), frozenset(["budget.used_up"]), UTC)
    world.handler.used = {"": 80 * NANO}
    assert await world.look() == []
    world.handler.used = {"": 100 * NANO}
    assert [type for type, _ in await world.look()] == ["budget.used_up"]


async def test_a_process_that_refuses_nothing_reads_no_counts_of_others():
    world = World()
    calls = Counter()
    reports = world.store.controls.reports

    async def counted(kind, name=""):
        calls[kind] += 1
        return await reports(kind, name)

    world.store.controls.reports = counted
    for _ in range(3):
        await world.look()
    assert calls == {}
