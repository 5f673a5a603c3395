"""Session tokens over real sockets, with two workers that share a store: what one may do, and what nobody can do with one."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

import forked_command
import pytest
from raw_client import HELLO, JSON, Reply, ask, connect, settled, standing
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, finish, stream, usage
from served_workers import Worker, settings, workers

from chat_nest import Sessions
from chat_nest.identity.api_key import Rights
from chat_nest.identity.key_file import create_key

KEYS_SECRET, SECRET = "canary-keys-" + "5b" * 20, "canary-sessions-" + "6c" * 20
OPENAI = {"model": "balanced", "messages": HELLO["messages"], "stream": True}
SHAPES: dict[str, tuple[Any, str]] = {
    "/api/chat": (HELLO, '{{"error":"{text}","code":"{code}","request_id":'),
    "/v1/chat/completions": (
        OPENAI,
        '{{"error":{{"message":"{text}","type":"authentication_error","param":null,"code":"{code}"',
    ),
    "/v1/responses": (
        {"model": "balanced", "input": "Hi"},
        '{{"error":{{"message":"{text}","type":"authentication_error","param":"","code":"{code}"',
    ),
    "/v1/messages": ({**OPENAI, "max_tokens": 9}, '{{"type":"error","error":{{"type":"authentication_error","message":"{text}"'),
    "/api/ai": ({"id": "c1", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}]}, "{text}"),
    "/api/ag-ui": ({"threadId": "t", "runId": "r", "messages": [{"id": "1", "role": "user", "content": "Hi"}]}, '{{"message":"{text}","code":"{code}"'),
}  # fmt: skip
KINDS = ("local", "redis")


def bearer(token: str) -> dict[str, str]:
    return {**JSON, "authorization": f"Bearer {token}"}


def key(folder: Path, *scopes: str, **rights_of: Any) -> str:
    caller = "-".join((*scopes, secrets.token_hex(3)))
    rights = Rights(caller=caller, scopes=scopes, **rights_of)
    _, made = create_key(folder / "keys.json", KEYS_SECRET.encode(), rights)
    return made


@asynccontextmanager
async def served(
    folder: Path, provider: ScriptedProvider, kind: str = "local", count: int = 2, **more: str
) -> AsyncIterator[tuple[Sequence[Worker], str]]:
    """Workers that accept API keys and sessions, and a key that makes sessions."""
    minter = key(folder, "sessions")
    environ = {
        "CHAT_NEST_IDENTITY_KEYS_FILE": "keys.json",
        "CHAT_NEST_IDENTITY_SECRET": KEYS_SECRET,
        "CHAT_NEST_IDENTITY_ACCEPT": "api_key,session",
        "CHAT_NEST_SESSIONS_SECRETS": SECRET,
        "CHAT_NEST_PRICES_OPENAI:*_INPUT": "1",
        "CHAT_NEST_PRICES_OPENAI:*_OUTPUT": "1",
        **more,
    }
    async with workers(folder, provider, kind, count, **environ) as found:
        for worker in found:
            await until_known(worker.port, Sessions([SECRET]).create(caller="first").token)
        yield found, minter


async def until_known(port: int, token: str) -> None:
    """Wait until the worker knows which sessions are revoked: on a loaded machine that is later than its first line."""
    while True:
        async with connect(port) as client:
            reply = await client.request("GET", "/api/usage", headers=bearer(token))
            if reply.status == 200:
                return
            assert (reply.status, (await reply.json())["code"]) == (503, "limiter_unavailable")
            await asyncio.sleep(0.05)


async def minted(port: int, operator: str, **fields: Any) -> dict[str, Any]:
    """The body of 201, with its status if it is another one."""
    asked = {"caller": f"user-{secrets.token_hex(6)}", **fields}
    reply = await ask(port, asked, path="/api/sessions", headers=bearer(operator))
    body = json.loads(reply.raw)
    return body if reply.status == 201 else {"status": reply.status, **body}


def code(reply: Reply) -> tuple[int, str]:
    return reply.status, json.loads(reply.raw)["code"]


@pytest.mark.parametrize("kind", KINDS)
async def test_limits_of_a_session_hold_over_all_workers_beside_those_of_the_caller(tmp_path: Path, kind: str) -> None:
    async with (
        ScriptedProvider(*[answer("x")] * 4) as provider,
        served(tmp_path, provider, kind) as ((one, two), operator),
    ):
        user = f"user-{secrets.token_hex(6)}"
        first = await minted(one.port, operator, caller=user, limits={"requests": 2, "tokens": 50_000, "usd": 1.0})
        assert first["token"].startswith("cns_")
        assert first["session"].startswith("s_")
        assert 0 < first["expires_at"] - time() <= 600
        for port, header in ((two.port, bearer(first["token"])), (one.port, {**JSON, "x-api-key": first["token"]})):
            reply = await ask(port, headers=header)
            assert reply.status == 200, reply.raw
            assert "requests_per_session" in reply.headers["ratelimit"]
        for worker in (one, two):
            refused = await ask(worker.port, headers=bearer(first["token"]))
            told = json.loads(refused.raw)
            assert (refused.status, told["limit"], told["scope"]) == (429, "requests_per_session", "session")
            assert told["error"].startswith("This session's limit of requests reached.")
        left = await settled(two.port, headers=bearer(first["token"]))
        assert (left["requests_per_session"]["used"], left["requests_per_session"]["scope"]) == (2, "session")
        assert left["usd_per_session"]["limit"] == 1.0
        assert left["requests_per_minute"]["used"] == 2
        assert "scope" not in left["requests_per_minute"]
        second = await minted(two.port, operator, caller=user)
        left = await standing(one.port, bearer(second["token"]))
        assert left["requests_per_minute"]["used"] == 2, "another session of the caller does not begin anew"
        assert "requests_per_session" not in left
        assert len(provider.requests) == 2


async def test_a_value_can_only_lower_the_limits_of_the_profile(tmp_path: Path) -> None:
    acme = key(tmp_path, "sessions", group="acme")
    limits = {
        "CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_DAY": "1",
        "CHAT_NEST_PROFILES_CONSTRAINED_MAX_OUTPUT_TOKENS": "11",
        "CHAT_NEST_GROUPS_ACME_REQUESTS_PER_DAY": "2",
    }
    async with (
        ScriptedProvider(*[answer("x")] * 4) as provider,
        served(tmp_path, provider, count=1, **limits) as (
            (one,),
            operator,
        ),
    ):
        generous = await minted(one.port, operator, limits={"requests": 1_000, "tokens": 10**12, "usd": 900.0})
        assert [(await ask(one.port, headers=bearer(generous["token"]))).status for _ in range(2)] == [200, 429]
        small = await minted(one.port, operator, profile="constrained")
        assert (await ask(one.port, {**HELLO, "profile": "balanced"}, headers=bearer(small["token"]))).status == 200
        assert json.loads(provider.requests[-1].body)["max_tokens"] == 11
        mine = await minted(one.port, acme)
        assert (await minted(one.port, acme, group="other"))["code"] == "forbidden"
        others = [await minted(one.port, operator, group="acme") for _ in range(2)]
        statuses = [(await ask(one.port, headers=bearer(each["token"]))).status for each in (mine, *others)]
        assert statuses == [200, 200, 429], "they share the group's limit"
        for field, asked in {
            "profile": {"profile": "canary"},
            "profiles": {"profiles": ["balanced", "canary"]},
            "group": {"group": "canary"},
            "caller": {"caller": ""},
            "limits.tokens": {"limits": {"tokens": "canary"}},
            "body": {"canary": 1},
        }.items():
            refused = await minted(one.port, operator, **asked)
            assert (refused["status"], refused["code"], refused["field"]) == (400, "bad_request", field)
            assert "canary" not in json.dumps(refused)


async def test_a_session_draws_on_the_limits_of_its_key_and_has_no_other_profiles(tmp_path: Path) -> None:
    limited = key(tmp_path, "sessions", limits={"requests_per_day": 3}, profiles=("Constrained", "expanded"))
    closed = {
        "CHAT_NEST_PROFILES_CONSTRAINED_MAX_OUTPUT_TOKENS": "11",
        "CHAT_NEST_PROFILES_EXPANDED_MAX_OUTPUT_TOKENS": "12",
    }
    async with ScriptedProvider(answer("x")) as provider, served(tmp_path, provider, count=1, **closed) as ((one,), _):
        for asked in ({"profile": "balanced"}, {"profiles": ["expanded", "balanced"]}):
            assert (await minted(one.port, limited, **asked))["code"] == "forbidden"
        tokens = [(await minted(one.port, limited, **asked))["token"] for asked in ({}, {"profile": "expanded"})]
        for token in (*tokens, tokens[0]):
            assert (await ask(one.port, headers=bearer(token))).status == 200
        assert json.loads(provider.requests[0].body)["max_tokens"] == 11, "constrained"
        for token in (*tokens, (await minted(one.port, limited))["token"]):
            refused = await ask(one.port, headers=bearer(token))
            told = json.loads(refused.raw)
            assert (refused.status, told["limit"], told["scope"]) == (429, "requests_per_day", "key")
        assert (await standing(one.port, bearer(tokens[1])))["requests_per_day"]["used"] == 3


async def test_a_session_can_not_mint_and_a_key_has_only_its_scopes(tmp_path: Path) -> None:
    chats, both = key(tmp_path, "chat"), key(tmp_path, "chat", "sessions")
    async with (
        ScriptedProvider(answer("x"), answer("x")) as provider,
        served(tmp_path, provider, count=1) as (
            (one,),
            operator,
        ),
    ):
        session = (await minted(one.port, operator))["token"]
        assert (await minted(one.port, both))["token"]
        for wrong, status in ((session, 401), (chats, 403), ("cn_" + "q" * 32, 401), (both[:-1], 401)):
            assert (await minted(one.port, wrong))["status"] == status
        nothing = await ask(one.port, {"caller": "ada"}, path="/api/sessions")
        assert code(nothing) == (401, "unauthorized")
        assert code(await ask(one.port, headers=bearer(operator))) == (403, "forbidden")
        for chatting in (chats, both, session):
            assert (await ask(one.port, headers=bearer(chatting))).status == 200
        async with connect(one.port) as client:
            reply = await client.request("GET", "/api/sessions", headers=bearer(operator))
            assert (reply.status, reply.headers["allow"]) == (405, "POST, OPTIONS")
            await reply.body()
            document = await (await client.request("GET", "/openapi.json")).json()
            assert document["paths"]["/api/sessions"]["post"]["responses"]["201"]
        assert len(provider.requests) == 3


async def test_every_format_refuses_in_its_error_shape_and_echoes_nothing(tmp_path: Path) -> None:
    here, there = Sessions([SECRET]), Sessions(["canary-another-deployment-" + "7d" * 20])
    past = Sessions([SECRET], now=lambda: time() - 3_600)
    made = here.create(caller="canary-ada")
    refused = {
        "session_expired": ("This session has expired. Please begin a new one.", [past.create(caller="ada").token]),
        "invalid_session": (
            "This session is not valid here",
            [there.create(caller="ada").token, made.token[:-1], made.token[:-9] + "A" * 9, made.token.replace("cns_1", "cns_2")],
        ),
    }  # fmt: skip
    async with ScriptedProvider(answer("x")) as provider, served(tmp_path, provider) as (found, _):
        for worker, (path, (body, shape)) in zip([*found] * 3, SHAPES.items(), strict=True):
            for kind, (text, tokens) in refused.items():
                for token in tokens:
                    reply = await ask(worker.port, body, path=path, headers=bearer(token))
                    assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer"), path
                    assert reply.raw.decode().startswith(shape.format(text=text, code=kind)), reply.raw
                    assert b"canary" not in reply.raw
                    assert token.encode() not in reply.raw
            narrow = here.create(caller="ada", origins=["https://app.example"]).token
            elsewhere = await ask(
                worker.port, body, path=path, headers={**bearer(narrow), "origin": "https://evil.example"}
            )
            assert elsewhere.status == 403
            assert b"was made for other pages" in elsewhere.raw
        assert provider.requests == []
        allowed = {**bearer(narrow), "origin": "https://app.example"}
        assert (await ask(found[1].port, headers=allowed)).status == 200


async def test_a_reader_without_headers_follows_with_the_read_token_and_can_do_nothing_else(tmp_path: Path) -> None:
    release = asyncio.Event()
    script = stream(chunk("one "), release, chunk("two"), finish(), usage(5, 3), DONE)
    async with ScriptedProvider(script) as provider, served(tmp_path, provider) as ((one, two), operator):
        session = await minted(one.port, operator)
        other = await minted(one.port, operator)
        async with connect(one.port) as client:
            reply = await client.post(headers=bearer(session["token"]))
            run = (await reply.until("start")).json()["id"]
            path = f"/api/chat/{run}/stream"
            async with connect(two.port) as reader:
                followed = await reader.request("GET", f"{path}?session={session['read_token']}")
                assert followed.status == 200
                release.set()
                text = "".join(event.json() for event in await followed.events() if event.name == "token")
                assert text == "one two"
            for query, status, told in (
                (session["token"], 401, b"Only a session's read_token may be in a URL"),
                (session["read_token"][:-1], 401, b"invalid_session"),
                (other["read_token"], 404, b"not_found"),
                ("", 401, b"unauthorized"),
            ):
                async with connect(two.port) as reader:
                    refused = await reader.request("GET", f"{path}?session={query}")
                    assert (refused.status, told in await refused.body()) == (status, True), query
            for request in (("GET", f"/api/usage?session={session['read_token']}"), ("POST", f"{path[:-7]}/stop")):
                async with connect(two.port) as reader:
                    refused = await reader.request(*request, headers={"content-length": "0"})
                    assert refused.status == 401
            for body, chat in ((HELLO, "/api/chat"), (HELLO, f"/api/chat?session={session['read_token']}")):
                assert (await ask(one.port, body, path=chat, headers=bearer(session["read_token"]))).status == 401
            stopped = await ask(two.port, b"", path=f"/api/chat/{run}/stop", headers=bearer(other["token"]))
            assert stopped.status == 404, "another caller's run"
            assert (await reply.until("done")).json()
            resumed = await minted(one.port, operator)
            assert resumed["session"] != session["session"]
        assert len(provider.requests) == 1


async def test_an_answer_continues_when_its_session_expires(tmp_path: Path) -> None:
    release = asyncio.Event()
    script = stream(chunk("one "), release, chunk("two"), finish(), usage(5, 3), DONE)
    async with ScriptedProvider(script) as provider, served(tmp_path, provider) as ((one, two), operator):
        session = await minted(one.port, operator, expires_in=3, limits={"tokens": 40_000})
        async with connect(one.port) as client:
            reply = await client.post(headers=bearer(session["token"]))
            await reply.until("token")
            while True:
                async with connect(two.port) as other:
                    asked = await other.request("GET", "/api/usage", headers=bearer(session["token"]))
                    if asked.status == 401:
                        assert (await asked.json())["code"] == "session_expired"
                        break
                    assert (await asked.json())["limits"]
            release.set()
            assert (await reply.until("done")).json()["usage"]["total_tokens"] == 8
        assert code(await ask(two.port, headers=bearer(session["token"]))) == (401, "session_expired")


async def revoked(how: str, folder: Path, port: int, operator: str, id: str, environ: dict[str, str]) -> None:
    if how == "http":
        async with connect(port) as client:
            reply = await client.request("DELETE", f"/api/sessions/{id}", headers=bearer(operator))
            assert (reply.status, await reply.body()) == (204, b"")
        return
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = await forked_command.run(
        "sessions", "revoke", id, cwd=folder, env={**clean, **environ}, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert (process.returncode, out.decode()) == (0, f"Revoked {id}.\n")


@pytest.mark.parametrize(
    ("kind", "how"), [("local", "http"), ("redis", "http"), ("local", "command"), ("redis", "command")]
)
async def test_a_revoked_session_ends_in_every_worker(tmp_path: Path, kind: str, how: str) -> None:
    endless = [stream(chunk("one "), HANG) for _ in range(3)]
    async with ScriptedProvider(*endless) as provider, served(tmp_path, provider, kind) as ((one, two), operator):
        session, other = await minted(one.port, operator), await minted(one.port, operator)
        async with connect(one.port) as here, connect(two.port) as there, connect(two.port) as spared:
            replies = [await client.post(headers=bearer(session["token"])) for client in (here, there)]
            unharmed = await spared.post(headers=bearer(other["token"]))
            for reply in (*replies, unharmed):
                await reply.until("token")
            environ = {"CHAT_NEST_STORE_URL": settings(tmp_path, provider, kind)["CHAT_NEST_STORE_URL"]}
            await revoked(how, tmp_path, one.port, operator, session["session"], environ)
            for reply in replies:
                failed = (await reply.until("error")).json()
                assert failed["code"] == "session_revoked"
                assert failed["message"] == "This session was ended. Please begin a new one."
            for worker in (one, two):
                assert code(await ask(worker.port, headers=bearer(session["token"]))) == (401, "session_revoked")
                assert await standing(worker.port, bearer(other["token"])), "the other one is valid"
            while provider.active > 1:
                await asyncio.sleep(0.01)  # their connections close
            stopped = await ask(
                one.port, b"", path=f"/api/chat/{(await run_of(unharmed))}/stop", headers=bearer(other["token"])
            )
            assert stopped.status == 204
        assert len(provider.requests) == 3


async def run_of(reply: Reply) -> str:
    return json.loads(reply.raw.partition(b"data: ")[2].partition(b"\n")[0])["id"]


async def test_which_callers_may_revoke_which_sessions(tmp_path: Path) -> None:
    async with ScriptedProvider(answer("x")) as provider, served(tmp_path, provider, count=1) as ((one,), operator):
        session = await minted(one.port, operator)
        async with connect(one.port) as client:
            for who, id, status in (
                (session["token"], session["session"], 401),
                (operator, "s_1", 404),
                (operator, session["token"], 404),
                (operator, "s_" + "0" * 24, 204),
            ):
                reply = await client.request("DELETE", f"/api/sessions/{id}", headers=bearer(who))
                assert (reply.status, session["token"].encode() in await reply.body()) == (status, False)
            reply = await client.request("GET", f"/api/sessions/{session['session']}", headers=bearer(operator))
            assert (reply.status, reply.headers["allow"]) == (405, "DELETE, OPTIONS")
        assert (await ask(one.port, headers=bearer(session["token"]))).status == 200
