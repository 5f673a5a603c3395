"""Every dialect over real sockets: its paths and methods, whole answers, failures, refusals, and the client's leaving."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator

import pytest
from asgi_servers import serve
from dialect_tools import whatwg
from msgspec.structs import replace
from raw_client import ask, connect, settled
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, delta, failure, finish, stream, usage

from chat_nest import BALANCED, Caller, Forbidden, Limits, Timeouts, create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.limits.counters import LIMITS
from chat_nest.dialects.blog import Blog

USER = {"role": "user", "content": "Hello"}
PARTS = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}
OPENAI = {"model": "gpt-4o-mini", "messages": [USER]}
STREAMED = {**OPENAI, "stream": True}
RESPONSES = {"model": "gpt-4o-mini", "input": "Hello", "stream": True}
ANTHROPIC = {**STREAMED, "max_tokens": 50}
AI_SDK = {"id": "c", "trigger": "submit-message", "messages": [PARTS]}
AG_UI = {"threadId": "t", "runId": "r", "messages": [{"id": "1", **USER}]}
BLOG = {"message": "Hello"}

CHATS = [
    ("/api/chat", {"messages": [USER]}),
    ("/v1/chat/completions", STREAMED),
    ("/v1/responses", RESPONSES),
    ("/api/ai", AI_SDK),
    ("/api/ag-ui", AG_UI),
    ("/v1/messages", ANTHROPIC),
    ("/chat", BLOG),
]
AS_EVENTS = ("/chat", "/api/ag-ui")
"""Whose pages look at no status: what fails on the way to an answer is an event."""
STREAMS = pytest.mark.parametrize(("path", "body"), CHATS, ids=[path for path, _ in CHATS])
WHOLE = pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", OPENAI), ("/v1/messages", {**ANTHROPIC, "stream": False})]
)
ALL = ("native", "openai", "responses", "ai_sdk", "ag_ui", "anthropic", Blog(get=True))


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as scripted:
        yield scripted


def handler_for(provider: ScriptedProvider, **options: object) -> ChatHandler:
    return create_chat_handler(api_key="sk-wire-test", base_url=provider.url, dialects=ALL, **options)


def text_of(path: str, stream: bytes) -> str:
    """The answer's text as a client of the dialect joins it."""
    text = ""
    for seen in whatwg(stream):
        if seen.data in ("[DONE]", ""):
            continue
        data = json.loads(seen.data)
        match path:
            case "/api/chat":
                text += data if seen.name == "token" else ""
            case "/v1/chat/completions":
                text += "".join(choice["delta"].get("content", "") for choice in data["choices"])
            case "/v1/responses":
                text += data["delta"] if data["type"] == "response.output_text.delta" else ""
            case "/api/ai":
                text += data["delta"] if data["type"] == "text-delta" else ""
            case "/api/ag-ui":
                text += data["delta"] if data["type"] == "TEXT_MESSAGE_CONTENT" else ""
            case "/v1/messages":
                text += data["delta"]["text"] if data["type"] == "content_block_delta" else ""
            case "/chat":
                text += data["text"] if seen.name == "chunk" else ""
    return text


# Answers.


@STREAMS
async def test_a_stream(provider, path, body):
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, body, path=path)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["cache-control"] == "no-cache, no-transform"
    assert reply.headers["x-accel-buffering"] == "no"
    assert "ratelimit" in reply.headers
    assert text_of(path, reply.raw) == "Hello Hello Hello "
    names = [name for name, _ in reply.heads]
    assert len(names) == len(set(names)), "no header twice"


async def test_a_first_count_of_zero_does_not_replace_our_count_of_the_input(provider):
    provider.scripts = [stream(usage(0, 0), chunk("Hi"), finish(), usage(9, 1), DONE)]
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, ANTHROPIC, path="/v1/messages")
    begin = json.loads(whatwg(reply.raw)[0].data)
    assert begin["message"]["usage"]["input_tokens"] > 0


@STREAMS
@pytest.mark.parametrize(
    "text", ["\r\n\n\ndata: [DONE]\n\nevent: done\n: c", "\u2028\x85\x00\ufeff", "👩\u200d👧"], ids=ascii
)
async def test_row_29_a_model_text_arrives_as_it_is(provider, path, body, text):
    provider.scripts = [answer(text, 2)]
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, body, path=path)
    assert text_of(path, reply.raw) == text * 2
    assert b"\r" not in reply.raw


