"""What every store promises of the rows that all processes watch (chat_nest.core.protocols.Controls)."""

from __future__ import annotations

import asyncio

import pytest
from chat_nest.controls import Act, Control, LiveControls
from chat_nest.controls.grants import BudgetGrant, Grants, grant_row
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.records import Record
from msgspec.structs import replace
from stores_under_test import LEASE, START, STORES, claim, window

PAUSE = Control(kind="pause", name="provider:openai", value='{"stop":true}', reason="too dear: naïve {} prompts")
BLOCK = Control(kind="block", name="caller:0f3c9a52d81be647", reason="abuse", expires=START + 60)


async def rows(store):
    found = await store.controls.watch(-1)
    return found.rows


async def test_a_row_is_set_replaced_and_removed(store):
    await store.controls.change([PAUSE, BLOCK])
    assert await rows(store) == (BLOCK, PAUSE)
    changed = Control(kind="pause", name="provider:openai", value="2", expires=START + 5)
    await store.controls.change([changed])
    assert await rows(store) == (BLOCK, changed)
    await store.controls.change(remove=[("pause", "provider:openai"), ("pause", "never there")])
    assert await rows(store) == (BLOCK,)


async def test_all_rows_of_a_kind_are_removed_by_an_empty_name(store):
    other = Control(kind="pause_not", name="x")
    await store.controls.change([PAUSE, Control(kind="pause", name="all"), other])
    await store.controls.change([BLOCK], [("pause", "")])
    assert await rows(store) == (BLOCK, other)


async def test_a_row_is_kept_after_its_end_for_a_clock_that_is_set_back(store, clock):
    await store.controls.change([PAUSE, BLOCK])
    clock.advance(60 + 400 * 86_400)
    assert await rows(store) == (BLOCK, PAUSE)
    await store.controls.change([Control(kind="pause", name="all")])
    assert [row.name for row in await rows(store)] == [BLOCK.name, "all", "provider:openai"]


async def test_of_the_rows_that_ended_over_a_day_ago_the_thousand_that_ended_last_are_kept(store, clock):
    ended = [Control(kind="session", name=f"s{number:04}", expires=START + number) for number in range(1_100)]
    await store.controls.change([*ended, PAUSE])
    clock.advance(1_099 + 25 * 3_600 - 1)
    await store.controls.change([BLOCK])
    kept = [row.name for row in await rows(store) if row.kind == "session"]
    assert kept == [row.name for row in ended[99:]], "and the one that did not end so long ago"
    await store.controls.change(remove=[("session", row.name) for row in ended[200:1_099]])
    clock.advance(3_600)
    await store.controls.change([BLOCK])
    kept = [row.name for row in await rows(store) if row.kind == "session"]
    assert kept == [row.name for row in (*ended[99:200], ended[1_099])], "what was removed takes no place"
    assert PAUSE in await rows(store)


@pytest.mark.parametrize("days", [1, 3, 3_000])
async def test_a_row_that_ends_tonight_is_in_force_again_after_a_clock_was_ahead(store, clock, days):
    line = window(1_000, key="caller:c:tokens_per_day:2026-09-21", resets_at=START + 600)
    grant = grant_row(line, BudgetGrant(amount=500, kind="grant"), "word", "")
    revoked = Control(kind="session", name="s_" + "0" * 24, expires=START + 600)
    await store.controls.change([BLOCK, grant, revoked])
    clock.advance(days * 86_400)
    live = LiveControls(store.controls, clock)
    grants = Grants(live)
    await live.change([PAUSE])  # an operator acts, and a process reads the rows, while the clock is wrong
    assert [live.get(row.kind, row.name) for row in (BLOCK, revoked)] == [None, None]
    clock.advance(-days * 86_400)
    assert [live.get(row.kind, row.name) for row in (BLOCK, revoked)] == [BLOCK, revoked]
    assert list(live.of("block")) == [BLOCK]
    assert grants.raised([line])[0].limit == 1_500
    await live.aclose()


async def test_the_version_changes_with_every_change(store):
    first = await store.controls.watch(-1)
    assert first.rows == ()
    assert await store.controls.watch(first.version) is None
    await store.controls.change([PAUSE])
    second = await store.controls.watch(first.version)
    assert second.rows == (PAUSE,)
    assert await store.controls.watch(second.version) is None
    await store.controls.change([PAUSE])
    assert (await store.controls.watch(second.version)).rows == (PAUSE,)


async def test_only_one_call_is_the_first_with_a_key(store):
    answers = await asyncio.gather(*(store.controls.first("challenge:abc", 60) for _ in range(20)))
    assert sorted(answers) == [False] * 19 + [True]
    assert await store.controls.first("challenge:other", 60)


