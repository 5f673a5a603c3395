"""Rows 23 and 24 at `chat-nest serve`: keys and tokens that don't hold, and a key that is revoked while its answer runs."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import sqlite3
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time

import jwt
import forked_command
import pytest
from raw_client import HELLO, JSON, Client, Reply, ask, connect, settled
from scripted_provider import HANG, ScriptedProvider, answer, chunk, stream
from serve_command import command
from signing_keys import EC_KEY, RSA_KEY, pem

from chat_nest.core.watched_file import LOOK_SECONDS
from chat_nest.identity.guarded import REFUSED_PER_MINUTE


SECRET = "canary-secret-" + "5b" * 20
ENVIRON = {"CHAT_NEST_IDENTITY_KEYS_FILE": "keys.json", "CHAT_NEST_IDENTITY_SECRET": SECRET}
CHAT = {"model": "balanced", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
SHAPES = {
    "/api/chat": b'{"error":"Authentication is required","code":"unauthorized","request_id":',
    "/v1/chat/completions": b'{"error":{"message":"Authentication is required","type":"authentication_error",',
    "/v1/messages": b'{"type":"error","error":{"type":"authentication_error","message":"Authentication is required"}',
    "/api/ai": b"Authentication is required",
    "/api/ag-ui": b'{"message":"Authentication is required","code":"unauthorized"',
}


async def keys(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """`chat-nest keys ...` in a process of its own: its exit code and what it wrote."""
    process = await forked_command.run(
        *("keys", *arguments),
        cwd=folder,
        env={"PATH": os.environ["PATH"], **ENVIRON},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def made(folder: Path, *arguments: str) -> str:
    """A new key."""
    code, out, errors = await keys(folder, "create", *arguments)
    assert code == 0, errors
    return out.strip()


async def ids(folder: Path) -> dict[str, str]:
    """The id of each caller's key."""
    _, out, _ = await keys(folder, "list", "--json")
    return {key["caller"]: key["id"] for key in json.loads(out)}


def edit(folder: Path, caller: str, **changes: str) -> None:
    """As an operator edits the file, in place."""
    file = json.loads((folder / "keys.json").read_text())
    for key in file["keys"]:
        if key["caller"] == caller:
            key.update(changes)
    (folder / "keys.json").write_text(json.dumps(file))


def put(folder: Path, content: bytes) -> None:
    """Replace the file at once: half of it would be another fault."""
    (folder / "new.json").write_bytes(content)
    (folder / "new.json").replace(folder / "keys.json")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def told(reply: Reply) -> tuple[int, list[tuple[str, str]], object]:
    """All of a refusal but what differs between any two answers."""
    body = json.loads(reply.raw)
    body.pop("request_id")
    heads = [(name, value) for name, value in reply.heads if name not in ("date", "x-request-id")]
    return reply.status, heads, body


async def until_answered(port: int, who: Mapping[str, str], status: int) -> None:
    """Wait until a server has seen that its file has changed; asking what is left spends nothing."""
    while True:
        async with connect(port) as client:
            reply = await client.request("GET", "/api/usage", headers=who)
            await reply.body()
        if reply.status == status:
            return
        await asyncio.sleep(0.02)


def charged(folder: Path) -> list[tuple[str, int, str]]:
    """Of each recorded request: how it ended, its tokens, and how they are known."""
    connection = sqlite3.connect(folder / "chat-nest.db")
    try:
        return connection.execute("SELECT ending, input_tokens + output_tokens, source FROM requests").fetchall()
    finally:
        connection.close()


