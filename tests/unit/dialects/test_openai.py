from __future__ import annotations

from typing import Any

import json

import pytest
from dialect_tools import STORY, ending, told, whatwg
from inline_snapshot import snapshot

from chat_nest.core.deltas import TextDelta
from chat_nest.dialects.openai import OpenAI
from chat_nest.core.errors import (
    BadRequest,
    BudgetExceeded,
    ChatError,
    Forbidden,
    LimiterUnavailable,
    NotFound,
    RateLimited,
    RequestTooLarge,
    Unauthorized,
    UpstreamAuth,
    UpstreamIdle,
)
from chat_nest.core.claims import Line, Quota
from chat_nest.core.messages import ChatRequest, Message, Options, Tool, ToolCall

HELLO = {"role": "user", "content": "hello"}
openai = OpenAI(now=lambda: 1_762_000_000.9)


def encoder(**fields: Any):
    return openai.encoder(ChatRequest(messages=(), **fields), "run-1")


def parse(**fields: object) -> ChatRequest:
    return openai.parse(json.dumps({"messages": [HELLO], **fields}).encode())


def refused(**fields: object) -> tuple[str, str]:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    return caught.value.field, caught.value.message


def test_a_whole_stream() -> None:
    assert told(encoder()).decode() == snapshot("""\
data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"reasoning_content":"Hm"},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"reasoning_content":"."},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"It is "},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"19\u202f°C\\n"},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call-a","type":"function","function":{"name":"weather","arguments":"{\\"city\\""}}]},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":\\"Bonn\\"}"}}]},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"call-b","type":"function","function":{"name":"clock","arguments":""}}]},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}

data: [DONE]

""")


def test_usage_is_sent_on_request() -> None:
    assert told(encoder(include_usage=True), [[TextDelta("a")]], "length").decode() == snapshot("""\
data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}

data: {"id":"chatcmpl-run-1","object":"chat.completion.chunk","created":1762000000,"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46,"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":6}}}

data: [DONE]

""")


def test_a_whole_answer() -> None:
    assert told(encoder(stream=False)).decode() == snapshot(
        '{"id":"chatcmpl-run-1","object":"chat.completion","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"message":{"role":"assistant","content":"It is 19\u202f°C\\n","refusal":null,"reasoning_content":"Hm.","tool_calls":[{"id":"call-a","type":"function","function":{"name":"weather","arguments":"{\\"city\\":\\"Bonn\\"}"}},{"id":"call-b","type":"function","function":{"name":"clock","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46,"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":6}}}'
    )
    assert told(encoder(stream=False), [[TextDelta("a")], [TextDelta("b")]], "stop").decode() == snapshot(
        '{"id":"chatcmpl-run-1","object":"chat.completion","created":1762000000,"model":"gpt-4o-mini","choices":[{"index":0,"message":{"role":"assistant","content":"ab","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46,"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":6}}}'
    )


def test_an_error_in_the_stream_and_a_ping() -> None:
    answering = encoder()
    answering.start("m")
    assert answering.fail(UpstreamIdle()).decode() == snapshot("""\
data: {"error":{"message":"The model provider stopped answering","type":"server_error","param":null,"code":"upstream_idle"}}

""")
    assert answering.heartbeat() == b": ping\n", "a blank line would be an empty event to openai-python"
    assert encoder(stream=False).heartbeat() == b""


@pytest.mark.parametrize(
    ("reason", "told_as"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("other", "stop")],
)
def test_finish_reasons(reason: str, told_as: str) -> None:
    answering = encoder()
    answering.start("m")
    last, done = whatwg(answering.finish(ending(reason=reason)))
    assert json.loads(last.data)["choices"][0]["finish_reason"] == told_as
    assert done.data == "[DONE]"


def test_only_data_lines_are_sent() -> None:
    lines = set(told(encoder(include_usage=True)).decode().split("\n"))
    assert all(line == "" or line.startswith("data: ") for line in lines)
    assert "data: " not in lines


