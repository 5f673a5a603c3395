"""Further owners of a request's limits, as an app's own identification names them, over real sockets."""

from __future__ import annotations

import json
import logging
import time
from contextlib import asynccontextmanager

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from raw_client import HELLO, ask
from scripted_provider import ScriptedProvider, answer

from chat_nest import BALANCED, Caller, Limits, Share, Totals, create_chat_handler, price

EVENING = 3_600


@asynccontextmanager
async def chat(caller, prices=None):
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as provider:
        profiles = {
            "balanced": BALANCED,
            "other": replace(BALANCED, name="other", model="openai:other", open=False),
            "third": replace(BALANCED, name="third", model="openai:third", open=True),
        }
        handler = create_chat_handler(base_url=provider.url, profiles=profiles, identify=caller, prices=prices)
        async with serve(handler) as port:
            yield provider, port


def callers(*shares):
    """Identify another caller at each request, with the same shares."""
    number = iter(range(100))
    return lambda scope: Caller(id=f"user-{next(number)}", shares=shares)


@pytest.mark.parametrize("scope", ["session", "conversation", "visitor", "address", "network"])
async def test_callers_spend_their_share_together(scope):
    share = Share(scope=scope, id="one", limits=Limits(tokens_per_day=3_000))
    async with chat(callers(share)) as (provider, port):
        assert (await ask(port)).status == 200
        assert (await ask(port)).status == 200
        provider.scripts = [answer("Hello ", 3, input_tokens=2_980)]
        assert (await ask(port)).status == 200
        refused = await ask(port)
        assert refused.status == 429
        assert json.loads(refused.raw)["limit"] == "tokens_per_day"
        assert len(provider.requests) == 3


async def test_a_total_counts_until_its_end_and_a_refusal_names_it():
    share = Share(scope="session", id="s1", totals=Totals(requests=2), ends_at=time.time() + EVENING)
    other = replace(share, id="s2")
    async with chat(callers(share)) as (_, port):
        assert [(await ask(port)).status for _ in range(3)] == [200, 200, 429]
        assert json.loads((await ask(port)).raw)["limit"] == "requests_per_session"
    async with chat(callers(other)) as (_, port):
        assert (await ask(port)).status == 200


@pytest.mark.parametrize("totals", [Totals(requests=0), Totals(tokens=0), Totals(usd=0.0)])
async def test_a_total_of_nothing_admits_nothing(totals):
    share = Share(scope="session", id="s", totals=totals, ends_at=time.time() + EVENING)
    async with chat(callers(share), {"openai:*": price(input=1, output=1)}) as (provider, port):
        assert (await ask(port)).status == 403
        assert not provider.requests


async def test_dollars_without_a_price_admit_nothing():
    share = Share(scope="session", id="s", totals=Totals(usd=5.0), ends_at=time.time() + EVENING)
    async with chat(lambda scope: Caller(id="ada", profiles=("other",), shares=(share,))) as (provider, port):
        refused = await ask(port)
        assert (refused.status, b"price" in refused.raw) == (403, True)
        assert not provider.requests


async def test_a_caller_chooses_among_assigned_profiles_and_the_first_is_the_default():
    async with chat(lambda scope: Caller(id="ada", profiles=("other", "balanced"))) as (provider, port):
        await ask(port)
        await ask(port, {**HELLO, "profile": "balanced"})
        await ask(port, {**HELLO, "profile": "third"})
        models = [json.loads(request.body)["model"] for request in provider.requests]
        assert models == ["other", "gpt-4o-mini", "other"]


@pytest.mark.parametrize("shares", [("session",), (Share(scope="all", id="x"),)])
async def test_a_share_of_a_wrong_kind_is_logged_for_the_operator(shares, caplog):
    with caplog.at_level(logging.ERROR):
        async with chat(lambda scope: Caller(id="ada", shares=shares)) as (provider, port):
            assert (await ask(port)).status == 500
            assert "returned a Caller with" in caplog.text
            assert not provider.requests
