"""Thoughts between tags in the text, cut anywhere.

What servers send: https://github.com/deepseek-ai/DeepSeek-R1/issues/23, and without the first tag
https://github.com/vllm-project/vllm/issues/13125. What clients make of it:
https://ai-sdk.dev/docs/reference/ai-sdk-core/extract-reasoning-middleware.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_provider import CLOSE, DONE, RESET, ScriptedProvider, chunk, delta, event, finish, stream, usage

from chat_nest.core.deltas import Batch, Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import UpstreamError, UpstreamTruncated
from chat_nest.core.messages import Message
from chat_nest.core.protocols import Prompt, PushSource
from chat_nest.core.timeouts import Timeouts
from chat_nest.providers.ollama import ollama_codec
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers.openai_codec import openai_codec
from chat_nest.providers import PRESETS
from chat_nest.providers.answer import Batches
from chat_nest.providers.think_tags import Thoughts

PROMPT = Prompt(model="m", messages=(Message(role="user", content="Hi"),), max_output_tokens=9)


def told(pieces: list[str], *, opened: bool = False, tag: str = "think") -> tuple[str, str]:
    """The reasoning and the text of an answer in these pieces."""
    decoder = Thoughts(openai_codec(), tag, opened=opened)
    deltas: list[Delta] = []
    for piece in [*map(chunk, pieces), finish(), DONE]:
        deltas += decoder.feed(piece)
    assert decoder.over
    assert not decoder.end()
    assert isinstance(deltas[-1], FinishDelta), "what was held comes before the end"
    assert all(delta.text for delta in deltas if isinstance(delta, TextDelta | ReasoningDelta))
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)),
        "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)),
    )


CASES = [
    ("<think>Hm</think>Hello", ("Hm", "Hello")),
    ("\n<think>\nHm, <b>so</b>.\n</think>\n\nHello ", ("Hm, <b>so</b>.\n", "Hello ")),
    ("<think></think>Hello", ("", "Hello")),
    ("<think>\n\n</think>\n\nHello", ("", "Hello")),  # Qwen 3 with thinking off
    ("<think>Hm", ("Hm", "")),
    ("<think>Hm</thin", ("Hm</thin", "")),
    ("<think>Hm</think>", ("Hm", "")),
    ("<think>a</think>b<think>c</think>d", ("a", "b<think>c</think>d")),
    ("Hello", ("", "Hello")),
    ("  Hello", ("", "  Hello")),
    ("", ("", "")),
    ("<", ("", "<")),
    ("<thin", ("", "<thin")),
    ("<thinking>no</thinking>", ("", "<thinking>no</thinking>")),
    ("Use <think>x</think> so.", ("", "Use <think>x</think> so.")),
    ("<think>a</thi</think>b", ("a</thi", "b")),
    ("<think>a<</think>b", ("a<", "b")),
    ("<think><think>a</think>b", ("<think>a", "b")),
    ("  \n", ("", "  \n")),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
@given(data=st.data())
def test_a_leading_thought_is_reasoning_however_it_is_cut(
    text: str, expected: tuple[str, str], data: st.DataObject
) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[start:end] for start, end in zip(places, places[1:], strict=False)]
    found = told(pieces)
    assert found == expected
    assert told(list(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hm</think>Hello", ("Hm", "Hello")),
        ("\nHm\n</think>\n\nHello", ("Hm\n", "Hello")),
        ("<think>Hm</think>Hello", ("Hm", "Hello")),
        ("never closed", ("never closed", "")),
        ("</think>Hello", ("", "Hello")),
    ],
)
def test_a_thought_without_its_first_tag(text: str, expected: tuple[str, str]) -> None:
    for pieces in ([text], list(text)):
        assert told(pieces, opened=True) == expected


@given(st.text(st.sampled_from("<>/think ab"), max_size=40), st.booleans(), st.sets(st.integers(0, 40)))
def test_any_text_in_any_cut_means_the_same_and_loses_nothing_but_tags(text: str, opened: bool, cuts: set[int]) -> None:
    places = sorted({place for place in cuts if place <= len(text)} | {0, len(text)})
    reasoning, rest = told([text[start:end] for start, end in zip(places, places[1:], strict=False)], opened=opened)
    assert (reasoning, rest) == told([text], opened=opened)
    whole = text.replace("<think>", "", 1).replace("</think>", "", 1) if (reasoning, rest) != ("", text) else text
    assert "".join((reasoning + rest).split()) in ("".join(whole.split()), "".join(text.split()))


def test_a_server_with_a_field_is_believed() -> None:
    decoder = Thoughts(openai_codec(), "think", opened=True)
    deltas = decoder.feed(delta({"reasoning_content": "Hm"}) + chunk("<think>text</think>"))
    assert deltas == [ReasoningDelta("Hm"), TextDelta("<think>text</think>")]


def test_after_the_thought_the_codec_is_called_directly() -> None:
    codec = openai_codec()
    for first in ("<think>Hm</think>Hello", "Hello"):
        decoder = Thoughts(codec, "think", opened=False)
        decoder.feed(chunk(first))
        assert decoder.feed == codec.feed, "no cost for each token that follows"


def test_calls_counts_and_failures_release_held_text() -> None:
    call = {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": "{}"}}]}
    decoder = Thoughts(openai_codec(), "think", opened=False)
    deltas = decoder.feed(chunk("<think>Hm</th") + usage(3, 4) + delta(call))
    assert [type(each) for each in deltas] == [ReasoningDelta, UsageDelta, ReasoningDelta, ToolCallDelta]
    decoder = Thoughts(openai_codec(), "think", opened=False)
    assert decoder.feed(chunk("<thi")) == []
    assert decoder.feed(event([], error={"message": "x"})) == [TextDelta("<thi")]
    assert decoder.over
    with pytest.raises(UpstreamError):
        decoder.end()


@pytest.mark.parametrize("more", [True, False])
def test_of_an_answer_that_was_left_what_was_held_is_counted(more: bool) -> None:
    class Left:
        def __init__(self, *unread: bytes) -> None:
            self._unread = ([*unread], more)

        def take_unread(self) -> tuple[list[bytes], bool]:
            return self._unread

    codec = Thoughts(openai_codec(), "think", opened=False)
    first, last = chunk("<think>Hm"), chunk("</th")
    assert codec.feed(first[:200]) == []
    batches = Batches(Left(first[200:], last), codec)  # type: ignore[arg-type]
    counted: list[Delta] = []
    assert batches.drop(counted.extend) is more
    assert counted == [ReasoningDelta("Hm"), ReasoningDelta("</th")]
    ended = Batches(Left(chunk("Hi"), finish(), DONE), openai_codec())  # type: ignore[arg-type]
    assert ended.drop(counted.extend) is False, "nothing can come after its end"
    assert counted[2:] == [TextDelta("Hi"), FinishDelta("stop")]


def test_ollama_s_lines_too() -> None:
    decoder = Thoughts(ollama_codec(), "think", opened=False)
    lines = [{"message": {"content": piece}, "done": False} for piece in ("<think>", "Hm", "</think>\n", "\nHi")]
    deltas: list[Delta] = []
    for line in lines:
        deltas += decoder.feed(json.dumps(line).encode() + b"\n")
    assert deltas == [ReasoningDelta("Hm"), TextDelta("Hi")]


@pytest.mark.parametrize(
    ("kind", "option", "split"),
    [("vllm", None, True), ("vllm", "off", False), ("openai", None, False), ("openai", "on", True)],
)
async def test_the_preset_and_the_option_decide(kind: str, option: str | None, split: bool) -> None:
    async with ScriptedProvider(stream(chunk("<think>Hm"), chunk("</think>Hi"), finish(), DONE)) as server:
        client = OpenAIProvider("k", server.url, preset=PRESETS[kind], think_tags=option)
        async with client.open(PROMPT, Timeouts()) as batches:
            deltas = [delta async for batch in batches for delta in batch]
        text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        assert text == ("Hi" if split else "<think>Hm</think>Hi")
        await client.aclose()


async def test_a_stream_that_breaks_off_shows_what_is_no_tag() -> None:
    async with ScriptedProvider(stream(chunk("<think>Hm</"), CLOSE)) as server:
        client = OpenAIProvider("k", server.url, think_tags="on")
        deltas: list[Delta] = []
        with pytest.raises(UpstreamError):
            async with client.open(PROMPT, Timeouts()) as batches:
                async for batch in batches:
                    deltas += batch
        assert deltas == [ReasoningDelta("Hm"), ReasoningDelta("</")]
        await client.aclose()


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="^think_tags must be off, on or opened$"):
        OpenAIProvider("k", think_tags="yes")


@pytest.mark.parametrize("push", [True, False])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["<think>Hm</th"], [ReasoningDelta("Hm"), ReasoningDelta("</th")]),
        (["Hello"], [TextDelta("Hello")]),
        (["<thi"], [TextDelta("<thi")]),
    ],
)
async def test_a_connection_that_breaks_loses_nothing_that_was_held(
    push: bool, said: list[str], expected: list[Delta]
) -> None:
    provider = ScriptedProvider(stream(*map(chunk, said), RESET))
    async with provider:
        client = OpenAIProvider("k", provider.url, preset=PRESETS["vllm"])
        deltas: list[Delta] = []

        def take(batch: Batch) -> bool:
            deltas.extend(batch)
            return False  # the reader has no room: the rest waits for the next call

        with pytest.raises(UpstreamTruncated):
            async with client.open(PROMPT, Timeouts()) as batches:
                assert isinstance(batches, PushSource)
                while push:
                    await batches.pass_on(take)
                async for batch in batches:
                    deltas += batch
        await client.aclose()
    assert deltas == expected


async def test_bedrock_s_tags() -> None:
    async with ScriptedProvider(stream(chunk("<reasoning>Hm</reason"), chunk("ing>Hello"), finish(), DONE)) as provider:
        client = OpenAIProvider("k", provider.url, preset=PRESETS["bedrock"])
        async with client.open(PROMPT, Timeouts()) as batches:
            deltas = [delta async for batch in batches for delta in batch]
        await client.aclose()
    assert [each for each in deltas if isinstance(each, TextDelta | ReasoningDelta)] == [
        ReasoningDelta("Hm"),
        TextDelta("Hello"),
    ]