async def test_row23_every_fault_of_a_key_is_the_same_401(tmp_path: Path) -> None:
    good, old, gone = await made(tmp_path, "ada"), await made(tmp_path, "old"), await made(tmp_path, "gone")
    edit(tmp_path, "old", expires=(datetime.now(UTC) - timedelta(seconds=1)).isoformat())
    assert (await keys(tmp_path, "revoke", (await ids(tmp_path))["gone"]))[0] == 0
    wrong: list[dict[str, str]] = [
        {},
        bearer(old),
        bearer(gone),
        bearer(good[:-1] + ("a" if good[-1] != "a" else "b")),
        bearer(good[:-1]),
        bearer(good + "a"),
        bearer(good.upper()),
        bearer(f"{good} {good}"),
        bearer(f"{good},{good}"),
        bearer(f'"{good}"'),
        bearer("' OR 1=1; DROP TABLE requests; --"),
        bearer("cn_' OR hash IS NOT NULL; --"),
        bearer("sk-served"),
        bearer("\xff\xfe"),
        bearer(""),
        {"authorization": good},
        {"authorization": f"Basic {good}"},
        {"authorization": "Bearer"},
        {"x-api-key": gone},
        {"x-api-key": f"Bearer {good}"},
        {"x-api-key": ""},
        {**bearer(good), "x-api-key": good},
        {**bearer(good), "Authorization": f"Bearer {gone}"},
        {**bearer(good), "Authorization": f"Bearer {good}"},
    ]
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url, **ENVIRON) as served:
        refusals = [told(await ask(served.port, headers={**JSON, **who})) for who in wrong]
        assert refusals == refusals[:1] * len(wrong)
        status, heads, body = refusals[0]
        assert (status, body) == (401, {"error": "Authentication is required", "code": "unauthorized"})
        assert dict(heads)["www-authenticate"] == "Bearer"
        large = await ask(served.port, headers={**JSON, **bearer("x" * 1_000_000)})
        assert large.status == 431
        assert provider.requests == []

        assert (await ask(served.port, headers={**JSON, **bearer(good)})).status == 200
        assert (await ask(served.port, headers={**JSON, "x-api-key": good})).status == 200
        assert (await ask(served.port, headers={**JSON, "Authorization": f"bearer  {good} "})).status == 200
        assert (await settled(served.port, headers=bearer(good)))["requests_per_minute"]["used"] == 3
        assert {request.headers["authorization"] for request in provider.requests} == {"Bearer sk-served"}
        assert len(provider.requests) == 3


async def test_row23_every_format_and_path_refuses_in_the_shape_of_the_format(tmp_path: Path) -> None:
    await made(tmp_path, "ada")
    environ = {**ENVIRON, "CHAT_NEST_STORE_URL": "memory://"}  # ready, however slow the disk is
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url, **environ) as served:
        for path, shape in SHAPES.items():
            reply = await ask(served.port, CHAT, path=path, headers={**JSON, **bearer("cn_wrong")})
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer"), path
            assert reply.raw.startswith(shape), reply.raw
        for method, path in [
            ("GET", "/api/usage"),
            ("GET", "/v1/models"),
            ("GET", "/api/chat/0123/stream"),
            ("POST", "/api/chat/0123/stop"),
        ]:
            async with connect(served.port) as client:
                reply = await client.request(method, path, headers={"content-length": "0"})
                assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer"), path
        for path in ("/", "/healthz", "/readyz"):
            async with connect(served.port) as client:
                assert (await client.request("GET", path)).status == 200, path
        assert provider.requests == []


async def test_a_wrong_key_does_not_fall_back_to_the_limits_of_the_address(tmp_path: Path) -> None:
    ada = await made(tmp_path, "ada")
    environ = {
        **ENVIRON,
        "CHAT_NEST_IDENTITY_ACCEPT": "api_key,header,address",
        "CHAT_NEST_SERVER_TRUSTED_PROXIES": "127.0.0.1",
        "CHAT_NEST_SERVER_CALLER_HEADER": "x-user",
        "CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_DAY": "1",
    }
    callers = [bearer(ada), {"x-user": "ada"}, {"x-forwarded-for": "203.0.113.9"}, {"x-forwarded-for": "203.0.113.8"}]
    wrong = [{"x-goog-api-key": ada[:-1]}, {"api-key": "sk-1"}, {"authorization": "Basic x", "x-user": "bob"}]
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url, **environ) as served:
        for who in wrong:
            fresh = {**JSON, **who, "x-forwarded-for": "203.0.113.7"}
            assert (await ask(served.port, headers=fresh)).status == 401, who
        assert provider.requests == []
        for who in callers:
            statuses = [(await ask(served.port, headers={**JSON, **who})).status for _ in range(2)]
            assert statuses == [200, 429], "a budget for each"
        async with connect(served.port) as client:
            page = await (await client.request("GET", "/")).body()
            assert b'"wants_key": false' in page, "nobody must have one"
            document = await (await client.request("GET", "/openapi.json")).json()
            assert document["paths"]["/api/chat"]["post"]["security"] == [{"bearer": []}, {}]