def test_refusals() -> None:
    errors = [
        BadRequest("must be a string", field="messages[0].content"),
        BadRequest("must be a model that is offered here", field="model"),
        Unauthorized(),
        Forbidden(),
        NotFound(),
        RateLimited(limit="requests_per_minute", retry_after=3.2),
        BudgetExceeded(limit="tokens_per_day"),
        RequestTooLarge(limit="tokens_per_request"),
        LimiterUnavailable(),
        UpstreamAuth(),
        ChatError(),
    ]
    answers = [openai.refuse(error, "r1") for error in errors]
    assert [(answer.status, answer.body.decode()) for answer in answers] == snapshot(
        [
            (
                400,
                '{"error":{"message":"messages[0].content: must be a string","type":"invalid_request_error","param":"messages[0].content","code":"bad_request"}}',
            ),
            (
                400,
                '{"error":{"message":"model: must be a model that is offered here","type":"invalid_request_error","param":"model","code":"model_not_found"}}',
            ),
            (
                401,
                '{"error":{"message":"Authentication is required","type":"authentication_error","param":null,"code":"invalid_api_key"}}',
            ),
            (
                403,
                '{"error":{"message":"This is not allowed","type":"permission_error","param":null,"code":"forbidden"}}',
            ),
            (404, '{"error":{"message":"Not found","type":"invalid_request_error","param":null,"code":"not_found"}}'),
            (
                429,
                '{"error":{"message":"Rate limit exceeded. Please slow down.","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}',
            ),
            (
                429,
                '{"error":{"message":"Daily AI budget exceeded. Try again tomorrow.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}',
            ),
            (
                400,
                '{"error":{"message":"Request too large. Please shorten your message.","type":"invalid_request_error","param":null,"code":"context_length_exceeded"}}',
            ),
            (
                503,
                '{"error":{"message":"The service is busy. Please try again.","type":"server_error","param":null,"code":"limiter_unavailable"}}',
            ),
            (
                502,
                '{"error":{"message":"The model provider refused this server\'s credentials","type":"server_error","param":null,"code":"upstream_auth"}}',
            ),
            (
                500,
                '{"error":{"message":"AI request failed","type":"server_error","param":null,"code":"internal_error"}}',
            ),
        ]
    )
    asked_again = [answer.status for answer in answers if (b"x-should-retry", b"false") not in answer.headers]
    assert asked_again == [503], "only what may be well in a moment is asked again by the official clients"
    assert all((b"content-type", b"application/json") in answer.headers for answer in answers)


def test_quotas_in_openais_headers() -> None:
    def quota(unit: str, limit: int, room: int, resets_in: float, scope: str = "caller", kind: str = "window") -> Quota:
        line = Line(name=unit, scope=scope, key="k", unit=unit, kind=kind, limit=limit, fixed=1)  # type: ignore[arg-type]
        return Quota(line, room, resets_in)

    quotas = [
        quota("requests", 30, 29, 2.0, kind="rate"),
        quota("requests", 1000, 800, 86_399.2),
        quota("tokens", 2048, 2048, 0, kind="request"),
        quota("tokens", 70_000, 500, 22_000.25),
        quota("tokens", 10, 10, 0.0, scope="all"),
        quota("streams", 2, 1, 0.0, kind="gauge"),
    ]
    assert openai.quota_headers(quotas) == snapshot(
        [
            (b"x-ratelimit-limit-requests", b"30"),
            (b"x-ratelimit-remaining-requests", b"29"),
            (b"x-ratelimit-reset-requests", b"2s"),
            (b"x-ratelimit-limit-tokens", b"70000"),
            (b"x-ratelimit-remaining-tokens", b"500"),
            (b"x-ratelimit-reset-tokens", b"6h6m40.25s"),
        ]
    )
    resets = [dict(openai.quota_headers([quota("requests", 1, 1, seconds)])) for seconds in (0, 0.0204, 59.9, 60, 3600)]
    assert [each[b"x-ratelimit-reset-requests"] for each in resets] == [b"0s", b"21ms", b"59.9s", b"1m0s", b"1h0m0s"]
    assert openai.quota_headers([]) == []


def test_models() -> None:
    listing = openai.routes[1]
    assert (listing.method, listing.path) == ("GET", "/v1/models")
    assert listing.models is not None
    assert listing.models(["gpt-4o-mini", "balanced"], "").body.decode() == snapshot(
        '{"object":"list","data":[{"id":"gpt-4o-mini","object":"model","created":0,"owned_by":"chat-nest"},{"id":"balanced","object":"model","created":0,"owned_by":"chat-nest"}]}'
    )
    assert json.loads(listing.models(["gpt-4o-mini", "balanced"], "balanced").body)["id"] == "balanced"
    with pytest.raises(NotFound):
        listing.models(["gpt-4o-mini"], "gpt-4")


def test_the_paths_are_below_the_clients_base_url() -> None:
    assert [route.path for route in OpenAI("/ai/v1/").routes] == ["/ai/v1/chat/completions", "/ai/v1/models"]


# Requests in.


