"""The stream of the operators' page and its questions about spending are bounded, and go on past failures."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from types import SimpleNamespace

import pytest
from chat_nest.core.errors import BadRequest, LimiterUnavailable, NotFound, Overloaded
from chat_nest.core.records import UsageRow
from chat_nest.server.admin import live as module
from chat_nest.server.admin.live import MOST_STREAMS, Live
from chat_nest.server.admin.routes import Reply
from chat_nest.server.admin.spend import MOST_SERIES, Spend

NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC


async def yes():
    return True


@pytest.fixture
def parts(monkeypatch):
    """What the parts answer, by name; an exception is raised. `parts.reads` counts."""
    found = SimpleNamespace(answers={"running": b"[1]", "audit": b"[2]"}, reads=0)

    async def serve(name, _asked):
        found.reads += name == "running"
        answer = found.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return Reply(answer)

    monkeypatch.setattr(module, "PARTS", {name: lambda asked, name=name: serve(name, asked) for name in found.answers})
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.01)
    return found


async def test_only_changes_are_sent_again(parts):
    async with module_stream(Live()) as events:
        assert await anext(events) == b"event: running\ndata: [1]\n\nevent: audit\ndata: [2]\n\n"
        parts.answers["audit"] = b"[3]"
        assert await anext(events) == b"event: audit\ndata: [3]\n\n"


async def test_a_part_that_fails_is_marked_and_the_others_continue(parts):
    parts.answers["audit"] = LimiterUnavailable("no store")
    async with module_stream(Live()) as events:
        first = await anext(events)
        assert b"data: [1]\n\n" in first
        assert json.loads(first.split(b"event: audit\ndata: ")[1]) == {
            "error": "no store",
            "code": "limiter_unavailable",
        }


async def test_a_key_that_is_no_longer_right_ends_it(parts):
    right = [True, False]

    async def is_right():
        return right.pop(0)

    events = Live().stream(None, is_right)  # type: ignore[arg-type]
    await anext(events)
    assert await anext(events) == b'event: refused\ndata: {"code":"unauthorized"}\n\n'
    assert await anext(events, None) is None


async def test_streams_share_one_reading_and_are_bounded(parts, monkeypatch):
    monkeypatch.setattr(module, "EVERY_SECONDS", 60.0)
    live = Live()
    streams = [live.stream(None, yes) for _ in range(MOST_STREAMS)]  # type: ignore[arg-type]
    for stream in streams:
        await anext(stream)
    assert (parts.reads, live.streams) == (1, MOST_STREAMS)
    with pytest.raises(Overloaded):
        await anext(live.stream(None, yes))  # type: ignore[arg-type]
    await streams.pop().aclose()
    assert live.streams == MOST_STREAMS - 1
    waiting = [asyncio.ensure_future(anext(stream, None)) for stream in streams]
    await asyncio.sleep(0)
    live.close()
    assert await asyncio.gather(*waiting) == [None] * len(waiting)
    assert live.streams == 0


async def test_a_silent_stream_pings(parts, monkeypatch):
    monkeypatch.setattr(module, "PING_SECONDS", 0.0)
    async with module_stream(Live()) as events:
        await anext(events)
        assert await anext(events) == b": ping\n\n"


def module_stream(live):
    return aclosing(live.stream(None, yes))


class Records:
    """A store that answers with these rows, and counts the questions."""

    def __init__(self, rows):
        self.rows = rows
        self.asked = []

    async def usage(self, since, until, by, zone, caller, most):
        self.asked.append((since, until, by, most))
        return [each for at, each in self.rows if since <= at < until]


def row(day, name, cost):
    return UsageRow(
        by=(day, name), requests=1, errors=0, assumed=0, input_tokens=2, output_tokens=3, cached_input_tokens=0,
        cache_write_tokens=0, reasoning_tokens=0, cost=cost, unpriced=0,
    )  # fmt: skip


def app_with(store, days=90):
    server = SimpleNamespace(time_zone="UTC")
    return SimpleNamespace(
        handler=SimpleNamespace(store=store), config=SimpleNamespace(server=server, records_days=days)
    )


async def test_days_that_are_over_are_read_once_and_today_again():
    store = Records(
        [(NOON - 86_400, row("2027-01-14", "p:a", 5_000_000_000)), (NOON, row("2027-01-15", "p:b", 2_000_000_000))]
    )
    clock = [NOON]
    spend = Spend(app_with(store), lambda: clock[0])
    found = await spend.by_day("model", 2)
    assert found["dates"] == ["2027-01-14", "2027-01-15"]
    assert [(each["name"], each["usd"]) for each in found["series"]] == [("p:a", [5.0, 0]), ("p:b", [0, 2.0])]
    assert len(store.asked) == 2
    await spend.by_day("model", 2)
    assert len(store.asked) == 2
    clock[0] += 11
    await spend.by_day("model", 2)
    assert len(store.asked) == 3
    assert store.asked[2] == store.asked[1]  # today's


async def test_beyond_the_first_names_the_rest_is_one():
    store = Records([(NOON, row("2027-01-15", f"p:{n:02}", 10**9 * (20 - n))) for n in range(12)])
    found = await Spend(app_with(store), lambda: NOON).by_day("model", 1)
    *named, rest = found["series"]
    assert [each["name"] for each in named] == [f"p:{n:02}" for n in range(MOST_SERIES)]
    assert (rest["name"], rest["others"], rest["usd"], rest["requests"]) == (None, 4, [12.0 + 11 + 10 + 9], [4])


@pytest.mark.parametrize(("store", "days"), [(object(), 90), (Records([]), 0)], ids=["no-records", "kept-0-days"])
async def test_without_records_the_setting_is_named(store, days):
    with pytest.raises(NotFound, match="records_days"):
        await Spend(app_with(store, days), lambda: NOON).callers(1, 20)


async def test_another_grouping_is_refused():
    with pytest.raises(BadRequest):
        await Spend(app_with(Records([])), lambda: NOON).by_day("caller", 1)
