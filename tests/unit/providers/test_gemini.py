"""The Gemini API: what bytes mean, however they are cut; and what is asked for."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from decoding import SECRET, decode, decode_cut_anywhere

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta, FinishReason
from chat_nest.core.errors import (
    UpstreamError,
    UpstreamProtocol,
    UpstreamRateLimited,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from chat_nest.core.messages import Message, Tool, ToolCall
from chat_nest.core.protocols import Prompt
from chat_nest.providers.gemini import GeminiProvider, gemini_codec, request_body, request_path
from chat_nest.core.usage import Usage


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\r\n\r\n"


def chunk(*parts: dict[str, Any], finish: str | None = None, **counts: Any) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    body: dict[str, Any] = {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "responseId": "x"}
    return data({**body, "usageMetadata": counts} if counts else body)


def text(said: str) -> dict[str, str]:
    return {"text": said}


def usage(input_tokens: int, output_tokens: int, cached: int = 0, thoughts: int = 0) -> UsageDelta:
    return UsageDelta(
        Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_input_tokens=cached,
            reasoning_tokens=thoughts,
        )
    )


def read(body: bytes) -> tuple[list[Delta], type[UpstreamError] | None]:
    return decode(gemini_codec(), body)


WHOLE = (
    chunk({"text": "Hmm.", "thought": True}, promptTokenCount=8, totalTokenCount=90, thoughtsTokenCount=82)
    + chunk(text("Hel"), promptTokenCount=8, candidatesTokenCount=1, totalTokenCount=91, thoughtsTokenCount=82)
    + chunk(
        text("lo é"),
        finish="STOP",
        promptTokenCount=8,
        candidatesTokenCount=3,
        totalTokenCount=93,
        thoughtsTokenCount=82,
        cachedContentTokenCount=4,
    )
)
DELTAS = [ReasoningDelta("Hmm."), TextDelta("Hel"), TextDelta("lo é"), FinishDelta("stop"), usage(8, 85, 4, 82)]


def test_a_whole_answer_cut_at_every_byte() -> None:
    assert decode_cut_anywhere(gemini_codec, WHOLE) == (DELTAS, None)


def test_an_answer_that_ends_at_any_byte_is_never_done_before_its_finish() -> None:
    for end in range(len(WHOLE) - 2):
        deltas, failure = read(WHOLE[:end])
        assert failure is UpstreamTruncated
        assert deltas == DELTAS[: len(deltas)]


def test_counts_after_the_finish_reason_are_used() -> None:
    body = chunk(finish="STOP") + data({"usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 2}})
    assert read(body) == ([FinishDelta("stop"), usage(8, 2)], None)


CALL = {"functionCall": {"name": "weather", "args": {"city": "Paris é", "n": 1.50}}, "thoughtSignature": "CsUB"}


def test_calls_cut_at_every_byte() -> None:
    body = chunk(CALL, {"functionCall": {"id": "fc-1", "name": "time"}}) + chunk(
        {"functionCall": {"name": "time", "args": None}}, finish="STOP"
    )
    assert decode_cut_anywhere(lambda: gemini_codec("call_7"), body) == (
        [
            ToolCallDelta(0, '{"city": "Paris é", "n": 1.5}', "call_7_0", "weather"),
            ToolCallDelta(1, "{}", "fc-1", "time"),
            ToolCallDelta(2, "{}", "call_7_2", "time"),
            FinishDelta("tool_calls"),
        ],
        None,
    )
    assert read(chunk(*[CALL] * 129))[1] is UpstreamProtocol


def piece(path: str, goes_on: bool | None = None, **value: object) -> dict[str, object]:
    return {"jsonPath": path, **value} | ({} if goes_on is None else {"willContinue": goes_on})


def called(*pieces: dict[str, object], goes_on: bool | None = True, **call: object) -> dict[str, Any]:
    more = {"partialArgs": list(pieces)} if pieces else {}
    return {"functionCall": {**call, **more} | ({} if goes_on is None else {"willContinue": goes_on})}


STREAMED = [
    called(name="weather", id="fc-1"),
    called(piece("$.city", True, stringValue="Paris ")),
    called(piece("$.city", stringValue='é"')),
    called(piece("$.days[1].n", numberValue=2.0), piece("$.days[0]['a b']", boolValue=False)),
    called(piece("$.days[1]['it\\'s']", nullValue=None), piece('$[""]', numberValue=-0.5)),
    called(piece("$.days[2]", nullValue="NULL_VALUE"), name="weather"),
]
ARGUMENTS = {"city": 'Paris é"', "days": [{"a b": False}, {"n": 2, "it's": None}, None], "": -0.5}


@pytest.mark.parametrize(
    "end",
    [{"functionCall": {}}, called(goes_on=False), called(piece("$.days[2]"), goes_on=None)],
)
def test_arguments_in_pieces_make_one_whole_call(end: dict[str, Any]) -> None:
    """A last piece may have a value and no end of its own: https://github.com/vercel/ai/issues/14358."""
    body = b"".join(chunk(part, finish="STOP") for part in STREAMED) + chunk(end, CALL) + chunk(finish="STOP")
    deltas, failure = decode_cut_anywhere(gemini_codec, body)
    first, second = (delta for delta in deltas if isinstance(delta, ToolCallDelta))
    assert (first.id, first.name, json.loads(first.arguments)) == ("fc-1", "weather", ARGUMENTS)
    assert (second.name, failure, deltas[-1]) == ("weather", None, FinishDelta("tool_calls"))
    assert '"n":2,' in first.arguments


