"""The events of a long answer in Responses: numbered without a gap, and whole in the last one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialect_tools import ending

from chat_nest.core.deltas import Delta, ReasoningDelta, TextDelta
from chat_nest.core.messages import ChatRequest
from chat_nest.dialects.responses import Responses

HALF = TextDelta("\ud83d")
"""Half of a surrogate pair, which JSON can have and UTF-8 not."""


def events(batches: list[list[Delta]]) -> list[dict[str, Any]]:
    encoder = Responses().encoder(ChatRequest(messages=(), stream=True), "r")
    whole = encoder.start("m") + b"".join([encoder.encode(batch) for batch in batches]) + encoder.finish(ending())
    return [json.loads(frame.partition(b"data: ")[2]) for frame in whole.split(b"\n\n") if frame]


@pytest.mark.parametrize("size", [1, 7])
def test_more_pieces_than_numbers_are_kept_ready(size: int) -> None:
    pieces: list[Delta] = [TextDelta(f" {number}") for number in range(33_000)]
    sent = events([pieces[at : at + size] for at in range(0, len(pieces), size)])
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    told = [event["delta"] for event in sent if event["type"] == "response.output_text.delta"]
    assert told == [delta.text for delta in pieces if type(delta) is TextDelta]
    [done] = [event["text"] for event in sent if event["type"] == "response.output_text.done"]
    assert done == "".join(told)


@pytest.mark.parametrize(
    "between", [[[HALF]], [[TextDelta("b"), HALF]], [[TextDelta("b"), ReasoningDelta("Hm.")]], [[]]]
)
def test_parts_other_than_plain_text_keep_their_place(between: list[list[Delta]]) -> None:
    batches: list[list[Delta]] = [[TextDelta("a")], [TextDelta("a")]]
    batches += [*between, [TextDelta("c"), TextDelta("d")], [TextDelta("e")]]
    sent = events(batches)
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    told = [event["delta"] for event in sent if event["type"].endswith(".delta")]
    texts = [delta for batch in batches for delta in batch if isinstance(delta, TextDelta | ReasoningDelta)]
    assert told == [delta.text for delta in texts]
    done = [event["text"] for event in sent if event["type"].endswith("_text.done")]
    assert "".join(done) == "".join(told)
