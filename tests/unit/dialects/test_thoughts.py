"""Anthropic's thoughts go out with their signatures, and come back to the provider as it wrote them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, SignatureDelta, TextDelta, ToolCallDelta
from chat_nest.core.messages import ChatRequest, Message, Thought
from chat_nest.core.protocols import Prompt
from chat_nest.counting.bounds import message_bound
from chat_nest.counting.tokens import counter_for
from chat_nest.dialects.anthropic import Anthropic
from chat_nest.dialects.openai import OpenAI
from chat_nest.providers.anthropic import anthropic_codec, request_body
from chat_nest.providers.openai_codec import request_body as openai_body

SIGNED = {"type": "thinking", "thinking": "Let me see.", "signature": "RXFRQkNn"}
UNSEEN = {"type": "thinking", "thinking": "", "signature": "T21pdHRlZA=="}
REDACTED = {"type": "redacted_thinking", "data": "RW13S0Fo"}
UNSIGNED = {"type": "thinking", "thinking": "of another provider", "signature": ""}
CALL = {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Bonn"}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "19"}
TOOLS = [{"name": "weather", "input_schema": {"type": "object"}}]
ANSWER: list[Delta] = [
    ReasoningDelta("Let me "),
    ReasoningDelta("see."),
    SignatureDelta("RXFRQkNn"),
    SignatureDelta("T21pdHRlZA=="),
    SignatureDelta(redacted="RW13S0Fo"),
    TextDelta("I look."),
    ToolCallDelta(0, '{"city":"Bonn"}', "a", "weather"),
    FinishDelta("tool_calls"),
]
BLOCKS: list[dict[str, Any]] = [SIGNED, UNSEEN, REDACTED, {"type": "text", "text": "I look."}, CALL]


def parse(*messages: dict[str, Any]) -> ChatRequest:
    body = {"model": "m", "max_tokens": 50, "messages": messages, "tools": TOOLS}
    return Anthropic().parse(json.dumps(body).encode())


def asked(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    """What Anthropic gets for what a client of its format sends."""
    prompt = Prompt(model="claude-sonnet-4-5", messages=parse(*messages).messages, max_output_tokens=50)
    return list(json.loads(request_body(prompt))["messages"])


def streamed(deltas: list[Delta]) -> list[dict[str, Any]]:
    """The blocks as the official client joins them from the events."""
    encoder = Anthropic().encoder(ChatRequest(messages=(), stream=True), "r")
    blocks: list[dict[str, Any]] = []
    for frame in b"".join([*(encoder.encode([delta]) for delta in deltas), encoder._stop()]).decode().split("\n\n"):  # type: ignore[attr-defined]
        event = json.loads(frame.partition("data: ")[2] or "{}")
        match event.get("type"):
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
            case "content_block_delta":
                delta = event["delta"]
                block = blocks[event["index"]]
                assert event["index"] == len(blocks) - 1
                match delta.pop("type"):
                    case "signature_delta":
                        block["signature"] = delta["signature"]
                    case "input_json_delta":
                        block["input"] = json.loads(delta["partial_json"])
                    case _:
                        ((name, text),) = delta.items()
                        block[name] += text
            case _:
                pass
    return blocks


def test_a_stream_has_each_signature_at_the_end_of_its_block() -> None:
    assert streamed(ANSWER) == BLOCKS


def test_a_whole_answer_has_them_too() -> None:
    encoder = Anthropic().encoder(ChatRequest(messages=(), stream=False), "r")
    encoder.encode(ANSWER)
    assert [*map(_block, encoder._answer.thoughts)] == BLOCKS[:3]  # type: ignore[attr-defined]


def _block(thought: Thought) -> dict[str, Any]:
    if thought.redacted:
        return {"type": "redacted_thinking", "data": thought.redacted}
    return {"type": "thinking", "thinking": thought.text, "signature": thought.signature}


def test_sent_thoughts_return_to_the_provider_unchanged() -> None:
    _, answer, _ = asked(
        {"role": "user", "content": "Cold?"},
        {"role": "assistant", "content": streamed(ANSWER)},
        {"role": "user", "content": [RESULT]},
    )
    assert answer["content"] == BLOCKS


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        # The loop goes on, also with words beside the results.
        ([{"role": "user", "content": [RESULT, {"type": "text", "text": "Hurry"}]}], [SIGNED]),
        # The user's next question ends it: the provider drops what was thought before.
        (
            [
                {"role": "user", "content": [RESULT]},
                {"role": "assistant", "content": [UNSEEN, {"type": "text", "text": "Yes."}]},
                {"role": "user", "content": "And now?"},
            ],
            [],
        ),
    ],
)
def test_only_thoughts_of_the_current_turn_are_sent(messages: list[dict[str, Any]], kept: list[Any]) -> None:
    sent = asked(
        {"role": "user", "content": "Cold?"}, {"role": "assistant", "content": [SIGNED, UNSIGNED, CALL]}, *messages
    )
    found = [block for message in sent for block in message["content"] if "think" in block["type"]]
    assert found == kept, "a thought without a signature is none that the provider could read"


def test_other_providers_get_no_thoughts_and_every_one_is_counted() -> None:
    request = parse(
        {"role": "user", "content": "Cold?"},
        {"role": "assistant", "content": [SIGNED, REDACTED, CALL]},
        {"role": "user", "content": [RESULT]},
    )
    message = request.messages[1]
    assert message.thoughts == (Thought(text="Let me see.", signature="RXFRQkNn"), Thought(redacted="RW13S0Fo"))
    sent = openai_body(Prompt(model="gpt-4o", messages=request.messages, max_output_tokens=9))
    assert b"RXFRQkNn" not in sent
    assert b"Let me see" not in sent
    counter = counter_for("claude-sonnet-4-5")
    plain = message_bound(Message(role="assistant", content="", tool_calls=message.tool_calls), counter)
    texts = ("Let me see.", "RXFRQkNn", "RW13S0Fo")
    assert message_bound(message, counter) == plain + sum(map(counter.count, texts))


def test_signatures_of_an_answer_that_is_not_streamed_are_read() -> None:
    codec = anthropic_codec(whole=True)
    body = {"type": "message", "content": BLOCKS, "stop_reason": "tool_use"}
    found = [*codec.feed(json.dumps(body).encode()), *codec.end()]
    assert [each for each in found if isinstance(each, SignatureDelta)] == [
        SignatureDelta("RXFRQkNn"),
        SignatureDelta("T21pdHRlZA=="),
        SignatureDelta(redacted="RW13S0Fo"),
    ]


def test_no_other_format_shows_a_signature() -> None:
    encoder = OpenAI().encoder(ChatRequest(messages=(), stream=True), "r")
    assert encoder.encode([SignatureDelta("RXFRQkNn"), SignatureDelta(redacted="RW13S0Fo")]) == b""


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"type": "thinking", "thinking": 1, "signature": "s"}, "thinking"),
        ({"type": "thinking", "thinking": "x", "signature": 1}, "signature"),
        ({"type": "redacted_thinking", "data": None}, "data"),
    ],
)
def test_a_thought_of_another_type_is_refused_by_its_field(block: dict[str, Any], field: str) -> None:
    with pytest.raises(Exception, match="string") as refused:
        parse({"role": "assistant", "content": [block]}, {"role": "user", "content": "Hi"})
    assert refused.value.field == f"messages[0].content[0].{field}"  # type: ignore[attr-defined]
