"""What servers really send, by kind of deviation; each link is a report of it. The outcome holds for every codec."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from decoding import cut, decode, decode_cut_anywhere
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocol,
    UpstreamQuota,
    UpstreamTruncated,
)
from chat_nest.providers.anthropic import anthropic_codec
from chat_nest.providers.codec import Codec
from chat_nest.providers.gemini import gemini_codec
from chat_nest.providers.ollama import ollama_codec
from chat_nest.providers.openai_codec import openai_codec
from chat_nest.providers.responses import responses_codec
from chat_nest.core.usage import Usage


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def delta(finish: object = None, **fields: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


def call(name: object = None, arguments: object = None, **fields: object) -> dict[str, object]:
    return {**fields, "function": {"name": name, "arguments": arguments}}


def calls(*pieces: dict[str, object], finish: object = None) -> bytes:
    return delta(finish, tool_calls=list(pieces))


def stop(reason: object = "stop") -> bytes:
    return delta(reason)


def block(type: str, index: int | None = None, **fields: object) -> bytes:
    return event({"type": type, **({} if index is None else {"index": index}), **fields})


def stopped(reason: object = "end_turn", **usage: object) -> bytes:
    return event({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}) + block("message_stop")


def spoken(text: object, kind: str = "output_text") -> bytes:
    return event({"type": f"response.{kind}.delta", "output_index": 0, "delta": text})


def completed(**response: object) -> bytes:
    return event({"type": "response.completed", "response": {"status": "completed", **response}})


def parts(*said: object, finish: object = None, **more: object) -> bytes:
    return event({"candidates": [{"content": {"parts": list(said)}, "finishReason": finish}], **more})


def said(content: object = "", **message: object) -> bytes:
    return line({"message": {"role": "assistant", "content": content, **message}, "done": False})


def done(reason: object = "stop", **more: object) -> bytes:
    return line({"done": True, "done_reason": reason, **more})


def made(deltas: Sequence[Delta]) -> list[tuple[str, str]]:
    """The calls as a client joins them: name and arguments, in their order."""
    joined: dict[int, tuple[str, str]] = {}
    ids: set[str] = set()
    for piece in deltas:
        if isinstance(piece, ToolCallDelta):
            if piece.index not in joined:
                assert piece.id
                assert piece.id not in ids
                ids.add(piece.id)
                assert piece.index == len(joined), "numbered in the order in which they begin"
                joined[piece.index] = (piece.name, "")
            else:
                assert not piece.id
            name, arguments = joined[piece.index]
            joined[piece.index] = (name, arguments + piece.arguments)
    return list(joined.values())


def finish(deltas: Sequence[Delta]) -> str:
    return [each.reason for each in deltas if isinstance(each, FinishDelta)][-1]


def text(deltas: Sequence[Delta], kind: type[TextDelta | ReasoningDelta] = TextDelta) -> str:
    return "".join(each.text for each in deltas if isinstance(each, kind))


def last_usage(deltas: Sequence[Delta]) -> Usage | None:
    return ([each.usage for each in deltas if isinstance(each, UsageDelta)] or [None])[-1]  # type: ignore[list-item]


OSLO, JST = '{"city":"Oslo"}', '{"tz":"JST"}'
TWO = [("weather", OSLO), ("clock", JST)]


@pytest.mark.parametrize(
    "body",
    {
        # https://github.com/huggingface/smolagents/pull/1958 and https://github.com/langchain-ai/langchain/issues/34807
        "one index for both": calls(call("weather", OSLO, index=0, id="x1")) + calls(call("clock", JST, index=0, id="x2")),
        "one index, no id": calls(call("weather", OSLO, index=0)) + calls(call("clock", JST, index=0)),
        "one index and one id": calls(call("weather", OSLO, index=0, id="c")) + calls(call("clock", JST, index=0, id="c")),
        # https://github.com/ollama/ollama/issues/7881
        "no index": calls(call("weather", OSLO, id="x1"), call("clock", JST, id="x2")),
        "null index": calls(call("weather", OSLO, id="x1", index=None), call("clock", JST, id="x2", index=None)),
        "neither index nor id": calls(call("weather", OSLO), call("clock", JST)),
        "neither, in pieces": calls(call("weather", '{"city"')) + calls(call(None, ':"Oslo"}')) + calls(call("clock", JST)),
        "index as text": calls(call("weather", OSLO, index="0", id="x1")) + calls(call("clock", JST, index="1", id="x2")),
        "indices from one, with a hole": calls(call("weather", OSLO, index=1, id="x1")) + calls(call("clock", JST, index=7, id="x2")),
        "one id for both": calls(call("weather", OSLO, index=0, id="c"), call("clock", JST, index=1, id="c")),
        # https://github.com/QwenLM/Qwen-Agent/pull/943
        "mixed": calls(call("weather", "", index=0, id="x1"), call("clock", "", index=1, id="x2"))
        + calls(call(None, '{"city":', index=0), call(None, '{"tz":', index=1))
        + calls(call(None, '"JST"}', index=1), call(None, '"Oslo"}', index=0)),
        # https://github.com/anomalyco/opencode/issues/37841
        "empty id and name in each piece": calls(call("weather", '{"city":', index=0, id="x1"))
        + calls(call("", '"Oslo"}', index=0, id=""))
        + calls(call("clock", JST, index=1, id="x2"))
        + calls(call("", "", index=1, id="")),
        "id and name in each piece": b"".join(
            calls(call(name, piece, index=at, id=f"x{at}")) for at, (name, whole) in enumerate(TWO) for piece in (*whole, "")
        ),
        "a new id for each piece": calls(call("weather", '{"city":', index=0, id="r1"))
        + calls(call(None, '"Oslo"}', index=0, id="r2"))
        + calls(call("clock", JST, index=1, id="r3")),
        # https://github.com/vllm-project/vllm/pull/11862
        "a new id for each piece, and a name alone": calls(call("weather", None, index=0, id="r1"))
        + calls(call(None, '{"city":', index=0, id="r2"))
        + calls(call(None, '"Oslo"}', index=0, id="r3"))
        + calls(call("clock", "", index=1, id="r4"))
        + calls(call(None, JST, index=1, id="r5")),
        "the name later, without the index": calls(call("", "", index=0, id="x1"))
        + calls(call("weather", OSLO))
        + calls(call("", None, id="x2"))
        + calls(call("clock", JST, index=1)),
        # https://github.com/vercel/ai/pull/16507
        "the name later": calls(call("", "", index=0, id="x1"))
        + calls(call("weather", OSLO, index=0))
        + calls(call(None, '{"tz"', index=1, id="x2"))
        + calls(call("clock", ':"JST"}', index=1)),
        "the id later": calls(call("weather", '{"city":', index=0))
        + calls(call(None, '"Oslo"}', index=0, id="x1"))
        + calls(call("clock", JST, index=1, id="x2")),
        "ids that are numbers": calls(call("weather", OSLO, index=0, id=1), call("clock", JST, index=1, id=2)),
        "arguments as objects": calls(call("weather", {"city": "Oslo"}, index=0), call("clock", {"tz": "JST"}, index=1)),
        "an object for an array": event(
            {"choices": {"index": 0, "delta": {"tool_calls": call("weather", OSLO, index=0, id="x1")}}}
        )
        + calls(call("clock", JST, index=1, id="x2")),
        "a piece of nothing": calls(call("weather", OSLO, index=0, id="x1"), call("clock", JST, index=1, id="x2"))
        + calls(call(None, None, index=2))
        + calls(call("", "", index=3, id="")),
    }.values(),
)  # fmt: skip
@pytest.mark.parametrize("reason", ["tool_calls", "stop", "end_turn", "STOP"])
def test_two_calls_of_openai_s_format(body: bytes, reason: str) -> None:
    deltas, failure = decode(openai_codec(), body + stop(reason))
    assert failure is None
    assert made(deltas) == TWO
    assert finish(deltas) == "tool_calls"


@pytest.mark.parametrize(
    "body",
    {
        # https://github.com/openai/openai-agents-js/pull/712: Bedrock's calls begin with no arguments
        "{} first": calls(call("weather", "{}", index=0, id="x1")) + calls(call(None, '{"city"', index=0)) + calls(call(None, ':"Oslo"}', index=0)),
        "{} first, and its name again": calls(call("weather", "{}", index=0)) + calls(call("weather", OSLO, index=0)),
        "null first": calls(call("weather", "null", index=0, id="x1")) + calls(call(None, OSLO, index=0)),
        # https://github.com/anomalyco/opencode/pull/17339, https://github.com/elizaOS/eliza/pull/16973
        "all of them again at the end": calls(call("weather", '{"city"', index=0, id="x1")) + calls(call(None, ':"Oslo"}', index=0)) + calls(call(None, OSLO, index=0)),
        "again, with other blanks": calls(call("weather", OSLO, index=0, id="x1")) + calls(call(None, '{ "city": "Oslo" }', index=0)),
        "again, with id and name": calls(call("weather", OSLO, index=0, id="x1")) + calls(call("weather", OSLO, index=0, id="x1")),
        "again, with id and name, without index": calls(call("weather", OSLO, id="x1")) + calls(call("weather", OSLO, id="x1")),
        # https://github.com/NousResearch/hermes-agent/pull/35718: Qianfan
        "all of them so far in each piece": b"".join(calls(call("weather" if at == 1 else None, OSLO[:at], index=0)) for at in (1, 3, 8, 9, 12, 15, 15)),
        "all of them so far in each piece, with id and name": b"".join(calls(call("weather", OSLO[:at], index=0, id="x1")) for at in (2, 9, 9, 14, 15)),
    }.values(),
)  # fmt: skip
def test_arguments_that_come_again_count_once(body: bytes) -> None:
    deltas, failure = decode(openai_codec(), body + stop("tool_calls"))
    assert (failure, made(deltas), finish(deltas)) == (None, TWO[:1], "tool_calls")


@pytest.mark.parametrize(
    "pieces",
    [
        ['{"a":', '{"a":', '{"a":1}}}'],  # each begins like the arguments so far
        ['{"a":[', '{"a":[', '{"a":[]}]}]}'],
        ["{", '"a"', ":", "{", "}", "}"],
        ['{"a":"x {} ', "{}", ' y"}'],  # https://github.com/mcowger/plexus/pull/759
        ["{", "}"],
    ],
)
def test_arguments_that_look_like_earlier_ones_are_kept(pieces: list[str]) -> None:
    first, *rest = pieces
    body = calls(call("f", first, index=0, id="x1")) + b"".join(calls(call(None, piece, index=0)) for piece in rest)
    deltas, failure = decode(openai_codec(), body + stop())
    assert (failure, made(deltas)) == (None, [("f", "".join(pieces))])


@pytest.mark.parametrize("arguments", ["", "{}", "null", " ", None])
def test_a_call_without_arguments_has_none(arguments: object) -> None:
    deltas, failure = decode(openai_codec(), calls(call("now", arguments, index=0, id="x1")) + stop())
    assert (failure, made(deltas), finish(deltas)) == (None, [("now", "")], "tool_calls")


def tool_use(index: int | None, id: object, name: object, input: object = None) -> bytes:
    return block(
        "content_block_start", index, content_block={"type": "tool_use", "id": id, "name": name, "input": input}
    )


def json_delta(index: int | None, said: object) -> bytes:
    return block("content_block_delta", index, delta={"type": "input_json_delta", "partial_json": said})


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (anthropic_codec, tool_use(0, "x1", "weather", {}) + json_delta(0, OSLO) + tool_use(1, "x2", "clock", {}) + json_delta(1, JST) + stopped()),
        (anthropic_codec, tool_use(0, "x1", "weather") + json_delta(0, OSLO) + tool_use(0, "x2", "clock") + json_delta(0, JST) + stopped("tool_use")),
        (anthropic_codec, tool_use(None, "x1", "weather") + json_delta(None, OSLO) + tool_use(None, "x1", "clock") + json_delta(None, JST) + stopped()),
        (
            anthropic_codec,
            tool_use(0, "x1", "weather", {"city": "Oslo"})
            + block("content_block_stop", 0)
            + tool_use(1, None, "clock", {"tz": "JST"})
            + block("content_block_stop", 1)
            + stopped(),
        ),
        (gemini_codec, parts({"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}, finish="STOP") + parts({"functionCall": {"name": "clock", "args": {"tz": "JST"}}}, finish="STOP")),
        (gemini_codec, parts({"functionCall": {"name": "weather", "args": OSLO, "id": "a"}}, {"functionCall": {"name": "clock", "args": JST, "id": "a"}}) + parts(finish="STOP")),
        (ollama_codec, said(tool_calls=[call("weather", {"city": "Oslo"}), call("clock", {"tz": "JST"})]) + done()),
        (ollama_codec, said(tool_calls=[call("weather", OSLO, id="a")]) + said(tool_calls=call("clock", JST, id="a")) + done()),
    ],
)  # fmt: skip
def test_two_calls_of_the_other_formats(make: Callable[[], Codec], body: bytes) -> None:
    deltas, failure = decode(make(), body)
    assert failure is None
    assert [(name, json.loads(arguments)) for name, arguments in made(deltas)] == [
        (name, json.loads(arguments)) for name, arguments in TWO
    ]
    assert finish(deltas) == "tool_calls"


@pytest.mark.parametrize(
    ("make", "body"),
    [
        # https://github.com/NousResearch/hermes-agent/pull/25046
        (gemini_codec, parts({"functionCall": {"name": "weather", "args": {"city": "Oslo"}, "id": "a"}}) * 2 + parts(finish="STOP")),
        (ollama_codec, said(tool_calls=[call("weather", {"city": "Oslo"}, id="a")]) * 2 + done()),
        (anthropic_codec, tool_use(0, "a", "weather", {}) + json_delta(0, "{}") + json_delta(0, OSLO) + stopped("tool_use")),
    ],
)  # fmt: skip
def test_a_call_that_comes_again_in_the_other_formats_counts_once(make: Callable[[], Codec], body: bytes) -> None:
    deltas, failure = decode(make(), body)
    assert failure is None
    assert [(name, json.loads(arguments)) for name, arguments in made(deltas)] == [("weather", {"city": "Oslo"})]


def test_a_call_without_a_name_is_an_error() -> None:
    assert decode(openai_codec(), calls(call("", OSLO, index=0, id="x1")) + stop())[1] is UpstreamProtocol


def added(at: int, type: str = "added", **item: object) -> bytes:
    return event(
        {"type": f"response.output_item.{type}", "output_index": at, "item": {"type": "function_call", **item}}
    )


@pytest.mark.parametrize("last", ["done", "completed"])
def test_a_call_of_responses_with_its_name_at_the_end_is_whole(last: str) -> None:
    items = [
        {"id": f"f{at}", "call_id": f"c{at}", "name": name, "arguments": said} for at, (name, said) in enumerate(TWO)
    ]
    body = b"".join(added(at, id=f"f{at}", call_id=f"c{at}", arguments="") for at in (0, 1))
    pieces = ((at, piece) for at, (_, said) in enumerate(TWO) for piece in said)
    body += b"".join(
        event({"type": "response.function_call_arguments.delta", "output_index": at, "delta": piece})
        for at, piece in pieces
    )
    if last == "done":
        body += b"".join(added(at, "done", **item) for at, item in enumerate(items)) + completed()
    else:
        body += completed(output=[{"type": "function_call", **item} for item in items])
    deltas, failure = decode_cut_anywhere(responses_codec, body)
    assert (failure, made(deltas), finish(deltas)) == (None, TWO, "tool_calls")


def test_a_call_of_responses_without_a_name_is_an_error() -> None:
    body = added(0, id="f", call_id="c") + spoken("a")
    assert decode(responses_codec(), body + completed())[1] is UpstreamTruncated
    assert decode(responses_codec(), body + added(0, "done", id="f", call_id="c") + completed())[1] is UpstreamProtocol


def test_ids_are_unique_in_the_answer_and_in_the_conversation() -> None:
    """A client that keeps results by id overwrites the earlier one: https://github.com/fw-ai/fireconnect/issues/16."""
    body = calls(call("weather", OSLO, index=0, id="call_0"), call("clock", JST, index=1)) + stop()
    deltas, _ = decode(openai_codec("call_9f", ["call_0"]), body)
    assert [each.id for each in deltas if isinstance(each, ToolCallDelta)] == ["call_9f_0", "call_9f_1"]
    for id in ("x" * 9_000, "a\0b", "a\nb"):
        deltas, _ = decode(openai_codec("call_9f"), calls(call("weather", OSLO, index=0, id=id)) + stop())
        assert [each.id for each in deltas if isinstance(each, ToolCallDelta)] == ["call_9f_0"]
    long = "x" * 405
    deltas, _ = decode(openai_codec(), calls(call("weather", OSLO, index=0, id=long)) + stop())
    assert [each.id for each in deltas if isinstance(each, ToolCallDelta)] == [long]


