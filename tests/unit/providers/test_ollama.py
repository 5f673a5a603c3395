"""Ollama's own API: what bytes mean, however they are cut; and what is asked for."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from decoding import SECRET, decode, decode_cut_anywhere

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta, FinishReason
from chat_nest.core.errors import UpstreamError, UpstreamProtocol, UpstreamTruncated
from chat_nest.core.messages import Message, Tool, ToolCall
from chat_nest.core.protocols import Prompt
from chat_nest.providers.ollama import OllamaProvider, ollama_codec, request_body
from chat_nest.core.usage import Usage


def line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def said(content: str = "", **message: Any) -> bytes:
    created = "2026-01-12T14:13:43.416799Z"
    message = {"role": "assistant", "content": content, **message}
    return line({"model": "qwen3", "created_at": created, "message": message, "done": False})


def done(reason: str | None = "stop", **counts: Any) -> bytes:
    more = {} if reason is None else {"done_reason": reason}
    message = {"role": "assistant", "content": ""}
    return line({"model": "qwen3", "message": message, "done": True, **more, "total_duration": 5191566416, **counts})


def read(body: bytes) -> tuple[list[Delta], type[UpstreamError] | None]:
    return decode(ollama_codec(), body)


USAGE = UsageDelta(Usage(input_tokens=26, output_tokens=9))
WHOLE = (
    said(thinking="Hmm.")
    + said("Hel")
    + said("lo é\u2028")
    + done(prompt_eval_count=26, prompt_eval_duration=1, eval_count=9, eval_duration=2)
)
DELTAS = [ReasoningDelta("Hmm."), TextDelta("Hel"), TextDelta("lo é\u2028"), FinishDelta("stop"), USAGE]


def test_a_whole_answer_cut_at_every_byte() -> None:
    assert decode_cut_anywhere(ollama_codec, WHOLE) == (DELTAS, None)
    assert read(WHOLE.replace(b"\n", b"\r\n\r\n")) == (DELTAS, None)


def test_an_answer_that_ends_at_any_byte_is_never_done_before_its_last_line() -> None:
    for end in range(len(WHOLE)):
        deltas, failure = read(WHOLE[:end])
        assert failure is UpstreamTruncated
        assert deltas == DELTAS[: len(deltas)]


def test_calls_cut_at_every_byte() -> None:
    calls = [{"function": {"name": "weather", "arguments": {"city": "Paris é"}}}, {"function": {"name": "time"}}]
    body = said(tool_calls=calls) + said(tool_calls=[{"id": "x1", "function": {"name": "time", "arguments": None}}])
    assert decode_cut_anywhere(lambda: ollama_codec("call_7"), body + done()) == (
        [
            ToolCallDelta(0, '{"city": "Paris é"}', "call_7_0", "weather"),
            ToolCallDelta(1, "{}", "call_7_1", "time"),
            ToolCallDelta(2, "{}", "x1", "time"),
            FinishDelta("tool_calls"),
        ],
        None,
    )
    assert read(said(tool_calls=calls * 65))[1] is UpstreamProtocol


@pytest.mark.parametrize(("reason", "meant"), [("stop", "stop"), ("length", "length"), (None, "stop")])
def test_done_reasons(reason: str | None, meant: FinishReason) -> None:
    assert read(done(reason)) == ([FinishDelta(meant)], None)


def test_an_error_line_is_an_error_after_the_earlier_text() -> None:
    for error in (SECRET, {"message": SECRET}, 3):
        assert read(said("a") + line({"error": error}) + said("b") + done()) == ([TextDelta("a")], UpstreamError)


@pytest.mark.parametrize("body", [b"\n \r\n", line({}), line({"message": None}), line({"status": "loading"}), said()])
def test_empty_parts_are_left_out(body: bytes) -> None:
    assert read(body + said("a") + done()) == ([TextDelta("a"), FinishDelta("stop")], None)
    assert read(body) == ([], UpstreamTruncated)


def test_nothing_counts_after_the_last_line() -> None:
    assert read(done() + said("x") + b"{\n" + b"x" * (2 << 20)) == ([FinishDelta("stop")], None)


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"null",
        b"[]",
        b"data {}",
        b"<html>",
        b'{"message":{"content":"\xff"}}',
        b'{"x":' + b"[" * 10_000,
    ],
    ids=lambda bad: repr(bad[:60]),
)
def test_an_unparsable_event_is_an_error_after_the_earlier_text(bad: bytes) -> None:
    assert read(said("a") + bad + b"\n" + said(SECRET) + done()) == ([TextDelta("a")], UpstreamProtocol)


def test_an_endless_line_is_an_error_after_the_earlier_text() -> None:
    assert read(said("a") + b"x" * ((1 << 20) + 1)) == ([TextDelta("a")], UpstreamProtocol)


# Usage.

NINE = ([FinishDelta("stop"), UsageDelta(Usage(output_tokens=9))], None)


@pytest.mark.parametrize("bad", [-1, 2**50 + 1, 10**400, 1.5, True, "nine", None, [9], {}])
def test_counts_that_cannot_be_true_are_none(bad: object) -> None:
    assert read(done(prompt_eval_count=bad, eval_count=9)) == NINE
    assert read(done(prompt_eval_count=26, eval_count=bad)) == ([FinishDelta("stop")], None)


def test_a_prompt_that_was_cached_has_no_count_and_is_not_free() -> None:
    assert read(done(eval_count=9)) == NINE
    assert read(done(eval_count=0)) == ([FinishDelta("stop")], None)
    assert read(done(prompt_eval_count=0, eval_count=0)) == ([FinishDelta("stop"), UsageDelta(Usage())], None)


@pytest.mark.parametrize("number", [b"1e999", b"1" * 5_000])
def test_a_number_out_of_any_range_does_not_break_the_stream(number: bytes) -> None:
    assert read(done(eval_count=9).replace(b": 9", b": " + number)) == ([FinishDelta("stop")], None)


# The request.


def asked(*messages: Message, **more: Any) -> dict[str, Any]:
    return json.loads(request_body(Prompt(model="qwen3", messages=messages, max_output_tokens=7, **more)))


def user(content: str) -> Message:
    return Message(role="user", content=content)


def test_a_request() -> None:
    system = (Message(role="system", content="Be brief."), Message(role="developer", content="Be kind."))
    assert asked(*system, user("Hé\n"), temperature=0.5) == {
        "model": "qwen3",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hé\n"},
        ],
        "stream": True,
        "options": {"num_predict": 7, "temperature": 0.5},
    }
    assert asked(user("a"))["options"] == {"num_predict": 7}


def test_tools() -> None:
    call = ToolCall(id="c0", name="weather", arguments='{"city":"Paris"}')
    body = asked(
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", tool_call_id="c0", content="Sun"),
        Message(role="tool", tool_call_id="lost", content="?"),
        tools=(Tool(name="weather", description="Of a city", parameters=msgspec.Raw(b'{"type":"object"}')),),
    )
    function = {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["messages"] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "content": "Sun", "tool_name": "weather"},
        {"role": "tool", "content": "?", "tool_name": "lost"},
    ]


@pytest.mark.parametrize(
    ("choice", "offered"),
    [("auto", ["a", "b"]), ("required", ["a", "b"]), ("none", []), ("tool:b", ["b"])],
)
def test_a_choice_of_tools_is_made_by_what_is_offered(choice: str, offered: list[str]) -> None:
    body = asked(user("x"), tools=(Tool(name="a"), Tool(name="b")), tool_choice=choice)
    assert [tool["function"]["name"] for tool in body.get("tools", [])] == offered


def test_the_key_is_not_shown() -> None:
    provider = OllamaProvider(SECRET, "https://host")
    assert repr(provider) == "OllamaProvider('https://host')"
    assert OllamaProvider().base_url == "http://localhost:11434"
    assert OllamaProvider(None, "http://10.0.0.4:11434").abort_bills == "stops"
