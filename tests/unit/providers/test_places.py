"""Text and reasoning in all their places: any cut, any legal order and any further field mean the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from decoding import cut, decode
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_nest.core.deltas import FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.usage import Usage
from chat_nest.providers.ollama import ollama_codec
from chat_nest.providers.openai_codec import openai_codec
from chat_nest.providers.think_tags import Thoughts

Object = dict[str, Any]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
EXTRA = st.dictionaries(st.sampled_from(["x_a", "x_b", "ext"]), JSON, max_size=2)
CALL = {"index": 0, "id": "x1", "type": "function", "function": {"name": "clock", "arguments": '{"tz":"JST"}'}}
THOUGHTS: list[Callable[[str], Object]] = [
    lambda said: {"reasoning_text": said},
    lambda said: {"reasoning_details": [{"type": "reasoning.text", "text": said, "index": 0}]},
    lambda said: {"reasoning_details": [{"type": "reasoning.summary", "summary": said}]},
    lambda said: {"thinking_blocks": [{"type": "thinking", "thinking": said, "signature": ""}]},
    lambda said: {"reasoning_text": said, "reasoning_details": [{"type": "reasoning.text", "text": said}]},
    lambda said: {"reasoning_content": None, "reasoning": "", "thinking_blocks": [{"thinking": said}]},
]
TEXTS: list[Callable[[str], Object]] = [
    lambda said: {"text": said},
    lambda said: {"text": said, "delta": {"content": said}},
    lambda said: {"text": said, "delta": {"role": "assistant", "content": ""}},
    lambda said: {"delta": said},
    lambda said: {"delta": {"content": said}},
]


def halves(data: st.DataObject, said: str) -> list[str]:
    places = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=3)))
    return [said[start:end] for start, end in zip([0, *places], [*places, len(said)], strict=True)]


def mixed(data: st.DataObject, *streams: list[Object]) -> list[Object]:
    """The pieces in any order that keeps the order within each stream."""
    order = data.draw(st.permutations([at for at, stream in enumerate(streams) for _ in stream]))
    pieces = [iter(stream) for stream in streams]
    return [next(pieces[at]) for at in order]


def with_extra(data: st.DataObject, value: Object) -> Object:
    """The object with further fields, in it and in its message or delta."""
    inner = {
        name: with_extra(data, found) if name in ("delta", "message") and isinstance(found, dict) else found
        for name, found in value.items()
    }
    return {**data.draw(EXTRA), **inner}


def outcome(codec: Any, body: bytes, places: list[int]) -> tuple[object, ...]:
    deltas, failure = decode(codec, *cut(body, places), whole=True)
    assert failure is None
    return (
        "".join(each.text for each in deltas if isinstance(each, TextDelta)),
        "".join(each.text for each in deltas if isinstance(each, ReasoningDelta)),
        [(each.name, each.arguments) for each in deltas if isinstance(each, ToolCallDelta)],
        [each.reason for each in deltas if isinstance(each, FinishDelta)][-1],
        [each.usage for each in deltas if isinstance(each, UsageDelta)][-1],
    )


def events(data: st.DataObject, choices: list[Object]) -> bytes:
    """Events of OpenAI's format: the choices, then the end and the counts in any order, or in the last choice."""
    end: Object = {"delta": {}, "finish_reason": "stop"}
    counts = {"prompt_tokens": 40, "completion_tokens": 7}
    ends: list[Object] = [{"choices": [with_extra(data, end)]}, {"choices": [], "usage": counts}]
    if data.draw(st.booleans()):
        ends = [{"choices": [with_extra(data, {**end, "usage": counts})]}]
    said = [{"choices": [{"index": 0, **with_extra(data, each)}]} for each in choices]
    whole = [{**data.draw(EXTRA), **each} for each in [*said, *data.draw(st.permutations(ends))]]
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in whole) + b"data: [DONE]\n\n"


WHOLE = ("Hi é", "Hm é", [("clock", '{"tz":"JST"}')], "tool_calls", Usage(input_tokens=40, output_tokens=7))
PLACES = st.lists(st.integers(0, 9_999), max_size=6)


@settings(max_examples=40)
@pytest.mark.parametrize("text", range(len(TEXTS)))
@given(data=st.data(), places=PLACES)
def test_openai_s_format(text: int, data: st.DataObject, places: list[int]) -> None:
    thought = data.draw(st.sampled_from(THOUGHTS))
    choices = mixed(
        data,
        [{"delta": thought(piece)} for piece in halves(data, "Hm é")],
        [TEXTS[text](piece) for piece in halves(data, "Hi é")],
        [{"delta": {"tool_calls": [CALL]}}],
    )
    assert outcome(openai_codec(), events(data, choices), places) == WHOLE


@settings(max_examples=60)
@given(data=st.data(), places=PLACES, tag=st.sampled_from(["think", "reasoning"]), opened=st.booleans())
def test_thoughts_between_tags(data: st.DataObject, places: list[int], tag: str, opened: bool) -> None:
    said = ("" if opened and data.draw(st.booleans()) else f"<{tag}>") + f"Hm é</{tag}>Hi é"
    text = data.draw(st.sampled_from(TEXTS))
    choices = [text(piece) for piece in halves(data, said)] + [{"delta": {"tool_calls": [CALL]}}]
    codec = Thoughts(openai_codec(), tag, opened=opened)
    assert outcome(codec, events(data, choices), places) == WHOLE


@settings(max_examples=60)
@given(data=st.data(), places=PLACES)
def test_ollama_s_format(data: st.DataObject, places: list[int]) -> None:
    """Generate's `response` and `thinking`, chat's message, and a message that is a string."""
    forms: list[Callable[[str], Object]] = [
        lambda said: {"response": said},
        lambda said: {"message": said},
        lambda said: {"message": {"content": ""}, "response": said},
        lambda said: {"message": {"content": said}},
    ]
    thoughts: list[Callable[[str], Object]] = [
        lambda said: {"thinking": said, "response": ""},
        lambda said: {"message": {"thinking": said, "content": ""}},
        lambda said: {"message": {"reasoning_content": said}},
    ]
    form, thought = data.draw(st.sampled_from(forms)), data.draw(st.sampled_from(thoughts))
    lines = mixed(
        data,
        [thought(piece) for piece in halves(data, "Hm é")],
        [form(piece) for piece in halves(data, "Hi é")],
        [{"message": {"tool_calls": [{"function": {"name": "clock", "arguments": '{"tz":"JST"}'}}]}}],
    )
    lines.append({"done": True, "done_reason": "stop", "prompt_eval_count": 40, "eval_count": 7})
    body = b"".join(json.dumps(with_extra(data, each)).encode() + b"\n" for each in lines)
    assert outcome(ollama_codec(), body, places) == WHOLE