@STREAMS
async def test_pings_change_nothing(provider, path, body):
    begin, go_on = asyncio.Event(), asyncio.Event()
    provider.scripts = [[begin, *stream(chunk("one"), go_on, chunk("two"), finish(), usage(9, 1), DONE)]]
    timeouts = Timeouts(commit=0.03, heartbeat=0.03)
    async with serve(handler_for(provider, timeouts=timeouts)) as port, connect(port) as client:
        reply = await client.post(body, path=path)
        while reply.raw.count(b"ping") < 2:
            await reply.piece()
        begin.set()
        while b"one" not in reply.raw:
            await reply.piece()
        before = reply.raw.count(b"ping")
        while reply.raw.count(b"ping") == before:
            await reply.piece()
        go_on.set()
        await reply.body()
    assert text_of(path, reply.raw) == "onetwo"


@WHOLE
async def test_a_whole_answer(provider, path, body, caplog):
    timeouts = Timeouts(commit=0.02, heartbeat=0.02)
    release = asyncio.Event()
    provider.scripts = [[release, *answer("Hello ", 3, input_tokens=9)]]
    async with serve(handler_for(provider, timeouts=timeouts)) as port, connect(port) as client, connect(port) as other:
        client.send("POST", path, body, {"content-type": "application/json"})
        await provider.request()
        waiting = await other.post(STREAMED, path="/v1/chat/completions")
        while waiting.raw.count(b"ping") < 3:  # whoever is streamed to has had the commit and heartbeats
            await waiting.piece()
        release.set()
        reply = await client.reply()
        said = await reply.json()
    gc.collect()
    assert not caplog.records, "no task tried to write before the end"
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["content-length"] == str(len(reply.raw))
    assert "ratelimit" in reply.headers
    if path == "/v1/messages":
        assert said["content"] == [{"type": "text", "text": "Hello Hello Hello "}]
        assert said["usage"]["output_tokens"] == 3
    else:
        assert said["choices"][0]["message"]["content"] == "Hello Hello Hello "
        assert said["usage"]["total_tokens"] == 12
        assert reply.headers["x-ratelimit-limit-requests"] == "30"
        assert 0 < int(reply.headers["x-ratelimit-remaining-tokens"]) < 200_000


# Failures.


@WHOLE
async def test_a_whole_answer_that_fails_midway_is_a_status(provider, path, body):
    provider.scripts = [stream(chunk("Hel"), chunk("lo"))]  # no finish, no [DONE]
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, body, path=path)
        assert reply.status == 424, "clients repeat after a 5xx"
        assert "Hel" not in reply.raw.decode()
        assert (await settled(port))["tokens_per_day"]["used"] > 0, "what came was paid for"


ENDS = {
    "/api/chat": b"event: error\n",
    "/v1/chat/completions": b'data: {"error":{"message"',
    "/v1/responses": b"event: error\n",
    "/api/ai": b'data: {"type":"error","errorText"',
    "/api/ag-ui": b'data: {"type":"RUN_ERROR"',
    "/v1/messages": b"event: error\n",
    "/chat": b"event: error\n",
}


@STREAMS
async def test_a_stream_that_fails_midway_ends_with_one_error(provider, path, body):
    provider.scripts = [stream(chunk("Hel"), chunk("lo"))]
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, body, path=path)
    assert reply.complete
    assert text_of_until_error(path, reply.raw) == "Hello"
    assert reply.raw.count(ENDS[path]) == 1
    if path != "/v1/responses":  # whose last event repeats what was said
        assert reply.raw.rindex(ENDS[path]) > reply.raw.rindex(b"lo")
    raw = reply.raw
    if path == "/api/ai":  # the AI SDK's own server ends every stream so
        assert raw.endswith(b"data: [DONE]\n\n")
        raw = raw.removesuffix(b"data: [DONE]\n\n")
    for finished in (b"[DONE]", b'"finish"', b"RUN_FINISHED", b"message_stop", b"event: done", b"response.completed"):
        assert finished not in raw


def text_of_until_error(path: str, raw: bytes) -> str:
    return text_of(path, raw[: raw.index(ENDS[path])])