# Finish reasons.


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (["stop"], "stop"),
        (["null", "", None, "stop"], "stop"),
        (["eos"], "stop"),
        (["COMPLETE"], "stop"),
        (["end-turn"], "stop"),
        (["tool-calls"], "tool_calls"),  # https://ai-sdk.dev/docs/reference/ai-sdk-core/generate-text has hyphens
        (["content-filter"], "content_filter"),
        (["MODEL_ARMOR"], "content_filter"),  # https://cloud.google.com/vertex-ai/generative-ai/docs/reference
        (["length", "stop"], "length"),
        (["stop", "length"], "length"),
        (["model_length"], "length"),  # https://docs.mistral.ai/api/endpoint/chat
        (["MAX_TOKENS"], "length"),
        (["model_context_window_exceeded"], "length"),
        (["SAFETY"], "content_filter"),
        (["sensitive"], "content_filter"),
        (["content_filter: PROHIBITED_CONTENT"], "content_filter"),
        (["refusal"], "content_filter"),
    ],
)
def test_words_for_an_end(reasons: list[object], expected: str) -> None:
    deltas, failure = decode(openai_codec(), delta(content="a") + b"".join(map(stop, reasons)))
    assert (failure, finish(deltas)) == (None, expected)


@pytest.mark.parametrize(
    "reason",
    # https://github.com/vllm-project/vllm/issues/57082, https://github.com/NousResearch/hermes-agent/pull/92161
    ["error", "abort", "network_error", "function_call_filter: MALFORMED_FUNCTION_CALL", "pause_turn", "something new"],
)
@pytest.mark.parametrize("last", [b"", b"data: [DONE]\n\n"])
def test_any_other_word_is_a_failure(reason: str, last: bytes) -> None:
    for before in ([reason], ["stop", reason], [reason, "stop"]):
        deltas, failure = decode_cut_anywhere(openai_codec, delta(content="a") + b"".join(map(stop, before)) + last)
        assert (text(deltas), failure) == ("a", UpstreamError)
    codec = openai_codec()
    codec.feed(stop("abort"))
    with pytest.raises(UpstreamError) as caught:
        codec.end()
    assert caught.value.detail == "abort"


