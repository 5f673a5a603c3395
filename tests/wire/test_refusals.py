"""What a client is told that may not, or asks at the wrong place: in its own format, and so that it does the right thing."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgi_servers import serve
from dialect_tools import whatwg
from msgspec.structs import replace
from openai_schemas import flaws
from raw_client import JSON, ask, connect, settled

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.messages import Caller
from chat_nest.dialects.anthropic import Anthropic
from chat_nest.dialects.openai import OpenAI
from chat_nest.dialects.responses import Responses
from chat_nest.testing import FakeClock, ScriptedProvider, answer

USER = {"role": "user", "content": "Hello"}
OPENAI = ("/v1/chat/completions", {"messages": [USER]})
RESPONSES = ("/v1/responses", {"input": "Hello"})
ANTHROPIC = ("/v1/messages", {"messages": [USER], "max_tokens": 50})
AG_UI = ("/api/ag-ui", {"threadId": "t", "runId": "r", "messages": [{"id": "1", **USER}]})
OFFICIAL = pytest.mark.parametrize(
    ("path", "body"), [OPENAI, RESPONSES, ANTHROPIC], ids=["openai", "responses", "anthropic"]
)
DIALECTS = ("native", "openai", "responses", "ai_sdk", "ag_ui", "anthropic")
WITH_402 = [kind(budget_status=402) for kind in (OpenAI, Responses, Anthropic)]


@asynccontextmanager
async def chat(now: Any = None, dialects: Any = DIALECTS, **limits: Any):
    provider = ScriptedProvider(answer("Hi", input_tokens=300, output_tokens=300))
    profile = replace(BALANCED, model="p:gpt-4o-mini", **limits)
    clock = {"now": now} if now else {}
    handler = create_chat_handler(
        providers={"p": provider},
        profiles={"balanced": profile},
        dialects=dialects,
        identify=lambda scope: Caller(id=dict(scope["headers"]).get(b"x-who", b"ada").decode()),
        max_body_bytes=20_000,
        **clock,
    )
    async with serve(handler) as port:
        yield provider, port


async def got(port: int, method: str, path: str):
    async with connect(port) as client:
        reply = await client.request(method, path, b"{}" if method == "POST" else None, headers=JSON)
        await reply.body()
        return reply


# Waits.


@OFFICIAL
@pytest.mark.parametrize("limits", [{"tokens_per_day": 650}, {"requests_per_day": 1}], ids=["tokens", "requests"])
async def test_a_daily_limit_has_a_date_and_no_client_sleeps_until_then(path, body, limits):
    now = FakeClock(1_800_000_000.25)  # 2027-01-15T08:00:00Z
    async with chat(now, requests_per_minute=None, **limits) as (provider, port):
        assert (await ask(port, body, path=path)).status == 200
        await settled(port)
        reply = await ask(port, body, path=path)
    said = (await reply.json())["error"]
    assert (reply.status, provider.opened) == (429, 1)
    assert "retry-after" not in reply.headers
    assert reply.headers["x-should-retry"] == "false"
    assert said["resets_at"].startswith("2027-01-16T00:00:0")
    assert said["message"].endswith(f" Quota exceeded; it will reset at {said['resets_at']}."), "clients search for it"


@OFFICIAL
@pytest.mark.parametrize("limits", [{"tokens_per_day": 650}, {"requests_per_day": 1}], ids=["tokens", "requests"])
async def test_a_day_s_refusal_has_the_configured_status_which_clients_do_not_repeat(path, body, limits):
    async with chat(dialects=WITH_402, requests_per_minute=None, **limits) as (_, port):
        assert (await ask(port, body, path=path)).status == 200
        await settled(port)
        reply = await ask(port, body, path=path)
        refused = (await reply.json())["error"]
    assert reply.status == 402
    kind = {"/v1/messages": "billing_error"}.get(path, "insufficient_quota")
    assert (refused["type"], refused.get("code", kind)) == (kind, kind), (
        "opencode repeats all that has rate_limit in it"
    )
    assert "it will reset at" in refused["message"]


@pytest.mark.parametrize(("path", "field"), [("/v1/chat/completions", "messages"), ("/v1/responses", "input")])
async def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_search_for(path, field):
    """LiteLLM, LangChain, aider and qwen-code read the text, and then shorten the conversation; others read the code."""
    async with chat(tokens_per_request=200) as (provider, port):
        reply = await ask(port, {field: [{"role": "user", "content": "Hello " * 300}]}, path=path)
    refused = (await reply.json())["error"]
    assert (reply.status, refused["code"], provider.opened) == (400, "context_length_exceeded", 0)
    found = re.fullmatch(
        r"Request too large\. Please shorten your message\. This model's maximum context length is (\d+) tokens here\. "
        r"However, your messages resulted in (\d+) tokens\.",
        refused["message"],
    )
    assert found
    assert 0 < int(found[1]) < 200 < 300 < int(found[2])


@OFFICIAL
@pytest.mark.parametrize("dialects", [DIALECTS, WITH_402], ids=["429", "402"])
async def test_a_limit_per_minute_has_a_wait_in_seconds(path, body, dialects):
    async with chat(dialects=dialects, requests_per_minute=1) as (_, port):
        await ask(port, body, path=path)
        reply = await ask(port, body, path=path)
    assert (reply.status, 0 < int(reply.headers["retry-after"]) <= 60) == (429, True)
    assert "resets_at" not in (await reply.json())["error"]


async def test_other_formats_send_retry_after_for_a_day():
    async with chat(requests_per_day=1, requests_per_minute=None) as (_, port):
        await ask(port)
        reply = await ask(port)
    assert (reply.status, int(reply.headers["retry-after"]) > 60) == (429, True)


# Too much at once.


@pytest.mark.parametrize(
    ("content", "limits"),
    [
        ("word " * 1_000, {"tokens_per_request": 500}),
        ("word " * 1_000, {"tokens_per_request": None, "tokens_per_day": 500}),
        ("word " * 10_000, {"tokens_per_request": 500}),
    ],
    ids=["a request", "a budget", "a body"],
)
async def test_anthropics_clients_get_the_message_after_which_they_shorten_a_conversation(content, limits):
    async with chat(**limits) as (provider, port):
        body = {"max_tokens": 50, "messages": [{"role": "user", "content": content}]}
        reply = await ask(port, body, path="/v1/messages")
    said = (await reply.json())["error"]
    assert (reply.status, said["type"], provider.opened) == (400, "invalid_request_error", 0)
    tokens, most = re.match(r"prompt is too long: (\d+) tokens > (\d+) maximum", said["message"]).groups()
    assert int(tokens) > int(most) > 0


@pytest.mark.parametrize(("path", "body"), [OPENAI, RESPONSES])
async def test_openais_clients_get_context_length_exceeded(path, body):
    long = "word " * 1_000
    content = {"input": long} if "input" in body else {"messages": [{"role": "user", "content": long}]}
    async with chat(tokens_per_request=500) as (_, port):
        reply = await ask(port, {**body, **content}, path=path)
    assert (reply.status, (await reply.json())["error"]["code"]) == (400, "context_length_exceeded")


# Counting.


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/messages/count_tokens", {"messages": [USER]}), ("/v1/responses/input_tokens", {"input": "Hello"})],
)
async def test_tokens_are_counted_and_charge_nothing(path, body):
    tools = [{"name": "weather", "type": "function", "parameters": {}, "description": "a word " * 100}]
    limits = {"allow_tools": True, "allow_system_prompt": True, "requests_per_minute": 4, "tokens_per_request": 200}
    async with chat(**limits) as (provider, port):
        reply = await ask(port, body, path=path)
        said = await reply.json()
        assert reply.status == 200
        if "input" in body:
            assert not flaws("TokenCountsResource", said)
        assert 0 < said["input_tokens"] < 100
        system = {"instructions" if "input" in body else "system": "word " * 1_000}
        more = await (await ask(port, {**body, **system}, path=path)).json()
        assert more["input_tokens"] > said["input_tokens"] + 900, "more than a request may have"
        if "input" in body:
            with_tools = await (await ask(port, {**body, "tools": tools}, path=path)).json()
            assert with_tools["input_tokens"] > said["input_tokens"] + 100
        else:
            assert (await ask(port, {**body, "messages": []}, path=path)).status == 400
        left = await settled(port)
        assert (left["tokens_per_day"]["used"], left["requests_per_minute"]["used"]) == (0, 0)
        statuses = [(await ask(port, body, path=path)).status for _ in range(3)]
        assert 429 in statuses
        assert (await ask(port, body, path=path, headers={**JSON, "x-who": "eve"})).status == 200
        assert (await got(port, "GET", path)).status in (404, 405)
        assert provider.opened == 0


async def test_a_count_continues_from_a_kept_answer():
    async with chat() as (_, port):
        first = await (await ask(port, {"input": "word " * 100}, path="/v1/responses")).json()
        body = {"input": "On", "previous_response_id": first["id"]}
        said = await (await ask(port, body, path="/v1/responses/input_tokens")).json()
        assert said["input_tokens"] > 100
        other = {**body, "previous_response_id": "resp_" + "0" * 24}
        assert (await ask(port, other, path="/v1/responses/input_tokens")).status == 404


# Other paths.


@pytest.mark.parametrize(
    ("method", "path", "shape"),
    [
        ("POST", "/v1/completions", "openai"),
        ("POST", "/v1/embeddings", "openai"),
        ("GET", "/v1/models/nothing", "openai"),
        ("POST", "/v1/chat/completions/x", "openai"),
        ("PUT", "/v1/chat/completions", "openai"),
        ("POST", "/chat/completions", "openai"),
        ("POST", "/responses", "openai"),
        ("POST", "/v1/responses/compact", "openai"),
        ("POST", "/messages", "anthropic"),
        ("POST", "/v1/messages/batches", "anthropic"),
        ("GET", "/v1/messages", "anthropic"),
        ("POST", "/api/ag-ui/x", "ag_ui"),
        ("POST", "/nothing", "native"),
    ],
)
async def test_a_wrong_path_or_method_is_refused_in_the_nearest_format(method, path, shape):
    async with chat() as (provider, port):
        reply = await got(port, method, path)
    assert reply.status in (404, 405)
    said = await reply.json()
    match shape:
        case "openai":
            assert not flaws("ErrorResponse", said)
        case "anthropic":
            assert (said["type"], "request_id" in said) == ("error", True)
        case "ag_ui":
            assert set(said) == {"message", "code", "request_id"}
        case _:
            assert type(said["error"]) is str
    if path in ("/v1/completions", "/messages"):
        assert "POST /v1/messages" in json.dumps(said)
    assert provider.opened == 0


# AG-UI.


async def test_a_refusal_is_a_run_that_failed_in_ag_ui():
    path, body = AG_UI
    async with chat(requests_per_minute=1) as (provider, port):
        assert (await ask(port, body, path=path)).status == 200
        reply = await ask(port, body, path=path)
        assert (reply.status, reply.headers["content-type"], provider.opened) == (200, "text/event-stream", 1)
        started, failed = (json.loads(seen.data) for seen in whatwg(reply.raw))
        assert started["type"] == "RUN_STARTED"
        assert (failed["type"], failed["code"]) == ("RUN_ERROR", "rate_limited")
        assert "Rate limit exceeded" in failed["message"]
        for who, wrong in (("eve", {"messages": []}), ("bob", {**body, "tools": [{"name": "a"}]})):
            assert (await ask(port, wrong, path=path, headers={**JSON, "x-who": who})).status == 400
