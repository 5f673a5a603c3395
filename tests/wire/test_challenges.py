"""Challenges of visitors, over real sockets: proof of work solved with ALTCHA's own library, and scripted services."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

import altcha
import pytest
from asgi_servers import serve
from msgspec.structs import replace
from raw_client import HELLO, JSON, ask, connect
from scripted_provider import HANG, ScriptedProvider, answer, http

from chat_nest import BALANCED, Challenge, Limits, MemoryStore, OpenAIProvider, Profile, Visitors, create_chat_handler
from chat_nest.controls.memory import MemoryControls

SECRET = "a secret of visitors that is long"
PLENTY = Limits(requests_per_day=10_000)
QUICK = Challenge(kind="proof_of_work", before="taste", after="meal", milliseconds=3)
TASTE = Profile(name="taste", model="openai:small", requests_per_day=1, open=True)
MEAL = replace(TASTE, name="meal", model="openai:large", requests_per_day=4, open=False)
PROFILES = {"taste": TASTE, "meal": MEAL, "balanced": replace(BALANCED, open=False)}
DIALECTS = {
    "native": ("/api/chat", HELLO, lambda body: body["challenge"]),
    "openai": ("/v1/chat/completions", {**HELLO, "stream": True}, lambda body: body["error"]["challenge"]),
    "responses": ("/v1/responses", {"input": "Hello", "stream": True}, lambda body: body["error"]["challenge"]),
    "anthropic": ("/v1/messages", {**HELLO, "max_tokens": 9}, lambda body: body["error"]["challenge"]),
    "ag_ui": (
        "/api/ag-ui",
        {"threadId": "t", "runId": "r", "messages": [{"id": "1", "role": "user", "content": "Hi"}]},
        lambda body: body["challenge"],
    ),
    "blog": ("/chat", {"message": "Hello"}, lambda body: body["challenge"]),
    "ai_sdk": ("/api/ai", {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hi"}]}]}, None),
}


@asynccontextmanager
async def chat(challenge=QUICK, secret=SECRET, store="memory://", addresses=PLENTY, proxies=(), **more):
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as provider:
        handler = create_chat_handler(
            providers={"openai": OpenAIProvider("sk", provider.url)},
            profiles=PROFILES,
            default_profile="taste",
            visitors=Visitors([secret], addresses=addresses, trusted_proxies=proxies),
            challenge=challenge,
            store=store,
            **more,
        )
        async with serve(handler) as port:
            yield provider, port


def cookie_of(reply):
    return {"cookie": reply.headers["set-cookie"].partition(";")[0]}


def solved(challenge):
    made = altcha.Challenge.from_dict(challenge["challenge"])
    return altcha.Payload(made, altcha.solve_challenge(made)).to_base64()


async def solve(port, solution, **headers):
    return await ask(port, {"solution": solution}, path="/api/challenge", headers={**JSON, **headers})


async def refused(port, headers):
    """The challenge of a visitor that has used its free allowance, and its cookie."""
    reply = await ask(port, headers={**JSON, **headers})
    while reply.status == 200:
        headers = headers or cookie_of(reply)
        reply = await ask(port, headers={**JSON, **headers})
    assert reply.status == 403, reply.raw
    body = json.loads(reply.raw)
    assert body["code"] == "challenge_required"
    return body["challenge"], headers


async def models(provider):
    return [json.loads(request.body)["model"] for request in provider.requests]


async def test_a_visitor_passes_and_has_another_profile():
    async with chat() as (provider, port):
        challenge, visitor = await refused(port, {})
        passed = await solve(port, solved(challenge), **visitor)
        assert (passed.status, json.loads(passed.raw)["passed"]) == (200, True)
        visitor = cookie_of(passed)
        assert [(await ask(port, headers={**JSON, **visitor})).status for _ in range(4)] == [200, 200, 200, 429]
        assert await models(provider) == ["small", "small", "large", "large", "large"]


async def test_each_solution_counts_once():
    async with chat() as (_, port):
        challenge, visitor = await refused(port, {})
        solution = solved(challenge)
        replies = await asyncio.gather(*(solve(port, solution, **visitor) for _ in range(20)))
        assert sorted(reply.status for reply in replies) == [200] + [403] * 19
        assert {json.loads(reply.raw)["code"] for reply in replies if reply.status == 403} == {"challenge_failed"}


async def test_a_solution_is_of_its_visitor():
    async with chat() as (_, port):
        challenge, visitor = await refused(port, {})
        _, other = await refused(port, cookie_of(await ask(port)))
        stolen = await solve(port, solved(challenge), **other)
        assert (stolen.status, b"another visitor" in stolen.raw) == (403, True)
        assert (await solve(port, solved(challenge))).status == 403, "nobody has no visitor to pass"
        assert (await solve(port, solved(challenge), **visitor)).status == 200


@pytest.mark.parametrize(
    ("bind", "near", "far"),
    [("network", 200, 403), ("address", 403, 403), ("none", 200, 200)],
)
@pytest.mark.parametrize(
    ("here", "close", "elsewhere"),
    [
        ("203.0.113.7", "203.0.113.99", "203.0.114.7"),
        ("2001:db8:1:1::7", "2001:db8:1:2::7", "2001:db8:2:1::7"),
    ],
    ids=["IPv4", "IPv6"],
)
async def test_a_solution_counts_only_for_the_network_of_its_challenge(bind, near, far, here, close, elsewhere):
    """A proxy or a phone whose address changes within a network passes, unless the address is asked for."""

    async def status(port, sent_from):
        asked = await ask(port, headers={**JSON, "x-forwarded-for": here})
        solution = solved(json.loads(asked.raw)["challenge"])
        reply = await solve(port, solution, **cookie_of(asked), **{"x-forwarded-for": sent_from})
        assert reply.status == 200 or b"in another network" in reply.raw
        return reply.status

    async with chat(replace(QUICK, bind=bind, when="always"), proxies=["127.0.0.1"]) as (_, port):
        assert [await status(port, each) for each in (here, close, elsewhere)] == [200, near, far]


async def test_an_address_or_a_network_that_requests_too_many_challenges_is_refused():
    async with chat(proxies=["127.0.0.1"]) as (_, port), connect(port) as client:

        async def served(addresses):
            """How many of these get a challenge before the first that does not."""
            for number, address in enumerate(addresses):
                reply = await client.request("GET", "/api/challenge", headers={"x-forwarded-for": address})
                await reply.body()
                if reply.status == 429:
                    assert 0 < int(reply.headers["retry-after"]) <= 60
                    return number
                assert reply.status == 200
            return len(addresses)

        assert 60 <= await served(["203.0.113.7"] * 3_000) < 3_000
        assert await served(["203.0.113.8", "198.51.100.7"]) == 2, "others are served"
        hosts = [f"192.0.2.{number % 200}" for number in range(9_000)]
        assert 600 <= await served(hosts) < 9_000, "turning addresses over in a network gains nothing"


async def test_a_solution_is_of_its_deployment():
    async with chat(secret="another secret of another server") as (_, port):
        challenge, _ = await refused(port, {})
    async with chat() as (_, port):
        _, visitor = await refused(port, {})
        assert (await solve(port, solved(challenge), **visitor)).status == 403


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-8],
        lambda text: "e30=",
        lambda text: "W10=",
        lambda text: "x" * 5_000,
        lambda text: "é",
    ],
)
async def test_an_invalid_solution_does_not_pass(change):
    async with chat() as (_, port):
        challenge, visitor = await refused(port, {})
        wrong = await solve(port, change(solved(challenge)), **visitor)
        assert (wrong.status, json.loads(wrong.raw)["code"]) == (403, "challenge_failed")
        assert "set-cookie" not in wrong.headers


async def test_an_unsolved_or_an_eased_challenge_does_not_pass():
    async with chat() as (_, port):
        challenge, visitor = await refused(port, {})
        made = altcha.Challenge.from_dict(challenge["challenge"])
        unsolved = altcha.Payload(made, altcha.Solution(0, "00" * 32)).to_base64()
        made.parameters.key_prefix = "0"
        eased = altcha.Payload(made, altcha.solve_challenge(made)).to_base64()
        assert [(await solve(port, wrong, **visitor)).status for wrong in (unsolved, eased)] == [403, 403]


async def test_wrong_solutions_are_limited_by_address():
    async with chat() as (_, port):
        _, visitor = await refused(port, {})
        statuses = [(await solve(port, "wrong", **visitor)).status for _ in range(70)]
        assert set(statuses[:60]) == {403}
        assert statuses[-1] == 429


async def test_a_body_that_is_no_solution():
    async with chat() as (_, port):
        for body in ({}, [], {"solution": 1}, b"{"):
            reply = await ask(port, body, path="/api/challenge")
            assert (reply.status, json.loads(reply.raw)["field"]) == (400, "solution")


async def test_a_widget_may_fetch_another_challenge():
    async with chat() as (_, port):
        async with connect(port) as client:
            reply = await client.request("GET", "/api/challenge")
            challenge = await reply.json()
        passed = await solve(port, solved(challenge), **cookie_of(reply))
        assert passed.status == 200


async def test_a_pass_for_a_token():
    async with chat() as (_, port):
        token = json.loads((await ask(port, b"", path="/api/visit")).raw)["token"]
        challenge, visitor = await refused(port, {"authorization": f"Bearer {token}"})
        passed = await solve(port, solved(challenge), **visitor)
        assert "set-cookie" not in passed.headers
        visitor = {"authorization": f"Bearer {json.loads(passed.raw)['token']}"}
        assert (await ask(port, headers={**JSON, **visitor})).status == 200


@pytest.mark.parametrize("name", DIALECTS)
async def test_every_format_has_what_a_page_needs(name):
    path, body, field = DIALECTS[name]
    async with chat(replace(QUICK, when="always"), dialect=name) as (provider, port):
        reply = await ask(port, body, path=path)
        assert reply.status == 403
        in_header = json.loads(reply.headers["chat-nest-challenge"])
        assert (in_header["kind"], in_header["path"]) == ("proof_of_work", "/api/challenge")
        if field is not None:
            assert field(json.loads(reply.raw)) == in_header
        passed = await solve(port, solved(in_header), **cookie_of(reply))
        assert (await ask(port, body, path=path, headers={**JSON, **cookie_of(passed)})).status == 200
        assert await models(provider) == ["large"]


async def test_another_limit_is_no_reason_for_a_challenge():
    async with chat(addresses=Limits(requests_per_day=1)) as (_, port):
        visitor = cookie_of(await ask(port))
        reply = await ask(port, headers={**JSON, **visitor})
        assert (reply.status, json.loads(reply.raw)["scope"]) == (429, "address")


async def test_under_pressure_visitors_are_challenged():
    challenge = replace(QUICK, when="pressure", before="meal", pressure=0.5)
    async with chat(challenge, limits=Limits(requests_per_day=4)) as (_, port):
        statuses = []
        while (reply := await ask(port)).status == 200:
            statuses.append(reply.status)
        body = json.loads(reply.raw)
        if body["code"] != "challenge_required":  # all of it went within the second in which the state is remembered
            assert len(statuses) == 4
            await asyncio.sleep(1)
            reply = await ask(port)
            body = json.loads(reply.raw)
        assert body["code"] == "challenge_required"
        passed = await solve(port, solved(body["challenge"]), **cookie_of(reply))
        assert (await ask(port, headers={**JSON, **cookie_of(passed)})).status in (200, 429)


async def test_many_refusals_are_pressure():
    challenge = replace(QUICK, when="pressure", refusals_per_minute=2)
    async with chat(challenge) as (_, port):
        visitor = cookie_of(await ask(port))
        codes = []
        for _ in range(5):
            reply = await ask(port, headers={**JSON, **visitor})
            codes.append(json.loads(reply.raw)["code"] if reply.status != 200 else "")
        assert codes == ["", "rate_limited", "rate_limited", "challenge_required", "challenge_required"]


class Unreachable(MemoryControls):
    async def first(self, key, seconds, report=()):
        raise OSError


class StoreDown(MemoryStore):
    """A store whose once-only keys can't be reached."""

    def __init__(self):
        super().__init__()
        self.controls = Unreachable()


