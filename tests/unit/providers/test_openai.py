"""The codec: what bytes mean, however they are cut; and what is asked for."""

from __future__ import annotations

import json

import decoding
import msgspec
import pytest
from decoding import SECRET, decode_cut_anywhere
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scripted_provider import DONE, chunk, delta, event, finish, usage

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta, FinishReason
from chat_nest.core.errors import UpstreamError, UpstreamProtocol, UpstreamTruncated
from chat_nest.core.messages import Message, Thought, Tool, ToolCall, Role
from chat_nest.core.protocols import Prompt
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers import PRESETS
from chat_nest.providers.openai_codec import openai_codec, request_body, takes_temperature, token_limit_field
from chat_nest.core.usage import Usage


def decode(*reads: bytes) -> tuple[list[Delta], type[UpstreamError] | None]:
    return decoding.decode(openai_codec(), *reads)


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


ROLE = delta({"role": "assistant", "content": "", "refusal": None})
USAGE = UsageDelta(Usage(input_tokens=5, output_tokens=2))
HELLO = [TextDelta("Hel"), TextDelta("lo")]


def test_a_whole_answer() -> None:
    body = ROLE + chunk("Hel") + chunk("lo") + finish() + usage(5, 2) + DONE
    assert decode(body) == ([*HELLO, FinishDelta("stop"), USAGE], None)


LLAMA = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"created":1,'
    b'"id":"chatcmpl-S","model":"tiny","system_fingerprint":"b0","object":"chat.completion.chunk"}\n\n'
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" \xf0\x9f\x98\x80\xc3\xa9"}}],"created":1,'
    b'"id":"chatcmpl-S","model":"tiny","object":"chat.completion.chunk"}\r\n\r\n'
    b": comment\n\n"
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"\\ud83d\\ude00\\n\\n\\u2028data: x"}}]}\n\n'
    b'data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}],"created":1,"id":"chatcmpl-S"}\n\n'
    b'data: {"choices":[],"created":1,"id":"chatcmpl-S","usage":{"completion_tokens":30,"prompt_tokens":31,'
    b'"total_tokens":61,"prompt_tokens_details":{"cached_tokens":4}},"timings":{"prompt_ms":0.799}}\n\n'
    b"data: [DONE]\n\n"
)
LLAMA_DELTAS = [
    TextDelta(" \N{GRINNING FACE}é"),
    TextDelta("\N{GRINNING FACE}\n\n\u2028data: x"),
    FinishDelta("length"),
    UsageDelta(Usage(input_tokens=31, output_tokens=30, cached_input_tokens=4)),
]


def test_a_recorded_stream_cut_at_every_byte() -> None:
    assert decode(LLAMA) == (LLAMA_DELTAS, None)
    assert decode(*(LLAMA[i : i + 1] for i in range(len(LLAMA)))) == (LLAMA_DELTAS, None)
    for cut in range(len(LLAMA)):
        assert decode(LLAMA[:cut], LLAMA[cut:]) == (LLAMA_DELTAS, None)


def test_a_recorded_stream_that_ends_at_any_byte_is_never_done_before_its_finish() -> None:
    finished = LLAMA.index(b"data: ", LLAMA.index(b'"length"'))
    for cut in range(len(LLAMA)):
        deltas, failure = decode(LLAMA[:cut])
        assert failure is (UpstreamTruncated if cut < finished else None)
        assert deltas == LLAMA_DELTAS[: len(deltas)]


# Where servers differ.