@STREAMS
async def test_row_30_a_providers_refusal_is_a_status_and_no_key(provider, path, body):
    provider.scripts = [failure(401, "Incorrect API key provided: sk-wire-test")]
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, body, path=path)
    assert reply.status == (200 if path in AS_EVENTS else 502)
    assert b"sk-wire" not in reply.raw
    if path == "/chat":  # its page looks at no status
        [failed] = whatwg(reply.raw)
        assert (failed.name, json.loads(failed.data)["code"]) == ("error", "upstream_auth")
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.raw.startswith(b"event: error\n")


# Refusals.


@STREAMS
@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_day"])
async def test_a_refusal_in_the_shape_of_the_dialect(provider, path, body, limit):
    limits = {"requests_per_minute": None, limit: 1 if limit == "requests_per_minute" else 500}
    provider.scripts = [answer("Hello ", 3, input_tokens=100, output_tokens=400)]
    async with serve(handler_for(provider, profiles={"balanced": replace(BALANCED, **limits)})) as port:
        await ask(port, body, path=path)
        reply = await ask(port, body, path=path)
    assert reply.status == (200 if path in AS_EVENTS else 429)
    assert len(provider.requests) == 1
    if path == "/chat":
        [failed] = whatwg(reply.raw)
        assert (failed.name, failed.id) == ("error", reply.headers["x-request-id"])
        assert int(reply.headers["retry-after"]) > 0
        return
    if path == "/api/ag-ui":
        *_, failed = whatwg(reply.raw)
        assert json.loads(failed.data)["type"] == "RUN_ERROR"
        return
    if path == "/api/ai":
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        assert reply.raw.decode().endswith(".")
        return
    said = await reply.json()
    match path, limit:
        case "/v1/chat/completions", "tokens_per_day":
            assert (said["error"]["type"], said["error"]["code"]) == ("insufficient_quota", "insufficient_quota")
        case "/v1/chat/completions", _:
            assert said["error"]["code"] == "rate_limit_exceeded"
            assert int(reply.headers["retry-after"]) > 0
        case "/v1/messages", _:
            assert said["type"] == "error"
            assert said["error"]["type"] == "rate_limit_error"
    if path in ("/v1/chat/completions", "/v1/messages"):
        assert reply.headers["x-should-retry"] == "false"
    if limit == "requests_per_minute" and path == "/v1/chat/completions":
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"


@STREAMS
@pytest.mark.parametrize("limit", LIMITS)
async def test_a_limit_of_0_closes_the_chat(provider, path, body, limit):
    closed = replace(BALANCED, **{limit: 0})
    async with serve(handler_for(provider, profiles={"balanced": closed})) as port:
        reply = await ask(port, body, path=path)
        async with connect(port) as client:
            usage = await client.request("GET", "/api/usage")
    assert (reply.status, usage.status) == (403, 403)
    assert "This chat is closed." in reply.raw.decode()
    assert not provider.requests
    assert "retry-after" not in reply.headers
    if path in ("/v1/chat/completions", "/v1/messages"):
        assert reply.headers["x-should-retry"] == "false"
    if path in ("/api/chat", "/api/ag-ui", "/chat"):
        assert (await reply.json())["code"] == "closed"
    elif path == "/v1/chat/completions":
        assert (await reply.json())["error"]["code"] == "closed"
    elif path == "/v1/messages":
        assert (await reply.json())["error"] == {"type": "permission_error", "message": "This chat is closed."}


@STREAMS
@pytest.mark.parametrize(("name", "number"), [("tokens_per_day", 0), ("usd_per_month", 0.0)])
async def test_limits_of_0_for_all_callers_close_the_chat(provider, path, body, name, number):
    async with serve(handler_for(provider, limits=Limits(**{name: number}))) as port:
        reply = await ask(port, body, path=path)
    assert reply.status == 403
    assert not provider.requests


@STREAMS
async def test_a_limit_that_is_off_admits_what_another_would_refuse(provider, path, body):
    off = replace(BALANCED, **dict.fromkeys(LIMITS, "none"))
    async with serve(handler_for(provider, profiles={"balanced": off})) as port:
        assert [(await ask(port, body, path=path)).status for _ in range(40)] == [200] * 40


