"""Anthropic's Messages API: what bytes mean, however they are cut; and what is asked for."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from decoding import SECRET, decode, decode_cut_anywhere

from chat_nest.core.deltas import (
    FinishReason,
    Delta,
    FinishDelta,
    ReasoningDelta,
    SignatureDelta,
    TextDelta,
    ToolCallDelta,
    UsageDelta,
)
from chat_nest.core.errors import (
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocol,
    UpstreamRateLimited,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from chat_nest.core.messages import Message, Tool, ToolCall
from chat_nest.core.protocols import Prompt
from chat_nest.providers.anthropic import AnthropicProvider, anthropic_codec, request_body, takes_temperature
from chat_nest.core.usage import Usage


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def start(**usage: Any) -> bytes:
    message = {"id": "msg_01", "type": "message", "role": "assistant", "content": [], "model": "claude-haiku-4-5"}
    return event("message_start", message={**message, "stop_reason": None, "usage": usage})


def block(index: int, **block: Any) -> bytes:
    return event("content_block_start", index=index, content_block=block)


def delta(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def text(said: str, index: int = 0) -> bytes:
    return delta(index, "text_delta", text=said)


def last(reason: str | None = "end_turn", **usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)


STOP = event("message_stop")
PING = event("ping")
CLOSE = event("content_block_stop", index=0)
START = start(input_tokens=25, output_tokens=1)
TEXT = block(0, type="text", text="")
WHOLE = START + TEXT + PING + text("Hel") + text("lo") + CLOSE + last(output_tokens=15) + STOP


def usage(input_tokens: int, output_tokens: int, read: int = 0, written: int = 0) -> UsageDelta:
    return UsageDelta(
        Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_input_tokens=read,
            cache_write_tokens=written,
        )
    )


def read(body: bytes) -> tuple[list[Delta], type[UpstreamError] | None]:
    return decode(anthropic_codec(), body)


HELLO = [TextDelta("Hel"), TextDelta("lo")]


def test_a_whole_answer_cut_at_every_byte() -> None:
    expected = [usage(25, 0), *HELLO, usage(25, 15), FinishDelta("stop")]
    assert decode_cut_anywhere(anthropic_codec, WHOLE) == (expected, None)


def test_an_answer_that_ends_at_any_byte_is_never_done_before_its_last_event() -> None:
    for end in range(len(WHOLE)):
        deltas, failure = read(WHOLE[:end])
        assert failure is UpstreamTruncated
        assert deltas == [usage(25, 0), *HELLO, usage(25, 15)][: len(deltas)]


def test_nothing_counts_after_the_last_event() -> None:
    codec = anthropic_codec()
    codec.feed(WHOLE + text("x") + event("error", error={"type": "api_error"}))
    assert codec.over
    assert codec.feed(text("y") + b"data: {\n\n") == []
    codec.end()


def test_a_stream_cut_after_its_start_still_reports_its_input() -> None:
    assert read(start(input_tokens=25, cache_read_input_tokens=70, cache_creation_input_tokens=5, output_tokens=1)) == (
        [usage(100, 0, read=70, written=5)],
        UpstreamTruncated,
    )


TOOLS = (
    START
    + block(0, type="thinking", thinking="", signature="")
    + delta(0, "thinking_delta", thinking="Let me see.")
    + delta(0, "signature_delta", signature="EqQBCgIYAhIM")
    + event("content_block_stop", index=0)
    + block(1, type="text", text="I ")
    + text("look.", 1)
    + event("content_block_stop", index=1)
    + block(2, type="tool_use", id="toolu_01", name="weather", input={})
    + delta(2, "input_json_delta", partial_json="")
    + delta(2, "input_json_delta", partial_json='{"city": "Pa')
    + delta(2, "input_json_delta", partial_json='ris é"}')
    + event("content_block_stop", index=2)
    + block(3, type="tool_use", id="toolu_02", name="time", input={})
    + delta(3, "input_json_delta", partial_json="{}")
    + event("content_block_stop", index=3)
    + last("tool_use", output_tokens=89)
    + STOP
)


def test_thinking_and_tools_cut_at_every_byte() -> None:
    assert decode_cut_anywhere(anthropic_codec, TOOLS) == (
        [
            usage(25, 0),
            ReasoningDelta("Let me see."),
            SignatureDelta("EqQBCgIYAhIM"),
            TextDelta("I "),
            TextDelta("look."),
            ToolCallDelta(0, "", "toolu_01", "weather"),
            ToolCallDelta(0, '{"city": "Pa'),
            ToolCallDelta(0, 'ris é"}'),
            ToolCallDelta(1, "", "toolu_02", "time"),
            usage(25, 89),
            FinishDelta("tool_calls"),
        ],
        None,
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    {
        "an event of an unknown type": (event("content_block_hint", delta=3, usage="x"), []),
        "an unknown delta": (delta(0, "citations_delta", citation={"cited_text": "x"}), []),
        "a tool of the provider's own": (
            block(0, type="server_tool_use", id="srvtoolu_1", name="web_search", input={})
            + delta(0, "input_json_delta", partial_json='{"q":1}')
            + block(1, type="web_search_tool_result", tool_use_id="srvtoolu_1", content=[{"url": "https://x"}]),
            [],
        ),
        "thinking that is encrypted": (
            block(0, type="redacted_thinking", data="EmwKAhgB"),
            [SignatureDelta(redacted="EmwKAhgB")],
        ),
        "empty data": (b"data:\n\n: comment\n\n", []),
        "no stop reason": (last(None), []),
    }.values(),
)
def test_empty_parts_are_left_out(body: bytes, expected: list[Delta]) -> None:
    assert read(body + text("a") + last() + STOP) == ([*expected, TextDelta("a"), FinishDelta("stop")], None)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
    ],
)
def test_stop_reasons(said: str, meant: FinishReason) -> None:
    assert read(last(said) + STOP) == ([FinishDelta(meant)], None)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", UpstreamOverloaded),
        ("api_error", UpstreamUnavailable),
        ("timeout_error", UpstreamUnavailable),
        ("rate_limit_error", UpstreamRateLimited),
        ("invalid_request_error", UpstreamError),
        (None, UpstreamError),
        ([], UpstreamError),
    ],
)
def test_an_error_event_is_an_error_after_the_earlier_text(kind: object, expected: type[UpstreamError]) -> None:
    failed = event("error", error={"type": kind, "message": SECRET})
    assert read(START + text("a") + failed + text("b") + STOP) == ([usage(25, 0), TextDelta("a")], expected)


def test_an_error_of_another_shape_is_still_an_error() -> None:
    for error in (SECRET, None, 3, [], {}):
        assert read(event("error", error=error) + STOP) == ([], UpstreamError)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"null",
        b"[]",
        b'{"type":"content_block_delta","delta":{"text":"\xff"}}',
        b'{"type":' + b"[" * 10_000,
    ],
    ids=lambda data: repr(data[:60]),
)
def test_an_unparsable_event_is_an_error_after_the_earlier_text(data: bytes) -> None:
    assert read(text("a") + b"data: " + data + b"\n\n" + text(SECRET) + STOP) == ([TextDelta("a")], UpstreamProtocol)


def test_calls_without_end_are_refused() -> None:
    assert read(b"".join(block(i, type="tool_use", id="a", name="b") for i in range(129)))[1] is UpstreamProtocol


def test_an_endless_line_is_an_error_after_the_earlier_text() -> None:
    assert read(text("a") + b"data: " + b"x" * (1 << 20)) == ([TextDelta("a")], UpstreamProtocol)


# Usage.


def last_usage(*events: bytes) -> Usage | None:
    deltas, failure = read(b"".join(events) + last() + STOP)
    assert failure is None
    totals = [delta.usage for delta in deltas if isinstance(delta, UsageDelta)]
    return totals[-1] if totals else None


@pytest.mark.parametrize("bad", [-1, 2**50 + 1, 10**400, 1.5, True, "nine", None, [9], {}])
def test_a_count_that_cannot_be_true_leaves_the_one_before(bad: object) -> None:
    assert last_usage(start(input_tokens=bad, output_tokens=1)) is None
    assert last_usage(START, last(input_tokens=bad, output_tokens=bad)) == usage(25, 0).usage
    assert last_usage(START, last(output_tokens=9), last(output_tokens=bad)) == usage(25, 9).usage
    assert last_usage(start(input_tokens=5, cache_read_input_tokens=bad)) == usage(5, 0).usage


def test_the_last_total_wins_and_repetition_is_silent() -> None:
    assert last_usage(START, last(output_tokens=9), last(output_tokens=4)) == usage(25, 9).usage, "lower is no count"
    assert last_usage(START, last(output_tokens=0)) == usage(25, 0).usage
    again = last(input_tokens=25, cache_read_input_tokens=0, output_tokens=0)
    assert read(START + again + again + STOP) == ([usage(25, 0), FinishDelta("stop")], None)
    corrected = last(input_tokens=10, cache_read_input_tokens=90, cache_creation_input_tokens=7, output_tokens=3)
    assert last_usage(START, corrected) == usage(107, 3, read=90, written=7).usage
    assert last_usage(last(output_tokens=3)) == Usage(output_tokens=3), "the input is still unknown"


@pytest.mark.parametrize("number", [b"1e999", b"1" * 5_000])
def test_a_number_out_of_any_range_is_a_count_that_cannot_be_true(number: bytes) -> None:
    odd = (
        b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":'
        + number
        + b"}}\n\n"
    )
    deltas, failure = read(START + odd + STOP)
    assert failure is None
    assert deltas == [usage(25, 0), FinishDelta("stop")]


# The request.


def asked(*messages: Message, model: str = "claude-haiku-4-5", **more: Any) -> dict[str, Any]:
    return json.loads(request_body(Prompt(model=model, messages=messages, max_output_tokens=7, **more)))


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str, *calls: ToolCall) -> Message:
    return Message(role="assistant", content=content, tool_calls=calls)


def test_a_request() -> None:
    system = (Message(role="system", content="Be brief."), Message(role="developer", content="Be kind."))
    assert asked(*system, user("Hé\n"), temperature=0.5) == {
        "model": "claude-haiku-4-5",
        "max_tokens": 7,
        "system": "Be brief.\n\nBe kind.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hé\n"}]}],
        "stream": True,
        "temperature": 0.5,
    }
    assert asked(user("a"), temperature=1.7)["temperature"] == 1.0, "theirs ends at 1"


def test_turns_are_put_together_and_begin_with_the_user() -> None:
    body = asked(assistant("Welcome."), user("a"), user(" "), user("b"), assistant(""), user("c"), assistant("d  \n"))
    assert [(turn["role"], [part["text"] for part in turn["content"]]) for turn in body["messages"]] == [
        ("user", ["a", "b", "c"]),
        ("assistant", ["d"]),
    ]


def test_tools() -> None:
    tool = Tool(name="weather", description="Of a city", parameters=msgspec.Raw(b'{"type":"object","x":1e400}'))
    calls = (ToolCall(id="t1", name="weather", arguments='{"city":"Paris","n":12345678901234567890123}'),)
    odd = (ToolCall(id="t2", name="time", arguments="[1"), ToolCall(id="t3", name="time", arguments=""))
    prompt = Prompt(
        model="m",
        max_output_tokens=7,
        messages=(
            user("Both?"),
            assistant("", *calls, *odd),
            Message(role="tool", tool_call_id="t1", content="Sun"),
            Message(role="tool", tool_call_id="t2", content="Noon"),
            user("And?"),
        ),
        tools=(tool,),
    )
    raw = request_body(prompt)
    assert b'"input_schema":{"type":"object","x":1e400}' in raw
    assert b'"input":{"city":"Paris","n":12345678901234567890123}' in raw
    body = json.loads(raw)
    assert body["tools"][0]["name"] == "weather"
    assert "tool_choice" not in body
    assert body["messages"][1]["content"][1:] == [
        {"type": "tool_use", "id": "t2", "name": "time", "input": {"arguments": "[1"}},
        {"type": "tool_use", "id": "t3", "name": "time", "input": {}},
    ]
    assert body["messages"][2] == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "Sun"},
            {"type": "tool_result", "tool_use_id": "t2", "content": "Noon"},
            {"type": "text", "text": "And?"},
        ],
    }


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ("tool:weather", {"type": "tool", "name": "weather"}),
    ],
)
def test_tool_choices(choice: str, sent: dict[str, str]) -> None:
    assert asked(user("a"), tools=(Tool(name="weather"),), tool_choice=choice)["tool_choice"] == sent
    assert "tool_choice" not in asked(user("a"), tool_choice=choice), "which nothing is to be chosen from"


OLDER = """claude-3-5-sonnet-20241022 claude-3-opus-latest claude-2.1 claude-instant-1.2 claude-sonnet-4-20250514
claude-opus-4-1-20250805 claude-haiku-4-5 claude-opus-4-6 anthropic/claude-sonnet-4 llama3""".split()
NEWER = (
    "claude-opus-4-7 claude-opus-4-8 claude-sonnet-4-10 claude-opus-5-5 claude-fable-5 claude-mythos-preview".split()
)


@pytest.mark.parametrize("model", [*OLDER, *NEWER])
def test_which_models_accept_a_temperature(model: str) -> None:
    assert takes_temperature(model) is (model in OLDER)
    assert ("temperature" in asked(user("a"), model=model, temperature=0.7)) is (model in OLDER)


def test_the_key_is_not_shown() -> None:
    provider = AnthropicProvider(SECRET, "https://host")
    assert repr(provider) == "AnthropicProvider('https://host')"
    assert provider.abort_bills == "unknown"
    assert AnthropicProvider(SECRET).abort_bills == "stops"


# A gateway that begins a message in the middle of another.


def begun(id: str | None, **usage: Any) -> bytes:
    return event("message_start", message={"id": id, "type": "message", "usage": usage})


FIRST = begun("msg_1", input_tokens=20, cache_read_input_tokens=80, output_tokens=1)
OTHER = begun("msg_2", input_tokens=100, output_tokens=1)
TOOL = block(0, type="tool_use", id="toolu_1", name="weather", input={})
CUT = TOOL + delta(0, "input_json_delta", partial_json='{"ci')
REST = delta(0, "input_json_delta", partial_json='ty":1}') + CLOSE + last("tool_use", output_tokens=5) + STOP
CITY = ToolCallDelta(0, '{"city":1}', "toolu_1", "weather")


def joined(deltas: list[Delta]) -> tuple[str, str, list[Usage]]:
    said = "".join(each.text for each in deltas if isinstance(each, TextDelta))
    called = "".join(each.arguments for each in deltas if isinstance(each, ToolCallDelta))
    return said, called, [each.usage for each in deltas if isinstance(each, UsageDelta)]


@pytest.mark.parametrize("said", [TEXT + text("Hel"), CUT, TOOL, delta(0, "thinking_delta", thinking="Hm")])
def test_the_answer_of_another_server_after_a_part_of_the_first_is_a_failure(said: bytes) -> None:
    """Two answers would be mixed: https://github.com/vercel/ai/issues/18331."""
    whole = TEXT + text("Hello") + CLOSE + last(output_tokens=9) + STOP
    deltas, failure = decode_cut_anywhere(anthropic_codec, FIRST + said + OTHER + whole)
    assert failure is UpstreamTruncated
    assert deltas == read(FIRST + said)[0], "nothing of the second is told or counted"