def test_a_provider_without_resources_is_overloaded() -> None:
    assert decode(openai_codec(), delta(content="a") + stop("insufficient_system_resource"))[1] is UpstreamOverloaded


@pytest.mark.parametrize(
    ("make", "body"),
    [
        # https://github.com/elastic/kibana/issues/227096, https://github.com/agentjido/req_llm/issues/944
        *((gemini_codec, event({"candidates": [{"finishReason": word}]})) for word in ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "OTHER", "LANGUAGE")),
        *((anthropic_codec, stopped(word)) for word in ("pause_turn", "new")),
        *((ollama_codec, done(word)) for word in ("load", "unload", "new")),
        *((responses_codec, event({"type": "response.incomplete", "response": {"incomplete_details": {"reason": word}}})) for word in ("error", "new")),
    ],
)  # fmt: skip
def test_failures_of_the_other_formats(make: Callable[[], Codec], body: bytes) -> None:
    assert decode(make(), body)[1] is UpstreamError


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (openai_codec, delta(content="a") + b"data: [DONE]\n\n"),
        (anthropic_codec, stopped(None)),
        (anthropic_codec, block("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 7})),
        (anthropic_codec, block("message_stop")),
        (gemini_codec, parts({"text": "a"})),
        (gemini_codec, parts({"text": "a"}, finish="FINISH_REASON_UNSPECIFIED")),
        (ollama_codec, said("a")),
        (ollama_codec, done("")),
        (responses_codec, event({"type": "response.output_text.delta", "delta": "a"}) + b"data: [DONE]\n\n"),
    ],
)
def test_an_end_without_a_reason_is_none(make: Callable[[], Codec], body: bytes) -> None:
    assert decode(make(), body, whole=True)[1] is UpstreamTruncated


@pytest.mark.parametrize(
    ("reason", "expected"), [("end_turn", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls")]
)
@pytest.mark.parametrize("last", [b"", b"data: [DONE]\n\n", block("ping")])
def test_a_complete_body_needs_no_message_stop(reason: str, expected: str, last: bytes) -> None:
    """https://github.com/esengine/DeepSeek-Reasonix/pull/8756; a cut body may lack a part of the answer."""
    body = block("message_start", message={"usage": {"input_tokens": 40}}) + block(
        "content_block_delta", 0, delta={"text": "a"}
    )
    body += event({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 7}}) + last
    deltas, failure = decode(anthropic_codec(), body, whole=True)
    assert (failure, text(deltas), finish(deltas)) == (None, "a", expected)
    assert last_usage(deltas) == Usage(input_tokens=40, output_tokens=7)
    assert decode(anthropic_codec(), body.rstrip(), whole=True) == (deltas, None)
    assert decode(anthropic_codec(), body)[1] is UpstreamTruncated
    failed = body + event({"type": "error", "error": {"type": "overloaded_error"}})
    assert decode(anthropic_codec(), failed, whole=True)[1] is UpstreamOverloaded


@pytest.mark.parametrize("end", [stopped("tool_use"), block("message_delta", delta={"stop_reason": "tool_use"})])
@pytest.mark.parametrize("index", [True, False])
def test_blocks_without_an_end_keep_their_input(end: bytes, index: bool) -> None:
    places = (0, 1) if index else (None, None)
    body = tool_use(places[0], "x1", "weather", {"city": "Oslo"}) + tool_use(places[1], "x2", "clock", {"tz": "JST"})
    deltas, failure = decode(anthropic_codec(), body + end, whole=True)
    assert (failure, made(deltas), finish(deltas)) == (None, TWO, "tool_calls")


@pytest.mark.parametrize("calls", [{}, [], {"a": 1}, [{}], [None], [{"function": {}}], "", None])
def test_tool_calls_that_call_nothing(calls: object) -> None:
    deltas, failure = decode(ollama_codec(), said("a", tool_calls=calls) + done())
    assert (failure, text(deltas), made(deltas), finish(deltas)) == (None, "a", [], "stop")


@pytest.mark.parametrize("first", [0, 1, "1", 7])
def test_an_index_that_counts_the_events_is_no_other_choice(first: object) -> None:
    """TGI and Foundry Local: https://github.com/huggingface/text-generation-inference/pull/1648."""
    said: list[dict[str, object]] = [{"content": "a"}, {"tool_calls": [call("weather", OSLO, id="x1")]}, {}]
    body = b"".join(
        event({"choices": [{"index": type(first)(int(str(first)) + at), "delta": each, "finish_reason": "stop" if not each else None}]})  # type: ignore[call-arg]
        for at, each in enumerate(said)
    )  # fmt: skip
    deltas, failure = decode(openai_codec(), body)
    assert (failure, text(deltas), made(deltas), finish(deltas)) == (None, "a", TWO[:1], "tool_calls")


def test_anthropic_s_stop_takes_nothing_back() -> None:
    body = event({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}) + stopped("end_turn")
    assert finish(decode(anthropic_codec(), body)[0]) == "length"


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (ollama_codec, said("a", prompt=1) + line({"done": 1, "done_reason": "stop", "prompt_eval_count": "5", "eval_count": 7.0})),
        (ollama_codec, line({"message": {"content": "a"}, "done": False, "prompt_eval_count": 5, "eval_count": 7}) + done()),
        (openai_codec, delta(content="a") + stop() + event({"choices": [], "usage": {"input_tokens": 5, "output_tokens": 7}})),
        (
            anthropic_codec,
            event({"type": "message_start", "message": {"usage": {"input_tokens": 5}}})
            + event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}})
            + event({"type": "message_stop", "usage": {"output_tokens": 7}}),
        ),
    ],
)  # fmt: skip
def test_counts_where_gateways_put_them(make: Callable[[], Codec], body: bytes) -> None:
    deltas, failure = decode_cut_anywhere(make, body)
    assert (failure, last_usage(deltas)) == (None, Usage(input_tokens=5, output_tokens=7))


