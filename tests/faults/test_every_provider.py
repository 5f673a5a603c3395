"""Rows 30 and 33 to 39 of the fault table for every kind of provider: real sockets, through the chat endpoint.

What holds for the HTTP part alone is in test_provider.py; here each kind's own bytes are on the wire.
"""

from __future__ import annotations

import asyncio
import json
import re
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import Any

import pytest
from msgspec import Struct
from scripted_provider import (
    CLOSE,
    DONE,
    END,
    HANG,
    ScriptedProvider,
    Step,
    chunk,
    event,
    failure,
    finish,
    head,
    http,
    piece,
    usage,
)

from chat_nest import Profile, create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.core.protocols import Provider
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers import PRESETS
from chat_nest.providers.responses import ResponsesProvider
from chat_nest.testing import Answer, collect

KEY = "sk-canary-2f7c"
WORDS = "a prompt that stays a secret"
ECHO = f"Incorrect API key provided: {KEY}. You said: {WORDS}"


class Kind(Struct, kw_only=True):
    """A provider, and the bytes of an answer of two deltas, 5 tokens in and 2 out."""

    make: Callable[[str], Provider]
    path: str
    check: str
    key: tuple[str, str]
    deltas: tuple[bytes, bytes]
    end: bytes
    error: bytes
    media_type: str = "text/event-stream"
    begin: bytes = b""


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def openai(kind: str) -> Callable[[str], Provider]:
    return lambda root: OpenAIProvider(KEY, f"{root}/v1", preset=PRESETS[kind], abort_bills="stops")


def kind_of_openai(kind: str, **more: Any) -> Kind:
    fields: dict[str, Any] = {
        "make": openai(kind),
        "path": "/v1/chat/completions",
        "check": "/v1/models",
        "key": ("authorization", f"Bearer {KEY}"),
        "deltas": (chunk("Hel"), chunk("lo")),
        "end": finish() + usage(5, 2) + DONE,
        "error": event([], error={"message": ECHO, "code": KEY}),
    }
    return Kind(**{**fields, **more})


