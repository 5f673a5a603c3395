"""Runs over real sockets: a reader comes back, a run is stopped, and nobody touches another caller's."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager

import pytest
from asgi_servers import serve, serve_http
from msgspec.structs import replace
from raw_client import HELLO, JSON, ask, connect, settled
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, finish, stream, usage

from chat_nest import BALANCED, HardCaps, Sessions, Timeouts, create_chat_handler
from chat_nest.controls import Control
from chat_nest.core.messages import Caller


CAPS = {"max_output_tokens": 10**7, "tokens_per_day": 10**9, "tokens_per_request": 10**8}
WIDE = {"model": "openai:other", **CAPS}


def who(scope):
    return Caller(id=dict(scope["headers"]).get(b"x-who", b"ada").decode())


@asynccontextmanager
async def chat(script, policy="finish", limits={}, server="uvicorn", **more):
    async with ScriptedProvider(script) as provider:
        profile = replace(BALANCED, on_disconnect=policy, **limits)
        handler = create_chat_handler(
            base_url=provider.url, profiles={"balanced": profile}, **{"identify": who, **more}
        )
        if server == "uvicorn":
            async with serve(handler) as port:
                yield provider, port
        else:
            async with serve_http(handler) as (port, _):
                yield provider, port


async def get(port, path, **headers):
    async with connect(port) as client:
        reply = await client.request("GET", path, headers=headers)
        await reply.body()
        return reply


async def post(port, path, **headers):
    return await ask(port, b"", path=path, headers={**JSON, **headers})


def texts(reply):
    return "".join(json.loads(data) for data in re.findall(r"event: token\ndata: (.*)\n", reply.raw.decode()))


def ids(reply):
    return re.findall(r"\nid: (\S+)\n\n", reply.raw.decode())


async def begun(client, port):
    """Begin a chat, read its first token; the run's id."""
    reply = await client.post()
    start = (await reply.event()).json()
    await reply.event()
    return start["id"]


async def test_a_returning_reader_misses_nothing_and_reads_nothing_twice():
    go_on = asyncio.Event()
    async with chat(stream(chunk("one "), go_on, chunk("two "), chunk("three"), finish(), usage(9, 3), DONE)) as (
        provider,
        port,
    ):
        async with connect(port) as client:
            run = await begun(client, port)
            client.reset()
        back = asyncio.create_task(get(port, f"/api/chat/{run}/stream", **{"last-event-id": f"{run}-1"}))
        whole = asyncio.create_task(get(port, f"/api/chat/{run}/stream"))
        await asyncio.sleep(0.05)
        go_on.set()
        assert texts(await back) == "two three"
        assert texts(await whole) == "one two three"
        assert (await back).raw.startswith(b"event: token\n")
        assert (await whole).raw.startswith(b"event: start\n")
        for reply in (back.result(), whole.result()):
            [name] = re.findall(r"event: (done|error)", reply.raw.decode())
            assert name == "done"
        numbers = [int(id.rpartition("-")[2]) for id in ids(whole.result())]
        assert numbers == sorted(set(numbers))
        assert provider.opened == 1
        assert (await settled(port))["tokens_per_day"]["used"] == 12


async def test_after_the_end_a_complete_reader_gets_204_and_others_the_rest():
    async with chat(answer("Hello ", 3, input_tokens=9)) as (provider, port):
        first = await ask(port)
        run = json.loads(re.search(rb"event: start\ndata: (.*)\n", first.raw)[1])["id"]
        *_, last = ids(first)
        done = await get(port, f"/api/chat/{run}/stream", **{"last-event-id": last})
        assert (done.status, done.raw) == (204, b"")
        again = await get(port, f"/api/chat/{run}/stream")
        assert again.raw == first.raw
        partly = await get(port, f"/api/chat/{run}/stream", **{"last-event-id": f"{run}-1"})
        assert first.raw.endswith(partly.raw) and len(partly.raw) < len(first.raw)
        assert provider.opened == 1


async def test_row25_another_callers_run_is_not_there():
    async with chat(stream(chunk("one "), HANG)) as (provider, port):
        async with connect(port) as client:
            run = await begun(client, port)
            for path in ("stream", "stop"):
                send = get if path == "stream" else post
                assert (await send(port, f"/api/chat/{run}/{path}", **{"x-who": "eve"})).status == 404
                assert (await send(port, f"/api/chat/nosuch/{path}")).status == 404
            assert provider.active == 1


@pytest.mark.parametrize("policy", ["cancel", "finish"])
async def test_stop_ends_the_run_with_a_specific_code_and_charges_the_received_tokens(policy):
    async with chat(stream(chunk("one "), HANG), policy) as (provider, port):
        async with connect(port) as client:
            reply = await client.post()
            run = (await reply.event()).json()["id"]
            await reply.event()
            assert (await post(port, f"/api/chat/{run}/stop")).status == 204
            ended = await reply.event()
            assert (ended.name, ended.json()["code"]) == ("error", "stopped")
            assert await reply.event() is None
        await provider.closed(0)
        used = (await settled(port))["tokens_per_day"]
        assert 0 < used["used"] < 70
        assert (await post(port, f"/api/chat/{run}/stop")).status == (204 if policy == "finish" else 404)