def test_gemini_sends_stop_with_each_event() -> None:
    body = parts({"text": "I look. "}, finish="STOP", usageMetadata={"promptTokenCount": 9, "candidatesTokenCount": 2})
    body += parts({"functionCall": {"name": "weather", "args": {}}}, finish="STOP")
    body += parts({"text": ""}, finish="STOP", usageMetadata={"promptTokenCount": 9, "candidatesTokenCount": 7})
    deltas, failure = decode_cut_anywhere(gemini_codec, body)
    assert (failure, finish(deltas), made(deltas)) == (None, "tool_calls", [("weather", "{}")])
    assert last_usage(deltas) == Usage(input_tokens=9, output_tokens=7)


# Usage elsewhere.

COUNTS = {"prompt_tokens": 40, "completion_tokens": 7, "total_tokens": 47}


@pytest.mark.parametrize(
    ("body", "cached"),
    [
        (event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": {**COUNTS, "cached_tokens": 30}}]}), 30),
        (event({"choices": [], "x_groq": {"usage": COUNTS}}), 0),
        (event({"choices": [], "usage": {**COUNTS, "prompt_cache_hit_tokens": 30, "prompt_cache_miss_tokens": 10}}), 30),
        (event({"choices": [], "usage": {**COUNTS, "cached_tokens": 30}}), 30),
        (event({"choices": [], "usage": {**COUNTS, "prompt_tokens_details": {"cached_tokens": 30}}}), 30),
        (event({"choices": [], "usage": {**COUNTS, "prompt_tokens_details": None, "cached_tokens": 30}}), 30),
        (event({"choices": [], "usage": {name: str(count) for name, count in COUNTS.items()}}), 0),
        (b"".join(event({"choices": [], "usage": {**COUNTS, "completion_tokens": at, "total_tokens": 40 + at}}) for at in range(1, 8)), 0),
    ],
)  # fmt: skip
def test_counts_are_read_from_several_places(body: bytes, cached: int) -> None:
    """https://github.com/AstrBotDevs/AstrBot/issues/6614, https://github.com/vercel/ai/pull/12352."""
    deltas, failure = decode(openai_codec(), delta(content="a") + body + stop())
    assert failure is None
    assert last_usage(deltas) == Usage(input_tokens=40, output_tokens=7, cached_input_tokens=cached)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # https://github.com/BerriAI/litellm/issues/39505: Anthropic's names in OpenAI's format
        ({**COUNTS, "cache_read_input_tokens": 30}, Usage(input_tokens=40, output_tokens=7, cached_input_tokens=30)),
        ({**COUNTS, "cache_creation_input_tokens": 30}, Usage(input_tokens=40, output_tokens=7, cache_write_tokens=30)),
        ({**COUNTS, "prompt_tokens_details": {"cached_tokens": 8, "cache_creation_tokens": 30}}, Usage(input_tokens=40, output_tokens=7, cached_input_tokens=8, cache_write_tokens=30)),
        # OpenAI's Responses' names
        ({"input_tokens": 40, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 30}}, Usage(input_tokens=40, output_tokens=7, cached_input_tokens=30)),
        ({"input_tokens": 40, "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 50}}, Usage(input_tokens=40, output_tokens=57, reasoning_tokens=50)),
        # not in the input, but in the total: they are no output
        ({**COUNTS, "total_tokens": 1_047, "cache_read_input_tokens": 1_000}, Usage(input_tokens=1_040, output_tokens=7, cached_input_tokens=1_000)),
        ({**COUNTS, "total_tokens": 1_047, "cache_creation_input_tokens": 1_000}, Usage(input_tokens=1_040, output_tokens=7, cache_write_tokens=1_000)),
    ],
)  # fmt: skip
def test_cached_tokens_by_the_names_of_another_format(counts: object, expected: Usage) -> None:
    deltas, failure = decode(openai_codec(), delta(content="a") + stop() + event({"choices": [], "usage": counts}))
    assert (failure, last_usage(deltas)) == (None, expected)


def test_cache_tokens_listed_only_by_lifetime_in_the_format_of_anthropic_are_charged() -> None:
    parts = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 4}
    body = event({"type": "message_start", "message": {"usage": {"input_tokens": 6, "cache_creation": parts}}})
    body += block("content_block_delta", 0, delta={"text": "a"})
    expected = Usage(input_tokens=40, output_tokens=7, cache_write_tokens=34)
    for counts in (
        {},
        {"cache_creation": parts},
        {"cache_creation": {}},
        {"cache_creation_input_tokens": 34, "cache_creation": parts},
    ):
        assert last_usage(decode(anthropic_codec(), body + stopped(output_tokens=7, **counts))[0]) == expected


@pytest.mark.parametrize(
    ("make", "body", "expected"),
    [
        (openai_codec, delta(content="a") + stop() + event({"choices": [], "usage": {"completion_tokens": 9}}), (0, 9)),
        (openai_codec, delta(content="a") + stop() + event({"choices": [], "usage": {"completion_tokens": 9, "total_tokens": 41}}), (32, 9)),
        (openai_codec, delta(content="a") + stop() + event({"choices": [], "usage": {"prompt_tokens": 32, "total_tokens": 41}}), (32, 9)),
        (anthropic_codec, block("content_block_delta", 0, delta={"text": "a"}) + stopped(output_tokens=9), (0, 9)),
        (gemini_codec, parts({"text": "a"}, finish="STOP", usageMetadata={"candidatesTokenCount": 9}), (0, 9)),
        (gemini_codec, parts({"text": "a"}, finish="STOP", usageMetadata={"candidatesTokenCount": 5, "thoughtsTokenCount": 4, "totalTokenCount": 41}), (32, 9)),
        (ollama_codec, said("a") + done(eval_count=9), (0, 9)),
        (responses_codec, spoken("a") + completed(usage={"output_tokens": 9}), (0, 9)),
    ],
)  # fmt: skip
def test_one_count_without_the_other_counts(make: Callable[[], Codec], body: bytes, expected: tuple[int, int]) -> None:
    """Ollama leaves out the prompt that its cache had."""
    deltas, failure = decode_cut_anywhere(make, body)
    usage = last_usage(deltas)
    assert usage is not None
    assert (failure, (usage.input_tokens, usage.output_tokens)) == (None, expected)


def test_gemini_s_counts_are_of_what_came_until_then() -> None:
    """A last event may have none: https://github.com/microsoft/semantic-kernel/pull/13944."""
    counts = {"promptTokenCount": 9, "candidatesTokenCount": 1}
    usage = UsageDelta(Usage(input_tokens=9, output_tokens=1))
    body = parts({"text": "a"}, usageMetadata=counts) + parts({"text": "b"}) + parts({"text": "c"}, finish="STOP")
    expected = [TextDelta("a"), usage, TextDelta("b"), TextDelta("c"), FinishDelta("stop")]
    assert decode_cut_anywhere(gemini_codec, body) == (expected, None)
    body = parts({"text": "a"}, usageMetadata=counts) + parts(finish="STOP")
    assert decode_cut_anywhere(gemini_codec, body) == ([TextDelta("a"), FinishDelta("stop"), usage], None)


def test_a_reason_for_a_block_that_is_none_blocks_nothing() -> None:
    feedback = {"blockReason": "BLOCK_REASON_UNSPECIFIED"}
    assert finish(decode(gemini_codec(), parts({"text": "a"}, finish="STOP", promptFeedback=feedback))[0]) == "stop"
    assert finish(decode(gemini_codec(), event({"promptFeedback": {"blockReason": "OTHER"}}))[0]) == "content_filter"


