"""What holds in each of them, whatever the text, the batches and the body are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialect_tools import ROW_29, ending, texts, whatwg
from hypothesis import example, given
from hypothesis import strategies as st

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.dialects import DIALECTS, named, DialectName
from chat_nest.core.errors import BadRequest, UpstreamIdle
from chat_nest.core.messages import ChatRequest
from chat_nest.core.protocols import Dialect, Encoder
from chat_nest.core.usage import Usage

EVERY = pytest.mark.parametrize("name", DIALECTS)

USER = {"role": "user", "content": "hello"}
BODIES: dict[str, dict[str, Any]] = {
    "native": {"messages": [USER]},
    "openai": {"messages": [USER]},
    "responses": {"input": [USER]},
    "ai_sdk": {"messages": [{"role": "user", "parts": [{"type": "text", "text": "hello"}]}]},
    "ag_ui": {"threadId": "t", "runId": "r", "messages": [USER]},
    "anthropic": {"messages": [USER], "max_tokens": 5},
    "blog": {"message": "hello"},
}


TEXT_EVENTS = {"response.output_text.delta": "text", "response.reasoning_summary_text.delta": "reasoning"}


def encoder(name: DialectName) -> Encoder:
    return named(name).encoder(ChatRequest(messages=()), "run-1")


def pieces(name: DialectName, stream: bytes) -> list[tuple[str, str]]:
    """("text" or "reasoning", what it says) of each event of the answer that has some."""
    found: list[tuple[str, Any]] = []
    for seen in whatwg(stream):
        data = json.loads(seen.data) if seen.data not in ("", "[DONE]") else {}
        match name:
            case "native" if seen.name == "token":
                found.append(("text", data))
            case "blog" if seen.name == "chunk":
                found.append(("text", data["text"]))
            case "openai" if data and data["choices"]:
                delta = data["choices"][0]["delta"]
                if delta.get("content"):
                    found.append(("text", delta["content"]))
                if delta.get("reasoning_content"):
                    found.append(("reasoning", delta["reasoning_content"]))
            case "responses" if data["type"] in TEXT_EVENTS:
                found.append((TEXT_EVENTS[data["type"]], data["delta"]))
            case "ai_sdk" if data.get("type") in ("text-delta", "reasoning-delta"):
                found.append((data["type"].removesuffix("-delta"), data["delta"]))
            case "ag_ui" if data["type"].endswith("_MESSAGE_CONTENT"):
                found.append((data["type"].removesuffix("_MESSAGE_CONTENT").lower(), data["delta"]))
            case "anthropic" if data["type"] == "content_block_delta" and "partial_json" not in data["delta"]:
                delta = data["delta"]
                thinks = delta["type"] == "thinking_delta"
                found.append(("reasoning", delta["thinking"]) if thinks else ("text", delta["text"]))
    return found


deltas = st.one_of(
    st.builds(TextDelta, texts),
    st.builds(TextDelta, texts),
    st.builds(ReasoningDelta, texts),
    st.builds(lambda index, text: ToolCallDelta(index, text, f"call-{index}", "weather"), st.integers(0, 2), texts),
    st.builds(UsageDelta, st.just(Usage())),
)


@EVERY
@given(batches=st.lists(st.lists(deltas, min_size=1, max_size=5), max_size=6))
@example(batches=[[TextDelta(ROW_29)], [TextDelta(ROW_29), TextDelta(ROW_29)], [TextDelta("\ud83d"), TextDelta("x")]])
@example(batches=[[TextDelta("a")], [TextDelta("b"), ReasoningDelta("c"), TextDelta("d")], [FinishDelta("stop")]])
def test_row_29_any_text_of_a_model_is_relayed_piece_by_piece(name: DialectName, batches: list[list[Delta]]) -> None:
    answering = encoder(name)
    stream = answering.start("m")
    for batch in batches:
        stream += answering.heartbeat() + answering.encode(batch) + answering.heartbeat()
    stream += answering.finish(ending())
    said: list[tuple[str, str]] = []
    for batch in batches:
        for delta in batch:
            if isinstance(delta, TextDelta):
                said.append(("text", delta.text))
            elif isinstance(delta, ReasoningDelta) and name not in ("native", "blog"):
                said.append(("reasoning", delta.text))
    assert pieces(name, stream) == said
    assert b"\r" not in stream
    assert not stream.startswith(b"\xef\xbb\xbf")


@EVERY
def test_nothing_is_written_for_what_has_no_words(name: DialectName) -> None:
    answering = encoder(name)
    answering.start("m")
    assert answering.encode([UsageDelta(Usage()), FinishDelta("stop")]) == b""


@EVERY
def test_an_error_is_the_last_event_at_any_time(name: DialectName) -> None:
    for before in ([], [TextDelta("a")], [ReasoningDelta("a")], [ToolCallDelta(0, "{", "a", "b")]):
        answering = encoder(name)
        answering.start("m")
        answering.encode(before)
        told = answering.fail(UpstreamIdle()).removesuffix(b"data: [DONE]\n\n")  # the AI SDK's end of any stream
        events = [seen.name for seen in whatwg(told)]
        assert len(events) == 1 or events == ["error", "response.failed"]


# Requests.


@EVERY
def test_the_least_body_is_taken(name: DialectName) -> None:
    request = named(name).parse(json.dumps(BODIES[name]).encode())
    assert [(message.role, message.content) for message in request.messages] == [("user", "hello")]


@EVERY
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"secret"',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"message":"\xff"}',
        b'{"messages":NaN}',
        b'{"message":1e999}',
        b'{"message":' + b"9" * 5_000 + b"}",
        b'{"message":' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"message":"a","message":"b"}',
        b'{"message":"\\ud83d","messages":[{"role":"user","content":"\\ud83d","parts":[{"type":"text","text":"\\ud83d"}]}]}',
        b"{}",
    ],
    ids=range(15),
)
def test_rows_11_and_12_a_broken_body_is_a_400(name: DialectName, body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        named(name).parse(body)
    assert caught.value.field
    assert named(name).refuse(caught.value, "r1").status == 400


@EVERY
@pytest.mark.parametrize("field", ["base_url", "api_key", "headers", "callback", "image_url"])
def test_row_16_no_request_chooses_where_we_connect(name: DialectName, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        named(name).parse(json.dumps({**BODIES[name], field: "http://secret"}).encode())
    assert caught.value.field == field


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    *(
        "role",
        "content",
        "type",
        "text",
        "parts",
        "tool_calls",
        "toolCalls",
        "tool_call_id",
        "toolCallId",
        "id",
        "name",
    ),
    *("input", "output", "state", "errorText", "function", "arguments", "tool_use_id", "messages", "message", "tools"),
    *(
        "tool_choice",
        "instructions",
        "call_id",
        "previous_response_id",
        "metadata",
        "reasoning",
        "include",
        "system",
        "stream",
        "stream_options",
        "model",
        "profile",
        "context",
        "forwardedProps",
        "n",
    ),
]
WORDS = [
    *("user", "assistant", "tool", "text", "tool_use", "tool_result", "function", "tool-x", "dynamic-tool", "x"),
    *("message", "function_call", "function_call_output", "item_reference", "input_text", "refusal"),
    *("output-available", "output-error", "step-start", "thinking", "auto", "any", "required"),
]
likely = st.recursive(
    st.sampled_from(WORDS) | json_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=20,
)


@EVERY
@given(fields=st.dictionaries(st.sampled_from(NAMES), likely, max_size=6), keep=st.booleans())
def test_no_body_raises_anything_but_bad_request(name: DialectName, fields: dict[str, Any], keep: bool) -> None:
    dialect: Dialect = named(name)
    body = {**BODIES[name], **fields} if keep else fields
    try:
        request = dialect.parse(json.dumps(body).encode())
    except BadRequest as caught:
        assert caught.field
        assert dialect.refuse(caught, "r1").body
    else:
        assert request.messages[-1].role in ("user", "tool")


@EVERY
@given(st.text(st.characters(min_codepoint=0x3400, max_codepoint=0x4DBF), min_size=1))
def test_row_13_a_refusal_echoes_no_value(name: DialectName, secret: str) -> None:
    message = {"role": secret, "content": secret, "parts": [{"type": secret, "text": secret}]}
    for bad in (
        {"messages": [message], "message": [secret]},
        {"messages": secret, "message": {"x": secret}},
        {"input": [message], "include": [secret]},
        {"input": [{"type": secret, "id": secret}]},
        {"input": "x", "tools": [{"type": secret}], "metadata": {secret: secret}},
        {"model": secret, "messages": [{**message, "role": "user", "content": [{"type": secret}]}], "message": 1},
        {"tools": [{"type": secret, "name": secret}], "message": [secret], "profile": [secret]},
        {"tools": {secret: secret}, "message": [secret], "context": secret},
    ):
        try:
            named(name).parse(json.dumps({**BODIES[name], **bad}, ensure_ascii=False).encode())
        except BadRequest as caught:
            assert not set(named(name).refuse(caught, "r1").body.decode()) & set(secret)