def gemini(said: str, **candidate: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": said}], "role": "model"}, **candidate}]}


KINDS = {
    **{kind: kind_of_openai(kind) for kind in ("openai", "ollama_v1", "vllm", "llamacpp", "groq", "mistral")},
    "openrouter": kind_of_openai("openrouter", check="/v1/key"),
    "azure": kind_of_openai(
        "azure",
        make=lambda root: OpenAIProvider(KEY, root, preset=PRESETS["azure"], api_version="2024-10-21", abort_bills="stops"),
        path="/openai/deployments/my%20model/chat/completions?api-version=2024-10-21",
        check="/openai/models?api-version=2024-10-21",
        key=("api-key", KEY),
    ),
    "responses": Kind(
        make=lambda root: ResponsesProvider(KEY, f"{root}/v1", abort_bills="stops"),
        path="/v1/responses",
        check="/v1/models",
        key=("authorization", f"Bearer {KEY}"),
        deltas=(
            data({"type": "response.output_text.delta", "output_index": 0, "delta": "Hel"}),
            data({"type": "response.output_text.delta", "output_index": 0, "delta": "lo"}),
        ),
        end=data({"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 2}}}),
        error=data({"type": "error", "code": KEY, "message": ECHO}),
    ),
    "anthropic": Kind(
        make=lambda root: AnthropicProvider(KEY, root),
        path="/v1/messages",
        check="/v1/models?limit=1000",
        key=("x-api-key", KEY),
        begin=data({"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}),
        deltas=(
            data({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}}),
            data({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}}),
        ),
        end=data({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}})
        + data({"type": "message_stop"}),
        error=data({"type": "error", "error": {"type": KEY, "message": ECHO}}),
    ),
    "gemini": Kind(
        make=lambda root: GeminiProvider(KEY, f"{root}/v1beta", abort_bills="stops"),
        path="/v1beta/models/my%20model:streamGenerateContent?alt=sse",
        check="/v1beta/models?pageSize=1000",
        key=("x-goog-api-key", KEY),
        deltas=(data(gemini("Hel")), data(gemini("lo"))),
        end=data({**gemini("", finishReason="STOP"), "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2}}),
        error=data({"error": {"code": 400, "message": ECHO, "status": KEY}}),
    ),
    "ollama": Kind(
        make=lambda root: OllamaProvider(KEY, root),
        path="/api/chat",
        check="/api/tags",
        key=("authorization", f"Bearer {KEY}"),
        deltas=(line({"message": {"content": "Hel"}, "done": False}), line({"message": {"content": "lo"}, "done": False})),
        end=line({"done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 2}),
        error=line({"error": ECHO}),
        media_type="application/x-ndjson",
    ),
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def nothing_leaks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.delenv("http_proxy", raising=False)
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text
    assert WORDS not in caplog.text


def stream(kind: Kind, *steps: Step) -> list[Step]:
    """A 200 of the kind's media type, each bytes step a chunk of its own, then a clean end unless a step ended it."""
    script: list[Step] = [head(content_type=kind.media_type)]
    script += [piece(step) if isinstance(step, bytes) else step for step in steps if step != b""]
    return script if steps and steps[-1] in (CLOSE, HANG) else [*script, END]


def whole(kind: Kind) -> list[Step]:
    return stream(kind, kind.begin, *kind.deltas, kind.end)


@asynccontextmanager
async def chat(
    kind: Kind, *scripts: Any, **options: Any
) -> AsyncIterator[tuple[ChatHandler, ScriptedProvider, Provider]]:
    async with ScriptedProvider(*scripts) as server:
        provider = kind.make(f"http://127.0.0.1:{server.port}")
        profile = Profile(model="p:my model", max_output_tokens=100)
        handler = create_chat_handler(providers={"p": provider}, profiles={"balanced": profile}, **options)
        yield handler, server, provider
        await handler.aclose()


async def ask(handler: ChatHandler) -> Answer:
    answer = await collect(handler, {"messages": [{"role": "user", "content": WORDS}]})
    assert KEY.encode() not in answer.body
    assert KEY not in repr(answer.headers)
    return answer


def done(answer: Answer) -> dict[str, Any]:
    name, last = answer.events[-1]
    assert name == "done", answer.body
    return json.loads(last)


@every_kind
async def test_an_answer_from_end_to_end(kind: Kind) -> None:
    async with chat(kind, whole(kind)) as (handler, server, provider):
        answer = await ask(handler)
        assert [name for name, _ in answer.events] == ["start", "token", "token", "done"]
        assert "".join(json.loads(said) for name, said in answer.events if name == "token") == "Hello"
        end = done(answer)
        assert (end["finish_reason"], end["source"]) == ("stop", "reported")
        assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (5, 2)
        request = server.requests[0]
        assert (request.method, request.path) == ("POST", kind.path)
        assert request.headers[kind.key[0]] == kind.key[1]
        assert KEY not in request.path
        assert KEY.encode() not in request.body
        assert request.headers["accept-encoding"] == "identity"
        assert WORDS.encode() in request.body
        await ask(handler)
        assert server.opened == 1, "the connection is kept"


CHATS = {
    "/api/chat": ({"messages": [{"role": "user", "content": WORDS}]}, b"event: done\n"),
    "/v1/chat/completions": (
        {"model": "balanced", "stream": True, "messages": [{"role": "user", "content": WORDS}]},
        b"data: [DONE]\n\n",
    ),
    "/api/ai": (
        {"id": "c", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": WORDS}]}]},
        b"data: [DONE]\n\n",
    ),
    "/api/ag-ui": (
        {"threadId": "t", "runId": "r", "messages": [{"id": "1", "role": "user", "content": WORDS}]},
        b'"type":"RUN_FINISHED"',
    ),
    "/v1/messages": (
        {"model": "balanced", "max_tokens": 50, "stream": True, "messages": [{"role": "user", "content": WORDS}]},
        b"event: message_stop\n",
    ),
    "/chat": ({"message": WORDS}, b"event: done\n"),
}


@every_kind
@pytest.mark.parametrize("path", CHATS)
async def test_each_kind_of_provider_answers_in_each_format(kind: Kind, path: str) -> None:
    body, last = CHATS[path]
    dialects = ("native", "openai", "responses", "ai_sdk", "ag_ui", "anthropic", "blog")
    async with chat(kind, whole(kind), dialects=dialects) as (handler, server, _):
        answer = await collect(handler, body, path=path)
        assert answer.status == 200, answer.body
        assert answer.complete
        first, second = (answer.body.index(said) for said in (b'"Hel"', b'"lo"'))
        assert first < second < answer.body.index(last)
        assert WORDS.encode() in server.requests[0].body


@every_kind
async def test_row_30_a_refused_key_echoed_is_nowhere_to_be_seen(kind: Kind) -> None:
    async with chat(kind, failure(401, ECHO, KEY, www_authenticate=KEY)) as (handler, server, provider):
        answer = await ask(handler)
        assert answer.status == 502
        assert json.loads(answer.body)["code"] == "upstream_auth"
        assert KEY not in repr(provider)
        assert len(server.requests) == 1


@every_kind
async def test_row_38_an_unknown_model_is_named_in_the_log_and_not_to_the_client(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"error": {"message": f"model 'x' not found {ECHO}", "code": KEY, "type": "not_found_error"}})
    async with chat(kind, [http(404, body.encode())]) as (handler, _, _provider):
        answer = await ask(handler)
    assert answer.status == 502
    assert json.loads(answer.body)["code"] == "upstream_model_not_found"
    assert json.loads(answer.body)["error"] == "The model is not available at the model provider"
    line = next(message for message in caplog.messages if message.startswith("request "))
    assert re.fullmatch(
        r"request [0-9a-f]{24}: provider \w+: upstream_model_not_found for model my model "
        r"\(HTTP 404, not_found_error\)",
        line,
    )


@every_kind
async def test_row_33_silence_before_the_headers_and_then_the_client_leaves(kind: Kind) -> None:
    leave = asyncio.Event()
    async with chat(kind, [HANG]) as (handler, server, _):
        body = {"messages": [{"role": "user", "content": WORDS}]}
        asking = asyncio.create_task(collect(handler, body, leave=leave))
        await server.request(0)
        leave.set()
        await asking
        await server.closed(0)


@every_kind
async def test_row_35_an_end_without_the_last_event_is_an_error(kind: Kind) -> None:
    for ending in ([], [CLOSE]):
        async with chat(kind, stream(kind, kind.begin, *kind.deltas, *ending)) as (handler, _, _provider):
            answer = await ask(handler)
            assert [name for name, _ in answer.events] == ["start", "token", "token", "error"]
            assert json.loads(answer.events[-1][1])["code"] == "upstream_truncated"


@every_kind
async def test_row_35_a_never_ending_answer_is_cut_and_its_connection_closed(kind: Kind) -> None:
    script = chain([head(content_type=kind.media_type), piece(kind.begin or b"\n")], repeat(piece(kind.deltas[0])))
    async with chat(kind, script) as (handler, server, _):
        assert done(await ask(handler))["finish_reason"] == "length"
        await server.closed(0)


@every_kind
async def test_row_36_unparsable_events_and_an_endless_line(kind: Kind) -> None:
    for bad in (b"data: {\n\n", b"data: {}}\n\n", b"x" * (1 << 20) + b"x"):
        async with chat(kind, stream(kind, kind.begin, kind.deltas[0], bad, HANG)) as (handler, server, _):
            answer = await ask(handler)
            assert [name for name, _ in answer.events] == ["start", "token", "error"]
            assert json.loads(answer.events[-1][1])["code"] == "upstream_protocol"
            await server.closed(0)


@every_kind
async def test_row_37_a_success_that_no_model_has_written_costs_nothing(kind: Kind) -> None:
    for script in (http(200, ECHO.encode(), "text/html"), http(200, ECHO.encode(), "text/plain"), http(204)):
        async with chat(kind, script) as (handler, _, _provider):
            answer = await ask(handler)
            assert (answer.status, json.loads(answer.body)["code"]) == (502, "upstream_protocol")
            assert (await spent(handler))["tokens_per_day"] == 0


@every_kind
async def test_row_37_json_without_an_answer_is_charged_and_not_retried(kind: Kind) -> None:
    for script, code in ((failure(200, ECHO), "upstream_error"), (http(200, b'{"a":1}'), "upstream_protocol")):
        async with chat(kind, script) as (handler, server, _provider):
            answer = await ask(handler)
            assert (answer.status, [name for name, _ in answer.events]) == (200, ["start", "error"])
            assert json.loads(answer.events[-1][1])["code"] == code
            assert (await spent(handler))["tokens_per_day"] > 0
            assert len(server.requests) == 1


@every_kind
async def test_row_37_an_error_in_the_middle(kind: Kind) -> None:
    async with chat(kind, stream(kind, kind.begin, kind.deltas[0], kind.error, kind.end)) as (handler, _, _provider):
        answer = await ask(handler)
        assert [name for name, _ in answer.events] == ["start", "token", "error"]
        assert json.loads(answer.events[-1][1])["code"] == "upstream_error"


@every_kind
@pytest.mark.parametrize("path", CHATS)
async def test_row_37_a_failure_that_may_have_been_billed_is_reported_as_not_retryable(kind: Kind, path: str) -> None:
    """Clients of every format repeat a request for its status."""
    body, _ = CHATS[path]
    dialects = ("native", "openai", "ai_sdk", "ag_ui", "anthropic", "blog")
    for said in (kind.error, b""):
        async with chat(kind, stream(kind, kind.begin, said), dialects=dialects) as (handler, server, _):
            answer = await collect(handler, body, path=path)
            assert answer.status == 200
            # An answer that breaks off is asked for once more where its reservation pays for that.
            assert len(server.requests) == 1 if said else len(server.requests) <= 2
            assert b"error" in answer.body.lower()
            assert (b"[DONE]" in answer.body) == (path == "/api/ai"), (
                "only the AI SDK ends a stream that failed so, too"
            )
            if path.startswith("/v1"):
                answer = await collect(handler, {**body, "stream": False}, path=path)
                assert answer.status == 424
                assert answer.headers["x-should-retry"] == "false"
                assert b'"error"' in answer.body


@pytest.mark.parametrize(
    ("bills", "asked", "free"), [("full", 1, False), ("unknown", 1, False), ("stops", 2, False), (None, 3, True)]
)
async def test_row_33_the_operator_sets_the_cost_of_a_lost_request_for_local_servers_too(
    bills: str | None, asked: int, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server on 127.0.0.1 may be a proxy to one that bills: that it bills nothing is only the default."""
    monkeypatch.setattr("chat_nest.pipeline.upstream.random.uniform", lambda *_: 0.0)  # no pauses between attempts
    kind = kind_of_openai("openai", make=lambda root: OpenAIProvider(KEY, f"{root}/v1", abort_bills=bills))
    async with chat(kind, [CLOSE]) as (handler, server, _):
        answer = await ask(handler)
        assert len(server.requests) == asked
        assert answer.status == (502 if free else 200)
        assert ((await spent(handler))["tokens_per_day"] == 0) is free


@every_kind
async def test_row_37_a_failure_in_a_stream_is_logged_with_the_code_of_the_provider(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    error = {"error": {"message": ECHO, "code": "server_on_fire", "type": "server_on_fire"}, "type": "error"}
    said = line(error) if kind.media_type.endswith("ndjson") else data(error)
    for before in (kind.deltas[0], b""):
        caplog.clear()
        async with chat(kind, stream(kind, kind.begin, before, said)) as (handler, _, _provider):
            answer = await ask(handler)
        assert b"server_on_fire" not in answer.body
        (message,) = [message for message in caplog.messages if message.startswith("request ")]
        assert re.fullmatch(
            r"request [0-9a-f]{24}: provider \w+: upstream_error for model my model \(server_on_fire\)", message
        )


@every_kind
async def test_row_38_a_storm_of_500_opens_the_breaker(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_nest.pipeline.upstream.random.uniform", lambda *_: 0.0)  # no pauses between attempts
    async with chat(kind, failure(500, ECHO, retry_after="0")) as (handler, server, _):
        answers = [await ask(handler) for _ in range(8)]
        assert [answer.status for answer in answers[:3]] == [502] * 3
        assert [answer.status for answer in answers[4:]] == [503] * 4
        assert json.loads(answers[-1].body)["code"] == "upstream_unavailable"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 5
        assert len(server.requests) == 10
        assert (await spent(handler))["tokens_per_day"] == 0


@every_kind
async def test_row_41_leaving_in_the_middle_closes_the_connection_and_charges_received_tokens(kind: Kind) -> None:
    leave = asyncio.Event()

    async def sent(said: bytes) -> None:
        if b"Hel" in said:
            leave.set()

    async with chat(kind, stream(kind, kind.begin, kind.deltas[0], HANG)) as (handler, server, _):
        await collect(handler, {"messages": [{"role": "user", "content": WORDS}]}, leave=leave, sent=sent)
        await server.closed(0)
        used = (await spent(handler))["tokens_per_day"]
        if kind.begin:
            assert 5 + 1 <= used <= 5 + 3, "the input as the provider said, and a bound of what was produced"
        else:
            assert len(WORDS) < used < 100


async def spent(handler: ChatHandler) -> dict[str, int]:
    """What the caller's own budgets have used, by name."""
    scope = {"type": "http", "client": ("203.0.113.7", 4711), "headers": [], "path": "/"}
    standing = await handler._callers.standing(scope)
    return {line.name: now.used for line, now in standing}


@every_kind
async def test_the_check_spends_nothing(kind: Kind) -> None:
    async with chat(kind) as (_, server, provider):
        await provider.check()
        assert [(request.method, request.path) for request in server.checks] == [("GET", kind.check)]
        assert server.checks[0].headers[kind.key[0]] == kind.key[1]
        assert not server.requests
        server.models = failure(401, ECHO, KEY)
        with pytest.raises(Exception, match="refused the API key. Check api_key or [A-Z_]+_KEY") as refused:
            await provider.check()
        assert KEY not in str(refused.value)


def test_every_kind_of_the_config_file_is_here_or_differs_from_openai_in_its_preset_only() -> None:
    """Those are in test_vendors.py, which has every preset of OpenAI's format."""
    assert {kind for kind, preset in PRESETS.items() if preset.wire != "openai"} <= set(KINDS) <= set(PRESETS)