@pytest.mark.parametrize(
    ("make", "body", "expected"),
    [
        (openai_codec, event({"usage": {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, "completion_tokens_details": {"reasoning_tokens": 94}}}) + stop(), (32, 103)),
        (openai_codec, event({"usage": {"prompt_tokens": 15, "completion_tokens": 5}}) + event({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}) + stop(), (15, 5)),
        (responses_codec, completed(usage={"input_tokens": 32, "output_tokens": 9, "total_tokens": 135, "output_tokens_details": {"reasoning_tokens": 94}}), (32, 103)),
        (anthropic_codec, event({"type": "message_start", "message": {"usage": {"input_tokens": 15, "output_tokens": 1}}}) + stopped(input_tokens=0, output_tokens=5), (15, 5)),
        (anthropic_codec, event({"type": "message_start", "message": {"usage": {"input_tokens": 15}}}) + stopped(input_tokens=None, output_tokens=5), (15, 5)),
    ],
)  # fmt: skip
def test_a_count_that_can_not_be_true_is_none(
    make: Callable[[], Codec], body: bytes, expected: tuple[int, int]
) -> None:
    usage = last_usage(decode(make(), body)[0])
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == expected


# Fields of another type.


@pytest.mark.parametrize(
    ("content", "reasoning", "answer"),
    [
        # https://github.com/BerriAI/litellm/issues/16272, https://github.com/n8n-io/n8n/issues/37352
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}], "closed": True}, {"type": "text", "text": "Hi"}], "Hm", "Hi"),
        ([{"type": "thinking", "thinking": "Hm"}, "Hi"], "Hm", "Hi"),
        ([{"type": "reasoning", "text": "Hm"}, {"type": "text", "text": "H"}, {"type": "text", "text": "i"}], "Hm", "Hi"),
        ({"type": "text", "text": "Hi"}, "", "Hi"),
        ([{"type": "reference", "reference_ids": [1]}, {"type": "image_url", "image_url": {"url": "x"}}, None, []], "", ""),
        (3, "", "3"),
        (None, "", ""),
        (False, "", ""),
    ],
)  # fmt: skip
def test_a_content_of_another_type_is_read(content: object, reasoning: str, answer: str) -> None:
    for make, body in ((openai_codec, delta(content=content) + stop()), (ollama_codec, said(content) + done())):
        deltas, failure = decode(make(), body)
        assert (failure, text(deltas, ReasoningDelta), text(deltas)) == (None, reasoning, answer)


ODD: list[object] = [None, 0, 3, -1, 1e300, True, False, "", "odd", [], {}, [[]], [{}], {"a": None}, "\ud83d"]
NOT_NEEDED = {
    openai_codec: (
        '{"id":X,"object":X,"created":X,"model":X,"service_tier":X,"choices":[{"index":0,"logprobs":X,"delta":{"role":X,"content":"a","audio":X,"annotations":X},"finish_reason":null,"content_filter_results":X}],"prompt_filter_results":X,"usage":X}',
        stop(),
    ),
    anthropic_codec: (
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a","citations":X},"usage":X,"x":X}',
        stopped(),
    ),
    gemini_codec: (
        '{"candidates":[{"content":{"role":X,"parts":[{"text":"a","thoughtSignature":X}]},"safetyRatings":X,"avgLogprobs":X,"groundingMetadata":X}],"promptFeedback":{"safetyRatings":X},"modelVersion":X,"usageMetadata":X}',
        parts(finish="STOP"),
    ),
    responses_codec: (
        '{"type":"response.output_text.delta","output_index":0,"item_id":X,"content_index":X,"delta":"a","logprobs":X,"sequence_number":X,"obfuscation":X}',
        completed(),
    ),
    ollama_codec: (
        '{"model":X,"created_at":X,"message":{"role":X,"content":"a","images":X},"done":false,"total_duration":X,"eval_count":X}',
        done(),
    ),
}  # fmt: skip


THOUGHT = [{"type": "reasoning.text", "text": "Hm", "format": "unknown", "index": 0}]
BLOCKS = [{"type": "thinking", "thinking": "Hm", "signature": ""}]


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "Hm"},
        {"reasoning": "Hm"},
        {"reasoning_text": "Hm"},
        {"thinking": "Hm"},
        {"reasoning_details": THOUGHT},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "Hm"}]},
        {"thinking_blocks": BLOCKS},
        {"reasoning_content": {"text": "Hm"}},  # https://github.com/envoyproxy/ai-gateway/pull/1222
        {"reasoning": "Hm", "reasoning_details": THOUGHT},  # https://github.com/BerriAI/litellm/issues/8193
        {"reasoning_content": "Hm", "thinking_blocks": BLOCKS},
        {"reasoning_content": "", "reasoning": None, "thinking_blocks": BLOCKS},
    ],
)
def test_a_thought_has_many_names_and_counts_once(fields: dict[str, object]) -> None:
    signature = {"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "c2ln"}]}
    secret = {"reasoning_details": [{"type": "reasoning.encrypted", "data": "c2VjcmV0"}]}
    streamed = [delta(**fields), delta(**signature), delta(**secret), delta(content="Hi"), stop()]
    for body, whole in (
        (b"".join(streamed), False),
        (json.dumps({"choices": [{"message": {**fields, "content": "Hi"}, "finish_reason": "stop"}]}).encode(), True),
    ):
        found, failure = decode(openai_codec(whole=whole), body, whole=whole)
        assert failure is None
        assert (text(found, ReasoningDelta), text(found), finish(found)) == ("Hm", "Hi", "stop")


def choice(**fields: object) -> bytes:
    return event({"choices": [{"index": 0, **fields}]})


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (openai_codec, choice(text="He") + choice(text="llo") + choice(text="", finish_reason="stop")),
        # Together repeats each piece.
        (
            openai_codec,
            choice(text="He", delta={"content": "He"}) + choice(text="llo", delta={"content": "llo"}) + stop(),
        ),
        (openai_codec, choice(text="He", delta={"role": "assistant", "content": ""}) + choice(text="llo") + stop()),
        (openai_codec, choice(delta="Hello") + stop()),
        (openai_codec, choice(delta="Hello", odd="\ud800") + stop()),
        (openai_codec, choice(message="Hello", finish_reason="stop")),
        (ollama_codec, line({"response": "He", "done": False}) + line({"response": "llo"}) + done(response="")),
        (ollama_codec, line({"message": "Hello"}) + done()),
        (ollama_codec, line({"message": "Hello", "odd": "\ud800"}) + done()),
        (ollama_codec, line({"message": {"content": ""}, "response": "Hello"}) + done()),
        (ollama_codec, said("Hello") + done(response="")),
    ],
)
def test_a_text_in_the_place_of_another_format_is_read(make: Callable[[], Codec], body: bytes) -> None:
    found, failure = decode_cut_anywhere(make, body)
    assert (text(found), finish(found), failure) == ("Hello", "stop", None)


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (openai_codec, {"choices": [{"text": "Hello", "finish_reason": "stop"}]}),
        (openai_codec, {"choices": [{"message": "Hello", "finish_reason": "stop"}]}),
        (ollama_codec, {"message": "Hello", "done": True}),
        (ollama_codec, {"response": "Hello", "done": True}),
        (anthropic_codec, {"type": "message", "content": "Hello", "stop_reason": "end_turn"}),
    ],
)
def test_a_whole_answer_with_its_text_in_an_unusual_field_is_read(make: Callable[..., Codec], body: object) -> None:
    found, failure = decode(make(whole=True), json.dumps(body).encode(), whole=True)
    assert (text(found), finish(found), failure) == ("Hello", "stop", None)


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (ollama_codec, said("", thinking="Hm") + said("Hi") + done()),
        (ollama_codec, said("", reasoning="Hm") + said("Hi") + done()),
        (ollama_codec, said("", reasoning_content="Hm") + said("Hi") + done()),
        (ollama_codec, line({"thinking": "Hm"}) + line({"response": "Hi"}) + done()),
        (gemini_codec, parts({"text": "Hm", "thought": True}, {"text": "Hi"}, finish="STOP")),
        (gemini_codec, parts({"thought": "Hm"}, {"text": "Hi"}, finish="STOP")),
        (responses_codec, spoken("Hm", "reasoning_text") + spoken("Hi") + completed()),
        (responses_codec, spoken("Hm", "reasoning_summary_text") + spoken("Hi") + completed()),
        (responses_codec, spoken("Hm", "reasoning") + spoken("Hi") + completed()),
    ],
)
def test_a_thought_in_the_other_formats_counts_as_reasoning(make: Callable[[], Codec], body: bytes) -> None:
    found, failure = decode(make(), body)
    assert (text(found, ReasoningDelta), text(found), failure) == ("Hm", "Hi", None)