@pytest.mark.parametrize("nothing", [b"", PING, TEXT, TEXT + PING])
def test_the_answer_of_another_server_replaces_an_empty_one(nothing: bytes) -> None:
    assert read(FIRST + nothing + FIRST + CUT + REST)[1] is None
    body = FIRST + nothing + OTHER + CUT + REST
    deltas, failure = decode_cut_anywhere(anthropic_codec, body)
    assert failure is None
    said, called, usages = joined(deltas)
    assert (said, called, usages[-1]) == ("", CITY.arguments, usage(100, 5).usage)
    assert all(each.input_tokens == 100 for each in usages), "the inputs of two servers are not added"


@pytest.mark.parametrize(
    "again", [FIRST, begun(None), begun("msg_1", input_tokens=100), begun("msg_1", input_tokens=0)]
)
def test_a_start_may_be_repeated_anywhere(again: bytes) -> None:
    """https://github.com/BerriAI/litellm/issues/32479, https://github.com/MoonshotAI/Kimi-K2.5/issues/33."""
    events = [FIRST, TOOL, delta(0, "input_json_delta", partial_json='{"ci'), PING]
    for at in range(1, len(events) + 1):
        body = b"".join(events[:at]) + again * 2 + b"".join(events[at:]) + REST
        deltas, failure = decode_cut_anywhere(anthropic_codec, body)
        said, called, usages = joined(deltas)
        assert (said, called, failure) == ("", CITY.arguments, None)
        assert {each.input_tokens for each in usages} == {100}
        assert usages[-1].output_tokens == 5