async def test_row23_two_keys_of_one_caller_share_its_limits(tmp_path: Path) -> None:
    one, two, other = await made(tmp_path, "ada"), await made(tmp_path, "ada"), await made(tmp_path, "bob")
    limit = {"CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_DAY": "2"}
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url, **ENVIRON, **limit) as served:
        statuses = [(await ask(served.port, headers={**JSON, **bearer(key)})).status for key in (one, two, one, two)]
        assert statuses == [200, 200, 429, 429]
        assert (await ask(served.port, headers={**JSON, **bearer(other)})).status == 200
        assert len(provider.requests) == 3


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_row24_a_key_revoked_mid_stream_ends_its_answer_and_begins_none(tmp_path: Path, workers: str) -> None:
    ada, bob = bearer(await made(tmp_path, "ada")), bearer(await made(tmp_path, "bob"))
    async with (
        ScriptedProvider(stream(chunk("one"), HANG), answer("x")) as provider,
        command(tmp_path, provider.url, "sk-served", "--workers", workers, **ENVIRON) as served,
        connect(served.port) as client,
    ):
        reply = await client.post(headers={**JSON, **ada})
        assert (await reply.until("token")).data == '"one"'
        code, out, errors = await keys(tmp_path, "revoke", (await ids(tmp_path))["ada"])
        assert (code, errors) == (0, "")
        assert "of ada" in out
        failed = (await reply.until("error")).json()
        assert (failed["code"], failed["message"]) == ("stopped", "The API key was revoked")
        assert await reply.event() is None
        while provider.active:
            await asyncio.sleep(0.01)
        await asyncio.sleep(LOOK_SECONDS)  # what a worker knows may be as old as that, and no older
        refused = [await ask(served.port, headers={**JSON, **ada}) for _ in range(3 * int(workers))]
        assert {reply.status for reply in refused} == {401}
        assert len(provider.requests) == 1

        assert (await ask(served.port, headers={**JSON, **bob})).status == 200
        await settled(served.port, headers=bob)
        assert len(provider.requests) == 2
    [(_, tokens, source), _] = charged(tmp_path)
    assert 0 < tokens < 100
    assert source == "estimated"


async def test_row24_an_unreadable_key_file_refuses_all_requests_until_it_is_fixed(tmp_path: Path) -> None:
    ada = bearer(await made(tmp_path, "ada"))
    whole = (tmp_path / "keys.json").read_bytes()
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url, **ENVIRON) as served:
        assert (await ask(served.port, headers={**JSON, **ada})).status == 200
        for broken in (None, whole[:-9]):
            if broken is None:
                (tmp_path / "keys.json").unlink()
            else:
                put(tmp_path, broken)
            await until_answered(served.port, ada, 503)
            refused = await ask(served.port, headers={**JSON, **ada})
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert json.loads(refused.raw)["code"] == "limiter_unavailable"
            put(tmp_path, whole)
            await until_answered(served.port, ada, 200)
        assert len(provider.requests) == 1
        assert served.said.count(b"all requests are refused until it is fixed") == 2