@pytest.mark.parametrize(
    ("events", "expected"),
    {
        "no role chunk": (chunk("a") + finish() + DONE, [TextDelta("a"), FinishDelta("stop")]),
        "no [DONE]": (chunk("a") + finish(), [TextDelta("a"), FinishDelta("stop")]),
        "usage on the finish chunk": (
            event(
                [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                usage={"prompt_tokens": 5, "completion_tokens": 2},
            ),
            [FinishDelta("stop"), USAGE],
        ),
        "text on the finish chunk": (delta({"content": "a"}, "stop"), [TextDelta("a"), FinishDelta("stop")]),
        "null content": (delta({"content": None}) + finish(), [FinishDelta("stop")]),
        "null delta": (data({"choices": [{"delta": None, "finish_reason": "stop"}]}), [FinishDelta("stop")]),
        "no delta": (data({"choices": [{"finish_reason": "stop"}]}), [FinishDelta("stop")]),
        "null choices": (data({"choices": None}) + finish(), [FinishDelta("stop")]),
        "no choices": (data({"choices": [], "prompt_filter_results": []}) + data({}) + finish(), [FinishDelta("stop")]),
        "null index": (data({"choices": [{"index": None, "delta": {"content": "a"}}]}) + finish(), [TextDelta("a"), FinishDelta("stop")]),
        "an empty finish_reason": (delta({"content": "a"}, "") + finish(), [TextDelta("a"), FinishDelta("stop")]),
        "a second finish": (finish("length") + finish("stop"), [FinishDelta("length")]),
        "null error": (data({"error": None, "choices": []}) + finish(), [FinishDelta("stop")]),
        "empty data": (b"data:\n\ndata: \n\n" + finish(), [FinishDelta("stop")]),
        "spaces around [DONE]": (finish() + b"data:  [DONE] \n\n", [FinishDelta("stop")]),
        "several choices": (
            event([{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}])
            + event([{"index": 1, "delta": {}, "finish_reason": "length"}])
            + finish(),
            [TextDelta("a"), FinishDelta("stop")],
        ),
        "a refusal is text": (delta({"content": None, "refusal": "No."}) + finish(), [TextDelta("No."), FinishDelta("stop")]),
        "reasoning_content": (delta({"reasoning_content": "hm"}) + finish(), [ReasoningDelta("hm"), FinishDelta("stop")]),
        "reasoning": (delta({"reasoning": "hm", "content": ""}) + finish(), [ReasoningDelta("hm"), FinishDelta("stop")]),
        "reasoning said twice": (
            delta({"reasoning": "hm", "reasoning_content": "hm", "content": "a"}) + finish(),
            [ReasoningDelta("hm"), TextDelta("a"), FinishDelta("stop")],
        ),
        "reasoning of another type": (delta({"reasoning": [{"x": 1}], "content": "a"}) + finish(), [TextDelta("a"), FinishDelta("stop")]),
        "events after [DONE]": (finish() + DONE + chunk("x") + b"data: {\n\n", [FinishDelta("stop")]),
        "an unfinished event at the end": (finish() + b"data: {", [FinishDelta("stop")]),
    }.values(),
)  # fmt: skip
def test_servers_differ(events: bytes, expected: list[Delta]) -> None:
    assert decode(events) == (expected, None)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("content_filter", "content_filter"),
        ("STOP", "stop"),
    ],
)
def test_finish_reasons(said: str, meant: FinishReason) -> None:
    assert decode(finish(said)) == ([FinishDelta(meant)], None)


# Calls of tools.


def call(**fields: object) -> bytes:
    return delta({"tool_calls": [fields]})


def function(name: str | None = None, arguments: str | None = None) -> dict[str, str | None]:
    return {"name": name, "arguments": arguments}


CALLS = (
    delta({"role": "assistant", "content": None})
    + call(index=0, id="call_a", type="function", function=function("weather", ""))
    + call(index=0, function={"arguments": '{"city":'})
    + call(index=0, function={"arguments": ' "Paris \\u00e9"}'})
    + call(index=1, id="call_b", type="function", function=function("time", "{}"))
    + finish("tool_calls")
    + usage(5, 2)
    + DONE
)


def test_calls_of_tools_cut_at_every_byte() -> None:
    assert decode_cut_anywhere(openai_codec, CALLS) == (
        [
            ToolCallDelta(0, "", "call_a", "weather"),
            ToolCallDelta(0, '{"city":'),
            ToolCallDelta(0, ' "Paris \\u00e9"}'),
            ToolCallDelta(1, "", "call_b", "time"),
            FinishDelta("tool_calls"),
            USAGE,
        ],
        None,
    )