async def test_without_the_store_no_solution_counts():
    async with chat(store=StoreDown()) as (_, port):
        challenge, visitor = await refused(port, {})
        reply = await solve(port, solved(challenge), **visitor)
        assert (reply.status, json.loads(reply.raw)["code"]) == (503, "limiter_unavailable")


# The services.

TOKEN = "token-of-the-widget"
PASSES = {
    "turnstile": {"success": True, "hostname": "chat.example", "action": "chat"},
    "hcaptcha": {"success": True, "hostname": "chat.example"},
    "recaptcha": {"success": True, "hostname": "Chat.example", "score": 0.7, "action": "chat"},
}


def service(kind, url, **more):
    return Challenge(
        kind=kind,
        before="taste",
        after="meal",
        site_key="site",
        secret="service-secret",
        hostnames=("chat.example",),
        verify_url=f"{url}/siteverify",
        **more,
    )


def said(kind, **change):
    return http(200, json.dumps({**PASSES[kind], **change}).encode())


@pytest.mark.parametrize("kind", PASSES)
async def test_a_service_decides_which_solutions_pass(kind):
    async with ScriptedProvider() as verifier, chat(service(kind, verifier.url)) as (provider, port):
        challenge, visitor = await refused(port, {})
        assert (challenge["kind"], challenge["site_key"]) == (kind, "site")
        verifier.scripts = [said(kind, cdata=challenge.get("data"))]
        assert (await solve(port, TOKEN, **visitor)).status == 200
        assert parse_qs(verifier.requests[0].body.decode()) == {"secret": ["service-secret"], "response": [TOKEN]}
        again = await solve(port, TOKEN, **visitor)
        assert (again.status, b"used before" in again.raw) == (403, True)