async def test_stop_ends_a_run_without_a_reader():
    async with chat(stream(chunk("one "), HANG)) as (provider, port):
        async with connect(port) as client:
            run = await begun(client, port)
            client.reset()
        assert (await post(port, f"/api/chat/{run}/stop")).status == 204
        await provider.closed(0)
        again = await get(port, f"/api/chat/{run}/stream")
        assert b'"code":"stopped"' in again.raw


async def test_a_follower_is_pinged_and_ends_nothing_by_leaving():
    async with chat(stream(chunk("one "), HANG), timeouts=Timeouts(heartbeat=0.05)) as (provider, port):
        async with connect(port) as client:
            run = await begun(client, port)
            client.reset()
        async with connect(port) as client:
            reply = await client.request("GET", f"/api/chat/{run}/stream")
            assert [(await reply.event()).name for _ in range(4)] == ["start", "token", "ping", "ping"]
            client.reset()
        await asyncio.sleep(0.05)
        assert provider.active == 1


async def test_row27_the_same_key_attaches_to_the_run():
    go_on = asyncio.Event()
    async with chat(stream(chunk("one "), go_on, chunk("two"), finish(), usage(9, 2), DONE)) as (provider, port):
        headers = {**JSON, "idempotency-key": "k"}
        async with connect(port) as client:
            reply = await client.post(headers=headers)
            await reply.event()
            await reply.event()
            second = asyncio.create_task(ask(port, HELLO, headers=headers))
            await asyncio.sleep(0.05)
            go_on.set()
            assert texts(await second) == "one two"
            assert second.result().raw.count(b"event: done") == 1
            assert (await reply.until("done")).name == "done"
        assert provider.opened == 1


async def test_the_same_key_gets_the_whole_answer_also_after_its_end():
    async with chat(stream(chunk("one "), chunk("two"), finish(), usage(9, 2), DONE)) as (provider, port):
        headers = {**JSON, "idempotency-key": "k"}
        async with connect(port) as client:
            reply = await client.post(headers=headers)
            client.reset()  # before its first word: only the key finds it again
        again = await ask(port, HELLO, headers=headers)
        while again.status == 200 and b"event: done" not in again.raw:
            again = await ask(port, HELLO, headers=headers)
        last = await ask(port, HELLO, headers=headers)
        for reply in again, last:
            assert texts(reply) == "one two"
            assert b'"total_tokens":11' in reply.raw
        assert "idempotency-replayed" not in last.headers
        assert provider.opened == 1


async def test_a_client_that_wants_json_is_refused_with_a_wait_and_never_gets_a_stream():
    go_on = asyncio.Event()
    body = {"model": "balanced", "messages": [{"role": "user", "content": "Hi"}]}
    script = stream(chunk("one "), go_on, chunk("two"), finish(), usage(9, 2), DONE)
    async with chat(script, dialects=["native", "openai"]) as (provider, port):
        more = {"path": "/v1/chat/completions", "headers": {**JSON, "idempotency-key": "k"}}
        first = asyncio.create_task(ask(port, body, **more))
        await provider.request(0)
        second = await ask(port, body, **more)
        assert (second.status, second.headers["content-type"]) == (409, "application/json")
        go_on.set()
        assert json.loads((await first).raw)["choices"][0]["message"]["content"] == "one two"
        assert provider.opened == 1


@pytest.mark.parametrize("server", ["uvicorn", "chat-nest"])
async def test_a_reader_that_does_not_read_does_not_stop_a_run_with_finish(server):
    text = "x" * 40_000
    async with chat(
        stream(*[chunk(text)] * 100, finish(), usage(9, 3), DONE),
        timeouts=Timeouts(write=0.3),
        server=server,
        limits=WIDE,
        hard_caps=HardCaps(**CAPS),
    ) as (
        provider,
        port,
    ):
        async with connect(port, receive_buffer=4_096) as client:
            await client.post()
            assert (await settled(port))["tokens_per_day"]["used"] == 12  # the provider was read to its end


@pytest.mark.parametrize("id", ["", "-1", "x-y", "-", "run-99999999999999999999", "\u00e9-1"])
async def test_a_last_event_id_that_names_nothing_is_none(id):
    async with chat(answer("Hello ", 3, input_tokens=9)) as (_, port):
        first = await ask(port)
        run = json.loads(re.search(rb"event: start\ndata: (.*)\n", first.raw)[1])["id"]
        again = await get(port, f"/api/chat/{run}/stream", **{"last-event-id": id.replace("run", run)})
        assert again.raw == first.raw


