"""Waiting for a shared limit instead of a refusal, over real sockets."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from raw_client import JSON, ask, connect, settled, standing
from scripted_provider import ScriptedProvider, answer, failure

from chat_nest import BALANCED, Caller, Limits, Queue, Visitors, create_chat_handler
from chat_nest.providers.openai import OpenAIProvider

USER = {"messages": [{"role": "user", "content": "Hello"}]}
NATIVE = {**JSON, "x-user": "one"}
SECRET = "a secret of visitors that is long"


@asynccontextmanager
async def chat(*scripts, streams=1, queue=Queue(seconds=60, length=10), max_streams=None, **profile):
    async with ScriptedProvider(*scripts) as provider:
        handler = create_chat_handler(
            providers={"openai": OpenAIProvider("sk", provider.url), "other": OpenAIProvider("sk", provider.url)},
            profiles={"balanced": replace(BALANCED, **profile)},
            identify=lambda scope: Caller(id=dict(scope["headers"]).get(b"x-user", b"one").decode()),
            dialects=("native", "openai", "anthropic", "responses", "ai_sdk", "ag_ui"),
            provider_streams=None if streams is None else {"openai": streams},
            queue=queue,
            max_streams=max_streams,
        )
        async with serve(handler) as port:
            yield provider, handler, port


def slow(release, text="Hello "):
    first, *rest = answer(text, 2)[:1], *answer(text, 2)[1:]
    return [*first, release, *rest]


async def test_a_request_waits_gets_its_position_and_is_answered_in_its_turn():
    release = asyncio.Event()
    async with chat(slow(release), answer("Second ", 2), concurrent_streams=5) as (provider, _, port):
        async with connect(port) as first, connect(port) as second:
            one = await first.post(USER)
            await provider.request(0)
            two = await second.post(USER)
            event = await two.event()
            assert (event.name, json.loads(event.data)["position"]) == ("queued", 1)
            held = await standing(port)
            assert held["concurrent_streams"]["held"] == 1, "the one that waits holds nothing"
            release.set()
            assert (await two.until("done")).name == "done"
            assert (await one.until("done")).name == "done"
        assert len(provider.requests) == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**USER, "stream": True}),
        ("/v1/messages", {**USER, "max_tokens": 9, "stream": True}),
        ("/v1/responses", {"input": "Hello", "stream": True}),
    ],
)
async def test_other_formats_get_a_comment_and_a_whole_answer_just_waits(path, body):
    release = asyncio.Event()
    async with chat(slow(release), answer("Second ", 2)) as (provider, _, port):
        async with connect(port) as first, connect(port) as second, connect(port) as third:
            await first.post(USER)
            await provider.request(0)
            streamed = await second.post(body, path=path)
            assert (await streamed.piece()).startswith(b": queued position=1")
            whole = asyncio.create_task(third.post({**body, "stream": False}, path=path))
            await asyncio.sleep(0)
            release.set()
            assert b"Second" in await streamed.body()
            assert (await whole).status == 200


async def test_a_limit_reached_during_the_wait_is_an_error_in_the_stream():
    release = asyncio.Event()
    async with chat(slow(release), requests_per_day=1) as (provider, _, port):
        async with connect(port) as first, connect(port) as second:
            one = await first.post(USER)
            await provider.request(0)
            two = await second.post(USER)
            assert (await two.event()).name == "queued"
            release.set()
            assert [event.name for event in await two.events()] == ["start", "error"]
            assert b'"code":"rate_limited"' in two.raw
            await one.body()


async def test_leaving_the_queue_frees_the_place_and_costs_nothing():
    release = asyncio.Event()
    async with chat(slow(release), answer("Third ", 2), requests_per_day=9) as (provider, handler, port):
        async with connect(port) as first, connect(port) as third:
            one = await first.post(USER)
            await provider.request(0)
            async with connect(port) as second:
                two = await second.post(USER)
                assert (await two.event()).name == "queued"
                second.reset()
            three = asyncio.create_task(third.post(USER))
            while handler.running > 2:
                await asyncio.sleep(0.01)
            release.set()
            assert b"Third" in await (await three).body()
            await one.body()
        assert (await settled(port))["requests_per_day"]["used"] == 2


async def test_a_drain_empties_the_queue_and_running_answers_continue():
    release = asyncio.Event()
    async with chat(slow(release)) as (provider, handler, port):
        async with connect(port) as first, connect(port) as second:
            one = await first.post(USER)
            await provider.request(0)
            two = await second.post(USER)
            assert (await two.event()).name == "queued"
            handler.drain()
            assert json.loads((await two.event()).data)["model"] == "gpt-4o-mini"
            assert json.loads((await two.event()).data)["code"] == "shutdown"
            release.set()
            assert (await one.until("done")).name == "done"


async def test_a_caller_with_many_requests_does_not_hold_up_one_with_a_single_request():
    release = asyncio.Event()
    async with chat(slow(release), answer("More ", 2), queue=Queue(seconds=60, length=50)) as (provider, _, port):
        async with AsyncExitStack() as stack:
            greedy = [await stack.enter_async_context(connect(port)) for _ in range(12)]
            for client in greedy:
                client.send("POST", "/api/chat", USER, {**JSON, "x-user": "greedy"})
            await provider.request(0)
            last = [asyncio.create_task(await_reply(client)) for client in greedy]
            modest = await stack.enter_async_context(connect(port))
            modest.send("POST", "/api/chat", {"messages": [{"role": "user", "content": "modest"}]}, NATIVE)
            reply = await modest.reply()
            assert (await reply.event()).name == "queued"
            release.set()
            assert (await reply.until("done")).name == "done"
            await asyncio.gather(*last)
        asked = [request.json()["messages"][0]["content"] for request in provider.requests]
        assert asked.index("modest") <= 2, "in the first round"


async def test_visitors_without_a_cookie_share_the_turn_of_their_address():
    release = asyncio.Event()
    async with ScriptedProvider(slow(release), answer("More ", 2)) as provider:
        handler = create_chat_handler(
            base_url=provider.url,
            profiles={"balanced": replace(BALANCED, model="openai:m", requests_per_minute=100)},
            visitors=Visitors([SECRET], addresses=Limits(requests_per_day=10_000)),
            provider_streams={"openai": 1},
            queue=Queue(seconds=60, length=50),
        )
        async with serve(handler) as port, AsyncExitStack() as stack:
            known = await ask(port, {"messages": []})  # a refusal sets the cookie
            cookie = {"cookie": known.headers["set-cookie"].partition(";")[0]}
            greedy = [await stack.enter_async_context(connect(port)) for _ in range(12)]
            for client in greedy:
                client.send("POST", "/api/chat", USER, JSON)
            await provider.request(0)
            last = [asyncio.create_task(await_reply(client)) for client in greedy]
            modest = await stack.enter_async_context(connect(port))
            modest.send("POST", "/api/chat", {"messages": [{"role": "user", "content": "modest"}]}, {**JSON, **cookie})
            reply = await modest.reply()
            assert (await reply.event()).name == "queued"
            release.set()
            assert (await reply.until("done")).name == "done"
            await asyncio.gather(*last)
        asked = [request.json()["messages"][0]["content"] for request in provider.requests]
        assert asked.index("modest") <= 2, "in the first round"


async def await_reply(client):
    return await (await client.reply()).body()


async def test_later_requests_also_wait_for_the_429_of_a_provider():
    refused = failure(429, "Rate limit reached", "rate_limit_exceeded", retry_after="1")
    async with chat(refused, answer("Well ", 2), streams=None) as (provider, _, port):
        one = asyncio.create_task(ask(port, USER))
        await provider.request(0)
        two = asyncio.create_task(ask(port, USER))
        assert [(await each).status for each in (one, two)] == [200, 200]
        assert len(provider.requests) == 3


async def test_the_streams_of_the_worker_are_waited_for():
    release = asyncio.Event()
    async with chat(slow(release), answer("Second ", 2), streams=None, max_streams=1) as (provider, _, port):
        async with connect(port) as first, connect(port) as second:
            one = await first.post(USER)
            await provider.request(0)
            two = await second.post(USER)
            assert (await two.event()).name == "queued"
            release.set()
            assert (await two.until("done")).name == "done"
            await one.body()


async def test_a_full_provider_without_a_queue_refuses_and_a_fallback_of_another_one_answers():
    release = asyncio.Event()
    async with chat(slow(release), answer("Other ", 2), queue=None) as (provider, _, port):
        async with connect(port) as first:
            one = await first.post(USER)
            await provider.request(0)
            refused = await ask(port, USER)
            assert (refused.status, json.loads(refused.raw)["code"]) == (503, "overloaded")
            release.set()
            await one.body()
    release = asyncio.Event()
    async with chat(slow(release), answer("Other ", 2), fallbacks=("other:m2",)) as (provider, _, port):
        async with connect(port) as first:
            one = await first.post(USER)
            await provider.request(0)
            assert (await ask(port, USER)).status == 200
            assert [request.json()["model"] for request in provider.requests] == ["gpt-4o-mini", "m2"]
            release.set()
            await one.body()