WRONG = [
    ("turnstile", {"success": False}),
    ("turnstile", {"hostname": "other.example"}),
    ("turnstile", {"hostname": None}),
    ("turnstile", {"action": "login"}),
    ("turnstile", {"action": ""}),
    ("turnstile", {"cdata": "another"}),
    ("hcaptcha", {"success": False, "error-codes": ["invalid-input-response"]}),
    ("hcaptcha", {"hostname": "chat.example.evil.org"}),
    ("recaptcha", {"score": 0.4}),
    ("recaptcha", {"action": "login"}),
    ("recaptcha", {"action": None}),
]


@pytest.mark.parametrize(("kind", "change"), WRONG)
async def test_a_service_refuses_or_the_solution_is_of_something_else(kind, change):
    async with ScriptedProvider() as verifier, chat(service(kind, verifier.url)) as (_, port):
        challenge, visitor = await refused(port, {})
        verifier.scripts = [said(kind, **{"cdata": challenge.get("data"), **change})]
        reply = await solve(port, TOKEN, **visitor)
        assert (reply.status, json.loads(reply.raw)["code"]) == (403, "challenge_failed")


@pytest.mark.parametrize(("checkbox", "status"), [(True, 200), (False, 403)])
async def test_a_token_of_a_checkbox_has_no_score_and_counts_only_if_the_page_shows_one(checkbox, status):
    async with (
        ScriptedProvider() as verifier,
        chat(service("recaptcha", verifier.url, checkbox=checkbox)) as (_, port),
    ):
        challenge, visitor = await refused(port, {})
        assert challenge["checkbox"] is checkbox
        verifier.scripts = [http(200, b'{"success": true, "hostname": "chat.example"}')]
        assert (await solve(port, TOKEN, **visitor)).status == status


