"""What an operator's pauses, blocks, stops, grants and resets do to requests, over real sockets."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import asynccontextmanager, closing
from zoneinfo import ZoneInfo

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from raw_client import HELLO, ask, connect
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, finish, stream, usage

from chat_nest import BALANCED, Caller, Limits, Rung, create_chat_handler
from chat_nest.controls import Control
from chat_nest.controls.grants import BudgetGrant, grant_row
from chat_nest.core.deltas import FinishDelta, TextDelta
from chat_nest.server.operator import Operator, window_lines
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import collect

ADA = Caller(id="ada", group="team")


@asynccontextmanager
async def chat(tmp_path, *, limits=Limits(), caller=ADA, **more):
    """A handler, and an operator in a process of its own: both know only the file."""
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as provider:
        profile = replace(BALANCED, model="openai:main", fallbacks=("openai:spare",), **more)
        handler = create_chat_handler(
            base_url=provider.url,
            profiles={"balanced": profile},
            groups={"team": Limits()},
            identify=None if caller is None else lambda scope: caller,
            limits=limits,
            store=f"sqlite:///{tmp_path}/store.db",
        )
        store = SQLiteStore(tmp_path / "store.db")
        try:
            async with serve(handler) as port:
                yield provider, port, Operator(store, ZoneInfo("UTC"), by="cli:op"), handler
        finally:
            await store.aclose()


async def seen(handler, act):
    """Act in the other process, and wait until this one knows."""
    changed = asyncio.Event()
    handler.controls.listen(changed.set)
    await act
    await changed.wait()


async def get(port, path):
    async with connect(port) as client:
        reply = await client.request("GET", path)
        await reply.body()
        return reply


def names_for(scope):
    return {
        "all": "all",
        "caller": f"caller:{ADA.key}",
        "group": "group:team",
        "profile": "profile:balanced",
        "provider": "provider:openai",
    }[scope]


@pytest.mark.parametrize("scope", ["all", "caller", "group", "profile", "provider"])
async def test_a_pause_refuses_before_anything_is_reserved_and_ends(tmp_path, scope):
    async with chat(tmp_path, requests_per_day=2) as (provider, port, operator, handler):
        await seen(handler, operator.pause(names_for(scope), reason="too dear"))
        for _ in range(3):
            refused = await ask(port)
            told = json.loads(refused.raw)
            assert (refused.status, told["code"]) == (503, "paused")
            assert refused.headers["retry-after"] == "60"
            assert "dear" not in refused.raw.decode()
        assert not provider.requests
        await seen(handler, operator.resume(names_for(scope)))
        assert [(await ask(port)).status for _ in range(3)] == [200, 200, 429]


async def test_a_paused_model_is_replaced_by_its_fallback(tmp_path):
    async with chat(tmp_path) as (provider, port, operator, handler):
        await seen(handler, operator.pause("model:openai:main"))
        assert (await ask(port)).status == 200
        assert [json.loads(request.body)["model"] for request in provider.requests] == ["spare"]
        await seen(handler, operator.pause("model:openai:spare"))
        assert json.loads((await ask(port)).raw)["code"] == "paused"


async def test_a_pause_with_an_end_ends_by_itself_and_sends_retry_after(tmp_path):
    async with chat(tmp_path) as (_, port, operator, handler):
        await seen(handler, operator.pause("all", seconds=30))
        refused = await ask(port)
        assert 25 <= int(refused.headers["retry-after"]) <= 30
        past = Control(kind="pause", name="all", expires=time.time() + 0.001)
        await seen(handler, operator.controls.change([past]))
        while handler.controls.get("pause", "all") is not None:
            await asyncio.sleep(0)
        assert (await ask(port)).status == 200


@pytest.mark.parametrize("how", ["caller", "address", "network"])
async def test_a_blocked_caller_gets_nothing_until_it_is_unblocked(tmp_path, how):
    who = {"caller": ADA.id, "address": "127.0.0.1", "network": "127.0.0.0/8"}[how]
    name = f"caller:{ADA.key}" if how == "caller" else f"network:{who}" if "/" in who else f"network:{who}/32"
    async with chat(tmp_path) as (provider, port, operator, handler):
        await seen(handler, operator.block(name, reason="abuse"))
        for path in (None, "/api/usage"):
            refused = await (ask(port) if path is None else get(port, path))
            assert (refused.status, json.loads(refused.raw)["code"]) == (403, "blocked")
        assert not provider.requests
        await seen(handler, operator.unblock(name))
        assert (await ask(port)).status == 200


async def test_another_network_is_not_blocked(tmp_path):
    async with chat(tmp_path) as (_, port, operator, handler):
        await seen(handler, operator.block("network:10.0.0.0/8"))
        await seen(handler, operator.block("network:2001:db8::/32"))
        assert (await ask(port)).status == 200


async def test_a_grant_raises_one_window_once_and_leaves_what_was_spent(tmp_path):
    async with chat(tmp_path, requests_per_day=1) as (_, port, operator, handler):
        assert (await ask(port)).status == 200
        assert (await ask(port)).status == 429
        [line] = [
            each
            for each in window_lines(f"caller:{ADA.key}", ZoneInfo("UTC"), time.time())
            if each.name == "requests_per_day"
        ]
        await seen(handler, operator.grant(line, 2, reason="a demo"))
        assert [(await ask(port)).status for _ in range(3)] == [200, 200, 429]
        usage = json.loads((await get(port, "/api/usage")).raw)
        day = next(each for each in usage["limits"] if each["name"] == "requests_per_day")
        assert (day["limit"], day["used"], day["remaining"]) == (3, 3, 0)


async def test_an_answer_is_clamped_to_the_granted_room(tmp_path):
    async with chat(tmp_path, tokens_per_day=1) as (provider, port, operator, handler):
        assert (await ask(port)).status == 429
        lines = window_lines(f"caller:{ADA.key}", ZoneInfo("UTC"), time.time())
        [line] = [each for each in lines if each.name == "tokens_per_day"]
        await seen(handler, operator.grant(line, 299))
        assert (await ask(port)).status == 200
        asked = json.loads(provider.requests[0].body)
        assert 200 < (asked.get("max_tokens") or asked["max_completion_tokens"]) < 300


async def test_a_grant_lifts_its_caller_to_a_dearer_rung(tmp_path):
    ladder = (Rung(below=0.6, model="openai:gpt-4o-mini"),)
    async with chat(tmp_path, requests_per_day=4, ladder=ladder) as (provider, port, operator, handler):
        for _ in range(3):
            assert (await ask(port)).status == 200
        lines = window_lines(f"caller:{ADA.key}", ZoneInfo("UTC"), time.time())
        [line] = [each for each in lines if each.name == "requests_per_day"]
        await seen(handler, operator.grant(line, 6))
        assert (await ask(port)).headers.get("x-ladder-below") is None
        asked = [json.loads(request.body)["model"] for request in provider.requests]
        assert asked == ["main", "main", "gpt-4o-mini", "main"]


@pytest.mark.parametrize("scope", ["caller", "all"])
async def test_a_reset_gives_the_whole_limit_again_exactly_once(tmp_path, scope):
    limits = {"limits": Limits(requests_per_day=2)} if scope == "all" else {}
    async with chat(tmp_path, **limits, **({"requests_per_day": 2} if scope == "caller" else {})) as (
        _,
        port,
        operator,
        handler,
    ):
        assert [(await ask(port)).status for _ in range(3)] == [200, 200, 429]
        owner = {"caller": f"caller:{ADA.key}", "all": "all"}[scope]
        assert [line.name for line in await operator.reset(owner)] != []
        while (await ask(port)).status != 200:
            await asyncio.sleep(0)
        assert [(await ask(port)).status for _ in range(2)] == [200, 429]
        assert await operator.reset(owner)  # twice in a row forgives what was used once
        await operator.reset(owner)
        while (await ask(port)).status != 200:
            await asyncio.sleep(0)
        if scope == "caller":
            usage = json.loads((await get(port, "/api/usage")).raw)
            day = next(each for each in usage["limits"] if each["name"] == "requests_per_day")
            assert (day["limit"], day["used"], day["remaining"]) == (2, 1, 1)
        assert [(await ask(port)).status for _ in range(2)] == [200, 429]


async def test_a_grant_that_cant_be_read_raises_nothing(tmp_path):
    async with chat(tmp_path, requests_per_day=1) as (_, port, operator, handler):
        [line] = [
            each
            for each in window_lines(f"caller:{ADA.key}", ZoneInfo("UTC"), time.time())
            if each.name == "requests_per_day"
        ]
        row = grant_row(line, BudgetGrant(amount=-5, kind="grant"), "a", "")
        await seen(handler, operator.controls.change([row, replace(row, name=f"{line.key} b", value='{"amount":"x"}')]))
        assert [(await ask(port)).status for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("how", ["pause", "block", "stop", "model", "not"])
async def test_running_answers_are_stopped_and_settled_once(tmp_path, how):
    release = asyncio.Event()
    async with chat(tmp_path, max_output_tokens=100) as (provider, port, operator, handler):
        provider.scripts = [stream(chunk("Hello"), release, finish(), usage(9, 2), DONE)]
        async with connect(port) as client:
            reply = await client.post(HELLO)
            assert (await reply.until("token")).json() == "Hello"
            run = reply.headers["x-request-id"]
            acts = {
                "pause": lambda: operator.pause("group:team", stop_running=True),
                "block": lambda: operator.block(f"caller:{ADA.key}", stop_running=True),
                "model": lambda: operator.pause("model:openai:main", stop_running=True),
                "stop": lambda: operator.stop(run),
                "not": lambda: operator.pause("all"),
            }
            await seen(handler, acts[how]())
            if how == "not":  # a pause by itself lets running answers end
                release.set()
                assert (await reply.until("done")).json()["usage"]["output_tokens"] == 2
            else:
                error = await reply.until("error")
                assert error.json()["code"] == "stopped"
                await provider.closed(0)
        while handler.running:
            await asyncio.sleep(0)
        assert await SQLiteStore(tmp_path / "store.db").running(10) == []
        with closing(sqlite3.connect(tmp_path / "store.db")) as file:
            assert file.execute("SELECT run, ending FROM requests").fetchall() == [
                (run, "stop" if how == "not" else "stopped")
            ]
        act = (await operator.controls.acts(1))[0]
        assert act.by == "cli:op"


async def test_an_answer_on_a_fallback_is_stopped_with_the_fallback_and_not_with_the_first_model(tmp_path):
    release = asyncio.Event()
    async with chat(tmp_path) as (provider, port, operator, handler):
        provider.scripts = [stream(chunk("Hello"), release, chunk(" again"), HANG)]
        await seen(handler, operator.pause("model:openai:main"))
        async with connect(port) as client:
            reply = await client.post(HELLO)
            assert (await reply.until("token")).json() == "Hello"
            await seen(handler, operator.pause("model:openai:main", stop_running=True))
            release.set()
            assert (await reply.until("token")).json() == " again"
            await seen(handler, operator.pause("model:openai:spare", stop_running=True))
            assert (await reply.until("error")).json()["code"] == "stopped"
            await provider.closed(0)


async def test_before_the_first_look_at_the_store_nothing_is_admitted():
    """A process that can't know of a pause admits nothing."""

    class Mute(MemoryStore):
        controls = None

        def __init__(self):
            super().__init__()
            self.controls = self

        async def watch(self, known):
            raise ConnectionError

    async with ScriptedProvider(answer("Hello ", 3)) as provider:
        async with serve(create_chat_handler(base_url=provider.url, store=Mute())) as port:
            refused = await ask(port)
            assert (refused.status, json.loads(refused.raw)["code"]) == (503, "limiter_unavailable")
            assert not provider.requests


class Late(MemoryStore):
    """Answers a reservation when `go_on` is set."""

    def __init__(self):
        super().__init__()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def reserve(self, claim, lease):
        answer = await super().reserve(claim, lease)
        self.asked.set()
        await self.go_on.wait()
        return answer


async def test_a_network_that_is_blocked_while_a_request_reserves_gets_no_answer():
    store, provider = Late(), Scripted([[TextDelta("no")], [FinishDelta("stop")]])
    handler = create_chat_handler(providers={"p": provider}, model="p:m", store=store)
    asking = asyncio.create_task(collect(handler, {"messages": [{"role": "user", "content": "Hi"}]}))
    await store.asked.wait()
    await handler.controls.change([Control(kind="block", name="network:203.0.113.0/24")])
    store.go_on.set()
    answer = await asking
    assert (answer.status, provider.opened) == (403, 0)
    assert await store.running(9) == [], "nothing is reserved any more"
    await handler.aclose()
