"""A prompt that costs more than its bound is debt: it is charged whole, and the caller's next request waits for it."""

from __future__ import annotations

import logging

import msgspec
import pytest
from msgspec.structs import replace

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.deltas import FinishDelta, TextDelta, UsageDelta
from chat_nest.core.messages import Message
from chat_nest.core.usage import Usage
from chat_nest.counting.bounds import prompt_bound
from chat_nest.counting.tokens import counter_for
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import FakeClock, ScriptedProvider, collect

MODEL = "claude-opus-4-8"
ODD = "~" * 900
"""Of which Claude makes 900 tokens."""


def make(*usages: Usage, model: str = MODEL, **how):
    clock = FakeClock()
    provider = ScriptedProvider([[TextDelta("ok")], [FinishDelta("stop"), *map(UsageDelta, usages)]])
    profile = replace(
        BALANCED,
        model=f"p:{model}",
        fallbacks=how.pop("fallbacks", ()),
        max_output_tokens=100,
        tokens_per_day=how.pop("day", 1_000),
        tokens_per_request=2_048,
        requests_per_minute=None,
    )
    return create_chat_handler(
        providers={"p": provider},
        profiles={"balanced": profile},
        store=how.pop("store", MemoryStore(clock)),
        now=clock,
        **how,
    )


async def ask(handler, text: str):
    return await collect(handler, {"messages": [{"role": "user", "content": text}]})


async def used(handler) -> int:
    scope = {"type": "http", "client": ("203.0.113.7", 1), "headers": []}
    return {line.name: standing.used for line, standing in await handler._callers.standing(scope)}["tokens_per_day"]


async def test_odd_text_is_charged_as_reported_and_the_next_request_waits_for_it() -> None:
    bound = prompt_bound([Message(role="user", content=ODD)], counter_for(MODEL))
    assert bound * 4 < 900, "the text passes its bound by far"
    handler = make(Usage(input_tokens=907, output_tokens=95))
    assert (await ask(handler, ODD)).status == 200
    assert await used(handler) == 1_002, "also beyond what was held, and beyond the limit"
    refused = await ask(handler, "Hi")
    assert (refused.status, b"tokens_per_day" in refused.body) == (429, True)
    assert await used(handler) == 1_002
    await handler.aclose()


async def test_a_prompt_is_held_by_the_highest_count_of_all_models_and_fallbacks() -> None:
    least, most = (prompt_bound([Message(role="user", content=ODD)], counter_for(model)) for model in ("gpt-4o", MODEL))
    assert least + 100 < most
    for day, status in ((most + 100, 200), (most - 1, 429)):
        handler = make(Usage(input_tokens=100, output_tokens=5), model="gpt-4o", fallbacks=(f"p:{MODEL}",), day=day)
        assert (await ask(handler, ODD)).status == status
        await handler.aclose()