def test_a_call_may_have_no_arguments_or_an_object_and_pieces() -> None:
    body = chunk(called(name="time"), {"functionCall": {}}) + chunk(
        called(name="note", args={"at": [{"text": "a"}], "none": []}),
        called(piece("$.at[0].text", stringValue="b"), piece("$.at[1]", stringValue=""), goes_on=None),
        {"functionCall": {}},
        finish="STOP",
    )
    deltas, failure = read(body)
    assert deltas == [
        ToolCallDelta(0, "{}", "call_0", "time"),
        ToolCallDelta(1, '{"at":[{"text":"ab"},""],"none":[]}', "call_1", "note"),
        FinishDelta("tool_calls"),
    ]
    assert failure is None


def test_a_call_that_never_becomes_whole_is_none() -> None:
    for at in range(1, len(STREAMED) + 1):
        pieces = chunk(*STREAMED[:at])
        deltas, failure = read(pieces + chunk(finish="STOP"))
        assert (failure, [delta for delta in deltas if isinstance(delta, ToolCallDelta)]) == (UpstreamTruncated, [])
        assert read(pieces + chunk(finish="MAX_TOKENS")) == ([FinishDelta("length")], None)
        for other in ({"name": "time", "args": {}}, {"id": "fc-2", "name": "weather", "args": {}}):
            assert read(pieces + chunk({"functionCall": other}, finish="STOP")) == ([], UpstreamTruncated)


@pytest.mark.parametrize(
    "wrong",
    [
        *(piece(path, stringValue="x") for path in ("", "city", "$", "$[0]", "$.a[", "$.a[*]", "$..a", "$.a[-1]")),
        piece("$" + ".a" * 65, stringValue="x"),
        piece("$.a[999999999]", stringValue="x"),
        piece("$.city.name", stringValue="x"),
        piece("$.days", stringValue="x"),
        piece("$.days.n", stringValue="x"),
        piece("$.n", numberValue="NaN"),
        piece("$.n", stringValue=["x"]),
        {"stringValue": "x"},
    ],
    ids=repr,
)
def test_pieces_without_a_meaning_make_no_call(wrong: dict[str, object]) -> None:
    body = chunk(*STREAMED, called(wrong, goes_on=None), finish="STOP")
    assert read(body) == ([], UpstreamProtocol)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *((reason, "content_filter") for reason in "SAFETY RECITATION BLOCKLIST PROHIBITED_CONTENT SPII".split()),
    ],
)
def test_finish_reasons(said: str, meant: FinishReason) -> None:
    assert read(chunk(finish=said)) == ([FinishDelta(meant)], None)
    assert read(data({"candidates": [{"finishReason": said}]})) == ([FinishDelta(meant)], None)


