"""A cheaper model before the limit, over real sockets: which model is called, and what the client is told."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from raw_client import HELLO, ask
from scripted_provider import ScriptedProvider, answer

from chat_nest import BALANCED, Rung, create_chat_handler
from chat_nest.ledger.store_queue import FEWEST
from chat_nest.limits.prices import price
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import answer as said
from chat_nest.testing import collect

LADDER = (
    Rung(below=0.2, model="openai:gpt-4.1-nano", max_output_tokens=20),
    Rung(below=0.6, model="openai:gpt-4o-mini"),
)
OPENAI = {"messages": [{"role": "user", "content": "Hello"}]}
ANTHROPIC = {**OPENAI, "max_tokens": 100}
RESPONSES = {"input": "Hello"}


@asynccontextmanager
async def chat(ladder=LADDER, **profile):
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as provider:
        fields = {"model": "openai:gpt-4o", "max_output_tokens": 60, "ladder": ladder, **profile}
        handler = create_chat_handler(
            base_url=provider.url,
            profiles={"balanced": replace(BALANCED, **fields)},
            dialects=("native", "openai", "anthropic", "responses"),
        )
        async with serve(handler) as port:
            yield provider, port


async def test_each_rung_answers_when_less_than_its_share_is_left():
    async with chat(requests_per_day=5) as (provider, port):
        replies = [await ask(port) for _ in range(5)]
        assert [reply.status for reply in replies] == [200] * 5
        asked = [request.json() for request in provider.requests]
        assert [each["model"] for each in asked] == ["gpt-4o"] * 3 + ["gpt-4o-mini"] * 2  # 1, 0.8, 0.6 | 0.4, 0.2
        assert [each["max_tokens"] for each in asked] == [60] * 5
        assert [reply.headers.get("x-ladder-below") for reply in replies] == [None] * 3 + ["0.6"] * 2
        start = json.loads(replies[-1].raw.split(b"event: start\ndata: ")[1].split(b"\n")[0])
        assert (start["model"], start["ladder_below"]) == ("gpt-4o-mini", 0.6)
        assert (await ask(port)).status == 429


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", OPENAI), ("/v1/messages", ANTHROPIC), ("/v1/responses", RESPONSES)]
)
async def test_the_lowest_rung_shortens_the_answer_and_the_model_field_names_its_model(path, body):
    async with chat(requests_per_day=10) as (provider, port):
        for _ in range(9):
            await ask(port)
        reply = await ask(port, body, path=path)
        assert provider.requests[-1].json()["max_tokens"] == 20
        assert json.loads(reply.raw)["model"] == "gpt-4.1-nano"
        assert reply.headers["x-ladder-below"] == "0.2"


async def test_a_rung_without_a_model_only_shortens():
    async with chat((Rung(below=1, max_output_tokens=10),), tokens_per_day=10_000) as (provider, port):
        for _ in range(2):
            await ask(port)
        assert [(each.json()["model"], each.json()["max_tokens"]) for each in provider.requests] == [
            ("gpt-4o", 60),
            ("gpt-4o", 10),
        ]


async def test_a_model_that_lacks_what_the_request_needs_only_shortens():
    class TextOnly(Scripted):
        def lacks(self, prompt):
            return ("format",) if prompt.options.format else ()

    big, small = Scripted(said("big")), TextOnly(said("small"))
    handler = create_chat_handler(
        providers={"big": big, "small": small},
        profiles={
            "balanced": replace(
                BALANCED,
                model="big:one",
                requests_per_day=10,
                ladder=(Rung(below=1, model="small:one", max_output_tokens=7),),
            )
        },
        dialect="openai",
    )
    wanted = {**OPENAI, "response_format": {"type": "json_object"}}
    for body in (OPENAI, OPENAI, wanted):
        assert (await collect(handler, body, path="/v1/chat/completions")).status == 200
    assert [prompt.max_output_tokens for prompt in big.prompts] == [BALANCED.max_output_tokens, 7]
    assert [prompt.max_output_tokens for prompt in small.prompts] == [7]
    await handler.aclose()


async def test_a_profile_without_a_ladder_does_not_read_the_store_and_one_with_a_ladder_reads_it_once():
    class Counting(MemoryStore):
        peeked = 0

        async def peek(self, lines):
            self.peeked += 1
            return await super().peek(lines)

    for ladder, expected in (((), 0), (LADDER, 1)):
        store = Counting()
        handler = create_chat_handler(
            providers={"openai": Scripted(said("hi"))},
            profiles={"balanced": replace(BALANCED, ladder=ladder)},
            store=store,
        )
        assert (await collect(handler, HELLO)).status == 200
        assert store.peeked == expected
        await handler.aclose()


async def test_many_requests_at_once_look_and_reserve_in_one_turn_each():
    class Slow(MemoryStore):
        """Answers a look only once as many requests have come as may use the store at a time."""

        def __init__(self):
            super().__init__()
            self.full = asyncio.Barrier(FEWEST)

        async def peek(self, lines):
            await self.full.wait()
            return await super().peek(lines)

    handler = create_chat_handler(
        providers={"openai": Scripted(said("hi"))},
        profiles={"balanced": replace(BALANCED, ladder=LADDER)},
        store=Slow(),
    )
    answers = await asyncio.gather(*(collect(handler, HELLO) for _ in range(FEWEST)))
    assert [each.status for each in answers] == [200] * FEWEST
    await handler.aclose()


async def test_a_store_that_is_down_still_refuses_with_503():
    class Down(MemoryStore):
        async def peek(self, lines):
            raise OSError

    handler = create_chat_handler(
        providers={"openai": Scripted(said("hi"))},
        profiles={"balanced": replace(BALANCED, ladder=LADDER)},
        store=Down(),
    )
    assert (await collect(handler, HELLO)).status == 503
    await handler.aclose()


@pytest.mark.parametrize(
    ("ladder", "rule"),
    [
        ((Rung(below=0, model="openai:a"),), r"ladder\[0\].below must be"),
        ((Rung(below=0.5),), r"ladder\[0\] needs model, max_output_tokens or both"),
        ((Rung(below=0.5, fallbacks=("openai:a",), max_output_tokens=1),), r"ladder\[0\].fallbacks needs a model"),
        ((Rung(below=0.5, max_output_tokens=0),), r"ladder\[0\].max_output_tokens must be"),
        ((Rung(below=0.5, max_output_tokens=1), Rung(below=0.5, max_output_tokens=2)), "another `below`"),
        ((Rung(below=0.5, model="elsewhere:a"),), "the model must be PROVIDER:MODEL"),
        ((Rung(below=0.5, model="openai:without-a-price"),), "the price of 'openai:without-a-price' is not known"),
    ],
)
async def test_a_ladder_that_can_not_be_used_is_refused_at_the_start(ladder, rule):
    with pytest.raises(ValueError, match=rule):
        create_chat_handler(
            providers={"openai": OpenAIProvider(None, "http://127.0.0.1:1")},
            profiles={"balanced": replace(BALANCED, model="openai:gpt-4o", usd_per_day=1, ladder=ladder)},
            prices={"openai:gpt-4o": price(input=1, output=1), "openai:a": price(input=1, output=1)},
        )