def test_a_whole_request() -> None:
    weather = {"name": "weather", "description": "Tells it", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "call-a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bonn"}'}}
    body = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "Is it"}, {"type": "text", "text": "cold?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call-a", "content": "19 °C"},
        ],
        "tools": [{"type": "function", "function": weather}, {"type": "function", "function": {"name": "clock"}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 60,
        "max_completion_tokens": 50,
        "temperature": 0,
        "n": 1,
        "logprobs": False,
        "response_format": {"type": "text"},
        "user": "u-1",
        "seed": 5,
        "stop": None,
        "top_p": 1,
        "store": False,
        "metadata": {"a": "b"},
        "budget": 10**9,
    }
    request = openai.parse(json.dumps(body).encode())
    assert request == ChatRequest(
        messages=(
            Message(role="developer", content="be brief"),
            Message(role="user", content="Is it\ncold?"),
            Message(
                role="assistant",
                content="",
                tool_calls=(ToolCall(id="call-a", name="weather", arguments='{"city":"Bonn"}'),),
            ),
            Message(role="tool", content="19 °C", tool_call_id="call-a"),
        ),
        model="gpt-4o-mini",
        max_output_tokens=50,
        temperature=0.0,
        tools=request.tools,
        options=Options(seed=5, top_p=1.0),
        tool_choice="tool:weather",
        stream=True,
        include_usage=True,
    )
    assert [(tool.name, tool.description, bytes(tool.parameters)) for tool in request.tools] == [
        ("weather", "Tells it", b'{"type":"object","properties":{}}'),
        ("clock", "", bytes(Tool(name="clock").parameters)),
    ]


def test_the_least_request_is_not_streamed() -> None:
    assert parse() == ChatRequest(messages=(Message(role="user", content="hello"),), stream=False)


@pytest.mark.parametrize(
    ("choice", "parsed"), [("none", "none"), ("auto", "auto"), ("required", "required"), (None, "auto")]
)
def test_tool_choices(choice: object, parsed: str) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert parse(tools=tools, tool_choice=choice).tool_choice == parsed


NAMED = [{"type": "function", "function": {"name": name}} for name in ("weather", "clock")]


@pytest.mark.parametrize(
    ("mode", "parsed"), [({}, "auto"), ({"mode": "auto"}, "auto"), ({"mode": "required"}, "required")]
)
def test_allowed_tools_are_those_that_are_left(mode: dict[str, str], parsed: str) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {**mode, "tools": [NAMED[1]]}}
    request = parse(tools=NAMED, tool_choice=choice)
    assert ([tool.name for tool in request.tools], request.tool_choice) == (["clock"], parsed)


@pytest.mark.parametrize(
    ("allowed", "field"),
    [
        (None, ""),
        ({}, ".tools"),
        ({"mode": "none", "tools": NAMED}, ".mode"),
        ({"mode": "required", "tools": []}, ".mode"),
        ({"tools": [{"type": "function"}]}, ".tools[0].function"),
        ({"tools": [NAMED[0], {"function": {"name": "secret"}}]}, ".tools[1].function.name"),
    ],
)
def test_allowed_tools_that_are_not_among_the_tools(allowed: object, field: str) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    with pytest.raises(BadRequest) as refused:
        parse(tools=NAMED, tool_choice=choice)
    assert refused.value.field == f"tool_choice.allowed_tools{field}"
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"moderation": {"model": "omni-moderation-latest"}}, "moderation"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"base_url": "http://secret"}, "base_url"),
        ({"api_key": "secret"}, "api_key"),
        ({"models": ["secret"]}, "models"),
        ({"model": 5}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "tool_choice.function.name"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "messages[0].content"),
        ({"model": "a\x00"}, "model"),
        ({"messages": [HELLO, {"role": "assistant", "content": "x"}]}, "messages[1]"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 1_001}]}, "messages[0].content"),
        (
            {"messages": [HELLO, {"role": "assistant", "tool_calls": [{"id": "a"}]}, HELLO]},
            "messages[1].tool_calls[0].function",
        ),
    ],
)
def test_rows_12_to_19_a_bad_field_is_named_and_never_echoed(fields: dict[str, object], field: str) -> None:
    named, rule = refused(**fields)
    assert named == field
    assert "secret" not in rule


def test_null_is_as_good_as_absent() -> None:
    nothing = dict.fromkeys(("model", "tools", "tool_choice", "stream", "max_tokens", "temperature", "n"))
    assert parse(**nothing) == parse()


def test_a_cancelled_answer_is_left_out_and_the_official_clients_empty_one_too() -> None:
    empty = [{"role": "assistant", "content": ""}, {"role": "assistant", "content": None}]
    assert parse(messages=[HELLO, *empty, HELLO]).messages == (Message(role="user", content="hello"),) * 2


def test_the_story_has_every_kind_of_delta() -> None:
    assert {type(delta).__name__ for batch in STORY for delta in batch} == {
        "TextDelta",
        "ReasoningDelta",
        "ToolCallDelta",
        "UsageDelta",
        "FinishDelta",
    }
