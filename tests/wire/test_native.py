"""The native dialect over real sockets: bytes, headers, refusals, other origins, and what the npm client makes of it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import AsyncIterator

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from npm_client import Parser, npm_chat
from raw_client import HELLO, JSON, Event, ask, connect, settled
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, delta, failure, finish, stream, usage

from chat_nest import BALANCED, Caller, Timeouts, Unauthorized, create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.core.protocols import Scope


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as scripted:
        yield scripted


def handler_for(provider: ScriptedProvider, **options: object) -> ChatHandler:
    return create_chat_handler(api_key="sk-wire-test", base_url=provider.url, **options)


async def no_pause(_seconds: float) -> None:
    pass


# Bytes.


async def test_a_whole_answer_byte_for_byte(provider):
    async with serve(handler_for(provider)) as port:
        reply = await ask(port)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["cache-control"] == "no-cache, no-transform"
    assert reply.headers["x-accel-buffering"] == "no"
    assert "content-length" not in reply.headers
    id = reply.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{24}", id)
    assert (
        reply.raw
        == (
            f'event: start\ndata: {{"id":"{id}","model":"gpt-4o-mini"}}\n\n'
            'event: token\ndata: "Hello "\n\n'
            'event: token\ndata: "Hello "\n\n'
            'event: token\ndata: "Hello "\n\n'
            'event: done\ndata: {"finish_reason":"stop","model":"gpt-4o-mini",'
            '"usage":{"input_tokens":9,"output_tokens":3,"total_tokens":12},"cost_usd":null,"source":"reported",'
            '"remaining":{"requests_per_minute":29,"tokens_per_day":199988}}\n\n'
        ).encode()
    )
    names = [name for name, _ in reply.heads]
    assert len(names) == len(set(names)), "no header twice"


@pytest.mark.parametrize(("asked", "answer_room"), [({}, 2_000), ({"maxTokensPerRequest": 3_000}, 1_500)])
async def test_older_turns_leave_room_for_the_whole_answer(provider, asked, answer_room):
    turns = [{"role": role, "content": "hello " * 1_000} for role in ("user", "assistant") * 19]
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, {"messages": [*turns, *HELLO["messages"]], **asked})
    assert reply.status == 200
    [sent] = [request.json() for request in provider.requests]
    assert sent["max_tokens"] >= answer_room
    assert 1 <= len(sent["messages"]) < len(turns) + 1
    assert sent["messages"][-1] == HELLO["messages"][-1]
    assert json.loads(re.findall(r"event: done\ndata: (.*)", reply.raw.decode())[-1])["dropped_messages"] > 0


async def test_each_token_is_sent_as_one_chunk_at_once(provider):
    release = asyncio.Event()
    provider.scripts = [stream(chunk("one"), release, chunk("two"), finish(), usage(9, 2), DONE)]
    async with serve(handler_for(provider)) as port, connect(port) as client:
        reply = await client.post()
        assert (await reply.event()).name == "start"
        assert await reply.event() == Event("token", '"one"')
        release.set()
        assert await reply.event() == Event("token", '"two"')
        assert [event.name for event in await reply.events()] == ["done"]


async def test_the_connection_takes_the_next_request(provider):
    async with serve(handler_for(provider)) as port, connect(port) as client:
        for _ in range(3):
            reply = await client.post()
            assert (await reply.events())[-1].name == "done"
        assert (await (await client.post({})).json())["error"] == "Invalid messages payload"
        assert (await (await client.post()).events())[-1].name == "done"
    assert provider.opened == 1, "the provider's connection is kept alive as well"


async def test_pings_before_the_provider_answers_and_in_a_silence(provider):
    begin, go_on = asyncio.Event(), asyncio.Event()
    provider.scripts = [[begin, *stream(chunk("one"), go_on, finish(), usage(9, 1), DONE)]]
    timeouts = Timeouts(commit=0.05, heartbeat=0.05)
    async with serve(handler_for(provider, timeouts=timeouts)) as port, connect(port) as client:
        reply = await client.post()
        assert (await reply.event()).name == "start"
        assert await reply.event() == Event("ping", "")
        assert await reply.event() == Event("ping", "")
        begin.set()
        assert await reply.until("token") == Event("token", '"one"')
        assert await reply.event() == Event("ping", "")
        go_on.set()
        assert (await reply.events())[-1].name == "done"


@pytest.mark.parametrize(
    "text",
    [
        "\r",
        "\n",
        "\r\n",
        "\n\ndata: injected",
        "\n\nevent: done\ndata: \n\n",
        "\r\revent: error\rdata: x",
        "event: done",
        ": comment",
        "id: 5\nretry: 1",
        "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e",
        "\x00\x01\x1f\x7f",
        '"\\"',
        "\ufeff",
        "</script><img src=x onerror=alert(1)>",
        "😀🇩🇪👩\u200d👧",
        "data: [DONE]\n\n",
    ],
    ids=ascii,
)
async def test_row_29_a_model_text_is_one_event_with_the_same_text(provider, text):
    provider.scripts = [answer(text, 1)]
    async with serve(handler_for(provider)) as port:
        reply = await ask(port)
        seen = Parser()
        for at in range(len(reply.raw)):  # one byte at a time
            seen.feed(reply.raw[at : at + 1])
        assert (seen.tokens, seen.error, seen.done) == ([text], None, True)
        assert reply.raw.count(b"\n\n") == 3
        assert b"\r" not in reply.raw


async def test_a_character_cut_by_the_provider_arrives_whole(provider):
    """Half of a surrogate pair in each of two deltas, as llama.cpp and OpenAI send emoji now and then."""
    halves = [b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d\\ude00"}}]}\n\n']
    provider.scripts = [stream(*(halves[0][at : at + 1] for at in range(len(halves[0]))), finish(), usage(5, 1), DONE)]
    async with serve(handler_for(provider)) as port:
        outcome = await npm_chat(port)
    assert outcome.tokens == ["😀"]


# The npm client.


async def test_the_npm_client_reads_an_answer(provider):
    async with serve(handler_for(provider)) as port:
        body = {**HELLO, "profile": "free", "systemPrompt": "", "dailyTokenLimit": 50_000, "maxTokensPerRequest": 5_000}
        outcome = await npm_chat(port, body)
    assert (outcome.status, outcome.tokens, outcome.done, outcome.error) == (200, ["Hello "] * 3, True, None)


async def test_the_npm_client_may_send_back_an_answer_that_it_cancelled(provider):
    messages = [
        {"role": "user", "content": "First", "id": "1"},
        {"role": "assistant", "content": "", "id": "2"},
        {"role": "user", "content": "Second", "id": "3"},
    ]
    async with serve(handler_for(provider)) as port:
        assert (await npm_chat(port, {"messages": messages})).done
    assert provider.requests[0].json()["messages"] == [
        {"role": "user", "content": "First"},
        {"role": "user", "content": "Second"},
    ]


@pytest.mark.parametrize("text", ["a\x00b", "\x01\x1f\x7f", "\u2028\ufeff", "\ud7ff\U0001f600"], ids=ascii)
async def test_the_npm_client_may_send_back_any_text_of_the_model(provider, text):
    provider.scripts = [answer(text, 1)]
    async with serve(handler_for(provider)) as port:
        said = await npm_chat(port)
        assert said.tokens == [text]
        history = [{"role": "user", "content": "First"}, {"role": "assistant", "content": "".join(said.tokens)}]
        assert (await npm_chat(port, {"messages": [*history, {"role": "user", "content": "Second"}]})).done
    assert provider.requests[1].json()["messages"][1]["content"] == text.replace("\x00", "\ufffd")


async def test_the_npm_client_shows_an_error_in_the_stream(provider):
    provider.scripts = [stream(chunk("Hel"), b'data: {"error":{"message":"boom sk-wire-test"}}\n\n')]
    async with serve(handler_for(provider)) as port:
        outcome = await npm_chat(port)
    assert (outcome.tokens, outcome.done, outcome.error) == (["Hel"], False, "The model provider failed")


async def test_the_npm_client_takes_a_4xx_as_final(provider):
    async with serve(handler_for(provider)) as port:
        outcome = await npm_chat(port, {"messages": []}, sleep=no_pause)
    assert (outcome.status, outcome.error, outcome.gaps) == (400, "HTTP 400", [])
    assert outcome.refusal["error"] == "Invalid messages payload"


async def test_the_npm_client_retries_after_a_5xx_and_is_charged_once(provider):
    provider.scripts = [failure(401), failure(403), answer("Hello ", 3, input_tokens=9)]
    async with serve(handler_for(provider)) as port:
        outcome = await npm_chat(port, sleep=no_pause)
        assert (outcome.status, outcome.done, outcome.gaps) == (200, True, [1.0, 2.0])
        assert (await settled(port))["tokens_per_day"]["used"] == 12


async def test_the_npm_client_sees_a_refused_budget(provider):
    profiles = {"balanced": replace(BALANCED, tokens_per_day=150, max_output_tokens=90, min_output_tokens=90)}
    provider.scripts = [answer("Hello ", 3, input_tokens=70, output_tokens=80)]
    async with serve(handler_for(provider, profiles=profiles)) as port:
        assert (await npm_chat(port)).done
        outcome = await npm_chat(port)
    assert (outcome.status, outcome.error, outcome.gaps) == (429, "HTTP 429", []), "its page never shows our text"
    assert outcome.refusal["error"] == "Daily AI budget exceeded. Try again tomorrow."


async def test_the_npm_client_sends_null_for_a_limit_that_is_no_number(provider):
    body = {**HELLO, "dailyTokenLimit": math.nan, "maxTokensPerRequest": math.inf, "systemPrompt": None}
    async with serve(handler_for(provider)) as port:
        assert (await npm_chat(port, body)).done
    assert provider.requests[0].json()["max_tokens"] == 2_000


async def test_the_npm_client_sends_the_headers_that_it_is_given(provider):
    def by_header(scope: Scope) -> Caller:
        return Caller(id=dict(scope["headers"])[b"x-user"].decode())

    profiles = {"balanced": replace(BALANCED, requests_per_minute=1)}
    async with serve(handler_for(provider, profiles=profiles, identify=by_header)) as port:
        for user, statuses in (("ada", [200, 429]), ("bob", [200])):
            assert [(await npm_chat(port, headers={"x-user": user})).status for _ in statuses] == statuses


async def test_the_npm_client_has_a_deadline_for_each_attempt_and_its_end_stops_the_provider(provider):
    """Each attempt gets its own; the second one hangs in the middle of its stream."""
    provider.scripts = [failure(401), stream(chunk("Hel"), HANG)]
    limits: list[asyncio.Timeout] = []

    def deadline() -> asyncio.Timeout:
        limits.append(asyncio.timeout(None))
        return limits[-1]

    async with serve(handler_for(provider)) as port:
        asking = asyncio.create_task(npm_chat(port, sleep=no_pause, deadline=deadline))
        await provider.request(1)
        assert len(limits) == 2
        limits[1].reschedule(0)  # its 30 s are over
        outcome = await asking
        assert (outcome.gave_up, outcome.done, outcome.error, outcome.gaps) == (True, False, None, [1.0])
        await provider.closed(1)


async def test_a_model_that_the_provider_lacks_is_one_line_in_the_log(provider, caplog):
    provider.scripts = [failure(404, code="model_not_found")]
    async with serve(handler_for(provider)) as port:
        assert (await ask(port)).status == 502
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    [line] = [line for line in lines if "404" in line]
    assert "upstream_model_not_found for model gpt-4o-mini" in line


# Refusals and other origins.


def nobody(_scope: Scope) -> None:
    raise Unauthorized


@pytest.mark.parametrize(
    ("status", "code", "method", "path", "body", "options"),
    [
        (400, "bad_request", "POST", "/api/chat", {}, {}),
        (401, "unauthorized", "POST", "/api/chat", HELLO, {"identify": nobody}),
        (401, "unauthorized", "GET", "/api/usage", None, {"identify": nobody}),
        (404, "not_found", "POST", "/api/chats", HELLO, {}),
        (404, "not_found", "GET", "/favicon.ico", None, {}),
        (405, "method_not_allowed", "GET", "/api/chat", None, {}),
        (405, "method_not_allowed", "POST", "/api/usage", HELLO, {}),
        (413, "body_too_large", "POST", "/api/chat", HELLO, {"max_body_bytes": 20}),
        (415, "unsupported_media_type", "POST", "/api/chat", None, {}),
        (
            429,
            "request_too_large",
            "POST",
            "/api/chat",
            {"messages": [{"role": "user", "content": "hello " * 40_000}]},
            {},
        ),
        (502, "upstream_auth", "POST", "/api/chat", HELLO, {}),
    ],
    ids=lambda value: str(value) if isinstance(value, str | int) else "",
)
async def test_every_refusal_is_json_that_another_origin_may_read(provider, status, code, method, path, body, options):
    provider.scripts = [failure(401)]
    async with serve(handler_for(provider, **options)) as port, connect(port) as client:
        headers = {"origin": "https://shop.example", **(JSON if body is not None else {})}
        reply = await client.request(method, path, body, headers)
        answered = await reply.json()
        assert reply.status == status
        assert answered["code"] == code
        assert answered["error"]
        assert answered["request_id"] == reply.headers["x-request-id"]
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        assert "retry-after" in reply.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in reply.headers
        assert "traceback" not in reply.raw.decode().lower()


async def test_a_rate_limit_sends_retry_after(provider):
    profiles = {"balanced": replace(BALANCED, requests_per_minute=1)}
    async with serve(handler_for(provider, profiles=profiles)) as port:
        assert (await ask(port)).status == 200
        reply = await ask(port)
        assert reply.status == 429
        answered = json.loads(reply.raw)
        assert answered["error"] == "Rate limit exceeded. Please slow down."
        assert answered["code"] == "rate_limited"
        assert answered["limit"] == "requests_per_minute"
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert answered["retry_after"] == int(reply.headers["retry-after"])


async def test_every_path_that_streams_may_be_read_by_another_origin(provider):
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, headers={**JSON, "origin": "https://shop.example"})
        assert reply.headers["access-control-allow-origin"] == "*"
        async with connect(port) as client:
            reply = await client.request("GET", "/api/usage", headers={"origin": "https://shop.example"})
            assert reply.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("path", ["/api/chat", "/api/usage"])
async def test_a_preflight_is_answered_without_a_body(provider, path):
    asked = {
        "origin": "https://shop.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    async with serve(handler_for(provider)) as port, connect(port) as client:
        reply = await client.request("OPTIONS", path, headers=asked)
        assert reply.status == 204
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "content-type" in reply.headers["access-control-allow-headers"]
        assert reply.headers["access-control-allow-methods"] == (
            "POST, OPTIONS" if path == "/api/chat" else "GET, OPTIONS"
        )
        assert "x-request-id" in reply.headers
        assert await reply.body() == b""
        assert (await client.post()).status == 200, "the connection goes on"


async def test_only_listed_origins_are_admitted(provider):
    async with serve(handler_for(provider, origins=["https://shop.example"])) as port:
        for origin, allowed in (
            ("https://shop.example", "https://shop.example"),
            ("https://SHOP.example", "https://SHOP.example"),
            ("https://shop.example.evil", None),
            ("http://shop.example", None),
            ("null", None),
        ):
            reply = await ask(port, headers={**JSON, "origin": origin})
            assert reply.headers.get("access-control-allow-origin") == allowed
            assert reply.headers["vary"].lower() == "origin"


# Methods and paths.


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "PROPFIND"])
async def test_row_6_another_method_is_refused_and_generates_nothing(provider, method):
    async with serve(handler_for(provider)) as port, connect(port) as client:
        reply = await client.request(method, "/api/chat", HELLO, JSON)
        assert reply.status == 405
        assert reply.headers["allow"] == "POST, OPTIONS"
        await reply.body()
        assert (await client.post()).status == 200, "the connection goes on"
        assert len(provider.requests) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/chat", 200),
        ("/api/chat/", 200),
        ("/API/Chat", 200),
        ("/", 200),
        ("/api/chat?stream=false", 200),
        ("/api/ch%61t", 404),
        ("/%61pi/chat", 404),
        ("/%61PI/chat/", 404),
        ("/api%2Fchat", 404),
        ("//api/chat", 404),
        ("/api//chat", 404),
        ("/api/chat//", 404),
        ("//", 404),
        ("/api/chat/x", 404),
        ("/api", 404),
        ("/api/chat/../usage", 404),
        ("/x/api/chat", 404),
    ],
)
async def test_paths(provider, path, status):
    async with serve(handler_for(provider)) as port:
        reply = await ask(port, path=path)
        assert reply.status == status
        assert len(provider.requests) == (status == 200)


async def test_a_role_only_delta_is_not_an_event(provider):
    provider.scripts = [stream(delta({"role": "assistant", "content": ""}), chunk("x"), finish(), usage(5, 1), DONE)]
    async with serve(handler_for(provider)) as port:
        reply = await ask(port)
    assert reply.raw.count(b"event: token") == 1