async def test_only_these_methods():
    async with chat(answer("Hello ", 3)) as (_, port):
        assert (await get(port, "/api/chat/x/stop")).status == 405
        assert (await post(port, "/api/chat/x/stream")).status == 405
        assert (await get(port, "/api/nothing/x/stream")).status == 404


async def follow(client, run, **headers):
    return await client.request("GET", f"/api/chat/{run}/stream", headers=headers)


async def test_returning_readers_count_on_max_streams():
    go_on = asyncio.Event()
    script = stream(chunk("one "), go_on, chunk("two"), finish(), usage(9, 2), DONE)
    async with chat(script, max_streams=3, limits={"requests_per_minute": None}) as (provider, port):
        async with connect(port) as first, connect(port) as second, connect(port) as third, connect(port) as fourth:
            run = await begun(first, port)
            assert [(await follow(client, run)).status for client in (second, third)] == [200, 200]
            refusals = [await get(port, f"/api/chat/{run}/stream"), await ask(port)]
            for refused in refusals:
                assert (refused.status, refused.headers["retry-after"]) == (503, "2")
                assert json.loads(refused.raw)["code"] == "overloaded"
            second.reset()
            while (reply := await follow(fourth, run)).status == 503:
                await reply.body()
            assert reply.status == 200
            go_on.set()
            assert texts_of(await reply.body()) == "one two"
        assert provider.opened == 1


def texts_of(body):
    return "".join(json.loads(data) for data in re.findall(r"event: token\ndata: (.*)\n", body.decode()))


async def test_returning_readers_count_on_the_callers_concurrent_streams():
    limits = {"requests_per_minute": None, "concurrent_streams": 1}
    async with chat(stream(chunk("one "), HANG), limits=limits) as (provider, port):
        async with connect(port) as first, connect(port) as second:
            reply = await first.post(headers={**JSON, "idempotency-key": "k"})
            run = (await reply.event()).json()["id"]
            assert (await follow(second, run)).status == 200
            refused = await get(port, f"/api/chat/{run}/stream")
            again = await ask(port, headers={**JSON, "idempotency-key": "k"})
            for reply in refused, again:
                assert reply.status == 429
                assert json.loads(reply.raw)["code"] == "too_many_streams"
            assert (await get(port, f"/api/chat/{run}/stream", **{"x-who": "eve"})).status == 404
            assert (await post(port, f"/api/chat/{run}/stop")).status == 204
        assert provider.opened == 1


async def test_returning_readers_count_on_the_callers_rate():
    async with chat(stream(chunk("one"), finish(), usage(9, 1), DONE), limits={"requests_per_minute": 3}) as (_, port):
        async with connect(port) as client:
            reply = await client.post()
            run = (await reply.event()).json()["id"]
            await reply.body()
        assert [(await get(port, f"/api/chat/{run}/stream")).status for _ in range(3)] == [200] * 3
        refused = await get(port, f"/api/chat/{run}/stream")
        assert (refused.status, json.loads(refused.raw)["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert (await get(port, f"/api/chat/{run}/stream", **{"x-who": "eve"})).status == 404, "a rate of its own"
        assert (await post(port, f"/api/chat/{run}/stop")).status == 204, "a stop is never refused"
        assert (await ask(port)).status == 200, "nor is a new chat refused for it"


@pytest.mark.parametrize("how", ["session", "caller", "address"])
async def test_a_follower_ends_with_its_session_or_a_block_and_the_answer_continues(how):
    """A caller's other session may follow an answer, until that session is revoked, or its caller or address blocked."""
    release = asyncio.Event()
    script = stream(chunk("one "), release, chunk("two "), finish(), usage(5, 2), DONE)
    sessions = Sessions(["a secret of these sessions that is long"])
    async with chat(script, identify=None, sessions=sessions, trusted_proxies=["127.0.0.1"]) as (_, port):
        owner, other = (sessions.create(caller="ada") for _ in range(2))
        async with connect(port) as client, connect(port) as follower:
            first = await client.post(headers={**JSON, "authorization": f"Bearer {owner.token}"})
            run = (await first.until("start")).json()["id"]
            headers = {"authorization": f"Bearer {other.token}", "x-forwarded-for": "203.0.113.9"}
            follows = await follower.request("GET", f"/api/chat/{run}/stream", headers=headers)
            assert (await follows.until("token")).json() == "one "
            if how == "session":
                await sessions.revoke(other.id)
            elif how == "address":
                row = Control(kind="block", name="network:203.0.113.0/24", value='{"stop_running":true}')
                await sessions._controls.change(put=[row])
            else:
                row = Control(
                    kind="block", name=f"caller:{Caller(id='session:ada').key}", value='{"stop_running":true}'
                )
                await sessions._controls.change(put=[row])
            code = "session_revoked" if how == "session" else "stopped"
            assert (await follows.until("error")).json()["code"] == code
            release.set()
            assert (await first.until("error" if how == "caller" else "done")).data
            again = await get(port, f"/api/chat/{run}/stream", **headers)
            assert again.status == (401 if how == "session" else 403)
