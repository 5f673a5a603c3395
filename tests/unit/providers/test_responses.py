"""OpenAI's Responses as a provider: what is sent, and what its streams mean, as OpenAI and others write them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from decoding import decode, decode_cut_anywhere
from dialect_tools import STORY, told
from pictures import base64, pdf, png

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import (
    ContextLengthExceeded,
    UpstreamError,
    UpstreamQuota,
    UpstreamTruncated,
)
from chat_nest.core.messages import Attachment, Format, Message, Options, Tool, ToolCall
from chat_nest.core.protocols import Prompt
from chat_nest.core.usage import Usage
from chat_nest.dialects.responses import FORGOTTEN, Responses
from chat_nest.providers.openai_codec import request_body as chat_completions_body
from chat_nest.providers.responses import lacks, request_body, responses_codec, takes

Json = dict[str, Any]
OSLO = '{"city":"Oslo"}'
JST = '{"tz":"JST"}'
COUNTS = {
    "input_tokens": 32,
    "input_tokens_details": {"cached_tokens": 16},
    "output_tokens": 18,
    "output_tokens_details": {"reasoning_tokens": 7},
    "total_tokens": 50,
}


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def over(status: str = "completed", **response: object) -> bytes:
    return event(f"response.{status}", response={"status": status, "usage": COUNTS, **response})


def said(text: str, at: int = 0) -> bytes:
    return event("response.output_text.delta", output_index=at, item_id=f"msg_{at}", content_index=0, delta=text)


def call(at: int, id: str, name: str, arguments: str = "") -> Json:
    item = {"type": "function_call", "id": f"fc_{at}", "call_id": id, "name": name, "arguments": arguments}
    return {"output_index": at, "item": item}


def arguments(at: int, text: str, kind: str = "delta", id: str = "") -> bytes:
    field = "delta" if kind == "delta" else "arguments"
    return event(f"response.function_call_arguments.{kind}", output_index=at, item_id=id or f"fc_{at}", **{field: text})


def prompt(*messages: Message, **more: Any) -> Prompt:
    fields: Json = {"model": "gpt-5", "max_output_tokens": 500, **more}
    return Prompt(messages=messages or (Message(role="user", content="Hi"),), **fields)


def body(*messages: Message, **more: Any) -> Json:
    sent: Json = json.loads(request_body(prompt(*messages, **more)))
    return sent


def joined(deltas: list[Delta]) -> list[tuple[str, str, str]]:
    calls: dict[int, list[str]] = {}
    for each in deltas:
        if isinstance(each, ToolCallDelta):
            found = calls.setdefault(each.index, [each.id, each.name, ""])
            found[2] += each.arguments
    return [(id, name, text) for id, name, text in calls.values()]


def test_a_conversation_with_tools_is_items_and_nothing_is_stored() -> None:
    sent = body(
        Message(role="developer", content="Be brief"),
        Message(role="user", content="Weather?"),
        Message(role="assistant", content="", tool_calls=(ToolCall(id="c1", name="weather", arguments=OSLO),)),
        Message(role="tool", content="3 °C", tool_call_id="c1"),
        Message(role="assistant", content="Cold."),
        Message(role="user", content="Thanks"),
        tools=(Tool(name="weather", description="Tells"),),
        tool_choice="tool:weather",
        options=Options(parallel_calls=False, effort="low", verbosity="low"),
        temperature=0.5,
    )
    assert sent["input"] == [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": "Weather?"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": OSLO},
        {"type": "function_call_output", "call_id": "c1", "output": "3 °C"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Cold."}]},
        {"role": "user", "content": "Thanks"},
    ]
    assert (sent["store"], sent["stream"], sent["max_output_tokens"]) == (False, True, 500)
    assert [tool["strict"] for tool in sent["tools"]] == [False], "left out, it would be true"
    assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ({"type": "function", "name": "weather"}, False)
    assert (sent["reasoning"], sent["text"]) == ({"effort": "low"}, {"verbosity": "low"})
    assert "temperature" not in sent, "reasoning models take none"
    assert body(model="gpt-4o", temperature=0.5)["temperature"] == 0.5


def test_a_summary_is_requested_only_if_the_client_wants_it_and_the_model_reasons() -> None:
    assert body(options=Options(summary="auto"))["reasoning"] == {"summary": "auto"}
    assert body(options=Options(summary="detailed", effort="low"))["reasoning"] == {
        "effort": "low",
        "summary": "detailed",
    }
    assert "reasoning" not in body()
    assert "reasoning" not in body(model="gpt-4o", options=Options(summary="auto"))


@pytest.mark.parametrize(("given", "sent"), [("", "{}"), (" \n", "{}"), ("{}", "{}"), ('{"a":', '{"a":')])
def test_a_call_without_arguments_has_an_empty_object(given: str, sent: str) -> None:
    """Servers read them as JSON, and refuse a blank."""
    call = ToolCall(id="c1", name="clock", arguments=given)
    messages = (
        Message(role="user", content="When?"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="Now", tool_call_id="c1"),
    )
    prompt = Prompt(model="m", messages=messages, max_output_tokens=9)
    [said] = [item for item in json.loads(request_body(prompt))["input"] if item.get("type") == "function_call"]
    [call_sent] = json.loads(chat_completions_body(prompt))["messages"][1]["tool_calls"]
    assert said["arguments"] == call_sent["function"]["arguments"] == sent


def test_images_and_files_have_their_words_also_in_the_results_of_tools() -> None:
    picture = Attachment(at=4, media_type="image/png", data=base64(png()).encode(), detail="low")
    file = Attachment(at=0, media_type="application/pdf", data=base64(pdf(1)).encode(), name="a.pdf")
    sent = body(
        Message(role="user", content="LookHere", attachments=(picture,)),
        Message(role="assistant", content="", tool_calls=(ToolCall(id="c1", name="read", arguments="{}"),)),
        Message(role="tool", content="", tool_call_id="c1", attachments=(file,)),
    )["input"]
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{base64(png())}", "detail": "low"}
    assert sent[0]["content"] == [{"type": "input_text", "text": "Look"}, image, {"type": "input_text", "text": "Here"}]
    data = f"data:application/pdf;base64,{base64(pdf(1))}"
    assert sent[-1]["output"] == [{"type": "input_file", "filename": "a.pdf", "file_data": data}]
    assert takes("gpt-5") == {"images", "files", "image_urls", "file_urls"}
    assert takes("o3-mini") == set()


def test_a_schema_and_what_the_api_has_no_word_for() -> None:
    schema = Format(schema=msgspec.Raw(b'{"type":"object"}'), name="city", strict=True)
    expected = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": True}
    assert body(options=Options(format=schema))["text"]["format"] == expected
    assert body(options=Options(format=Format()))["text"]["format"] == {"type": "json_object"}
    assert lacks(prompt(options=Options(stop=("x",)))) == ["stop"]
    assert lacks(prompt(options=Options(format=schema))) == []
    assert body(max_output_tokens=3)["max_output_tokens"] == 16, "the API takes no less"


WHOLE = [
    {"type": "reasoning", "id": "rs_0", "summary": [{"type": "summary_text", "text": "Hm."}]},
    {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "It is cold"}]},
    call(2, "c1", "weather", OSLO)["item"],
]
STREAM = (
    event("response.created", response={"status": "in_progress", "usage": None})
    + event("response.output_item.added", output_index=0, item={"type": "reasoning", "id": "rs_0", "summary": []})
    + event("response.reasoning_summary_text.delta", output_index=0, item_id="rs_0", summary_index=0, delta="Hm.")
    + event("response.output_item.done", output_index=0, item=WHOLE[0])
    + said("It is", 1)
    + said(" cold", 1)
    + event("response.output_text.done", output_index=1, text="It is cold")
    + event("response.output_item.done", output_index=1, item=WHOLE[1])
    + event("response.output_item.added", **call(2, "c1", "weather"))
    + arguments(2, '{"city"')
    + arguments(2, ':"Oslo"}')
    + arguments(2, OSLO, "done")
    + event("response.output_item.done", **call(2, "c1", "weather", OSLO))
    + over(output=WHOLE)
)


def test_an_answer_of_every_kind_in_any_cut() -> None:
    deltas, failure = decode_cut_anywhere(responses_codec, STREAM)
    assert failure is None
    assert [each.text for each in deltas if isinstance(each, ReasoningDelta)] == ["Hm."]
    assert "".join(each.text for each in deltas if isinstance(each, TextDelta)) == "It is cold"
    assert joined(deltas) == [("c1", "weather", OSLO)]
    usage = Usage(input_tokens=32, output_tokens=18, cached_input_tokens=16, reasoning_tokens=7)
    assert [each.usage for each in deltas if isinstance(each, UsageDelta)] == [usage]
    assert [each.reason for each in deltas if isinstance(each, FinishDelta)] == ["tool_calls"]


@pytest.mark.parametrize(
    "stream",
    {
        "only when it is done": event("response.output_item.done", output_index=0, item=WHOLE[0])
        + event("response.output_item.done", output_index=1, item=WHOLE[1])
        + event("response.output_item.done", **call(2, "c1", "weather", OSLO))
        + over(),
        "only at the end": over(output=WHOLE),
        "arguments only when they are done": event("response.output_item.added", **call(2, "c1", "weather"))
        + arguments(2, OSLO, "done")
        + over(output=WHOLE),
        # https://github.com/vercel/ai/pull/18548: another id with each event
        "an id of its own with each event": event("response.output_item.added", **call(2, "c1", "weather"))
        + arguments(2, '{"city"', id="x1")
        + arguments(2, ':"Oslo"}', id="x2")
        + over(output=WHOLE),
        "a marker behind the end": over(output=WHOLE) + b"data: [DONE]\n\n",
    }.items(),
    ids=lambda item: item[0] if isinstance(item, tuple) else "",
)
def test_what_did_not_come_in_pieces_is_taken_whole_and_once(stream: tuple[str, bytes]) -> None:
    deltas, failure = decode(responses_codec(), stream[1])
    assert failure is None
    assert joined(deltas) == [("c1", "weather", OSLO)]
    text = "".join(each.text for each in deltas if isinstance(each, TextDelta | ReasoningDelta))
    assert text in ("Hm.It is cold", "It is coldHm.")


CALLS = [call(0, "c1", "weather", OSLO)["item"], call(0, "c2", "clock", JST)["item"]]


def called(index: int | None, item: Json, *, in_pieces: bool = True) -> bytes:
    place = {} if index is None else {"output_index": index}
    pieces = event("response.function_call_arguments.delta", **place, item_id=item["id"], delta=item["arguments"])
    return (
        event("response.output_item.added", **place, item={**item, "arguments": ""})
        + (pieces if in_pieces else b"")
        + event("response.output_item.done", **place, item=item)
    )


@pytest.mark.parametrize(
    "stream",
    {
        # https://github.com/invergent-ai/surogate/issues/175: the indices of the stream are not those of the end
        "other indices": called(1, CALLS[0]) + called(2, CALLS[1]),
        # https://github.com/teabranch/open-responses-server/pull/63
        "one index": called(0, CALLS[0]) + called(0, CALLS[1]),
        "one index, whole": called(0, CALLS[0], in_pieces=False) + called(0, CALLS[1], in_pieces=False),
        "no index": called(None, CALLS[0]) + called(None, CALLS[1]),
        "no index, whole": called(None, CALLS[0], in_pieces=False) + called(None, CALLS[1], in_pieces=False),
        "the second only at the end": called(1, CALLS[0]),
        "both only at the end": b"",
        "ids that the end does not know": b"".join(called(3, {**each, "call_id": f"other{at}"}) for at, each in enumerate(CALLS)),
    }.values(),
)  # fmt: skip
@pytest.mark.parametrize("output", [[*CALLS], []])
def test_a_call_counts_once_with_any_index(stream: bytes, output: list[Json]) -> None:
    deltas, failure = decode_cut_anywhere(responses_codec, stream + over(output=output))
    assert failure is None
    made = [(name, text) for _, name, text in joined(deltas)]
    expected = [("weather", OSLO), ("clock", JST)]
    assert made == (expected if output else expected[: stream.count(b'"response.output_item.done"')])


@pytest.mark.parametrize("index", [{}, {"output_index": None}, {"output_index": 0}, {"output_index": 5}])
def test_a_text_counts_once_with_any_index(index: Json) -> None:
    streamed = event("response.output_text.delta", delta="It is cold", **index)
    streamed += event("response.reasoning_text.delta", delta="Hm.", **index)
    deltas, failure = decode(responses_codec(), streamed + over(output=WHOLE[:2]))
    assert failure is None
    assert "".join(each.text for each in deltas if isinstance(each, TextDelta)) == "It is cold"
    assert "".join(each.text for each in deltas if isinstance(each, ReasoningDelta)) == "Hm."


@pytest.mark.parametrize("index", [None, 3, "odd", [], 1.5])
def test_an_item_is_known_by_its_id_if_its_index_changes(index: object) -> None:
    """https://github.com/invergent-ai/surogate/issues/175."""
    message, weather = WHOLE[1], CALLS[0]
    for other in ("response.output_text.delta", "response.output_item.done"):
        place: Json = {"output_index": 0}
        moved: Json = {"output_index": index}
        delta, done = (moved, place) if other.endswith("delta") else (place, moved)
        body = (
            event("response.output_item.added", output_index=0, item={**message, "content": []})
            + event("response.output_text.delta", **delta, item_id=message["id"], delta="It is cold")
            + event("response.output_item.done", **done, item=message)
            + event("response.output_item.added", output_index=1, item={**weather, "arguments": ""})
            + event("response.function_call_arguments.delta", **delta, item_id=weather["id"], delta=OSLO)
            + event("response.output_item.done", **done, item=weather)
        )
        deltas, failure = decode(responses_codec(), body + over(output=[message, weather]))
        assert failure is None
        assert "".join(each.text for each in deltas if isinstance(each, TextDelta)) == "It is cold"
        assert joined(deltas) == [("c1", "weather", OSLO)]