BROKEN = {
    "hangs": [HANG],
    "fails": http(500, b"{}"),
    "html": http(200, b"<html>"),
    "our-secret": http(200, b'{"success": false, "error-codes": ["invalid-input-secret"]}'),
    "internal": http(200, b'{"success": false, "error-codes": ["internal-error"]}'),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_service_that_does_not_answer_is_closed_unless_the_operator_opens_it(how):
    async with ScriptedProvider(BROKEN[how]) as verifier:
        async with chat(service("turnstile", verifier.url, deadline=0.3)) as (_, port):
            _, visitor = await refused(port, {})
            reply = await solve(port, TOKEN, **visitor)
            assert (reply.status, json.loads(reply.raw)["code"]) == (503, "challenge_unavailable")
        opened = service("turnstile", verifier.url, deadline=0.3, unreachable="before", when="always")
        async with chat(opened) as (provider, port):
            _, visitor = await refused(port, cookie_of(await ask(port)))
            passed = await solve(port, TOKEN, **visitor)
            assert (passed.status, json.loads(passed.raw)["passed"]) == (200, False)
            assert (await ask(port, headers={**JSON, **cookie_of(passed)})).status == 200
            assert await models(provider) == ["small"]


async def test_nothing_of_a_solution_or_a_secret_is_logged(caplog):
    async with ScriptedProvider(http(500, TOKEN.encode())) as verifier:
        async with chat(service("turnstile", verifier.url)) as (_, port):
            _, visitor = await refused(port, {})
            await solve(port, TOKEN, **visitor)
            assert "turnstile does not answer siteverify" in caplog.text
            assert TOKEN not in caplog.text
            assert "service-secret" not in caplog.text


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"after": ""}, "after must name the profile"),
        ({"after": "taste"}, "after must be another profile"),
        ({"after": "lunch"}, "after must name one of the profiles"),
        ({"hours": 0}, "hours must be"),
        ({"pressure": 2}, "pressure must be"),
        ({"score": -1}, "score must be"),
        ({"deadline": 0}, "deadline must be"),
        ({"milliseconds": 0}, "milliseconds must be"),
        ({"kind": "turnstile"}, "site_key is needed"),
        ({"kind": "turnstile", "site_key": "x"}, "secret is needed"),
        ({"kind": "turnstile", "site_key": "x", "secret": "y"}, "hostnames must list"),
    ],
)
def test_settings_that_do_not_fit_together(change, rule):
    with pytest.raises(ValueError, match=f"^challenge: {rule}"):
        create_chat_handler(
            providers={"openai": OpenAIProvider("sk", "http://127.0.0.1:9/v1")},
            profiles=PROFILES,
            default_profile="taste",
            visitors=Visitors([SECRET], addresses=PLENTY),
            challenge=replace(QUICK, **change),
        )