async def test_a_key_is_free_again_after_its_time(store, clock):
    assert await store.controls.first("alert:80", 60)
    clock.advance(59)
    assert not await store.controls.first("alert:80", 60)
    clock.advance(2)
    assert await store.controls.first("alert:80", 60)
    assert not await store.controls.first("alert:80", 60)


async def test_only_the_call_that_is_first_sets_its_reports(store, clock):
    def rows(number):
        return [Control(kind="note", name=name, value=f"{name}{number}", expires=START + 500) for name in "ab"]

    answers = await asyncio.gather(*(store.controls.first("alert:80", 60, rows(number)) for number in range(20)))
    assert sorted(answers) == [False] * 19 + [True]
    won = answers.index(True)
    assert sorted(row.value for row in await store.controls.reports("note")) == [f"a{won}", f"b{won}"]
    with pytest.raises(ValueError, match="control.expires"):
        await store.controls.first("alert:100", 60, [Control(kind="note", name="c")])
    assert await store.controls.first("alert:100", 60)  # what was refused has taken nothing
    gone = Control(kind="note", name="a", expires=1.0)
    assert await store.controls.first("alert:a", 60, [gone])
    assert [row.name for row in await store.controls.reports("note")] == ["b"]


async def test_the_trail_has_the_newest_act_first(store, clock):
    acts = [
        Act(by=f"cli:ada{number}", act="pause", target="provider:openai", reason="ü", detail="2h")
        for number in range(3)
    ]
    for act in acts:
        await store.controls.change([PAUSE], act=act)
        clock.advance(10)
    found = await store.controls.acts(2)
    assert [(act.by, act.act, act.target, act.reason, act.detail) for act in found] == [
        ("cli:ada2", "pause", "provider:openai", "ü", "2h"),
        ("cli:ada1", "pause", "provider:openai", "ü", "2h"),
    ]
    assert [act.at for act in found] == [START + 20, START + 10]
    assert len(await store.controls.acts(100)) == 3


async def test_a_report_is_found_by_its_name_until_it_expires_and_is_not_watched(store, clock):
    version = (await store.controls.watch(-1)).version
    one = Control(kind="worker", name="a:1", value='{"running":3}', expires=START + 10)
    two = Control(kind="worker", name="a:2", value="ü", expires=START + 20)
    await store.controls.report([one, two, Control(kind="seen", name="a:1", value="x", expires=START + 10)])
    assert await store.controls.reports("worker") == [two, one]
    assert await store.controls.reports("worker", "a:1") == [one]
    assert await store.controls.reports("worker", "a:3") == []
    assert await store.controls.watch(version) is None
    clock.advance(11)
    assert await store.controls.reports("worker") == [two]
    assert await store.controls.reports("worker", "a:1") == []
    again = Control(kind="worker", name="a:1", value="y", expires=START + 30)
    await store.controls.report([again])
    assert await store.controls.reports("worker") == [again, two]
    with pytest.raises(ValueError, match=r"control\.expires"):
        await store.controls.report([Control(kind="worker", name="x")])


async def test_of_several_that_swap_a_report_one_does_and_the_others_learn_what_it_set(store, clock):
    rows = [Control(kind="queue", name="openai", value=f"[{number}]", expires=START + 60) for number in range(5)]
    assert set(await asyncio.gather(*(store.controls.swap("", row) for row in rows))) == {
        (first := (await store.controls.reports("queue", "openai"))[0].value)
    }
    second = Control(kind="queue", name="openai", value="[6]", expires=START + 60)
    assert await store.controls.swap("[7]", second) == first
    assert await store.controls.swap(first, second) == "[6]"
    assert await store.controls.swap(first, second) == "[6]", "the same call again gets the same answer"
    assert await store.controls.reports("queue") == [second]
    clock.advance(61)
    third = Control(kind="queue", name="openai", value="[8]", expires=START + 120)
    assert await store.controls.swap("[6]", third) == ""
    assert await store.controls.swap("", third) == "[8]"
    for wrong in ("\n", "ü", "x" * (2**20 + 1)):
        with pytest.raises(ValueError, match=r"control\.value"):
            await store.controls.swap("", Control(kind="queue", name="openai", value=wrong, expires=START + 60))