async def test_row23_a_key_is_in_no_output_no_file_and_no_refusal(tmp_path: Path) -> None:
    good, gone = await made(tmp_path, "canary-caller-8d2e"), await made(tmp_path, "gone")
    wrong = "cn_" + "q" * 32
    known = await ids(tmp_path)
    said = [await keys(tmp_path, "revoke", id) for id in (known["gone"], good, "x")]
    assert [code for code, _, _ in said] == [0, 2, 2]
    said += [await keys(tmp_path, "list"), await keys(tmp_path, "create", "")]
    raw: list[bytes] = []
    talkative = ("--log-level", "debug", "--access-log")
    async with ScriptedProvider(answer("x")) as provider:
        async with command(tmp_path, provider.url, "sk-served", *talkative, **ENVIRON) as served:
            for key in (good, gone, wrong, good + good):
                for who in (bearer(key), {"x-api-key": key}, {"authorization": f"Basic {key}"}):
                    for body, path in [(HELLO, "/api/chat"), (CHAT, "/v1/chat/completions"), (CHAT, "/v1/messages")]:
                        reply = await ask(served.port, body, path=path, headers={**JSON, **who})
                        raw += [reply.raw, repr(reply.heads).encode()]
            whole = (tmp_path / "keys.json").read_bytes()
            put(tmp_path, whole + good.encode())  # as somebody would who believes that it holds keys
            await until_answered(served.port, bearer(good), 503)
            served.process.terminate()
            assert await served.ended() == 0
        raw += [b"%r" % request.headers for request in provider.requests]
        assert provider.requests
    put(tmp_path, whole)
    raw += [served.said, *(f"{out}{errors}".encode() for _, out, errors in said)]
    raw += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert served.said.count(b"finished") == 6
    assert b"all requests are refused" in served.said
    for secret in (good, gone, wrong, SECRET):
        assert not [piece for piece in raw if secret.encode() in piece], secret
    assert b"canary-caller-8d2e" not in served.said


# JSON Web Tokens.


def token(key: object = RSA_KEY, algorithm: str = "RS256", **claims: object) -> str:
    held = {"sub": "ada", "aud": "chat", "iss": "https://login.test/", "exp": time() + 600, **claims}
    return jwt.encode({name: value for name, value in held.items() if value is not None}, key, algorithm)  # type: ignore[arg-type]


async def test_row24_a_token_that_does_not_hold_is_the_same_401(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(RSA_KEY))
    environ = {
        "CHAT_NEST_IDENTITY_JWT_ALGORITHMS": "RS256",
        "CHAT_NEST_IDENTITY_JWT_KEYS_FILE": "key.pem",
        "CHAT_NEST_IDENTITY_JWT_AUDIENCE": "chat",
        "CHAT_NEST_IDENTITY_JWT_ISSUER": "https://login.test/",
    }
    head, claims, signature = token().split(".")
    unsigned, as_secret = token("", "none"), signed_with_the_public_key()
    wrong = {
        "none": unsigned,
        "none, with a signature": unsigned + signature,
        "the public key as a secret": as_secret,
        "another key": token(EC_KEY, "ES256"),
        "another audience": token(aud="shop"),
        "no audience": token(aud=None),
        "another issuer": token(iss="https://evil.test/"),
        "stale": token(exp=time() - 60),
        "not yet": token(nbf=time() + 600),
        "for ever": token(exp=None),
        "nobody": token(sub=None),
        "no signature": f"{head}.{claims}.",
        "other claims": f"{head}.{token(sub='eve').split('.')[1]}.{signature}",
        "SQL": "' OR 1=1; --",
        "too long": token(more="x" * 9_000),
    }
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url, **environ) as served:
        refusals = {why: told(await ask(served.port, headers={**JSON, **bearer(bad)})) for why, bad in wrong.items()}
        refusals["nothing"] = told(await ask(served.port))
        for why, refusal in refusals.items():
            assert refusal == refusals["nothing"], why
        assert refusals["nothing"][0] == 401
        assert dict(refusals["nothing"][1])["www-authenticate"] == "Bearer"
        assert (await ask(served.port, headers={**JSON, **bearer("x" * 1_000_000)})).status == 431
        assert provider.requests == []
        assert (await ask(served.port, headers={**JSON, **bearer(token())})).status == 200
        assert (await settled(served.port, headers=bearer(token())))["requests_per_minute"]["used"] == 1
        for bad in (*wrong.values(), token()):
            assert bad.encode() not in served.said


