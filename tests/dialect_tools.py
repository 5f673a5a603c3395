"""What the tests of every dialect use: an ending, a story of deltas, odd texts, and a reader of events."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from chat_nest.core.deltas import Batch, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.protocols import Encoder, Ending
from chat_nest.core.usage import Usage


def ending(**fields: object) -> Ending:
    known: dict[str, object] = {
        "id": "run-1",
        "caller": "0" * 16,
        "profile": "balanced",
        "model": "openai:gpt-4o-mini",
        "reason": "stop",
        "error": None,
        "usage": Usage(input_tokens=12, output_tokens=34, cached_input_tokens=5, reasoning_tokens=6),
        "cost": 118_501,
        "source": "reported",
        "seconds": 1.5,
        "first_token_seconds": 0.2,
        "remaining": {"tokens_per_day": 69_954, "requests_per_minute": 29},
    }
    return Ending(**{**known, **fields})  # type: ignore[arg-type]


STORY: list[Batch] = [
    [ReasoningDelta("Hm"), ReasoningDelta(".")],
    [TextDelta("It is "), TextDelta("19\u202f°C\n")],
    [ToolCallDelta(0, '{"city"', "call-a", "weather"), ToolCallDelta(0, ':"Bonn"}')],
    [ToolCallDelta(1, "", "call-b", "clock"), UsageDelta(Usage(input_tokens=12, output_tokens=34))],
    [FinishDelta("tool_calls")],
]
"""Reasoning, text, and two calls of tools, one without arguments."""


def told(encoder: Encoder, batches: list[Batch] = STORY, reason: str = "tool_calls") -> bytes:
    """All bytes of one finished answer."""
    sent = encoder.start("gpt-4o-mini")
    sent += b"".join(encoder.encode(batch) for batch in batches)
    return sent + encoder.finish(ending(reason=reason))


texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from('\r\n\0\x1c\x1d\x1e\x7f\x85\u2028\u2029\ufeff\u200b"\\/:{}\U0001f389\U0010ffff'),
    ),
    min_size=1,
)
ROW_29 = "a\r\nb\rc\n\ndata: x\n\nevent: done\ndata: \n\n: c\nid: 1\nretry: 1\n\u2028\u2029\x85\x1c\x00\ufeff"


class Seen(NamedTuple):
    name: str
    data: str
    id: str


def whatwg(stream: bytes) -> list[Seen]:
    """The events as a browser's EventSource sees them (WHATWG HTML, 9.2.6)."""
    events: list[Seen] = []
    name, data, id = "", "", ""
    for line in stream.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            if data:
                events.append(Seen(name or "message", data.removesuffix("\n"), id))
            name, data = "", ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                name = value
            case "data":
                data += value + "\n"
            case "id":
                id = value
    assert not (name or data), "the last event is not dispatched without a blank line"
    return events