@pytest.mark.parametrize("id", ["msg_1", None])
def test_a_message_that_restarts_under_the_same_id_is_a_failure(id: str | None) -> None:
    body = begun(id, input_tokens=100) + CUT + begun(id, input_tokens=100) + CUT + REST
    deltas, failure = decode_cut_anywhere(anthropic_codec, body)
    assert (joined(deltas)[1], failure) == ('{"ci', UpstreamTruncated)


@pytest.mark.parametrize("next", [FIRST, OTHER, begun(None)])
def test_a_start_after_the_stop_reason_ends_the_answer(next: bytes) -> None:
    answer = FIRST + TEXT + text("Hello") + CLOSE + last(output_tokens=9)
    deltas, failure = decode_cut_anywhere(anthropic_codec, answer + next + TEXT + text("Hel") + begun("msg_3"))
    assert (joined(deltas)[:2], failure, deltas[-1]) == (("Hello", ""), None, FinishDelta("stop"))
    assert joined(deltas)[2][-1] == usage(100, 9, read=80).usage


@pytest.mark.parametrize(("thinking", "reasoning"), [(6, 6), (15, 15), (0, 0), (None, 0), (-1, 0), ("6", 6), ([], 0)])
def test_tokens_of_thought_are_a_part_of_the_output(thinking: object, reasoning: int) -> None:
    counted = last(output_tokens=15, output_tokens_details={"thinking_tokens": thinking})
    deltas, failure = read(START + TEXT + text("Hi") + CLOSE + counted + STOP)
    assert failure is None
    assert joined(deltas)[2][-1] == Usage(input_tokens=25, output_tokens=15, reasoning_tokens=reasoning)
