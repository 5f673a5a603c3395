"""What a caller sees of limits and money, over real sockets: headers on every answer, the final event, /api/usage."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from raw_client import HELLO, JSON, ask, connect, settled, standing
from scripted_provider import ScriptedProvider, answer

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.limits import Limits
from chat_nest.core.messages import Caller
from chat_nest.limits.prices import price

PRICES = {"openai:*": price(input=10, output=1_000)}
"""10,000 nano-dollars a token in, a thousandth of a dollar a token out."""


@asynccontextmanager
async def chat(limits=Limits(), **profile):
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as provider:
        handler = create_chat_handler(
            base_url=provider.url,
            profiles={"balanced": replace(BALANCED, **profile)},
            limits=limits,
            prices=PRICES,
        )
        async with serve(handler) as port:
            yield provider, port


def standings(reply):
    """{name: room} of the RateLimit header."""
    return {name: int(room) for name, room in re.findall(r'"([\w/]+)";r=(\d+)', reply.headers.get("ratelimit", ""))}


async def last(port, **more):
    reply = await ask(port, **more)
    name, data = re.findall(r"event: (\w+)\ndata: (.*)\n\n", reply.raw.decode())[-1]
    return reply, name, json.loads(data)


async def test_an_answer_reports_its_cost_and_the_remaining_limits():
    async with chat(usd_per_day=1.0, tokens_per_month=10_000) as (_, port):
        reply, name, done = await last(port)
        assert (name, done["cost_usd"]) == ("done", pytest.approx(9e-5 + 3e-3))
        assert done["remaining"]["usd_per_day"] == pytest.approx(1 - done["cost_usd"])
        assert done["remaining"]["tokens_per_month"] == 10_000 - 12
        held = standings(reply)
        assert 0 < held["usd_per_day"] < 10**9 * (1 - done["cost_usd"])  # behind the hold of the largest answer
        assert held["requests_per_minute"] == 29
        assert '"usd_per_day";q=1000000000;w=86400;qu="nanousd"' in reply.headers["ratelimit-policy"]


async def test_a_budget_in_dollars_clamps_the_answer_and_then_refuses():
    async with chat(usd_per_day=0.2, max_output_tokens=400) as (provider, port):
        assert (await ask(port)).status == 200
        asked = provider.requests[0].json()["max_tokens"]
        assert 16 <= asked < 200  # 0.2 dollars buy fewer than 200 tokens
        provider.scripts = [answer("Hello ", 16, input_tokens=9)]
        for _ in range(20):
            reply = await ask(port)
            if reply.status != 200:
                break
            assert 16 <= provider.requests[-1].json()["max_tokens"] < asked
        refused = json.loads(reply.raw)
        assert (reply.status, refused["code"], refused["limit"]) == (429, "budget_exceeded", "usd_per_day")
        assert standings(reply).keys() == {"usd_per_day"}
        assert int(reply.headers["retry-after"]) > 0
        usd = (await settled(port))["usd_per_day"]
        assert usd["used"] + usd["held"] <= usd["limit"] == 0.2
        assert usd["unit"] == "usd"


async def test_each_kind_of_refusal_has_a_distinct_code():
    expected = {
        "rate_limited": {"requests_per_hour": 1},
        "budget_exceeded": {"tokens_per_hour": 60},
        "request_too_large": {"tokens_per_request": 20, "min_output_tokens": 1},
    }
    for code, limits in expected.items():
        async with chat(**limits) as (_, port):
            replies = [await ask(port) for _ in range(3)]
            assert json.loads(replies[-1].raw)["code"] == code
            assert json.loads(replies[-1].raw)["limit"] == next(iter(limits))


async def test_too_many_at_once_has_its_code_too():
    async with ScriptedProvider([b""]) as provider:
        provider.scripts = [[*answer("Hello ", 1)[:1], asyncio.Event()]]
        handler = create_chat_handler(
            base_url=provider.url, profiles={"balanced": replace(BALANCED, concurrent_streams=1)}
        )
        async with serve(handler) as port, connect(port) as client:
            held = await client.post()
            assert (await held.event()).name == "start"
            refused = await ask(port)
            assert json.loads(refused.raw)["code"] == "too_many_streams"
            assert "retry-after" not in refused.headers, "nobody knows when the other one ends"
            assert standings(refused) == {"concurrent_streams": 0}


@pytest.mark.parametrize(
    "body", [b"{", b'{"messages":[]}', b'{"messages":[{"role":"user","content":"a"}],"model":"x"}']
)
async def test_a_bad_request_reports_the_limits_of_the_caller(body):
    async with chat() as (provider, port):
        await ask(port)
        refused = await ask(port, body)
        assert refused.status == 400
        assert standings(refused) == {"requests_per_minute": 29, "tokens_per_day": 200_000 - 12}
        assert provider.opened == 1


async def test_usage_has_the_headers_too():
    async with chat(usd_per_day=1.0) as (_, port):
        await ask(port)
        async with connect(port) as client:
            reply = await client.request("GET", "/api/usage")
        assert standings(reply)["tokens_per_day"] == 200_000 - 12
        usage = await standing(port)
        assert usage["usd_per_day"]["used"] == pytest.approx(3.09e-3)


async def test_the_spending_of_others_is_reported_only_if_it_refuses():
    async with chat(Limits(tokens_per_day=500)) as (provider, port):
        reply = await ask(port)
        assert standings(reply).keys() == {"requests_per_minute", "tokens_per_day"}
        provider.scripts = [answer("Hello ", 400, input_tokens=90)]
        await ask(port)
        refused = await ask(port)
        told = json.loads(refused.raw)
        assert (told["code"], told["limit"], told["scope"]) == ("budget_exceeded", "tokens_per_day", "all")
        assert standings(refused).keys() == {"all/tokens_per_day"}


async def test_members_of_a_group_share_its_budget_and_others_do_not():
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as provider:

        def identify(scope):
            name, _, group = dict(scope["headers"])[b"x-who"].decode().partition("@")
            return Caller(id=name, group=group or None)

        handler = create_chat_handler(
            base_url=provider.url,
            api_key="k",
            identify=identify,
            groups={"acme": Limits(requests_per_day=2), "default": Limits(requests_per_day=1)},
        )
        async with serve(handler) as port:

            async def status(who):
                return (await ask(port, HELLO, headers={**JSON, "x-who": who})).status

            assert [await status(who) for who in ("a@acme", "b@acme", "c@acme")] == [200, 200, 429]
            assert [await status(who) for who in ("a@x", "b@x", "a@y")] == [200, 429, 200]
            assert await status("a") == 200


async def test_usage_under_another_profile_has_that_ones_limits():
    async with ScriptedProvider(answer("Hello", input_tokens=9)) as provider:
        small = replace(BALANCED, name="small", tokens_per_day=700, open=True)
        closed = replace(BALANCED, name="closed", tokens_per_day=10, open=False)
        handler = create_chat_handler(
            base_url=provider.url, profiles={"balanced": BALANCED, "small": small, "closed": closed}
        )
        async with serve(handler) as port, connect(port) as client:
            for query, limit in (("", 200_000), ("?profile=small", 700), ("?profile=closed", 200_000)):
                reply = await client.request("GET", f"/api/usage{query}")
                limits = {each["name"]: each["limit"] for each in (await reply.json())["limits"]}
                assert limits["tokens_per_day"] == limit
            assert (await client.request("GET", f"/api/usage?{'a=1&' * 30}")).status == 400
