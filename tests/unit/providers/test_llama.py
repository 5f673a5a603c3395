"""Two providers against a real llama.cpp server, which speaks both OpenAI's format and Anthropic's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from llama import llama

from chat_nest import Profile, create_chat_handler
from chat_nest.core.deltas import Delta, FinishDelta, TextDelta, UsageDelta
from chat_nest.core.errors import UpstreamRejected
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.messages import Message
from chat_nest.core.protocols import Prompt, Provider
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.http import HTTPSession
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers import PRESETS
from chat_nest.testing import collect


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with llama() as url:
        yield url


@pytest.fixture(params=["openai", "anthropic"])
async def provider(request: pytest.FixtureRequest, url: str) -> AsyncIterator[OpenAIProvider | AnthropicProvider]:
    provider: OpenAIProvider | AnthropicProvider
    if request.param == "openai":
        provider = OpenAIProvider(base_url=url, preset=PRESETS["llamacpp"])
    else:
        provider = AnthropicProvider(base_url=url.removesuffix("/v1"))
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


async def whole(provider: Provider, tokens: int) -> tuple[str, list[Delta]]:
    async with provider.open(prompt(tokens), Timeouts()) as batches:
        deltas = [delta async for batch in batches for delta in batch]
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), deltas


async def test_text_usage_and_finish_arrive(provider: OpenAIProvider | AnthropicProvider) -> None:
    await provider.check()
    text, deltas = await whole(provider, 40)
    assert len(text) >= 40, "each token has at least one character"
    finishes = [delta for delta in deltas if isinstance(delta, FinishDelta)]
    assert finishes == [FinishDelta("length")]
    totals = [delta.usage for delta in deltas if isinstance(delta, UsageDelta)]
    assert totals[-1].output_tokens == 40
    assert {total.input_tokens for total in totals} == {totals[0].input_tokens}
    assert totals[0].input_tokens > 8


async def test_twenty_at_once(provider: Provider) -> None:
    for text, deltas in await asyncio.gather(*(whole(provider, 30) for _ in range(20))):
        assert len(text) >= 30
        assert [delta.usage.output_tokens for delta in deltas if isinstance(delta, UsageDelta)][-1] == 30


async def test_leaving_stops_the_model(url: str, provider: Provider) -> None:
    async with provider.open(prompt(2_000), Timeouts()) as batches:
        await anext(batches)
        assert any(slot["is_processing"] for slot in await slots(url))
    while any(slot["is_processing"] for slot in await slots(url)):
        await asyncio.sleep(0.005)
    [used] = [slot for slot in await slots(url) if "next_token" in slot]
    assert used["next_token"][0]["n_decoded"] < 1_900


async def test_a_prompt_that_is_too_long_is_rejected(provider: Provider) -> None:
    with pytest.raises(UpstreamRejected) as caught:
        async with provider.open(prompt(10, "x " * 5_000), Timeouts()):
            pass
    assert caught.value.spent_nothing


async def test_both_formats_count_the_same_prompt_alike(url: str) -> None:
    openai, anthropic = OpenAIProvider(base_url=url), AnthropicProvider(base_url=url.removesuffix("/v1"))
    counts = []
    for provider in (openai, anthropic):
        _, deltas = await whole(provider, 5)
        counts.append([delta.usage.total_tokens for delta in deltas if isinstance(delta, UsageDelta)][-1])
        await provider.aclose()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_disconnect_stops_the_model_and_charges_the_received_tokens(url: str, kind: str) -> None:
    root = url.removesuffix("/v1")
    provider = OpenAIProvider(base_url=url) if kind == "openai" else AnthropicProvider(base_url=root)
    profile = Profile(model="p:tiny", max_output_tokens=4_000, tokens_per_request=None, tokens_per_day=400_000)
    handler = create_chat_handler(providers={"p": provider}, profiles={"balanced": profile})
    leave = asyncio.Event()

    async def sent(data: bytes) -> None:
        if b"event: token" in data:
            leave.set()

    body = {"messages": [{"role": "user", "content": "hello"}]}
    answer = await collect(handler, body, leave=leave, sent=sent)
    assert answer.events[0][0] == "start"
    while any(slot["is_processing"] for slot in await slots(url)):
        await asyncio.sleep(0.005)
    scope = {"type": "http", "client": ("203.0.113.7", 4711), "headers": [], "path": "/"}
    used = {line.name: now.used for line, now in await handler._callers.standing(scope)}["tokens_per_day"]
    assert 5 < used < 2_000, "not the whole hold"
    await handler.aclose()