@pytest.mark.parametrize("make", NOT_NEEDED)
@pytest.mark.parametrize("odd", [*map(json.dumps, ODD), "1e999", "NaN", "9" * 5_000], ids=lambda odd: odd[:12])
def test_an_unneeded_field_ends_no_answer(make: Callable[[], Codec], odd: str) -> None:
    shape, end = NOT_NEEDED[make]
    event = shape.replace("X", odd).encode()
    body = (event + b"\n" if make is ollama_codec else b"data: " + event + b"\n\n") + end
    deltas, failure = decode(make(), body)
    assert (failure, text(deltas), finish(deltas)) == (None, "a", "stop")


@pytest.mark.parametrize(
    "body",
    [
        event({"choices": None}),
        event({"choices": 3}),
        event({"choices": [None, 3, {}]}),
        event({"choices": [{"delta": None}]}),
        event({"choices": [{"delta": []}]}),
        event({"choices": [{"delta": {"tool_calls": ""}}]}),
        event({"choices": [{"delta": {"tool_calls": {}}}]}),
        event({"choices": [{"delta": {"tool_calls": [None, {"function": None}]}}]}),
        event({"choices": [{"index": "0", "delta": {}, "finish_reason": False}]}),
        event({"choices": [{"index": 0, "delta": {"content": ""}}], "error": {}}),
        event({"choices": [{"index": 0, "delta": {"content": ""}}], "error": ""}),
        event({"choices": [{"index": 0, "delta": {"content": ""}}], "error": False}),
    ],
    ids=repr,
)
def test_meaningless_fields_of_any_type_are_ignored(body: bytes) -> None:
    deltas, failure = decode(openai_codec(), body + delta(content="a") + body + stop())
    assert (failure, text(deltas), finish(deltas)) == (None, "a", "stop")


# The last event without its end.

ENDS: dict[Callable[..., Codec], bytes] = {
    openai_codec: delta(content="a") + stop() + event({"choices": [], "usage": COUNTS}),
    anthropic_codec: block("content_block_delta", 0, delta={"text": "a"}) + stopped(input_tokens=40, output_tokens=7),
    gemini_codec: parts({"text": "a"}) + parts(finish="STOP", usageMetadata={"promptTokenCount": 40, "candidatesTokenCount": 7}),
    ollama_codec: said("a") + done(prompt_eval_count=40, eval_count=7),
    responses_codec: spoken("a") + completed(usage={"input_tokens": 40, "output_tokens": 7}),
}  # fmt: skip


@pytest.mark.parametrize("make", ENDS)
def test_the_last_event_counts_without_its_terminator_if_the_body_is_complete(make: Callable[[], Codec]) -> None:
    body = ENDS[make]
    expected = decode(make(), body)
    assert expected[1] is None
    assert last_usage(expected[0]) == Usage(input_tokens=40, output_tokens=7)
    for end in (b"", b"\n", b"\r\n", b"\r"):
        assert decode(make(), body.rstrip(b"\n") + end, whole=True) == expected
        for at in range(0, len(body), 7):
            assert decode(make(), body[:at], body[at:].rstrip(b"\n") + end, whole=True) == expected
    half = body.rstrip(b"\n")[:-2]
    if make is not anthropic_codec:  # its stop reason came in the event before
        assert decode(make(), half, whole=True) == decode(make(), half), "half an event is dropped"


def test_an_event_stream_may_end_within_its_first_line() -> None:
    assert decode(openai_codec(), stop()[:-2], whole=True) == ([FinishDelta("stop")], None)
    assert decode(openai_codec(), b"\xef\xbb\xbf" + stop()[:-2], whole=True) == ([FinishDelta("stop")], None)
    assert decode(openai_codec(), b"", whole=True)[1] is UpstreamTruncated


@pytest.mark.parametrize("make", ENDS)
def test_events_without_a_blank_line_between_them_are_read(make: Callable[[], Codec]) -> None:
    """https://github.com/rexxars/eventsource-parser/pull/31: GLM and Kimi; as JSON, a proxy's type for these lines."""
    expected = decode(make(), ENDS[make])
    body = ENDS[make].replace(b"\n\n", b"\n")
    for end in (b"", b"data: [DONE]", b"data: [DONE]\n"):
        assert decode(make(), body + end, whole=True) == expected
        assert decode(make(), body[:40], body[40:] + end, whole=True) == expected
    lines = body.replace(b"data: ", b"")
    assert decode(make(whole=True), lines, whole=True) == expected  # type: ignore[call-arg]
    last = ENDS[make][:-1] + b"data: [DONE]\n\n"
    if make is not ollama_codec:
        assert decode_cut_anywhere(make, last) == expected


@pytest.mark.parametrize("make", [make for make in ENDS if make is not ollama_codec])
@pytest.mark.parametrize("between", [b"\n\n", b"\r\ndata: \r\ndata: \r\n\r\n"])
def test_events_in_events_are_read(make: Callable[[], Codec], between: bytes) -> None:
    """A framework that writes events was given whole events: `data: data: {...}`."""
    body = ENDS[make] + b"data: [DONE]\n\n"
    twice = b"".join(b"data: " + each + between for each in body.split(b"\n\n")[:-1])
    assert decode_cut_anywhere(make, twice) == decode(make(), body)


@pytest.mark.parametrize("make", [make for make in ENDS if make is not ollama_codec])
@pytest.mark.parametrize(
    "data",
    # https://github.com/anomalyco/opencode/issues/50871: Vertex AI; https://github.com/mnfst/llm-gateway/issues/2053
    [b": keepalive", b": OPENROUTER PROCESSING", b"", b" ", b"{}"],
)
def test_data_that_keeps_a_connection_alive_ends_no_answer(make: Callable[[], Codec], data: bytes) -> None:
    event = b"data: " + data + b"\n\n"
    expected = decode(make(), ENDS[make])
    assert decode(make(), event + ENDS[make].replace(b"\n\n", b"\n\n" + event) + b"data: [DONE]\n\n") == expected


def test_lines_that_are_no_events_are_an_error_after_the_earlier_text() -> None:
    body = delta(content="a")[:-1] + b"data: x\n\n" + delta(content="b") + stop()
    assert decode_cut_anywhere(openai_codec, body) == ([TextDelta("a")], UpstreamProtocol)


# Characters in two pieces.

HALVES = {
    openai_codec: (lambda said: delta(content=said), lambda said: delta(reasoning_content=said), stop()),
    anthropic_codec: (
        lambda said: block("content_block_delta", 0, delta={"type": "text_delta", "text": said}),
        lambda said: block("content_block_delta", 0, delta={"type": "thinking_delta", "thinking": said}),
        stopped(),
    ),
    gemini_codec: (lambda said: parts({"text": said}), lambda said: parts({"text": said, "thought": True}), parts(finish="STOP")),
    ollama_codec: (said, lambda text: said("", thinking=text), done()),
    responses_codec: (spoken, lambda text: spoken(text, "reasoning_summary_text"), completed()),
}  # fmt: skip


@pytest.mark.parametrize("make", HALVES)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["a\ud83d", "\ude00b"], "a\U0001f600b"),
        (["\ud83d", "\ude00"], "\U0001f600"),
        (["\ud83d", "x"], "\ufffdx"),
        (["\ude00", "x"], "\ufffdx"),
        (["x", "\ud83d"], "x\ufffd"),
        (["\ud83d", "\ud83d", "\ude00", "\ude00"], "\ufffd\U0001f600\ufffd"),
        (["\ud83d\ude00\ud83d", "\ude00"], "\U0001f600\U0001f600"),
    ],
)
def test_a_character_in_two_pieces_is_one(make: Any, which: int, pieces: list[str], expected: str) -> None:
    """A token is not a character: https://github.com/elie222/rakazo/issues/416."""
    piece, end = HALVES[make][which], HALVES[make][2]
    deltas, failure = decode_cut_anywhere(make, b"".join(map(piece, pieces)) + end)  # type: ignore[call-overload]
    assert failure is None
    assert text(deltas, (TextDelta, ReasoningDelta)[which]) == expected
    assert all(each.text for each in deltas if isinstance(each, TextDelta | ReasoningDelta))