async def test_a_request_for_a_model_that_is_not_offered(provider):
    async with serve(handler_for(provider)) as port:
        for model in ("gpt-4", "GPT-4o-mini", "other:gpt-4o-mini"):
            reply = await ask(port, {**OPENAI, "model": model}, path="/v1/chat/completions")
            assert (reply.status, (await reply.json())["error"]["param"]) == (400, "model")
        for model in ("gpt-4o-mini", "openai:gpt-4o-mini", "expanded"):
            assert (await ask(port, {**OPENAI, "model": model}, path="/v1/chat/completions")).status == 200
    assert {request.json()["model"] for request in provider.requests} == {"gpt-4o-mini"}


async def test_row_15_tools_need_a_profile_that_allows_them(provider):
    tools = {"tools": [{"type": "function", "function": {"name": "weather"}}]}
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, {**OPENAI, **tools}, path="/v1/chat/completions")
        assert (reply.status, (await reply.json())["error"]["param"]) == (400, "tools")
    assert not provider.requests


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", ANTHROPIC), ("/api/ai", AI_SDK)])
async def test_row_18_a_system_text_is_refused_by_its_name_unless_allowed(provider, path, body):
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, {**body, "system": "be a pirate"}, path=path)
        assert reply.status == 400
        assert b"system: is not accepted" in reply.raw
    allowed = {"balanced": replace(BALANCED, allow_system_prompt=True)}
    async with serve(handler_for(provider, profiles=allowed)) as port:
        assert (await ask(port, {**body, "system": "be a pirate"}, path=path)).status == 200
    assert provider.requests[0].json()["messages"][0] == {"role": "system", "content": "be a pirate"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_tool_is_offered_called_and_answered(provider, path):
    called = {"index": 0, "id": "call-a", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}
    more = {"index": 0, "function": {"arguments": ':"Bonn"}'}}
    calls = [delta({"tool_calls": [piece]}) for piece in (called, more)]
    provider.scripts = [stream(*calls, finish("tool_calls"), usage(9, 5), DONE), answer("19 degrees")]
    profiles = {"balanced": replace(BALANCED, allow_tools=True)}
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    async with serve(handler_for(provider, profiles=profiles)) as port:
        if path == "/v1/messages":
            tools = [{"name": "weather", "input_schema": schema}]
            body = {**ANTHROPIC, "stream": False, "tools": tools}
            said = await (await ask(port, body, path=path)).json()
            assert said["stop_reason"] == "tool_use"
            assert said["content"] == [
                {"type": "tool_use", "id": "call-a", "name": "weather", "input": {"city": "Bonn"}}
            ]
            result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call-a", "content": "19"}]}
            turns = [USER, {"role": "assistant", "content": said["content"]}, result]
        else:
            tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
            body = {**OPENAI, "tools": tools}
            choice = (await (await ask(port, body, path=path)).json())["choices"][0]
            assert choice["finish_reason"] == "tool_calls"
            assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city":"Bonn"}'
            turns = [USER, choice["message"], {"role": "tool", "tool_call_id": "call-a", "content": "19"}]
        assert b"19 degrees" in (await ask(port, {**body, "messages": turns}, path=path)).raw
    first, second = (request.json() for request in provider.requests)
    assert first["tools"][0]["function"]["parameters"] == schema
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    assert second["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"
    assert second["messages"][2]["tool_call_id"] == "call-a"


# The client leaves.


@STREAMS
async def test_row_41_leaving_a_stream_closes_the_provider(provider, path, body):
    provider.scripts = [stream(chunk("one"), HANG)]
    async with serve(handler_for(provider)) as port:
        async with connect(port) as client:
            reply = await client.post(body, path=path)
            while b"one" not in reply.raw:
                await reply.piece()
            client.reset()
        async with asyncio.timeout(240):
            await provider.closed()
        await settled(port)


@WHOLE
async def test_row_41_leaving_a_whole_answer_closes_the_provider(provider, path, body):
    provider.scripts = [stream(chunk("one"), HANG)]
    async with serve(handler_for(provider)) as port:
        async with connect(port) as client:
            client.send("POST", path, body, {"content-type": "application/json"})
            await provider.request()
            client.finish()
        async with asyncio.timeout(240):
            await provider.closed()
        await settled(port)


# Paths and methods.


@STREAMS
async def test_row_6_no_other_method_generates(provider, path, body):
    async with serve(handler_for(provider)) as port:
        for method in ("HEAD", "PUT", "DELETE", "PATCH", *(["GET"] if path != "/chat" else [])):
            async with connect(port) as client:
                reply = await client.request(method, path, body, {"content-type": "application/json"})
                assert reply.status == 405
                expected = "POST, GET, OPTIONS" if path == "/chat" else "POST, OPTIONS"
                assert reply.headers["allow"] == expected
        async with connect(port) as client:
            reply = await client.request("OPTIONS", path, headers={"origin": "https://a.example"})
            assert reply.status == 204
            assert reply.headers["access-control-allow-origin"] == "*"
    assert not provider.requests


async def test_models(provider):
    async with serve(handler_for(provider)) as port, connect(port) as client:
        listed = await (await client.request("GET", "/v1/models")).json()
        ids = [model["id"] for model in listed["data"]]
        assert ids == ["gpt-4o-mini", "constrained", "balanced", "expanded"]
        assert (await (await client.request("GET", "/v1/models/gpt-4o-mini")).json())["id"] == "gpt-4o-mini"
        reply = await client.request("GET", "/v1/models/gpt-5")
        assert (reply.status, (await reply.json())["error"]["type"]) == (404, "invalid_request_error")
        reply = await client.request("HEAD", "/v1/models")
        assert reply.status == 200
        reply = await client.request("POST", "/v1/models", {}, {"content-type": "application/json"})
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        await reply.body()
        reply = await client.request("GET", "/v1/nothing")
        assert reply.status == 404
    assert not provider.requests


async def test_models_are_those_of_the_caller(provider):
    async def identify(scope):
        return Caller(id="someone", profile="constrained")

    async def nobody(scope):
        raise Forbidden

    async with serve(handler_for(provider, identify=identify)) as port, connect(port) as client:
        listed = await (await client.request("GET", "/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["gpt-4o-mini", "constrained"]
    async with serve(handler_for(provider, identify=nobody)) as port, connect(port) as client:
        assert (await client.request("GET", "/v1/models")).status == 403


async def test_a_dialect_alone_answers_at_its_mount_point_too(provider):
    handler = create_chat_handler(api_key="k", base_url=provider.url, dialect="openai")
    async with serve(handler) as port:
        for path in ("/", "/v1/chat/completions", "/v1/chat/completions/"):
            assert (await ask(port, OPENAI, path=path)).status == 200
        for path in (
            "/V1/Chat/Completions",
            "//v1/chat/completions",
            "/v1/%63hat/completions",
            "/v1%2fchat/completions",
        ):
            assert (await ask(port, OPENAI, path=path)).status == 404
        reply = await ask(port, OPENAI, path="/api/chat")
        assert (reply.status, (await reply.json())["error"]["code"]) == (404, "not_found")


def test_an_unroutable_request_gets_an_error():
    with pytest.raises(ValueError, match="there is no dialect 'opnai'"):
        create_chat_handler(api_key="k", dialect="opnai")
    with pytest.raises(ValueError, match="two dialects answer POST"):
        create_chat_handler(api_key="k", dialects=["blog", Blog("/Chat/")])


# The blog's EventSource.


async def test_an_event_source(provider):
    async with serve(handler_for(provider)) as port, connect(port) as client:
        reply = await client.request("GET", "/chat?message=Hello%20there")
        await reply.body()
        assert text_of("/chat", reply.raw) == "Hello Hello Hello "
        assert {seen.id for seen in whatwg(reply.raw)} == {reply.headers["x-request-id"]}
        again = await client.request("GET", "/chat?message=Hello", headers={"last-event-id": "x"})
        assert again.status == 204
        assert (await client.request("GET", "/chat")).status == 400
    assert [request.json()["messages"][-1]["content"] for request in provider.requests] == ["Hello there"]


async def test_get_is_off_by_default(provider):
    handler = create_chat_handler(api_key="k", base_url=provider.url, dialect="blog")
    async with serve(handler) as port, connect(port) as client:
        assert (await client.request("GET", "/chat?message=Hello")).status == 405
    assert not provider.requests


async def test_a_key_that_a_client_sends_goes_nowhere(provider, caplog):
    headers = {"content-type": "application/json", "authorization": "Bearer sk-theirs", "x-api-key": "sk-theirs"}
    async with serve(handler_for(provider, limits=Limits())) as port:
        for path, body in CHATS:
            assert (await ask(port, body, path=path, headers=headers)).status == 200
    for request in provider.requests:
        assert "sk-theirs" not in str(request.headers) + request.body.decode()
    assert "sk-theirs" not in caplog.text
