"""Visitors without an account at an application's own handler, over real sockets."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from raw_client import HELLO, JSON, ask, connect
from scripted_provider import ScriptedProvider, answer

from chat_nest import BALANCED, ApiKeys, Caller, FirstOf, Limits, VisitorTokens, Visitors, create_chat_handler
from chat_nest.core.controls import Control
from chat_nest.identity.api_key import Rights
from chat_nest.identity.key_file import create_key, revoke_keys

SECRET = "a secret of visitors that is long"
PLENTY = Limits(requests_per_day=10_000)
KEPT = replace(BALANCED, on_disconnect="finish", requests_per_minute=1_000)


@asynccontextmanager
async def chat(profile=KEPT, **limits):
    limits = {"addresses": PLENTY, **limits}
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as provider:
        visitors = Visitors([SECRET], **limits)
        handler = create_chat_handler(base_url=provider.url, profiles={"balanced": profile}, visitors=visitors)
        async with serve(handler) as port:
            yield provider, port


def cookie_of(reply):
    """The header with which a client keeps the cookie of an answer."""
    return {"cookie": reply.headers["set-cookie"].partition(";")[0]}


async def a_visitor(port):
    return cookie_of(await ask(port, headers=JSON))


async def get(port, path, headers):
    async with connect(port) as client:
        reply = await client.request("GET", path, headers=headers)
        await reply.body()
        return reply


async def test_the_first_answer_sets_the_cookie_while_it_streams():
    async with chat() as (_, port):
        first = await ask(port)
        assert first.status == 200
        assert first.headers["content-type"] == "text/event-stream"
        assert first.headers["set-cookie"].startswith("chat-nest=cnv1_")
        second = await ask(port, headers={**JSON, **cookie_of(first)})
        assert "set-cookie" not in second.headers


async def test_a_refusal_sets_the_cookie_too():
    async with chat(addresses=Limits(requests_per_day=0)) as (_, port):
        refused = await ask(port)
        assert refused.status == 403
        assert "set-cookie" in refused.headers
    async with chat() as (_, port):
        assert "set-cookie" in (await ask(port, {"messages": []})).headers
        assert "set-cookie" in (await get(port, "/api/usage", {})).headers


async def test_each_visitor_has_a_budget_within_that_of_its_address():
    async with chat(replace(KEPT, requests_per_day=2), addresses=Limits(requests_per_day=7)) as (_, port):
        one, other = await a_visitor(port), await a_visitor(port)
        assert [(await ask(port, headers={**JSON, **one})).status for _ in range(3)] == [200, 200, 429]
        assert [(await ask(port, headers={**JSON, **other})).status for _ in range(3)] == [200, 200, 429]
        third = await get(port, "/api/usage", other)
        assert json.loads(third.raw)["limits"][1]["remaining"] == 0


async def test_the_limits_of_visitors_are_drawn_together_with_the_profile():
    async with chat(limits=Limits(requests_per_day=1)) as (_, port):
        one = await a_visitor(port)
        assert (await ask(port, headers={**JSON, **one})).status == 200
        refused = await ask(port, headers={**JSON, **one})
        assert (refused.status, json.loads(refused.raw)["scope"]) == (429, "visitor")


async def test_a_dropped_cookie_gains_nothing():
    async with chat(replace(KEPT, requests_per_day=3)) as (provider, port):
        assert [(await ask(port)).status for _ in range(5)] == [200, 200, 200, 429, 429]
        assert len(provider.requests) == 3


async def test_a_cookie_copied_to_many_clients_has_one_budget():
    async with chat(replace(KEPT, requests_per_day=3)) as (provider, port):
        one = await a_visitor(port)
        statuses = [(await ask(port, headers={**JSON, **one, "user-agent": str(number)})).status for number in range(9)]
        assert (statuses.count(200), statuses.count(429)) == (3, 6)


async def test_only_the_visitor_follows_and_stops_its_first_answer():
    async with chat() as (_, port):
        first = await ask(port)
        run = json.loads(first.raw.partition(b"data: ")[2].partition(b"\n")[0])["id"]
        path, other = f"/api/chat/{run}/stream", await a_visitor(port)
        assert (await get(port, path, cookie_of(first))).status == 200
        assert (await get(port, path, other)).status == 404
        assert (await get(port, path, {})).status == 404, "of the same address, without a cookie"
        assert (await ask(port, b"", path=f"/api/chat/{run}/stop", headers={**JSON, **other})).status == 404
        assert (await ask(port, b"", path=f"/api/chat/{run}/stop", headers={**JSON, **cookie_of(first)})).status == 204


async def test_a_client_without_cookies_may_repeat_its_first_request_by_its_key():
    async with chat() as (provider, port):
        keyed = {**JSON, "idempotency-key": "one"}
        assert [(await ask(port, headers=keyed)).status for _ in range(2)] == [200, 200]
        assert len(provider.requests) == 1


async def test_a_first_request_that_comes_again_with_its_cookie_is_answered_and_charged_once():
    async with chat() as (provider, port):
        keyed = {**JSON, "idempotency-key": "one"}
        first = await ask(port, headers=keyed)
        again = await ask(port, headers={**keyed, **cookie_of(first)})
        assert (again.status, again.raw) == (200, first.raw), "the answer from its beginning"
        assert len(provider.requests) == 1
        other = await ask(port, headers={**keyed, **(await a_visitor(port))})
        assert (other.status, len(provider.requests)) == (200, 2), "who came by the page has keys of its own"


async def test_a_visitor_token_without_cookies():
    async with chat(replace(KEPT, requests_per_day=1)) as (_, port):
        visit = await ask(port, b"", path="/api/visit", headers={"origin": "https://elsewhere.example"})
        assert (visit.status, visit.headers["access-control-allow-origin"]) == (200, "*")
        assert "set-cookie" not in visit.headers
        token = {"authorization": f"Bearer {json.loads(visit.raw)['token']}"}
        assert [(await ask(port, headers={**JSON, **token})).status for _ in range(2)] == [200, 429]
        again = await ask(port, b"", path="/api/visit", headers=token)
        renewed = {"authorization": f"Bearer {json.loads(again.raw)['token']}"}
        assert (await ask(port, headers={**JSON, **renewed})).status == 429, "it is the same visitor"
        assert (await ask(port)).status == 200


async def test_a_script_of_the_page_does_not_learn_the_cookie():
    async with chat() as (_, port):
        one = await a_visitor(port)
        visit = await ask(port, b"", path="/api/visit", headers=one)
        assert json.loads(visit.raw)["token"] not in one["cookie"]
        token = {"authorization": f"Bearer {json.loads(visit.raw)['token']}"}
        await ask(port, headers={**JSON, **one})
        assert (await get(port, "/api/usage", token)).raw != (await get(port, "/api/usage", one)).raw, "another visitor"


async def test_wrong_tokens_are_refused_in_every_form():
    async with chat() as (provider, port):
        token = json.loads((await ask(port, b"", path="/api/visit")).raw)["token"]
        for wrong in (token[:-1], token[:-1] + ("A" if token[-1] != "A" else "B"), "cnv1_", token + "A"):
            assert (await ask(port, headers={**JSON, "authorization": f"Bearer {wrong}"})).status == 401
            assert (await ask(port, b"", path="/api/visit", headers={"authorization": f"Bearer {wrong}"})).status == 401
        assert not provider.requests


async def test_a_wrong_key_or_a_blocked_caller_gets_no_visit(tmp_path):
    made, key = create_key(tmp_path / "keys.json", SECRET.encode(), Rights(caller="ada"))
    revoked = create_key(tmp_path / "keys.json", SECRET.encode(), Rights(caller="bob"))
    revoke_keys(tmp_path / "keys.json", [revoked[0].id])
    visitors = Visitors([SECRET], addresses=PLENTY)
    ways = FirstOf(ApiKeys(tmp_path / "keys.json", SECRET), VisitorTokens(visitors), visitors)
    async with ScriptedProvider(answer("Hello ", 3)) as provider:
        handler = create_chat_handler(base_url=provider.url, model="m", identify=ways, visitors=visitors)
        async with serve(handler) as port:

            async def visit(text=""):
                headers = {"authorization": f"Bearer {text}"} if text else {}
                reply = await ask(port, b"", path="/api/visit", headers=headers)
                assert "set-cookie" not in reply.headers
                return reply

            token = json.loads((await visit()).raw)["token"]
            tried = {
                "": 200,
                key: 200,
                token: 200,
                revoked[1]: 401,
                "cn_" + "a" * 32: 401,
                "sk-x": 401,
                token[:-1]: 401,
            }
            assert {text: (await visit(text)).status for text in tried} == tried
            bearer = {"authorization": f"Bearer {token}"}
            [caller] = [Caller(id=f"visitor:{visitors.visit_of(_scope(bearer)).id}").key]
            await handler.controls.change([Control(kind="block", name=f"caller:{caller}")])
            assert json.loads((await visit(token)).raw)["code"] == "blocked"
            assert (await visit()).status == 200
            await handler.controls.change([Control(kind="block", name=f"caller:{Caller(id='key:ada').key}")])
            assert [(await visit(text)).status for text in (key, token)] == [403, 403]
            await handler.controls.change([Control(kind="block", name="network:127.0.0.0/8")])
            for path in ("/api/visit", "/api/challenge"):
                reply = await ask(port, b"", path=path)
                assert (reply.status, json.loads(reply.raw)["code"]) == (403, "blocked")
            assert [(await visit(text)).status for text in ("", token)] == [403, 403]


def _scope(headers):
    return {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}


async def test_another_method_and_a_server_without_visitors():
    async with chat() as (_, port):
        assert (await get(port, "/api/visit", {})).status == 405
        assert (await get(port, "/api/challenge", {})).status == 404
        async with connect(port) as client:
            asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
            assert (await client.request("OPTIONS", "/api/visit", headers=asked)).status == 204
    async with ScriptedProvider() as provider, serve(create_chat_handler(base_url=provider.url, model="m")) as port:
        reply = await ask(port, b"", path="/api/visit")
        assert reply.status == 404
        assert "set-cookie" not in (await ask(port, HELLO)).headers


def test_a_challenge_without_visitors_is_an_error():
    from chat_nest import Challenge

    with pytest.raises(ValueError, match="challenge needs visitors"):
        create_chat_handler(
            base_url="http://127.0.0.1:9/v1", model="m", challenge=Challenge(kind="proof_of_work", after="expanded")
        )


async def test_without_the_cookie_a_conversation_is_the_one_of_the_address():
    async with chat(replace(KEPT, turns_per_conversation=2)) as (provider, port):
        assert [(await ask(port, headers=JSON)).status for _ in range(3)] == [200, 200, 429]
        visitor = await a_visitor(port)
        assert [(await ask(port, headers={**JSON, **visitor})).status for _ in range(3)] == [200, 200, 429]
        assert len(provider.requests) == 4