def test_halves_of_the_text_and_of_a_call_are_not_mixed() -> None:
    body = delta(content="\ud83d") + calls(call("say", '{"a":"\ud83d', index=0, id="x"))
    body += delta(content="\ude00") + calls(call(None, '\ude01"}', index=0)) + stop()
    deltas, failure = decode_cut_anywhere(openai_codec, body)
    assert (failure, text(deltas), made(deltas)) == (None, "\U0001f600", [("say", '{"a":"\U0001f601"}')])


# An answer that is no stream.

WHOLE = {
    openai_codec: {
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": "Hi", "reasoning_content": "Hm", "tool_calls": [call("weather", OSLO, id="x", type="function")]}}],
        "usage": COUNTS,
    },
    anthropic_codec: {
        "type": "message",
        "content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "x", "name": "weather", "input": {"city": "Oslo"}}],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 40, "output_tokens": 7},
    },
    gemini_codec: [
        {"candidates": [{"content": {"parts": [{"text": "Hm", "thought": True}, {"text": "Hi"}]}}]},
        {"candidates": [{"content": {"parts": [{"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}]}, "finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 40, "candidatesTokenCount": 7}},
    ],
    responses_codec: {
        "object": "response",
        "status": "completed",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
            {"type": "function_call", "call_id": "x", "name": "weather", "arguments": OSLO},
        ],
        "usage": {"input_tokens": 40, "output_tokens": 7},
    },
    ollama_codec: {"message": {"content": "Hi", "thinking": "Hm", "tool_calls": [call("weather", {"city": "Oslo"})]}, "done": True, "done_reason": "stop", "prompt_eval_count": 40, "eval_count": 7},
}  # fmt: skip


@pytest.mark.parametrize("make", WHOLE)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_answer_that_is_sent_whole_is_read(make: Callable[..., Codec], indent: int | None) -> None:
    body = json.dumps(WHOLE[make], indent=indent).encode()
    deltas, failure = outcome = decode(make(whole=True), body, whole=True)
    assert failure is None
    assert (text(deltas, ReasoningDelta), text(deltas), finish(deltas)) == ("Hm", "Hi", "tool_calls")
    assert [(name, json.loads(arguments)) for name, arguments in made(deltas)] == [("weather", {"city": "Oslo"})]
    assert last_usage(deltas) == Usage(input_tokens=40, output_tokens=7)
    assert decode(make(whole=True), *cut(body, range(0, 400, 13)), whole=True) == outcome


@pytest.mark.parametrize("make", WHOLE)
@pytest.mark.parametrize("body", [b"{}", b"[]", b"{", b'{"a":1}', b"3", b""])
def test_json_that_is_no_answer_is_not_understood(make: Callable[..., Codec], body: bytes) -> None:
    assert decode(make(whole=True), body, whole=True) == ([], UpstreamProtocol)


def test_a_whole_message_in_a_stream_counts_unless_it_repeats_what_came() -> None:
    message = event({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]})
    assert text(decode(openai_codec(), message)[0]) == "Hi"
    assert text(decode(openai_codec(), delta(content="Hi") + message)[0]) == "Hi"


@pytest.mark.parametrize("make", [make for make in WHOLE if make is not ollama_codec])
def test_json_with_the_media_type_of_a_stream_is_read(make: Callable[..., Codec]) -> None:
    """https://github.com/decolua/9router/pull/3301."""
    body = b"\n" + json.dumps(WHOLE[make], indent=2).encode()
    expected = decode(make(whole=True), body, whole=True)
    for at in (0, 1, 2, 9):
        assert decode(make(), body[:at], body[at:], whole=True) == expected
    error = json.dumps({"error": {"code": "context_length_exceeded", "message": "x"}}).encode()
    assert decode(make(), error, whole=True)[1] is ContextLengthExceeded
    assert decode(make(), b'{"a":', whole=True)[1] is UpstreamProtocol


# Errors in a stream.


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": "context_length_exceeded", "message": "x"}, ContextLengthExceeded),
        ({"type": "invalid_request_error", "message": "prompt is too long: 215000 tokens > 200000 maximum"}, ContextLengthExceeded),
        ({"code": 400, "message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."}, ContextLengthExceeded),
        ("the request exceeds the available context size", ContextLengthExceeded),
        ({"code": "insufficient_quota"}, UpstreamQuota),
        ({"type": "overloaded_error", "message": "Overloaded"}, UpstreamOverloaded),
        ({"code": 503, "status": "UNAVAILABLE", "message": "The model is overloaded. Please try again later."}, UpstreamOverloaded),
        ({"code": "content_filter", "message": "x"}, ContentFiltered),
        ({"code": "server_error"}, UpstreamError),
        ([], UpstreamError),
    ],
)  # fmt: skip
def test_errors_that_somebody_can_act_on(error: object, expected: type[UpstreamError]) -> None:
    for make, wrap in ((openai_codec, event), (gemini_codec, event), (ollama_codec, line)):
        assert decode(make(), wrap({"error": error}))[1] is expected
    for other in (anthropic_codec, responses_codec):
        assert decode(other(), event({"type": "error", "error": error}))[1] is expected
    assert decode(responses_codec(), event({"type": "response.failed", "response": {"error": error}}))[1] is expected


# Any legal order, any cut, any further field.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
EXTRA = st.dictionaries(st.sampled_from(["x_a", "x_b", "ext"]), JSON, max_size=2)


def meaning(deltas: Sequence[Delta]) -> tuple[object, ...]:
    return text(deltas), text(deltas, ReasoningDelta), made(deltas), finish(deltas), last_usage(deltas)