def test_two_messages_with_one_index_are_both_read() -> None:
    done = event("response.output_item.done", output_index=0, item=WHOLE[1])
    deltas, _ = decode(responses_codec(), done + done + over(output=[WHOLE[1], WHOLE[1]]))
    assert "".join(each.text for each in deltas if isinstance(each, TextDelta)) == "It is coldIt is cold"


def finished(kind: str, **response: Any) -> bytes:
    return event(f"response.{kind}", response={"usage": COUNTS, **response})


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        # https://github.com/vllm-project/agentic-api/issues/273
        (finished("completed", status="incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
        (finished("completed", status="incomplete"), "length"),
        (finished("completed", status="incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
        (finished("completed", status="failed", error={"code": "server_error", "message": "x"}), UpstreamError),
        (finished("completed", status="cancelled"), UpstreamError),
        (finished("completed", status="in_progress"), "stop"),
        (finished("completed"), "stop"),
        # https://github.com/can1357/oh-my-pi/pull/4692
        (finished("done", status="completed"), "stop"),
        (finished("done"), "stop"),
        (finished("done", status="incomplete"), "length"),
        (finished("done", status="failed", error={"code": "server_error", "message": "x"}), UpstreamError),
    ],
)
def test_the_status_outranks_the_name_of_the_event(end: bytes, expected: object) -> None:
    deltas, failure = decode_cut_anywhere(responses_codec, said("a") + end)
    assert any(isinstance(each, UsageDelta) for each in deltas)
    assert (failure or [each.reason for each in deltas if isinstance(each, FinishDelta)][-1]) == expected


def test_an_answer_that_is_sent_whole() -> None:
    whole = {"object": "response", "status": "completed", "error": None, "output": WHOLE, "usage": COUNTS}
    deltas, failure = decode(responses_codec(whole=True), json.dumps(whole).encode(), whole=True)
    assert failure is None
    assert joined(deltas) == [("c1", "weather", OSLO)]


@pytest.mark.parametrize(
    ("reason", "expected"), [("max_output_tokens", "length"), ("content_filter", "content_filter"), (None, "length")]
)
def test_an_incomplete_answer_has_a_reason(reason: str | None, expected: str) -> None:
    details = {"reason": reason} if reason else None
    deltas, failure = decode(responses_codec(), said("a") + over("incomplete", incomplete_details=details))
    assert failure is None
    assert [each.reason for each in deltas if isinstance(each, FinishDelta)] == [expected]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (over("failed", error={"code": "server_error", "message": "x"}), UpstreamError),
        (over("failed", error=None), UpstreamError),
        (over("cancelled"), UpstreamError),
        (event("error", code="insufficient_quota", message="x", param=None), UpstreamQuota),
        (
            event("error", error={"type": "insufficient_quota", "code": "insufficient_quota", "message": "x"}),
            UpstreamQuota,
        ),
        (event("error", code="context_length_exceeded", message="x"), ContextLengthExceeded),
        (event("response.output_text.done", text="a"), UpstreamTruncated),
        (b"data: [DONE]\n\n", UpstreamTruncated),
    ],
)
def test_failures_in_the_stream_come_after_what_came_before_them(last: bytes, expected: type[UpstreamError]) -> None:
    deltas, failure = decode_cut_anywhere(responses_codec, said("a") + last)
    assert deltas[0] == TextDelta("a")
    assert failure is expected


