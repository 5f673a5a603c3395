"""The OpenAI-compatible provider against a real llama.cpp server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from llama import llama

from chat_nest.deltas import Batch, FinishDelta, TextDelta, UsageDelta
from chat_nest.errors import UpstreamRejected
from chat_nest.limits import Timeouts
from chat_nest.messages import Message
from chat_nest.protocols import Prompt
from chat_nest.providers.http import HTTPSession
from chat_nest.providers.openai import OpenAIProvider


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with llama() as url:
        yield url


@pytest.fixture
async def provider(url: str) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(base_url=url)
    yield provider
    await provider.aclose()


def prompt(tokens: int, content: str = "Hé \N{GRINNING FACE}") -> Prompt:
    return Prompt(
        model="tiny", messages=(Message(role="user", content=content),), max_output_tokens=tokens, temperature=0.7
    )


async def slots(url: str) -> list[dict[str, Any]]:
    session = HTTPSession(url.removesuffix("/v1"))
    async with session.request("GET", "/slots", headers={}, connect_timeout=10) as answer:
        found = msgspec.json.decode(await answer.read_body(1 << 20))
    await session.aclose()
    return found


async def whole(provider: OpenAIProvider, tokens: int) -> tuple[str, list[Batch]]:
    async with provider.open(prompt(tokens), Timeouts()) as batches:
        deltas = [delta async for batch in batches for delta in batch]
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), deltas


async def test_text_usage_and_finish_arrive(provider: OpenAIProvider) -> None:
    await provider.check()
    text, deltas = await whole(provider, 40)
    assert len(text) >= 40, "each token has at least one character"
    finishes = [delta for delta in deltas if isinstance(delta, FinishDelta)]
    assert finishes == [FinishDelta("length")]
    [totals] = [delta.usage for delta in deltas if isinstance(delta, UsageDelta)]
    assert totals.output_tokens == 40
    assert totals.input_tokens > 8


async def test_twenty_at_once(provider: OpenAIProvider) -> None:
    for text, deltas in await asyncio.gather(*(whole(provider, 30) for _ in range(20))):
        assert len(text) >= 30
        assert deltas[-1].usage.output_tokens == 30


async def test_leaving_stops_the_model(url: str, provider: OpenAIProvider) -> None:
    async with provider.open(prompt(2_000), Timeouts()) as batches:
        await anext(batches)
        assert any(slot["is_processing"] for slot in await slots(url))
    while any(slot["is_processing"] for slot in await slots(url)):
        await asyncio.sleep(0.005)
    [used] = [slot for slot in await slots(url) if "next_token" in slot]
    assert used["next_token"][0]["n_decoded"] < 1_900


async def test_a_prompt_that_is_too_long_is_rejected(provider: OpenAIProvider) -> None:
    with pytest.raises(UpstreamRejected) as caught:
        async with provider.open(prompt(10, "x " * 5_000), Timeouts()):
            pass
    assert caught.value.spent_nothing