@pytest.mark.parametrize(
    ("events", "expected"),
    {
        "id and name repeated": (
            call(index=0, id="a", function=function("f", "{")) + call(index=0, id="a", function=function("f", "}")),
            [ToolCallDelta(0, "{", "a", "f"), ToolCallDelta(0, "}")],
        ),
        "no index": (
            call(id="a", function=function("f", "{")) + call(function=function(None, "}")) + call(id="b", function=function("g", "{}")),
            [ToolCallDelta(0, "{", "a", "f"), ToolCallDelta(0, "}"), ToolCallDelta(1, "", "b", "g")],
        ),
        "no id": (call(index=0, function=function("f", "{}")), [ToolCallDelta(0, "", "call_0", "f")]),
        "nulls": (call(index=0, id="a", function=None) + call(index=0, function=function("f")), [ToolCallDelta(0, "", "a", "f")]),
    }.values(),
)  # fmt: skip
def test_servers_send_calls_in_their_ways(events: bytes, expected: list[Delta]) -> None:
    assert decode(events + finish("stop")) == ([*expected, FinishDelta("tool_calls")], None)


# What is not understood.


@pytest.mark.parametrize(
    "event",
    [
        b"{",
        b"{}{}",
        b"null",
        b'"text"',
        b"[]",
        b"[DONE",
        b"3",
        b"NaN",
        b"<html>",
        b'{"choices":[{"delta":{"content":"\xff"}}]}',
        b'{"choices":[{"delta":{"content":"\xed\xa0\xbd\xed\xb8\x80"}}]}',
        b'{"choices":[{"delta":{"content":"\xc3"}}]}',
        b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
    ],
    ids=lambda event: repr(event[:40]),
)
def test_an_unparsable_event_is_an_error_after_the_earlier_text(event: bytes) -> None:
    bad = b"data: " + event + b"\n\n"
    assert decode(chunk("a") + bad + chunk(SECRET) + finish() + DONE) == ([TextDelta("a")], UpstreamProtocol)
    assert decode(chunk("a"), bad, finish() + DONE) == ([TextDelta("a")], UpstreamProtocol)


def test_an_error_event_is_an_error_after_the_earlier_text() -> None:
    for error in ({"message": SECRET, "code": "server_error"}, SECRET, {}, 500):
        body = chunk("a") + data({"error": error}) + chunk("b") + finish() + DONE
        assert decode(body) == ([TextDelta("a")], UpstreamError)


def test_a_failure_is_raised_again_by_everything_after_it() -> None:
    stream = openai_codec()
    assert stream.feed(chunk("a") + b"data: {\n\n") == [TextDelta("a")]
    assert stream.over
    with pytest.raises(UpstreamProtocol):
        stream.feed(finish())
    with pytest.raises(UpstreamProtocol):
        stream.end()


@pytest.mark.parametrize(
    "body", [b"", b": ping\n\n", ROLE, chunk("a"), usage(5, 2), DONE, chunk("a") + DONE, b"<html>"]
)
def test_an_end_without_a_finish_is_truncated(body: bytes) -> None:
    assert decode(body)[1] is UpstreamTruncated


def test_an_endless_line_is_refused_at_one_mebibyte() -> None:
    stream = openai_codec()
    assert stream.feed(chunk("a") + b"data: ") == [TextDelta("a")]
    for _ in range(15):
        assert stream.feed(b"x" * 65_536) == []
    with pytest.raises(UpstreamProtocol):
        stream.feed(b"x" * 65_536)


def test_text_before_an_endless_line_is_not_lost() -> None:
    assert decode(chunk("a") + b"x" * (1 << 20) + b"x") == ([TextDelta("a")], UpstreamProtocol)
    assert decode(finish() + DONE + b"x" * (1 << 20) + b"x") == ([FinishDelta("stop")], None)


# Usage.


def counted(**counts: object) -> bytes:
    return data({"choices": [], "usage": counts})


GOOD = counted(prompt_tokens=5, completion_tokens=2)


def last_usage(*events: bytes) -> Usage | None:
    deltas, failure = decode(*events, finish())
    assert failure is None
    totals = [delta.usage for delta in deltas if isinstance(delta, UsageDelta)]
    return totals[-1] if totals else None


@pytest.mark.parametrize(
    "bad", [-1, 2**50 + 1, 10**400, 1.5, True, "nine", None, [9], {}], ids=lambda bad: repr(bad)[:20]
)
def test_a_count_that_cannot_be_true_is_ignored(bad: object) -> None:
    for counts in ({}, {"total_tokens": bad}, {"prompt_tokens": bad, "completion_tokens": bad}):
        assert last_usage(counted(**counts)) is None
        assert last_usage(GOOD, counted(**counts)) == USAGE.usage
    assert last_usage(counted(prompt_tokens=bad, completion_tokens=9)) == Usage(output_tokens=9)
    assert last_usage(counted(prompt_tokens=9, completion_tokens=bad)) is None


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" * 5_000, b"0.1e5000"])
def test_usage_out_of_any_range_does_not_break_the_stream(number: bytes) -> None:
    odd = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":' + number + b"}}\n\n"
    assert decode(odd + finish()) == ([TextDelta("a"), FinishDelta("stop")], None)