@pytest.mark.parametrize(
    "change",
    [
        {"put": [Control(kind="", name="x")]},
        {"put": [Control(kind="Pause", name="x")]},
        {"put": [Control(kind="pause", name="")]},
        {"put": [Control(kind="pause", name="a\nb")]},
        {"put": [Control(kind="pause", name="x", reason="x" * 513)]},
        {"put": [Control(kind="pause", name="x", value="\0")]},
        {"put": [Control(kind="pause", name="x", value="\ud800")]},
        {"put": [Control(kind="pause", name="x", expires=float("nan"))]},
        {"put": [Control(kind="pause", name="x", expires=-1.0)]},
        {"remove": [("Pause", "x")]},
        {"act": Act(by="x", act="pause", target="a\nb")},
    ],
    ids=str,
)
async def test_a_row_that_breaks_a_rule_changes_nothing(store, change):
    await store.controls.change([BLOCK])
    with pytest.raises(ValueError, match=r"^(control|act)\."):
        await store.controls.change(**{"put": (), **change})
    assert await rows(store) == (BLOCK,)
    assert await store.controls.acts(1) == []


@pytest.mark.parametrize(("key", "seconds"), [("", 1), ("a\n", 1), ("a", 0), ("a", float("inf")), ("a", float("nan"))])
async def test_a_key_that_breaks_a_rule_is_refused(store, key, seconds):
    with pytest.raises(ValueError, match="must be"):
        await store.controls.first(key, seconds)


async def test_controls_and_counters_do_not_see_each_other(store):
    await store.controls.change([Control(kind="pause", name="day")])
    assert await store.controls.first("day", 60)
    day = window(1_000)
    await store.reserve(claim("a", day), LEASE)
    assert [row.name for row in await rows(store)] == ["day"]
    [found] = await store.peek([day])
    assert (found.used, found.held) == (0, 100)


async def test_every_process_sees_a_change_without_waiting_in_a_request(store):
    one, other = LiveControls(store.controls, lambda: START), LiveControls(store.controls, lambda: START, every=0.01)
    changed = asyncio.Event()
    try:
        await one.ready()
        await other.ready()
        assert other.get("pause", "all") is None
        other.listen(changed.set)
        await one.change([Control(kind="pause", name="all")])
        assert one.get("pause", "all") is not None  # at once
        await changed.wait()
        assert [row.name for row in other.of("pause")] == ["all"]
    finally:
        await one.aclose()
        await other.aclose()


class Away:
    """Controls of a store that can go away."""

    def __init__(self, controls):
        self.controls = controls
        self.is_away = True
        self.asked = asyncio.Queue()

    def __getattr__(self, name):
        async def call(*args):
            self.asked.put_nowait(name)
            if self.is_away:
                raise ConnectionError
            return await getattr(self.controls, name)(*args)

        return call


async def test_the_last_copy_stays_while_the_store_is_away(store):
    now = [START]
    away = Away(store.controls)
    live = LiveControls(away, lambda: now[0], every=0.001)
    try:
        with pytest.raises(LimiterUnavailable):
            await live.ready()
        assert not live.known
        await store.controls.change([PAUSE, BLOCK])
        away.is_away = False
        while not live.known:
            await away.asked.get()
            await asyncio.sleep(0)
        away.is_away = True
        while not away.asked.empty():
            away.asked.get_nowait()
        await away.asked.get()
        await live.ready()
        assert live.get("pause", "provider:openai") == PAUSE
        assert live.get("block", BLOCK.name) == BLOCK
        now[0] += 61
        assert live.get("block", BLOCK.name) is None
        assert live.of("block") == []
        assert live.has("pause")
    finally:
        await live.aclose()


@pytest.mark.parametrize("name", ["memory", "sqlite"])
async def test_the_trail_is_bounded(name, clock, monkeypatch):
    monkeypatch.setattr("chat_nest.controls.memory.MOST_ACTS", 5)
    monkeypatch.setattr("chat_nest.stores.sqlite.controls.MOST_ACTS", 5)
    async with STORES[name](clock) as store:
        for number in range(8):
            await store.controls.change(act=Act(by="cli:a", act="x", target=str(number)))
        assert [act.target for act in await store.controls.acts(20)] == ["7", "6", "5", "4", "3"]


async def test_the_answers_that_run_are_listed_until_they_end_or_their_lease_does(store, clock):
    def named(run, started_at):
        record = Record(run=run, caller="c", group="g", profile="p", model="x:y", started_at=started_at)
        return replace(claim(run, window(1_000)), record=record)

    await store.reserve(claim("no record", window(1_000)), LEASE)
    for number, run in enumerate(("one", "two", "three")):
        await store.reserve(named(run, START + number), LEASE)
        clock.advance(1)
    assert [record.run for record in await store.running(10)] == ["three", "two", "one"]
    assert [record.run for record in await store.running(1)] == ["three"]
    [newest] = await store.running(1)
    assert (newest.caller, newest.group, newest.profile, newest.model) == ("c", "g", "p", "x:y")
    await store.settle(named("two", START + 1), {"tokens": 1}, "reported")
    assert [record.run for record in await store.running(10)] == ["three", "one"]
    clock.advance(LEASE + 1)
    assert await store.running(10) == []