def test_a_blocked_prompt_is_an_answer_that_was_filtered() -> None:
    body = data({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 8}})
    assert read(body) == ([FinishDelta("content_filter"), usage(8, 0)], None)


@pytest.mark.parametrize(
    "body",
    [
        chunk(text("b")).replace(b'"index": 0', b'"index": 1'),
        chunk({"inlineData": {"mimeType": "image/png", "data": "AAAA"}}),
        chunk({"text": "", "thoughtSignature": "CsUB"}),
        chunk(finish="FINISH_REASON_UNSPECIFIED"),
        data({"candidates": [{"content": {"role": "model"}, "index": 0}]}),
        data({"candidates": [{"content": None, "finishReason": None}]}),
        data({"promptFeedback": {"safetyRatings": []}}),
        data({"candidates": None}),
        data({}),
        b"data:\n\n: comment\n\n",
    ],
    ids=lambda body: repr(body[:70]),
)
def test_empty_parts_are_left_out(body: bytes) -> None:
    assert read(body + chunk(text("a"), finish="STOP")) == ([TextDelta("a"), FinishDelta("stop")], None)
    assert read(body)[1] is UpstreamTruncated


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("UNAVAILABLE", UpstreamUnavailable),
        ("INTERNAL", UpstreamUnavailable),
        ("RESOURCE_EXHAUSTED", UpstreamRateLimited),
        ("INVALID_ARGUMENT", UpstreamError),
        (None, UpstreamError),
        ([], UpstreamError),
    ],
)
def test_an_error_in_the_stream_is_an_error_after_the_earlier_text(
    status: object, expected: type[UpstreamError]
) -> None:
    failed = data({"error": {"code": 503, "message": SECRET, "status": status}})
    assert read(chunk(text("a")) + failed + chunk(text("b"), finish="STOP")) == ([TextDelta("a")], expected)


@pytest.mark.parametrize(
    "event",
    [
        b"{",
        b"null",
        b"[]",
        b"[DONE",
        b'{"candidates":[{"content":{"parts":[{"text":"\xff"}]}}]}',
        b'{"x":' + b"[" * 10_000,
    ],
    ids=lambda event: repr(event[:60]),
)
def test_an_unparsable_event_is_an_error_after_the_earlier_text(event: bytes) -> None:
    bad = b"data: " + event + b"\n\n"
    assert read(chunk(text("a")) + bad + chunk(text(SECRET), finish="STOP")) == ([TextDelta("a")], UpstreamProtocol)


# Usage.


def last_usage(*counts: dict[str, object]) -> Usage | None:
    body = b"".join(data({"usageMetadata": each}) for each in counts)
    deltas, failure = read(body + chunk(finish="STOP"))
    assert failure is None
    totals = [delta.usage for delta in deltas if isinstance(delta, UsageDelta)]
    assert len(totals) <= 1, "they are reported from the finish on, and never summed"
    return totals[-1] if totals else None


GOOD: dict[str, object] = {"promptTokenCount": 8, "candidatesTokenCount": 3}


@pytest.mark.parametrize("bad", [-1, 2**50 + 1, 10**400, 1.5, True, "nine", None, [9], {}])
@pytest.mark.parametrize("name", ["promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount"])
def test_counts_that_cannot_be_true_leave_those_before(name: str, bad: object) -> None:
    if bad is None and name != "promptTokenCount":
        return  # as if it were left out, which stands for zero
    assert last_usage({**GOOD, name: bad}) == (Usage(output_tokens=3) if bad is None else None)
    assert last_usage(GOOD, {**GOOD, name: bad}) == usage(8, 3).usage


