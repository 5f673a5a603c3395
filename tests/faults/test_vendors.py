"""Each preset of OpenAI's format on a real socket, with the vendor's own shapes of usage, reasoning and errors.

A whole answer, tools, an error before the stream, one inside it, and a stream that breaks off: the text, the calls, what
is charged and what the client is told. What every kind of provider has in common is in test_every_provider.py.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Struct, field
from scripted_provider import CLOSE, DONE, ScriptedProvider, delta, event, http, stream

from chat_nest import Profile, create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.core.errors import UpstreamAuth
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers import PRESETS
from chat_nest.providers.presets import Preset
from chat_nest.testing import Answer, collect

KEY = "sk-canary-2f7c"
ECHO = f"Something about {KEY}"
HELD = 100
"""The most output of a request."""


def counts(prompt: int, answer: int, total: int | None = None, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total or prompt + answer, **more}


def after(**usage: Any) -> bytes:
    """OpenAI's place for the usage: an event of its own, without choices."""
    return delta({}, "stop") + event([], usage=usage)


def with_finish(**usage: Any) -> bytes:
    """In the event with the finish reason."""
    return event([{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}], usage=usage)


def in_choice(**usage: Any) -> bytes:
    return event([{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage}])


def body(message: str = ECHO, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


class Shape(Struct, kw_only=True):
    """How a vendor writes an answer of the thought "Hm", the text "Hello", 5 tokens in and 7 out, 4 of them thoughts."""

    end: bytes = after(**counts(5, 7, completion_tokens_details={"reasoning_tokens": 4}))
    charged: tuple[int, int] = (5, 7)
    thoughts: int = 0
    """Those of the output that the usage has, where it has them."""
    running: dict[str, Any] | None = None
    """The usage of the events before the last, where they have one."""
    refusal: tuple[int, Any] = (429, body(type="rate_limit_exceeded", code="rate_limit_exceeded"))
    refused: str = "upstream_rate_limited"
    error: Any = field(default_factory=lambda: body(type="server_error", code="server_error"))
    """The event of an error in the stream."""
    failed: str = "upstream_error"


RUNNING = counts(5, 3)

SHAPES: dict[str, Shape] = {
    "openai": Shape(),
    "azure": Shape(
        refusal=(400, body(code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"})),
        refused="content_filter",
    ),
    "ollama_v1": Shape(refusal=(404, body("model 'x' not found", type="api_error")), refused="upstream_model_not_found"),
    "vllm": Shape(
        running=RUNNING,
        refusal=(404, {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}),
        refused="upstream_model_not_found",
    ),
    "llamacpp": Shape(refusal=(503, body("Loading model", type="unavailable_error", code=503)), refused="upstream_unavailable"),
    "jan": Shape(refusal=(503, body("Loading model", type="unavailable_error", code=503)), refused="upstream_unavailable"),
    "tgi": Shape(
        refusal=(429, {"error": "Model is overloaded", "error_type": "overloaded"}),
        error={"error": "Request failed during generation", "error_type": "generation"},
    ),
    "localai": Shape(
        refusal=(500, body("could not load model", type="", code=500)),
        refused="upstream_unavailable",
        error=body("rpc error", type="", code=500),
    ),
    "lmstudio": Shape(
        refusal=(401, {"error": ECHO}),
        refused="upstream_auth",
        error={"error": ECHO},
    ),
    "sglang": Shape(
        running=counts(5, 3, reasoning_tokens=0),
        end=after(**counts(5, 7, reasoning_tokens=4, prompt_tokens_details=None)),
        thoughts=4,
        refusal=(400, {"object": "error", "message": "The input is longer than the model's context length", "type": "BadRequestError", "code": 400}),
        refused="context_length_exceeded",
        error=body(type="InternalServerError", code=500),
    ),
    "litellm": Shape(
        refusal=(429, body("litellm.RateLimitError: ...", type="throttling_error", param=None, code="429")),
        error=body("litellm.APIError: ...", type="None", param="None", code="500"),
    ),
    "chat_nest": Shape(
        refusal=(502, body("The model provider refused this server's credentials", type="server_error", code="upstream_auth")),
        refused="upstream_unavailable",
        error=body("The model provider failed", type="server_error", code="upstream_error"),
    ),
    "groq": Shape(end=event([{"index": 0, "delta": {}, "finish_reason": "stop"}], x_groq={"id": "r", "usage": counts(5, 7)})),
    "openrouter": Shape(
        refusal=(402, body("Insufficient credits", code=402)),
        refused="upstream_quota",
        error=body("Provider returned error", code=502, metadata={"provider_name": "x"}),
    ),
    "mistral": Shape(
        end=with_finish(**counts(5, 7)),
        refusal=(401, {"detail": "Unauthorized"}),
        refused="upstream_auth",
    ),
    "deepseek": Shape(
        end=with_finish(
            **counts(5, 7, prompt_cache_hit_tokens=3, prompt_cache_miss_tokens=2, completion_tokens_details={"reasoning_tokens": 4})
        ),
        thoughts=4,
        refusal=(402, body("Insufficient Balance", type="unknown_error", param=None, code="invalid_request_error")),
        refused="upstream_quota",
    ),
    "xai": Shape(  # thoughts are counted beside the completion, and in the total
        end=after(**counts(5, 3, total=12, completion_tokens_details={"reasoning_tokens": 4}, num_sources_used=0)),
        thoughts=4,
        refusal=(400, {"code": "Client specified an invalid argument", "error": f"Incorrect API key provided: {KEY[:2]}***7c."}),
        refused="upstream_auth",
        error={"error": ECHO, "code": "The service is currently unavailable"},
    ),
    "together": Shape(
        end=with_finish(**counts(5, 7, cached_tokens=0)),
        refusal=(404, body("Unable to access model x.", type="invalid_request_error", code="model_not_available")),
        refused="upstream_model_not_found",
    ),
    "fireworks": Shape(
        end=with_finish(**counts(5, 7, prompt_tokens_details={"cached_tokens": 0})),
        refusal=(404, body("Model not found, inaccessible, and/or not deployed", object="error", type="NOT_FOUND", code="NOT_FOUND")),
        refused="upstream_model_not_found",
    ),
    "moonshot": Shape(
        end=in_choice(**counts(5, 7, cached_tokens=3)),
        refusal=(429, body("Your account is suspended, please check your plan", type="exceeded_current_quota_error")),
        refused="upstream_quota",
        error=body("The engine is currently overloaded", type="engine_overloaded_error"),
        failed="upstream_overloaded",
    ),
    "qwen": Shape(
        refusal=(400, {**body("Access denied, please make sure your account is in good standing.", type="Arrearage", code="Arrearage"), "request_id": "r"}),
        refused="upstream_quota",
        error={**body("Input data may contain inappropriate content.", code="data_inspection_failed"), "request_id": "r"},
        failed="content_filter",
    ),
    "zai": Shape(
        end=with_finish(**counts(5, 7, prompt_tokens_details={"cached_tokens": 0})),
        refusal=(429, body("Insufficient balance or no resource package. Please recharge.", code="1113")),
        refused="upstream_quota",
        error=body("System detected potentially unsafe or sensitive content", code="1301"),
        failed="content_filter",
    ),
    "cerebras": Shape(
        end=with_finish(**counts(5, 7, prompt_tokens_details={"cached_tokens": 0})),
        refusal=(429, {"message": ECHO, "type": "too_many_requests_error", "param": "quota", "code": "request_quota_exceeded"}),
    ),
    "perplexity": Shape(  # deep research, which bills what it read and thought besides
        running=counts(5, 1, search_context_size="low"),
        end=with_finish(**counts(5, 3, citation_tokens=20, num_search_queries=2, reasoning_tokens=4)),
        charged=(25, 7),
        refusal=(400, body("Invalid model 'x'.", type="invalid_model", code=400)),
        refused="upstream_model_not_found",
    ),
    "bedrock": Shape(
        refusal=(403, {"Message": "Authentication failed: Please make sure your API Key is valid."}),
        refused="upstream_auth",
        error=body("The system encountered an unexpected error", type="server_error"),
    ),
    "vertex": Shape(
        end=with_finish(**counts(5, 3, total=12, extra_properties={"google": {"traffic_type": "ON_DEMAND"}})),
        refusal=(404, [{"error": {"code": 404, "message": "Publisher Model `x` was not found", "status": "NOT_FOUND"}}]),
        refused="upstream_model_not_found",
    ),
}  # fmt: skip
every_vendor = pytest.mark.parametrize("kind", SHAPES)


def test_every_preset_of_the_format_is_here() -> None:
    assert set(SHAPES) == {kind for kind, preset in PRESETS.items() if preset.wire == "openai"}


def said(kind: str, fields: dict[str, Any]) -> bytes:
    return event([{"index": 0, "delta": fields, "finish_reason": None}], usage=SHAPES[kind].running)


def thought(kind: str) -> tuple[bytes, str, str]:
    """The event with the thought, and what of it is reasoning and what is text for the client."""
    where = PRESETS[kind].reasoning
    if where.startswith("`<"):
        tag = PRESETS[kind].think_tag
        assert where.startswith(f"`<{tag}>`")
        return said(kind, {"content": f"<{tag}>Hm</{tag}>"}), "Hm", ""
    if where in ("hidden", "in the text"):
        return b"", "", ""
    return said(kind, {where or "reasoning_content": "Hm"}), "Hm", ""


@asynccontextmanager
async def chat(
    kind: str, *scripts: Any, bills: str | None = "preset"
) -> AsyncIterator[tuple[ChatHandler, ScriptedProvider]]:
    preset: Preset = PRESETS[kind]
    # At its own host a vendor's word on abandoned answers counts; a server on this machine has none unless it is a proxy.
    if bills == "preset":
        bills = preset.abort_bills if preset.hosted else None
    async with ScriptedProvider(*scripts) as server:
        url = server.url.removesuffix("/v1") if preset.deployments else server.url
        provider = OpenAIProvider(KEY, url, preset=preset, abort_bills=bills)
        profile = Profile(model="p:its-model", max_output_tokens=HELD, allow_tools=True)
        handler = create_chat_handler(
            providers={"p": provider}, profiles={"balanced": profile}, dialects=("native", "openai")
        )
        yield handler, server
        await handler.aclose()


async def ask(handler: ChatHandler, *, streamed: bool = False, **more: Any) -> Answer:
    request = {"model": "balanced", "stream": streamed, "messages": [{"role": "user", "content": "Hi"}], **more}
    answer = await collect(handler, request, path="/v1/chat/completions")
    assert KEY.encode() not in answer.body
    return answer


async def spent(handler: ChatHandler) -> int:
    """The tokens of today that the caller has used."""
    scope = {"type": "http", "client": ("203.0.113.7", 4711), "headers": [], "path": "/"}
    return {line.name: now.used for line, now in await handler._callers.standing(scope)}["tokens_per_day"]


@every_vendor
async def test_an_answer_in_the_shape_of_the_vendor(kind: str) -> None:
    shape, preset = SHAPES[kind], PRESETS[kind]
    event_of_thought, reasoning, text = thought(kind)
    script = stream(
        said(kind, {"role": "assistant", "content": ""}),
        *([event_of_thought] if event_of_thought else []),
        said(kind, {"content": "Hel"}),
        said(kind, {"content": "lo"}),
        shape.end,
        DONE,
    )
    async with chat(kind, script) as (handler, server):
        answer = await ask(handler)
        assert answer.status == 200, answer.body
        whole = json.loads(answer.body)
        message = whole["choices"][0]["message"]
        assert (message["content"], message.get("reasoning_content", "")) == (f"{text}Hello", reasoning)
        assert whole["choices"][0]["finish_reason"] == "stop"
        usage = whole["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == shape.charged
        assert usage["completion_tokens_details"]["reasoning_tokens"] >= shape.thoughts
        assert await spent(handler) == sum(shape.charged)
        request = server.requests[0]
        assert request.headers[preset.key_header] == preset.key_prefix + KEY
        assert preset.deployments or request.path == "/v1/chat/completions"
        asked = request.json()
    limits = {name for name in asked if name.startswith("max_")}
    assert limits == {"max_tokens" if preset.limit_field == "by model" else preset.limit_field}
    assert asked.get("stream_options", {}).get("include_usage", False) is preset.stream_options
    assert ("continuous_usage_stats" in asked.get("stream_options", {})) is preset.running_usage


@every_vendor
async def test_the_check_spends_nothing_and_names_the_keys_variable(kind: str) -> None:
    preset = PRESETS[kind]
    async with ScriptedProvider() as server:
        provider = OpenAIProvider(KEY, server.url, preset=preset)
        assert bool(await provider.check()) is preset.lists_models
        server.models = http(401, json.dumps(body()).encode())
        with pytest.raises(UpstreamAuth, match=f"refused the API key. Check api_key or {preset.key_env}."):
            await provider.check()
        assert not server.requests
        await provider.aclose()


@every_vendor
async def test_a_call_of_a_tool(kind: str) -> None:
    call = {"index": 0, "id": "call-a", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}
    more = {"index": 0, "function": {"arguments": ':"Bonn"}'}}
    script = stream(said(kind, {"tool_calls": [call]}), said(kind, {"tool_calls": [more]}), SHAPES[kind].end, DONE)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    async with chat(kind, script) as (handler, server):
        choice = json.loads((await ask(handler, tools=[tool])).body)["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (called,) = choice["message"]["tool_calls"]
        assert (called["id"], called["function"]) == ("call-a", {"name": "weather", "arguments": '{"city":"Bonn"}'})
        assert await spent(handler) == sum(SHAPES[kind].charged)
        assert server.requests[0].json()["tools"][0]["function"]["name"] == "weather"


@every_vendor
async def test_an_error_before_the_stream_costs_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_nest.pipeline.upstream.random.uniform", lambda *_: 0.0)  # no pauses between attempts
    status, refusal = SHAPES[kind].refusal
    async with chat(kind, http(status, json.dumps(refusal).encode())) as (handler, _):
        answer = await ask(handler)
        assert json.loads(answer.body)["error"]["code"] == SHAPES[kind].refused
        assert await spent(handler) == 0


@every_vendor
async def test_an_error_in_the_stream_is_charged_and_ends_the_answer(kind: str) -> None:
    shape = SHAPES[kind]
    error = b"event: error\n" * (kind == "lmstudio") + b"data: " + json.dumps(shape.error).encode() + b"\n\n"
    async with chat(kind, stream(said(kind, {"content": "Hel"}), error, shape.end, DONE)) as (handler, server):
        answer = await ask(handler, streamed=True)
        *_, last = answer.events
        assert json.loads(last[1])["error"]["code"] == shape.failed
        assert b'"content":"Hel"' in answer.body
        assert b"[DONE]" not in answer.body
        assert_charged(kind, await spent(handler), server)


@every_vendor
async def test_a_broken_stream_is_charged_by_the_rule_of_the_preset(kind: str) -> None:
    script = stream(said(kind, {"content": "Hel"}), said(kind, {"content": "lo"}), CLOSE)
    async with chat(kind, script) as (handler, server):
        answer = await ask(handler, streamed=True)
        assert json.loads(answer.events[-1][1])["error"]["code"] == "upstream_truncated"
        assert_charged(kind, await spent(handler), server)


def assert_charged(kind: str, used: int, server: ScriptedProvider) -> None:
    """The whole hold, unless abandoned answers stop; and the request is not repeated."""
    assert len(server.requests) == 1
    preset = PRESETS[kind]
    of_this_machine = not preset.hosted and not preset.proxy  # what it makes is free, whatever it goes on to make
    if of_this_machine or preset.abort_bills == "stops":
        assert 0 < used < HELD
    else:
        assert used > HELD


@pytest.mark.parametrize("kind", ["litellm", "chat_nest", "groq", "openrouter", "deepseek", "azure"])
async def test_a_request_that_a_gateway_on_this_machine_lost_is_charged(kind: str) -> None:
    async with chat(kind, [CLOSE], bills=None) as (handler, server):
        await ask(handler)
        assert await spent(handler) > HELD
        assert len(server.requests) == 1


@pytest.mark.parametrize("kind", [kind for kind, preset in PRESETS.items() if preset.json_schema == "no"])
async def test_a_schema_is_refused_before_a_vendor_without_schemas_is_called(kind: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    async with chat(kind, stream(said(kind, {"content": "{}"}), SHAPES[kind].end, DONE)) as (handler, server):
        answer = await ask(handler, response_format=schema)
        assert (answer.status, json.loads(answer.body)["error"]["param"]) == (400, "response_format")
        assert not server.requests
        assert (await ask(handler, response_format={"type": "json_object"})).status == 200
        assert server.requests[0].json()["response_format"] == {"type": "json_object"}