@pytest.mark.parametrize("usage", [b"3", b'"x"', b"[]", b"null", b"true"])
def test_usage_of_another_type_is_ignored(usage: bytes) -> None:
    assert last_usage(GOOD, b'data: {"usage":' + usage + b"}\n\n") == USAGE.usage


def test_the_last_usage_wins() -> None:
    assert last_usage(GOOD, counted(prompt_tokens=5, completion_tokens=7)) == Usage(input_tokens=5, output_tokens=7)
    lower = Usage(input_tokens=9, output_tokens=9)
    assert last_usage(counted(prompt_tokens=9, completion_tokens=9), GOOD) == lower, "a lower count is no count"
    assert last_usage(GOOD, counted(prompt_tokens=0, completion_tokens=0)) == USAGE.usage
    assert last_usage(counted(prompt_tokens=2**50, completion_tokens=2**50)) == Usage(
        input_tokens=2**50, output_tokens=2**50
    )


def test_usage_after_the_finish_counts_and_repetition_is_silent() -> None:
    assert decode(chunk("a") + GOOD + GOOD + finish() + GOOD + usage(5, 2) + DONE) == (
        [TextDelta("a"), USAGE, FinishDelta("stop")],
        None,
    )
    assert decode(finish() + GOOD + DONE) == ([FinishDelta("stop"), USAGE], None)


def test_details_are_part_of_their_totals() -> None:
    assert last_usage(usage(10, 8, cached=4, reasoning=6)) == Usage(
        input_tokens=10, output_tokens=8, cached_input_tokens=4, reasoning_tokens=6
    )
    assert last_usage(usage(10, 8, cached=400, reasoning=600)) == Usage(
        input_tokens=10, output_tokens=608, cached_input_tokens=10, reasoning_tokens=600
    )
    assert last_usage(usage(10, 8, cached=-4, reasoning=2**60)) == Usage(input_tokens=10, output_tokens=8)
    for details in (None, 3, [], {}):
        assert last_usage(counted(prompt_tokens=5, completion_tokens=2, prompt_tokens_details=details)) == USAGE.usage


# Any bytes.

EVENTS = st.sampled_from(
    [
        ROLE,
        chunk("a"),
        chunk("é\N{GRINNING FACE}"),
        finish(),
        GOOD,
        DONE,
        b": ping\n\n",
        b"data: {\n\n",
        b"data: \xff\n\n",
    ]
    + [data({"error": "x"}), b"data: {}\r\n\r\n", b"data\r\r", b"x" * 50, b"\n"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "usage", "error", "index", "finish_reason", "prompt_tokens"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)
BODIES = st.lists(EVENTS | st.binary(max_size=30) | JSON.map(data), max_size=8).map(b"".join)


@given(BODIES, st.lists(st.integers(0, 5_000), max_size=6))
def test_any_bytes_in_any_cut_give_the_same_deltas_and_the_same_end(body: bytes, places: list[int]) -> None:
    ends = sorted(place % (len(body) + 1) for place in places)
    reads = [body[a:b] for a, b in zip([0, *ends], [*ends, len(body)], strict=True)]
    assert decode(*reads) == decode(body)


@given(st.lists(st.text(min_size=1), max_size=5), st.booleans())
def test_text_arrives_unchanged(texts: list[str], ascii_only: bool) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    events = b"".join(
        b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=ascii_only).encode() + b"\n\n"
        for text in texts
    )
    deltas, failure = decode(events + finish() + DONE)
    assert failure is None
    assert [delta.text for delta in deltas if isinstance(delta, TextDelta)] == texts


# The request.


def prompt(model: str, temperature: float | None = 0.5) -> Prompt:
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="Hé\n"))
    return Prompt(model=model, messages=messages, max_output_tokens=7, temperature=temperature)


def test_a_request() -> None:
    assert json.loads(request_body(prompt("gpt-4o-mini"))) == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé\n"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "temperature": 0.5,
    }
    assert "temperature" not in json.loads(request_body(prompt("gpt-4o-mini", None)))