def test_the_last_usage_wins() -> None:
    assert last_usage({**GOOD, "candidatesTokenCount": 9}, GOOD) == usage(8, 3).usage
    assert last_usage(GOOD, {"promptTokenCount": 0}) == Usage()
    assert last_usage(GOOD, {}) == usage(8, 3).usage
    assert last_usage({**GOOD, "toolUsePromptTokenCount": 5}) == usage(13, 3).usage
    assert last_usage({**GOOD, "cachedContentTokenCount": 99}) == usage(8, 3, cached=8).usage
    assert last_usage({**GOOD, "cachedContentTokenCount": -1}) == usage(8, 3).usage


@pytest.mark.parametrize("number", [b"1e999", b"1" * 5_000])
def test_a_number_out_of_any_range_does_not_break_the_stream(number: bytes) -> None:
    odd = chunk(text("a"), finish="STOP", promptTokenCount=8).replace(b": 8", b": " + number)
    assert read(odd) == ([TextDelta("a"), FinishDelta("stop")], None)


# The request.


def asked(*messages: Message, **more: Any) -> dict[str, Any]:
    return json.loads(request_body(Prompt(model="m", messages=messages, max_output_tokens=7, **more)))


def user(content: str) -> Message:
    return Message(role="user", content=content)


def test_a_request() -> None:
    system = (Message(role="system", content="Be brief."), Message(role="developer", content="Be kind."))
    body = asked(*system, user("a"), user("b"), Message(role="assistant", content="Hé"), user("c"), temperature=0.5)
    assert body == {
        "contents": [
            {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
            {"role": "model", "parts": [{"text": "Hé"}]},
            {"role": "user", "parts": [{"text": "c"}]},
        ],
        "systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]},
        "generationConfig": {"maxOutputTokens": 7, "temperature": 0.5},
    }
    assert asked(user("a")) == {
        "contents": [{"role": "user", "parts": [{"text": "a"}]}],
        "generationConfig": {"maxOutputTokens": 7},
    }


def test_tools() -> None:
    calls = (
        ToolCall(id="c0", name="weather", arguments='{"city":"Paris"}'),
        ToolCall(id="c1", name="time", arguments="oops"),
    )
    body = asked(
        user("Both?"),
        Message(role="assistant", content="", tool_calls=calls),
        Message(role="tool", tool_call_id="c0", content="Sun"),
        Message(role="tool", tool_call_id="c1", content="Noon"),
        tools=(Tool(name="weather", description="Of a city", parameters=msgspec.Raw(b'{"type":"object"}')),),
    )
    assert body["tools"] == [
        {
            "functionDeclarations": [
                {"name": "weather", "description": "Of a city", "parametersJsonSchema": {"type": "object"}}
            ]
        }
    ]
    assert "toolConfig" not in body
    assert body["contents"][1:] == [
        {
            "role": "model",
            "parts": [
                {
                    "functionCall": {"name": "weather", "args": {"city": "Paris"}},
                    "thoughtSignature": "skip_thought_signature_validator",
                },
                {"functionCall": {"name": "time", "args": {"arguments": "oops"}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "weather", "response": {"result": "Sun"}}},
                {"functionResponse": {"name": "time", "response": {"result": "Noon"}}},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ("tool:weather", {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
    ],
)
def test_tool_choices(choice: str, sent: dict[str, object]) -> None:
    body = asked(user("a"), tools=(Tool(name="weather"),), tool_choice=choice)
    assert body["toolConfig"] == {"functionCallingConfig": sent}
    assert "toolConfig" not in asked(user("a"), tool_choice=choice)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", "/models/gemini-2.5-flash"),
        ("tunedModels/my-1", "/tunedModels/my-1"),
        ("a?key=b#c d", "/models/a%3Fkey%3Db%23c%20d"),
    ],
)
def test_the_model_is_in_the_path_and_nothing_else_is(model: str, path: str) -> None:
    assert request_path(model) == f"{path}:streamGenerateContent?alt=sse"


def test_the_key_is_not_shown() -> None:
    provider = GeminiProvider(SECRET, "https://host/v1beta")
    assert repr(provider) == "GeminiProvider('https://host/v1beta')"
    assert GeminiProvider(SECRET).abort_bills == "unknown"
