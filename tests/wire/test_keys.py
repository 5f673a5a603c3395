"""API keys of an application's own handler, over real sockets: their profiles and limits, and their end meanwhile."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from raw_client import HELLO, JSON, ask, connect
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, finish, stream, usage

from chat_nest import BALANCED, ApiKeys, Limits, create_chat_handler, price
from chat_nest.identity.api_key import Rights
from chat_nest.identity.key_issuers import StoreIssuer
from chat_nest.identity.stored_keys import StoredKeys
from chat_nest.limits.counters import RANGES

SECRET = b"0123456789abcdef0123456789abcdef"
FREE = replace(BALANCED, requests_per_minute=None, tokens_per_day=None)
PROFILES = {
    "balanced": replace(FREE, tokens_per_day=10_000),
    "closed": replace(FREE, name="closed", model="openai:closed", open=False),
}


@asynccontextmanager
async def chat(*scripts, limits=Limits(), prices=None):
    """A handler whose keys are in its store, and what issues them."""
    table = StoredKeys(SECRET)
    async with ScriptedProvider(*scripts or [answer("Hello ", 3, input_tokens=9)]) as provider:
        handler = create_chat_handler(
            base_url=provider.url, profiles=PROFILES, identify=ApiKeys(table, SECRET), limits=limits, prices=prices
        )
        table.bind(handler.controls)
        async with serve(handler) as port:
            yield provider, port, StoreIssuer(handler.store.controls, SECRET, by="test")


def bearer(text):
    return {**JSON, "authorization": f"Bearer {text}"}


async def usage_of(port, text):
    async with connect(port) as client:
        reply = await client.request("GET", "/api/usage", headers=bearer(text))
        return {(each.get("scope", "caller"), each["name"]): each for each in (await reply.json())["limits"]}


async def test_the_tightest_of_the_key_s_the_caller_s_and_all_limits_decides():
    async with chat(limits=Limits(requests_per_day=6)) as (_, port, issuer):
        above = await issuer.create(Rights(caller="ada", limits={"tokens_per_day": 10**9, "requests_per_day": 100}))
        below = await issuer.create(Rights(caller="ada", limits={"requests_per_day": 2}))
        replies = [await ask(port, headers=bearer(below.text)) for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        told = json.loads(replies[2].raw)
        assert (told["limit"], told["scope"]) == ("requests_per_day", "key")
        assert "It is the limit of your API key." in told["error"]
        assert '"key/requests_per_day";q=2;w=86400' in replies[0].headers["ratelimit-policy"]
        replies = [await ask(port, headers=bearer(above.text)) for _ in range(5)]
        assert [reply.status for reply in replies] == [200] * 4 + [429]
        assert json.loads(replies[4].raw)["scope"] == "all"
        shown = await usage_of(port, above.text)
        assert shown["key", "tokens_per_day"]["used"] == 4 * 12, "of the key"
        assert shown["caller", "tokens_per_day"]["used"] == 6 * 12, "of both keys"
        assert shown["caller", "tokens_per_day"]["limit"] == 10_000, "a key can't raise it"


async def test_a_hundred_at_once_with_the_keys_of_a_rotation_pass_no_limit():
    async with chat() as (provider, port, issuer):
        old = await issuer.create(Rights(caller="ada", limits={"requests_per_day": 10}, profiles=("closed",)))
        new = await issuer.rotate(old.key.id, timedelta(hours=1))
        replies = await asyncio.gather(
            *(ask(port, headers=bearer(text)) for text in (old.text, new.text) for _ in range(50))
        )
        assert sorted(reply.status for reply in replies) == [200] * 10 + [429] * 90
        assert len(provider.requests) == 10
        assert (await usage_of(port, new.text))["key", "requests_per_day"]["used"] == 10


async def test_a_key_with_every_limit_is_answered():
    async with chat(prices={"openai:*": price(input=1.0, output=2.0)}) as (_, port, issuer):
        limits = dict.fromkeys(RANGES[Limits], 100000)
        key = await issuer.create(Rights(caller="ada", limits=limits))
        assert (await ask(port, headers=bearer(key.text))).status == 200
        shown = await usage_of(port, key.text)
        assert {name for scope, name in shown if scope == "key"} == set(limits)


async def test_a_limit_in_dollars_without_a_price_is_reported():
    async with chat() as (provider, port, issuer):
        key = await issuer.create(Rights(caller="ada", limits={"usd_per_day": 1}))
        reply = await ask(port, headers=bearer(key.text))
        assert (reply.status, "the price of this model is not known" in json.loads(reply.raw)["error"]) == (403, True)
        assert not provider.requests


@pytest.mark.parametrize("number", [0, "none"])
async def test_nothing_and_no_limit(number):
    async with chat() as (provider, port, issuer):
        key = await issuer.create(Rights(caller="ada", limits={"requests_per_day": number}))
        reply = await ask(port, headers=bearer(key.text))
        assert reply.status == (403 if number == 0 else 200)
        assert len(provider.requests) == (number != 0)


async def test_a_profile_is_open_to_the_keys_that_name_it():
    async with chat() as (provider, port, issuer):
        plain = await issuer.create(Rights(caller="ada"))
        both = await issuer.create(Rights(caller="bob", profiles=("balanced", "closed")))
        only = await issuer.create(Rights(caller="eve", profiles=("Closed",)))
        gone = await issuer.create(Rights(caller="eve", profiles=("closed", "gone")))
        asked = [(plain, "closed"), (both, "closed"), (both, None), (only, None), (only, "balanced")]
        for key, profile in asked:
            body = HELLO if profile is None else {**HELLO, "profile": profile}
            assert (await ask(port, body, headers=bearer(key.text))).status == 200
        models = [request.json()["model"] for request in provider.requests]
        assert models == ["gpt-4o-mini", "closed", "gpt-4o-mini", "closed", "closed"]
        assert (await ask(port, headers=bearer(gone.text))).status == 403
        assert len(provider.requests) == 5


async def test_an_answer_of_a_revoked_key_is_stopped_and_settled_and_the_next_request_is_refused():
    async with chat(stream(chunk("Hel"), HANG), answer("x", 1)) as (provider, port, issuer):
        key = await issuer.create(Rights(caller="ada", limits={"tokens_per_day": 5_000, "concurrent_streams": 1}))
        other = await issuer.create(Rights(caller="ada"))
        async with connect(port) as client:
            reply = await client.request("POST", "/api/chat", json.dumps(HELLO).encode(), headers=bearer(key.text))
            await reply.until("token")
            await issuer.revoke([key.key.id])
            assert (await ask(port, headers=bearer(key.text))).status == 401
            assert (await reply.until("error")).json()["code"] == "stopped"
            await provider.closed(0)
        while (used := (await usage_of(port, other.text))["caller", "tokens_per_day"])["held"]:
            await asyncio.sleep(0)
        assert 0 < used["used"] < 100, "what was sent and answered, not the whole reservation"
        assert len(provider.requests) == 1


async def test_a_rotated_key_keeps_the_holds_of_its_running_answer():
    go_on = asyncio.Event()
    slow = stream(chunk("Hel"), go_on, chunk("lo"), finish(), usage(9, 3), DONE)
    async with chat(slow, answer("x", 1)) as (_, port, issuer):
        old = await issuer.create(Rights(caller="ada", limits={"concurrent_streams": 1}))
        async with connect(port) as client:
            reply = await client.request("POST", "/api/chat", json.dumps(HELLO).encode(), headers=bearer(old.text))
            await reply.until("token")
            new = await issuer.rotate(old.key.id, timedelta(0))
            refused = await ask(port, headers=bearer(new.text))
            assert (refused.status, json.loads(refused.raw)["scope"]) == (429, "key")
            assert (await ask(port, headers=bearer(old.text))).status == 401, "without an overlap it has ended"
            go_on.set()
            await reply.until("done")
        while (reply := await ask(port, headers=bearer(new.text))).status == 429:
            await asyncio.sleep(0)
        assert reply.status == 200