def test_a_request_to_a_reasoning_model() -> None:
    body = json.loads(request_body(prompt("o3-mini")))
    assert body["max_completion_tokens"] == 7
    assert "max_tokens" not in body
    assert "temperature" not in body


def test_every_role_passes_through() -> None:
    roles: list[Role] = ["system", "developer", "user", "assistant", "tool"]
    messages = tuple(Message(role=role, content="x") for role in roles)
    body = json.loads(request_body(Prompt(model="m", messages=messages, max_output_tokens=1)))
    assert [message["role"] for message in body["messages"]] == roles


def test_tools_are_offered_called_and_answered() -> None:
    tool = Tool(name="weather", description="Of a city", parameters=msgspec.Raw(b'{"type":"object","x":1e400}'))
    call = ToolCall(id="c0", name="weather", arguments='{"city":')
    messages = (
        Message(role="user", content="Well?"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="Sun", tool_call_id="c0"),
    )
    raw = request_body(Prompt(model="m", messages=messages, max_output_tokens=1, tools=(tool,)))
    assert b'"parameters":{"type":"object","x":1e400}' in raw
    body = json.loads(raw)
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c0", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}}],
        },
        {"role": "tool", "content": "Sun", "tool_call_id": "c0"},
    ]
    assert body["tools"][0]["type"] == "function"
    assert body["tools"][0]["function"]["description"] == "Of a city"
    assert "tool_choice" not in body


CALLED = (
    Message(role="user", content="Well?"),
    Message(
        role="assistant",
        content="",
        tool_calls=(ToolCall(id="c0", name="a", arguments="{}"), ToolCall(id="c1", name="b", arguments="{}")),
    ),
    Message(role="tool", content="Sun", tool_call_id="c0"),
    Message(role="tool", content="Sun", tool_call_id="c1"),
    Message(role="assistant", content="It shines"),
    Message(role="user", content="Well?"),
)


@pytest.mark.parametrize("kind", PRESETS)
def test_an_earlier_call_has_the_thought_that_some_vendors_refuse_it_without(kind: str) -> None:
    """https://github.com/SillyTavern/SillyTavern/issues/4857, https://github.com/continuedev/continue/issues/11600."""
    prompt = Prompt(model="m", messages=CALLED, max_output_tokens=1)
    known = (*CALLED[:1], replace(CALLED[1], thoughts=(Thought(text="Hm"),)), *CALLED[2:])
    for messages, thought in ((CALLED, " "), (known, "Hm")):
        body = json.loads(request_body(replace(prompt, messages=messages), PRESETS[kind]))
        thoughts = [each.get("reasoning_content") for each in body["messages"]]
        needed = thought if kind in ("deepseek", "moonshot") else None
        assert thoughts == [None, needed, None, None, None, None]