def test_a_refusal_is_text_and_summaries_are_paragraphs() -> None:
    parts = [
        event("response.reasoning_summary_part.added", output_index=0, summary_index=at)
        + event("response.reasoning_summary_text.delta", output_index=0, summary_index=at, delta=text)
        for at, text in enumerate(("One", "Two"))
    ]
    refused = event("response.refusal.delta", output_index=1, delta="No.")
    deltas, failure = decode(responses_codec(), b"".join(parts) + refused + over())
    assert failure is None
    assert "".join(each.text for each in deltas if isinstance(each, ReasoningDelta)) == "One\n\nTwo"
    assert "".join(each.text for each in deltas if isinstance(each, TextDelta)) == "No."


def test_answers_of_this_server_are_understood() -> None:
    """Another Chat Nest may be the provider."""
    answered = told(Responses().encoder(FORGOTTEN, "0" * 24))
    deltas, failure = decode(responses_codec(), answered)
    assert failure is None
    for kind in (TextDelta, ReasoningDelta):
        expected = "".join(each.text for batch in STORY for each in batch if isinstance(each, kind))
        assert "".join(each.text for each in deltas if isinstance(each, kind)) == expected
    assert joined(deltas) == [("call-a", "weather", '{"city":"Bonn"}'), ("call-b", "clock", "")], (
        "every dialect writes {} for no arguments"
    )
