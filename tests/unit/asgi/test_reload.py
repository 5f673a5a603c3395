"""ChatHandler.reload: other profiles, prices and providers while answers run."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref

import pytest
from asgi_servers import serve
from raw_client import HELLO, ask, connect, settled, standing
from scripted_provider import DONE, ScriptedProvider, answer, chunk, finish, stream, usage

from chat_nest import Limits, OpenAIProvider, Profile, create_chat_handler, price

FREE = price(input=0, output=0)
DEAR = price(input=1_000, output=1_000)


def profile(**changes) -> Profile:
    given = {"model": "one:scripted", "max_output_tokens": 100, "tokens_per_day": 100_000, "usd_per_day": 100.0}
    return Profile(**{**given, **changes})


def handler_for(url: str, **changes):
    given = {
        "providers": {"one": OpenAIProvider("sk-one", url)},
        "profiles": {"balanced": profile()},
        "prices": {"one:*": FREE},
    }
    return create_chat_handler(**{**given, **changes})


def slow(go_on: asyncio.Event):
    return stream(chunk("one"), go_on, chunk("two"), finish(), usage(3, 2), DONE)


async def test_a_running_answer_settles_under_its_first_configuration():
    go_on = asyncio.Event()
    async with ScriptedProvider(slow(go_on), answer("x")) as provider:
        handler = handler_for(provider.url)
        async with serve(handler) as port, connect(port) as client:
            reply = await client.post(HELLO)
            assert (await reply.event()).name == "start"
            handler.reload(prices={"one:*": DEAR}, profiles={"balanced": profile(tokens_per_day=50_000)})
            go_on.set()
            assert (await reply.events())[-1].name == "done"
            limits = await settled(port)
            assert limits["usd_per_day"]["used"] == 0
            assert (limits["tokens_per_day"]["limit"], limits["tokens_per_day"]["used"]) == (50_000, 5)
            await ask(port)
            assert (await settled(port))["usd_per_day"]["used"] > 0


async def test_a_replaced_provider_is_closed_when_its_last_answer_has_ended_and_nothing_refers_to_it():
    go_on = asyncio.Event()
    async with ScriptedProvider(slow(go_on)) as old, ScriptedProvider(answer("new")) as new:
        handler = handler_for(old.url)
        before = weakref.ref(handler.providers["one"])
        async with serve(handler) as port, connect(port) as client:
            reply = await client.post(HELLO)
            assert (await reply.event()).name == "start"
            for key in ("sk-two", "sk-three"):  # the one between has no answer
                handler.reload(providers={"one": OpenAIProvider(key, new.url)})
            between = weakref.ref(handler.providers["one"])
            assert b"new" in (await ask(port)).raw
            assert new.requests[0].headers["authorization"] == "Bearer sk-three"
            assert old.active == 1
            go_on.set()
            assert (await reply.events())[-1].name == "done"
            await old.idle()
            assert new.active == 1  # kept for the next request
            del reply
            gc.collect()
            assert before() is None
            assert between() is handler.providers["one"]
        await new.idle()


async def test_a_provider_that_stays_keeps_its_connection_and_its_breaker():
    async with ScriptedProvider(answer("x")) as provider:
        handler = handler_for(provider.url)
        breaker = handler._chat.upstream.breakers["one"]
        async with serve(handler) as port:
            await ask(port)
            handler.reload(profiles={"balanced": profile(max_output_tokens=7)})
            await ask(port)
            assert handler._chat.upstream.breakers["one"] is breaker
        assert provider.opened == 1
        assert provider.requests[1].json()["max_tokens"] == 7


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"store": "memory://"}, TypeError, "store can't change while the handler runs"),
        ({"profiles": {"balanced": profile(model="other:m")}}, ValueError, "profile 'balanced': the model must be"),
        ({"limits": {"tokens_per_day": 1}}, TypeError, "limits"),
        ({"default_profile": "nobody"}, ValueError, "default_profile"),
        ({"cors_origins": ["example.com"]}, ValueError, "origins: .* must be"),
    ],
)
async def test_a_wrong_configuration_changes_nothing(changes, error, said):
    async with ScriptedProvider(answer("x")) as provider:
        handler = handler_for(provider.url, limits=Limits(tokens_per_day=1_000_000))
        async with serve(handler) as port:
            with pytest.raises(error, match=said):
                handler.reload(**changes)
            assert (await standing(port))["tokens_per_day"]["limit"] == 100_000
            assert (await ask(port)).status == 200


async def test_a_rate_of_refusals_continues_after_a_reload():
    async with ScriptedProvider(answer("x")) as provider:
        handler = handler_for(provider.url, profiles={"balanced": profile(requests_per_minute=3)})
        async with serve(handler) as port:
            bad = json.dumps({"messages": 5}).encode()
            while (await ask(port, bad)).status == 400:
                pass
            handler.reload(profiles={"balanced": profile(requests_per_minute=3)})
            assert (await ask(port, bad)).status == 429


async def test_one_key_can_be_replaced_without_naming_the_providers():
    async with ScriptedProvider(answer("x")) as provider:
        handler = create_chat_handler(api_key="sk-1", base_url=provider.url, model="scripted")
        async with serve(handler) as port:
            await ask(port)
            before = handler.providers["openai"]
            handler.reload(allowed_hosts=["127.0.0.1"])
            assert handler.providers["openai"] is before
            handler.reload(api_key="sk-2")
            await ask(port)
        sent = [request.headers["authorization"] for request in provider.requests]
        assert sent == ["Bearer sk-1", "Bearer sk-2"]