@pytest.mark.parametrize(
    ("provider", "model", "signed"),
    [
        (OpenAIProvider(base_url="http://x/v1", preset=PRESETS["vertex"]), "google/gemini-3-pro", True),
        (OpenAIProvider(base_url="http://x/v1", preset=PRESETS["vertex"]), "meta/llama-4", False),
        (OpenAIProvider(base_url="https://generativelanguage.googleapis.com/v1beta/openai"), "gemini-3-pro", True),
        (OpenAIProvider(base_url="https://generativelanguage.googleapis.com.example/v1"), "gemini-3-pro", False),
        (OpenAIProvider(preset=PRESETS["openrouter"]), "google/gemini-3-pro", False),
    ],
)
def test_an_earlier_call_of_gemini_has_a_signature_in_its_place(
    provider: OpenAIProvider, model: str, signed: bool
) -> None:
    """https://github.com/langchain-ai/langchain/issues/37347."""
    body = json.loads(request_body(Prompt(model=model, messages=CALLED, max_output_tokens=1), provider.preset))
    calls = [call.get("extra_content") for each in body["messages"] for call in each.get("tool_calls", ())]
    signature = {"google": {"thought_signature": "skip_thought_signature_validator"}}
    assert calls == [signature if signed else None, None]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("none", "none"),
        ("required", "required"),
        ("tool:weather", {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_tool_choices(choice: str, sent: object) -> None:
    with_tools = replace(prompt("m"), tools=(Tool(name="weather"),), tool_choice=choice)
    assert json.loads(request_body(with_tools))["tool_choice"] == sent
    assert "tool_choice" not in json.loads(request_body(replace(with_tools, tools=())))


def test_servers_get_only_fields_that_they_support() -> None:
    def body(kind: str, model: str = "o3-mini") -> dict[str, object]:
        return json.loads(request_body(prompt(model), PRESETS[kind]))

    assert body("vllm")["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body("groq")["stream_options"] == {"include_usage": True}
    assert "stream_options" not in body("mistral")
    limits = ("max_tokens", "max_completion_tokens")
    for kind in ("openai", "azure", "openrouter"):
        assert [name in body(kind) for name in limits] == [False, True]
    for kind in ("vllm", "llamacpp", "ollama_v1", "groq", "mistral"):
        assert [name in body(kind) for name in limits] == [True, False]


NEWER = """o1 o1-mini o1-2024-12-17 o3 o3-mini O3-Mini o4-mini o9 o10-mini gpt-5 gpt-5-mini gpt-5.1 gpt-5-chat-latest gpt-6
gpt-10 openai/o3-mini openai/gpt-5 ft:o4-mini-2025-04-16:org::id""".split()
OLDER = """gpt-4o gpt-4o-mini gpt-4.1 gpt-4 gpt-3.5-turbo gpt-35-turbo chatgpt-4o-latest gpt-oss-120b openai/gpt-oss-20b
ft:gpt-4o-mini-2024-07-18:org::id llama3.2 olmo-2 o1x octo o1a-7b qwen3 mistral-large deepseek-r1 claude-3-5 o gpt-
my-o3-mini""".split()


@pytest.mark.parametrize("model", NEWER)
def test_newer_models(model: str) -> None:
    assert token_limit_field(model) == "max_completion_tokens"
    assert not takes_temperature(model)


@pytest.mark.parametrize("model", OLDER)
def test_older_and_other_models(model: str) -> None:
    assert token_limit_field(model) == "max_tokens"
    assert takes_temperature(model)


@pytest.mark.parametrize("model", ["gpt-4o-search-preview", "gpt-4o-mini-search-preview-2025-03-11"])
def test_search_previews_take_no_temperature(model: str) -> None:
    assert token_limit_field(model) == "max_tokens"
    assert not takes_temperature(model)


# The provider's arguments.


@pytest.mark.parametrize(
    "url",
    ["", "api.openai.com/v1", "ftp://host/v1", "http://", "http:///v1", "https://:80/v1", "http://host:99999/v1"]
    + [
        "http://host:x/v1",
        "http://[::1/v1",
        "http://ho st/v1",
        "http://host/v1\r\nx: y",
        "http://hést/v1",
        "http://host:0",
    ]
    + [
        "http://user:canary-2f7c@host/v1",
        "http://canary-2f7c@host/v1",
        "http://host/v1?key=canary-2f7c",
        "http://host#x",
    ],
)
def test_a_base_url_must_make_sense(url: str) -> None:
    with pytest.raises(ValueError, match="^base_url must") as caught:
        OpenAIProvider("k", url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/v1", "https://host", "http://[::1]:80/v1/", "HTTPS://Host/a/b//"]
)
def test_a_base_url(url: str) -> None:
    assert OpenAIProvider("k", url).base_url == url.rstrip("/")


@pytest.mark.parametrize("key", ["canary-2f7c\r\nx: y", "canary-2f7c\x00", "canary-2f7cé", "a\nb"])
def test_a_key_that_could_end_its_header_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"^api_key must be printable ASCII$"):
        OpenAIProvider(key)


def test_other_arguments() -> None:
    assert OpenAIProvider(abort_bills="full").abort_bills == "full"
    assert OpenAIProvider().abort_bills == "stops"
    with pytest.raises(ValueError, match="^abort_bills must"):
        OpenAIProvider(abort_bills=SECRET)
    for headers in ({"x": "a\r\nb"}, {"x y": "a"}, {"": "a"}, {"Host": "a"}, {"Accept-Encoding": "gzip"}):
        with pytest.raises(ValueError, match="^headers must"):
            OpenAIProvider(headers=headers)


def test_the_key_is_not_shown() -> None:
    provider = OpenAIProvider(SECRET, "https://host/v1", headers={"x-key": SECRET})
    assert repr(provider) == "OpenAIProvider('https://host/v1')"