async def test_a_model_that_counts_more_is_held_for_more_next_time() -> None:
    text = "How do I reverse a list without changing the original one? " * 20
    handler = make(Usage(input_tokens=300, output_tokens=5), day=100_000)
    counter = handler._chat.upstream.counters.of(f"p:{MODEL}")
    before = counter.count(text)
    await ask(handler, text)
    assert counter.count(text) == before, "it was counted well"
    await handler.aclose()
    handler = make(Usage(input_tokens=before * 13 // 10, output_tokens=5), day=100_000)
    counter = handler._chat.upstream.counters.of(f"p:{MODEL}")
    await ask(handler, text)
    assert before * 1.2 < counter.count(text) <= before * 1.5
    await handler.aclose()


async def test_odd_text_raises_bounds_of_ordinary_prompts_by_half_at_most_and_is_not_charged() -> None:
    """All that an attacker gains: other callers' holds are at most 1.5 times as large; what they pay is reported."""
    store = MemoryStore(FakeClock())
    text = "How do I reverse a list without changing the original one? " * 20
    plain = counter_for(MODEL).count(text)
    for _ in range(3):  # each a process of its own, as after a restart
        handler = make(Usage(input_tokens=907, output_tokens=5), day=10**9, store=store)
        await handler._chat._ledger._learned.exchange(10.0)
        for _ in range(20):
            await ask(handler, ODD)
        await handler._chat._ledger._learned.exchange(10.0)
        assert handler._chat.upstream.counters.of(f"p:{MODEL}").count(text) <= 1.51 * plain
        await handler.aclose()
    handler = make(Usage(input_tokens=260, output_tokens=5), day=10**9, store=store)
    await handler._chat._ledger._learned.exchange(10.0)
    assert 1.45 * plain <= handler._chat.upstream.counters.of(f"p:{MODEL}").count(text) <= 1.51 * plain
    before = await used(handler)
    assert (await ask(handler, text)).status == 200
    assert await used(handler) - before == 265
    await handler.aclose()


async def test_counts_over_what_a_store_takes_are_settled_at_once_and_an_alarm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    huge = Usage(input_tokens=3 * 2**50, output_tokens=7, cached_input_tokens=2**50, cache_write_tokens=2**50)
    handler = make(huge)
    with caplog.at_level(logging.ERROR):
        await ask(handler, "Hi")
    assert await used(handler) == 2**50
    assert "more than 2**50 tokens" in caplog.text
    assert (await ask(handler, "Hi")).status == 429
    await handler.aclose()


@pytest.mark.parametrize("counting", ["auto", "bytes"])
async def test_an_ordinary_chat_fits_2048_tokens_unless_bytes_are_counted(counting: str) -> None:
    text = ("Can you summarize this for me? The launch slips by two weeks, and nobody told the team. " * 24)[:2_100]
    handler = make(Usage(input_tokens=480, output_tokens=5), day=100_000, counting={"p": counting})
    assert (await ask(handler, text)).status == (200 if counting == "auto" else 429)
    await handler.aclose()


async def test_counting_of_a_provider_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="counting names"):
        make(counting={"q": "bytes"})
    with pytest.raises(ValueError, match="counting"):
        make(counting={"p": "tokens"})
    with pytest.raises(TypeError, match="counting"):
        make(counting={"p": 1})


LONG = "Lorem ipsum dolor sit amet, consectetur. " * 100
"""Some 1,000 tokens."""
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
FIELDS = {
    "content": {"messages": [{"role": "user", "content": LONG}]},
    "system": {"messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "Hi"}]},
    "a tool's description": {"tools": [{**TOOL, "function": {**TOOL["function"], "description": LONG}}]},
    "a tool's schema": {"tools": [{**TOOL, "function": {**TOOL["function"], "parameters": {"title": LONG}}}]},
    "a call's arguments": {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "tool_calls": [{**CALL, "function": {"name": "f", "arguments": f'{{"a":"{LONG}"}}'}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ],
    },
    "a call's result": {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": LONG},
        ],
    },
    "a schema": {"response_format": {**SCHEMA, "json_schema": {"name": "a", "schema": {"title": LONG}}}},
    "a schema's description": {
        "response_format": {**SCHEMA, "json_schema": {**SCHEMA["json_schema"], "description": LONG}}
    },
}


@pytest.mark.parametrize("field", FIELDS)
async def test_every_part_of_a_request_that_the_model_reads_is_held(field: str) -> None:
    clock = FakeClock()
    provider = ScriptedProvider(
        [[TextDelta("ok")], [FinishDelta("stop"), UsageDelta(Usage(input_tokens=5, output_tokens=1))]]
    )
    profile = replace(
        BALANCED,
        model="p:gpt-4o-mini",
        tokens_per_request=100_000,
        tokens_per_day=100_000,
        allow_tools=True,
        allow_system_prompt=True,
    )
    store = Held(clock)
    handler = create_chat_handler(
        providers={"p": provider}, profiles={"balanced": profile}, store=store, now=clock, dialect="openai"
    )
    body = {"model": "balanced", "messages": [{"role": "user", "content": "Hi"}], **FIELDS[field]}
    answer = await collect(handler, body, path="/v1/chat/completions")
    assert answer.status == 200
    assert LONG[:200].encode() in msgspec.json.encode(provider.prompts[-1]), "the model reads it"
    assert store.held[-1] > len(LONG) / 8, "and nobody pays for it"
    await handler.aclose()


class Held(MemoryStore):
    """Notes the prompt that each request was held for."""

    def __init__(self, now) -> None:
        super().__init__(now)
        self.held: list[int] = []

    async def reserve(self, claim, lease):
        self.held.append(next(line.fixed for line in claim.lines if line.name == "tokens_per_day"))
        return await super().reserve(claim, lease)