def signed_with_the_public_key() -> str:
    """The oldest trick: HS256, with what everybody may know as its secret. pyjwt would not make it."""
    head = urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    signed = f"{head}.{token().split('.')[1]}"
    return f"{signed}.{urlsafe_b64encode(hmac.digest(pem(RSA_KEY), signed.encode(), 'sha256')).rstrip(b'=').decode()}"


@pytest.mark.parametrize("header", ["caller", "group"])
@pytest.mark.parametrize(("one", "other"), [(b"Nicol\xc3\xa0", b"Nicol\xc3\x85"), (b"n\xa0", b"n"), (b"\x85n", b"n")])
async def test_names_that_differ_in_one_byte_are_two_callers(
    tmp_path: Path, header: str, one: bytes, other: bytes
) -> None:
    environ = {
        "CHAT_NEST_SERVER_TRUSTED_PROXIES": "127.0.0.1",
        "CHAT_NEST_SERVER_CALLER_HEADER": "x-user",
        "CHAT_NEST_SERVER_GROUP_HEADER": "x-group",
        "CHAT_NEST_GROUPS_DEFAULT_REQUESTS_PER_DAY": "1",
        "CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_DAY": "1",
        "CHAT_NEST_PROFILES_BALANCED_ON_DISCONNECT": "finish",
    }
    if header == "group":
        del environ["CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_DAY"]
    names = {"caller": (one, b"g" + other), "group": (other, b"g" + one)}

    def user(name: bytes, group: bytes) -> dict[str, str]:
        return {**JSON, "x-user": name.decode("latin-1"), "x-group": group.decode("latin-1"), "idempotency-key": "k"}

    first, second = user(*names[header]), user(other, b"g" + other)
    if header == "caller":
        first["x-group"] += "1"
    async with ScriptedProvider(answer("for one"), answer("for other")) as provider:
        async with command(tmp_path, provider.url, **environ) as served:
            reply = await ask(served.port, headers=first)
            assert reply.status == 200
            assert b"for one" in reply.raw
            run = json.loads(reply.raw.partition(b"data: ")[2].partition(b"\n")[0])["id"]
            if header == "caller":
                async with connect(served.port) as client:
                    path = f"/api/chat/{run}/stream"
                    assert (await client.request("GET", path, headers=second)).status == 404
            else:
                second["idempotency-key"] = "another"
            other_reply = await ask(served.port, headers=second)
            assert other_reply.status == 200, "a budget of its own"
            assert b"for other" in other_reply.raw, "an answer of its own"
            assert (await ask(served.port, headers={**first, "idempotency-key": "3"})).status == 429


async def test_row23_a_flood_of_wrong_keys_is_soon_not_looked_at_and_harms_no_other_address(tmp_path) -> None:
    key = await made(tmp_path, "ada")
    environ = {**ENVIRON, "CHAT_NEST_SERVER_TRUSTED_PROXIES": "127.0.0.1"}

    async def ask_left(client: Client, key: str, address: str) -> Reply:
        who = {**bearer(key), "x-forwarded-for": address}
        reply = await client.request("GET", "/api/usage", headers=who)
        await reply.body()
        return reply

    async with (
        ScriptedProvider(answer("x")) as provider,
        command(tmp_path, provider.url, **environ) as served,
        connect(served.port) as client,
    ):
        told = [(await ask_left(client, "wrong", "8.8.8.8")).status for _ in range(REFUSED_PER_MINUTE)]
        assert told == [401] * REFUSED_PER_MINUTE
        while (limited := await ask_left(client, "wrong", "8.8.8.8")).status == 401:
            pass  # it drains meanwhile
        assert (limited.status, limited.headers["retry-after"]) == (429, "1")
        assert json.loads(limited.raw)["code"] == "rate_limited"
        assert (await ask_left(client, key, "8.8.4.4")).status == 200
