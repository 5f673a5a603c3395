"""What holds for every codec, whatever the bytes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from decoding import cut, decode
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.core.deltas import FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import UpstreamProtocol
from chat_nest.providers.anthropic import anthropic_codec
from chat_nest.providers.codec import Codec
from chat_nest.providers.gemini import gemini_codec
from chat_nest.providers.ollama import ollama_codec
from chat_nest.providers.openai_codec import openai_codec
from chat_nest.providers.responses import responses_codec

Make = Callable[[], Codec]
CODECS = {
    openai_codec: (
        "choices delta content usage error index finish_reason prompt_tokens completion_tokens tool_calls function "
        "arguments id name reasoning refusal"
    ),
    anthropic_codec: (
        "type index delta text thinking partial_json content_block message usage input_tokens output_tokens id name "
        "stop_reason error"
    ),
    gemini_codec: (
        "candidates content parts text thought functionCall args name finishReason usageMetadata promptTokenCount "
        "candidatesTokenCount error status promptFeedback blockReason"
    ),
    responses_codec: (
        "type output_index item_id delta arguments item id call_id name content summary response status output usage "
        "input_tokens output_tokens incomplete_details reason error code message object"
    ),
    ollama_codec: (
        "message content thinking tool_calls function name arguments done done_reason eval_count prompt_eval_count error"
    ),
}
WORDS = st.sampled_from(
    "response.output_text.delta response.output_item.added response.output_item.done response.completed response.incomplete "
    "response.failed response.function_call_arguments.delta function_call message response completed "
    "message_start content_block_start content_block_delta message_delta message_stop error ping tool_use STOP stop".split()
)


def bodies(make: Make) -> st.SearchStrategy[bytes]:
    """Events of the codec's own fields in any arrangement, with any bytes in between."""
    names = st.sampled_from(CODECS[make].split())
    leaves = st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.floats() | st.text() | WORDS
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
    )
    events = st.dictionaries(names, values, max_size=5) | values
    before, after = (b"", b"\n") if make is ollama_codec else (b"data: ", b"\n\n")
    lines = st.tuples(events, st.booleans()).map(
        lambda e: before + json.dumps(e[0], ensure_ascii=e[1]).encode("utf-8", "surrogatepass") + after
    )
    return st.lists(lines | st.binary(max_size=20) | st.just(b"data: [DONE]\n\n"), max_size=8).map(b"".join)


@pytest.mark.parametrize("make", CODECS)
@given(data=st.data(), places=st.lists(st.integers(0, 5_000), max_size=6))
def test_any_bytes_in_any_cut_give_the_same_deltas_and_the_same_end(
    make: Make, data: st.DataObject, places: list[int]
) -> None:
    body = data.draw(bodies(make))
    deltas, failure = outcome = decode(make(), body)
    assert decode(make(), *cut(body, places)) == outcome
    finishes = [delta.reason for delta in deltas if isinstance(delta, FinishDelta)]
    assert len(finishes) == len(set(finishes)), "it is told once, and again only where it has changed"
    assert failure is not None or finishes, "without a completion signal it is a failure"
    calls: set[int] = set()
    for delta in deltas:
        if isinstance(delta, TextDelta | ReasoningDelta):
            assert delta.text
        elif isinstance(delta, ToolCallDelta):
            assert bool(delta.id) is (delta.index not in calls), "a call's first piece has its id, and only that"
            calls.add(delta.index)
        elif isinstance(delta, UsageDelta):
            usage = delta.usage
            assert 0 <= usage.reasoning_tokens <= usage.output_tokens <= 2**51
            assert 0 <= usage.cached_input_tokens + usage.cache_write_tokens <= usage.input_tokens < 2**52


@pytest.mark.parametrize("make", CODECS)
def test_a_failure_is_raised_again_by_everything_after_it(make: Make) -> None:
    codec = make()
    with pytest.raises(UpstreamProtocol):
        codec.feed(b"data: {\n\n")
    assert codec.over
    with pytest.raises(UpstreamProtocol):
        codec.feed(b"\n")
    with pytest.raises(UpstreamProtocol):
        codec.end()