def openai_events(index: bool, ids: bool, whole: bool) -> list[list[dict[str, Any]]]:
    """Pieces of an answer: text, and two calls whose pieces keep their order; then what may come in any order."""
    named: list[dict[str, Any]] = [{"index": 0} if index else {}, {"index": 1} if index else {}]
    id = [{"id": "x1"} if ids else {}, {"id": "x2"} if ids else {}]
    pieces: list[dict[str, Any]] = []
    for at, (name, arguments) in enumerate(TWO):
        first, rest = (arguments, "") if whole else (arguments[:5], arguments[5:])
        pieces.append(call(name, first, **named[at], **id[at]))
        if rest:
            pieces.append(call(None, rest, **named[at]))
    said = [{"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]} for piece in pieces]
    ends: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": COUNTS},
    ]
    return [[{"choices": [{"index": 0, "delta": {"content": "Hi"}}]}, *said], ends]


@settings(max_examples=60)
@given(
    st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.data(), st.lists(st.integers(0, 9_999), max_size=6)
)
def test_legal_pieces_in_any_order_and_any_cut_mean_the_same(
    index: bool, ids: bool, whole: bool, reverse: bool, data: st.DataObject, places: list[int]
) -> None:
    said, ends = openai_events(index, ids, whole)
    events = [*said, *(reversed(ends) if reverse else ends)]
    body = b"".join(event({**data.draw(EXTRA), **each}) for each in events) + b"data: [DONE]\n\n"
    deltas, failure = decode(openai_codec(), *cut(body, places), whole=True)
    assert failure is None
    assert meaning(deltas) == ("Hi", "", TWO, "tool_calls", Usage(input_tokens=40, output_tokens=7))


OTHERS: dict[Callable[..., Codec], tuple[list[dict[str, Any]], tuple[object, ...]]] = {
    anthropic_codec: (
        [
            {"type": "message_start", "message": {"usage": {"input_tokens": 40, "output_tokens": 1}}},
            {"type": "content_block_delta", "index": 0, "delta": {"text": "Hi"}},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "x", "name": "weather", "input": {}}},
            {"type": "content_block_delta", "index": 1, "delta": {"partial_json": OSLO}},
            {"type": "content_block_stop", "index": 1},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
            {"type": "message_stop"},
        ],
        ("Hi", "", TWO[:1], "tool_calls", Usage(input_tokens=40, output_tokens=7)),
    ),
    responses_codec: (
        [
            {"type": "response.output_text.delta", "output_index": 0, "delta": "Hi"},
            {"type": "response.output_item.added", "output_index": 1, "item": {"type": "function_call", "call_id": "x", "name": "weather"}},
            {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": OSLO},
            {"type": "response.completed", "response": {"usage": {"input_tokens": 40, "output_tokens": 7}}},
        ],
        ("Hi", "", TWO[:1], "tool_calls", Usage(input_tokens=40, output_tokens=7)),
    ),
    gemini_codec: (
        [
            {"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]},
            {"candidates": [{"content": {"parts": [{"functionCall": {"name": "weather", "args": OSLO}}]}}]},
            {"candidates": [{"finishReason": "STOP"}]},
            {"usageMetadata": {"promptTokenCount": 40, "candidatesTokenCount": 7}},
        ],
        ("Hi", "", TWO[:1], "tool_calls", Usage(input_tokens=40, output_tokens=7)),
    ),
    ollama_codec: (
        [
            {"message": {"content": "Hi"}},
            {"message": {"tool_calls": [call("weather", OSLO)]}},
            {"done": True, "done_reason": "stop", "prompt_eval_count": 40, "eval_count": 7},
        ],
        ("Hi", "", TWO[:1], "tool_calls", Usage(input_tokens=40, output_tokens=7)),
    ),
}  # fmt: skip


@settings(max_examples=40)
@pytest.mark.parametrize("make", OTHERS)
@given(data=st.data(), places=st.lists(st.integers(0, 9_999), max_size=6))
def test_any_cut_and_any_further_field_mean_the_same(
    make: Callable[..., Codec], data: st.DataObject, places: list[int]
) -> None:
    events, expected = OTHERS[make]
    write = line if make is ollama_codec else event
    body = b"".join(write({**data.draw(EXTRA), **each}) for each in events)
    deltas, failure = decode(make(), *cut(body, places), whole=True)
    assert failure is None
    assert meaning(deltas) == expected


def merged(data: st.DataObject, *streams: Sequence[Any]) -> list[Any]:
    """The streams' pieces in any order that keeps the order within each."""
    order = data.draw(st.permutations([at for at, stream in enumerate(streams) for _ in stream]))
    pieces = [iter(stream) for stream in streams]
    return [next(pieces[at]) for at in order]


def halves(data: st.DataObject, text: str) -> list[str]:
    """The text in pieces, of which some may be empty."""
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def tool_block(data: st.DataObject, index: int, name: str, arguments: str) -> list[dict[str, Any]]:
    """A call of Anthropic's format: its input in pieces, or whole where it starts."""
    start = {"type": "tool_use", "id": f"x{index}", "name": name, "input": {}}
    inside = [{"type": "input_json_delta", "partial_json": piece} for piece in halves(data, arguments)]
    if data.draw(st.booleans()):
        start, inside = {**start, "input": json.loads(arguments)}, []
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in inside),
        {"type": "content_block_stop", "index": index},
    ]


def said_block(data: st.DataObject, index: int, kind: str, words: str) -> list[dict[str, Any]]:
    """A text or a thought, which may begin where its block starts."""
    first, *rest = halves(data, words)
    start = {"type": kind, kind: first}
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": {"type": f"{kind}_delta", kind: piece}} for piece in rest),
        {"type": "content_block_stop", "index": index},
    ]  # fmt: skip


def anthropic_events(data: st.DataObject) -> list[dict[str, Any]]:
    """Blocks that overlap, with pings; the reason and the counts in one event or two, in either order."""
    ends = [
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        {"type": "message_delta", "usage": {"output_tokens": 7}},
    ]
    if data.draw(st.booleans()):
        ends = [{**ends[0], **ends[1]}]
    blocks = [
        said_block(data, 0, "thinking", "Hm"),
        said_block(data, 1, "text", "Hi"),
        *(tool_block(data, at, *each) for at, each in enumerate(TWO, start=2)),
        [{"type": "ping"}] * data.draw(st.integers(0, 2)),
    ]
    blocks = merged(data, *blocks) if data.draw(st.booleans()) else [each for block in blocks for each in block]  # type: ignore[misc]
    return [
        {"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 40, "output_tokens": 1}}},
        *blocks,  # type: ignore[list-item]
        *data.draw(st.permutations(ends)),
        {"type": "message_stop"},
    ]  # fmt: skip


def gemini_events(data: st.DataObject) -> list[dict[str, Any]]:
    """Parts, several or one an event; the reason with any of them and repeated, the counts in all or the last one."""
    parts = merged(
        data,
        [{"text": piece, "thought": True} for piece in halves(data, "Hm")],
        [{"text": piece} for piece in halves(data, "Hi")],
        [{"functionCall": {"name": name, "args": json.loads(arguments)}} for name, arguments in TWO],
    )
    events: list[dict[str, Any]] = []
    while parts:
        count = data.draw(st.integers(1, len(parts)))
        events.append({"candidates": [{"index": 0, "content": {"role": "model", "parts": parts[:count]}}]})
        parts = parts[count:]
    early = data.draw(st.integers(0, len(events)))
    for number, each in enumerate(events):
        if number >= early:
            each["candidates"][0]["finishReason"] = "STOP"
        if data.draw(st.booleans()):
            each["usageMetadata"] = {"promptTokenCount": 40, "candidatesTokenCount": min(number, 7)}
    ends = [
        {"candidates": [{"finishReason": "STOP"}]},
        {"usageMetadata": {"promptTokenCount": 40, "candidatesTokenCount": 4, "thoughtsTokenCount": 3}},
    ]
    return [*events, *data.draw(st.permutations(ends))]  # type: ignore[list-item]


def ollama_events(data: st.DataObject) -> list[dict[str, Any]]:
    """Thoughts, text and calls, several or one a line, and also in the last one."""
    fields = merged(
        data,
        [{"thinking": piece} for piece in halves(data, "Hm")],
        [{"content": piece} for piece in halves(data, "Hi")],
        [{"tool_calls": [call(name, json.loads(arguments))]} for name, arguments in TWO],
    )
    lines: list[dict[str, Any]] = []
    for message in fields:
        if lines and not lines[-1]["message"].keys() & message.keys() and data.draw(st.booleans()):
            lines[-1]["message"] |= message
        else:
            lines.append(
                {
                    "message": {"role": "assistant", "content": "", **message} if data.draw(st.booleans()) else message,
                    "done": False,
                }
            )
    last = {"done": True, "done_reason": "stop", "prompt_eval_count": 40, "eval_count": 7}
    if data.draw(st.booleans()):
        lines[-1] |= last
    else:
        lines.append({"message": {"role": "assistant", "content": ""}, **last})
    return lines


@settings(max_examples=60)
@pytest.mark.parametrize(
    ("make", "events"),
    [(anthropic_codec, anthropic_events), (gemini_codec, gemini_events), (ollama_codec, ollama_events)],
)
@given(data=st.data(), places=st.lists(st.integers(0, 9_999), max_size=6))
def test_legal_pieces_of_the_other_formats_in_any_order_and_any_cut_mean_the_same(
    make: Callable[..., Codec],
    events: Callable[[st.DataObject], list[dict[str, Any]]],
    data: st.DataObject,
    places: list[int],
) -> None:
    write = line if make is ollama_codec else event
    body = b"".join(write({**data.draw(EXTRA), **each}) for each in events(data))
    deltas, failure = decode(make(), *cut(body, places), whole=True)
    assert failure is None
    text, thought, calls, reason, usage = meaning(deltas)
    assert (text, thought, reason) == ("Hi", "Hm", "tool_calls")
    assert sorted(
        (name, json.loads(arguments)["city" if name == "weather" else "tz"])
        for name, arguments in calls  # type: ignore[attr-defined]
    ) == [
        ("clock", "JST"),
        ("weather", "Oslo"),
    ]
    assert isinstance(usage, Usage)
    assert (usage.input_tokens, usage.output_tokens) == (40, 7)


@pytest.mark.parametrize("depth", [20, 800, 100_000])
@pytest.mark.parametrize("name", ["content", "reasoning_content"])
def test_a_value_nested_too_deeply_is_not_understood(name: str, depth: int) -> None:
    deep = b"[" * depth + b'"x"' + b"]" * depth
    codec = openai_codec()
    with pytest.raises(UpstreamProtocol):
        codec.feed(b'data: {"choices":[{"index":0,"delta":{"%b":%b}}]}\n\n' % (name.encode(), deep))
    assert codec.over
