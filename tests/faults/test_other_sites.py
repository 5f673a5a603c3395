"""Row 25 and its like: pages of other sites, and names of theirs that lead here (DNS rebinding)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from asgi_servers import serve
from raw_client import HELLO, JSON, Reply, ask, connect
from scripted_provider import HANG, ScriptedProvider, answer, chunk, stream
from serve_command import command

from chat_nest import ApiKeys, Caller, FirstOf, PeerAddress, Sessions, Unauthorized, create_chat_handler
from chat_nest.dialects import Blog
from chat_nest.identity.api_key import Rights
from chat_nest.identity.key_file import create_key

OPENAI = {"model": "balanced", "messages": HELLO["messages"]}
DIALECTS: dict[str, Any] = {
    "/api/chat": HELLO,
    "/v1/chat/completions": OPENAI,
    "/v1/messages": {**OPENAI, "max_tokens": 9},
    "/api/ai": {"id": "c1", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}]},
    "/api/ag-ui": {"threadId": "t", "runId": "r", "messages": [{"id": "1", "role": "user", "content": "Hi"}]},
    "/chat": {"message": "Hi"},
}
FOREIGN = (
    "https://evil.example",
    "https://shop.example.evil.example",
    "https://evil.example:443",
    "http://shop.example",
    "https://shop.example:8443",
    "https://xn--shop-9na.example",
    "null",
    "",
    "http://127.0.0.1.evil.example",
    "file://",
)


def by_cookie(scope: Any) -> Caller:
    cookie = dict(scope["headers"]).get(b"cookie", b"")
    if not cookie:
        raise Unauthorized
    return Caller(id=cookie.decode())


def code(reply: Reply) -> str:
    """The code of a refusal; where the dialect has none, by its text."""
    for known, setting in ("origin_not_allowed", b"see origins"), ("host_not_allowed", b"allowed_hosts"):
        if known.encode() in reply.raw or setting in reply.raw:
            return known
    return reply.raw.decode()


@pytest.mark.parametrize("cors", [(), ("https://shop.example",), ("*",)], ids=["none", "one", "star"])
async def test_row25_a_foreign_page_with_its_users_cookie_can_neither_spend_nor_stop(cors: tuple[str, ...]) -> None:
    async with ScriptedProvider(stream(chunk("x"), HANG)) as provider:
        handler = create_chat_handler(
            api_key="k",
            base_url=provider.url,
            model="m",
            identify=by_cookie,
            origins=cors,
            dialects=("native", "openai", "anthropic", "ai_sdk", "ag_ui", "blog"),
        )
        async with serve(handler) as port:
            cookie = {"cookie": "session=ada"}
            async with connect(port) as client:
                begun = await client.post(DIALECTS["/api/ai"], path="/api/ai", headers={**JSON, **cookie})
                assert begun.status == 200
                for origin in FOREIGN:
                    for path, body in DIALECTS.items():
                        reply = await ask(port, body, path=path, headers={**JSON, **cookie, "origin": origin})
                        assert reply.status == 403, (origin, path)
                        text = {"content-type": "text/plain", **cookie, "origin": origin}
                        stop = await ask(port, b"", path=f"{path}/c1/stop", headers=text)
                        assert stop.status == 403, (origin, path)
                        assert code(reply) == code(stop) == "origin_not_allowed"
                assert len(provider.requests) == 1
                for own in (f"http://127.0.0.1:{port}", f"HTTPS://127.0.0.1:{port}"):
                    headers = {**cookie, "host": f"127.0.0.1:{port}", "origin": own}
                    stopped = await ask(port, b"", path="/api/ai/c1/stop", headers=headers)
                    assert stopped.status in (204, 404), "a page of ours may"
                await begun.body()


async def test_requests_that_change_something_need_an_allowed_origin() -> None:
    async with ScriptedProvider(answer("x")) as provider:
        listed = create_chat_handler(api_key="k", base_url=provider.url, model="m", origins=("https://shop.example",))
        async with serve(listed) as port:
            for headers, status in (
                ({}, 403),
                ({"origin": "https://shop.example"}, 200),
                ({"origin": "https://SHOP.example", "cookie": "a=b"}, 200),
                ({"origin": "https://chat.example", "host": "chat.example"}, 200),
                ({"origin": "https://chat.example:443", "host": "chat.example"}, 200),
                ({"origin": "https://chat.example:8000", "host": "chat.example"}, 403),
                ({"origin": "https://chat.example", "sec-fetch-site": "same-origin"}, 200),
                ({"origin": "https://chat.example", "sec-fetch-site": "same-site"}, 403),
                ({"sec-fetch-site": "cross-site"}, 403),
                ({"sec-fetch-site": "same-site"}, 403),
                ({"sec-fetch-site": "none"}, 200),
                ({"authorization": "Bearer sk-unused", "x-api-key": "sk-unused"}, 403),
            ):
                assert (await ask(port, headers={**JSON, **headers})).status == status, headers
            async with connect(port) as client:
                usage = await client.request("GET", "/api/usage", headers={"origin": "https://evil.example"})
                assert usage.status == 200, "which changes nothing, and can't be read there"
                assert "access-control-allow-origin" not in usage.headers
        star = create_chat_handler(api_key="k", base_url=provider.url, model="m")
        async with serve(star) as port:
            assert (await ask(port, headers={**JSON, "origin": "https://any.example"})).status == 200
            with_cookie = {**JSON, "origin": "https://any.example", "cookie": "a=b"}
            assert (await ask(port, headers=with_cookie)).status == 403


async def test_a_rebound_name_gets_nothing_of_a_server_on_loopback(tmp_path: Path) -> None:
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url) as served:
        port = served.port
        for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "a:1"):
            for path, body in DIALECTS.items():
                if path == "/chat":
                    continue
                headers = {**JSON, "host": host, "origin": f"http://{host}"}
                reply = await ask(port, body, path=path, headers=headers)
                assert reply.status == 403, (host, path)
                assert code(reply) == "host_not_allowed"
            async with connect(port) as client:
                for path in ("/", "/api/info", "/readyz", "/openapi.json", "/api/usage", "/v1/models", "/chat.js"):
                    reply = await client.request("GET", path, headers={"host": host})
                    await reply.body()
                    assert (reply.status, code(reply)) == (403, "host_not_allowed"), path
                reply = await client.request("GET", "/healthz", headers={"host": host})
                assert (reply.status, await reply.body()) == (200, b'{"status":"ok"}')
        assert provider.requests == []
        for host in ("localhost", f"LOCALHOST:{port}", "localhost.", "127.0.0.1:1", f"[::1]:{port}", "[::1]"):
            assert (await ask(port, headers={**JSON, "host": host})).status == 200, host
        async with connect(port) as client:
            client.write(b"GET /readyz HTTP/1.0\r\n\r\n")
            assert (await client.reply()).status == 200, "without a name"
        for origin in ("https://evil.example", "http://localhost:3000", f"http://127.0.0.1:{port + 1}", "null"):
            reply = await ask(port, headers={**JSON, "host": f"127.0.0.1:{port}", "origin": origin})
            assert (reply.status, json.loads(reply.raw)["code"]) == (403, "origin_not_allowed")
        own = {**JSON, "host": f"127.0.0.1:{port}", "origin": f"http://127.0.0.1:{port}", "cookie": "other=app"}
        assert (await ask(port, headers=own)).status == 200


@pytest.mark.parametrize(
    ("settings", "host", "origin", "status"),
    [
        ({"ALLOWED_HOSTS": "chat.example,*.chat.example"}, "Chat.Example:8000", None, 200),
        ({"ALLOWED_HOSTS": "chat.example,*.chat.example"}, "a.b.chat.example", None, 200),
        ({"ALLOWED_HOSTS": "chat.example,*.chat.example"}, "evilchat.example", None, 403),
        ({"ALLOWED_HOSTS": "chat.example,*.chat.example"}, "127.0.0.1", None, 403),
        ({"ALLOWED_HOSTS": "*"}, "any.example", None, 200),
        ({"ORIGINS": "https://shop.example"}, "localhost", "https://shop.example", 200),
        ({"ORIGINS": "*"}, "localhost", "https://evil.example", 200),
        ({"TRUSTED_PROXIES": "10.0.0.1"}, "chat.example", "https://shop.example", 200),
    ],
)
async def test_the_configured_hosts_count(
    tmp_path: Path, settings: dict[str, str], host: str, origin: str | None, status: int
) -> None:
    environ = {f"CHAT_NEST_SERVER_{name}": value for name, value in settings.items()}
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url, **environ) as served:
        headers = {**JSON, "host": host, **({"origin": origin} if origin else {})}
        assert (await ask(served.port, headers=headers)).status == status


def test_an_invalid_allowed_host_is_refused_at_the_start() -> None:
    for entry in ("https://chat.example", "chat.example:8000", "", "*example", "a b", "[::1", "é.example"):
        with pytest.raises(ValueError, match="allowed_hosts"):
            create_chat_handler(api_key="k", allowed_hosts=(entry,))
    asyncio.run(create_chat_handler(api_key="k", allowed_hosts=("[::1]", "*.Chat.example", "*")).aclose())


@pytest.mark.parametrize(
    "proxied",
    [
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"via": "1.1 x"},
        {"x-real-ip": ""},
        {"x-forwarded-proto": "https"},
        {"host": "203.0.113.5:8000", "x-forwarded-host": "chat.example"},
    ],
)
async def test_only_this_machine_sees_why_the_server_is_not_ready(tmp_path: Path, proxied: dict[str, str]) -> None:
    memory = {"CHAT_NEST_STORE_URL": "memory://"}  # a slow disk is a reason, too
    environ = {"CHAT_NEST_PROFILES_BALANCED_MODEL": "openai:canary-model", **memory}
    async with command(tmp_path, "http://127.0.0.1:9/v1", **environ) as served, connect(served.port) as client:
        for host in {}, {"host": "127.0.0.1"}, {"host": f"[::1]:{served.port}"}:
            reply = await client.request("GET", "/readyz", headers=host)
            told = await reply.json()
            assert (reply.status, told["status"]) == (503, "unavailable")
            assert told["providers"]["openai"]["status"] == "upstream_unreachable"
            assert told["providers"]["openai"]["advice"]
        reply = await client.request("GET", "/readyz", headers=proxied)
        assert await reply.body() == (b'{"ready":false,"status":"unavailable","message":"The model can\'t be reached"}')
        assert reply.status == 503
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url, **memory) as served:
        async with connect(served.port) as client:
            reply = await client.request("GET", "/readyz", headers=proxied)
            assert (reply.status, await reply.body()) == (200, b'{"ready":true,"status":"ready"}')
    details = {"CHAT_NEST_SERVER_READYZ_DETAILS": "true", **memory}
    async with command(tmp_path, "http://127.0.0.1:9/v1", **details) as served:
        async with connect(served.port) as client:
            reply = await client.request("GET", "/readyz", headers=proxied)
            assert "openai" in (await reply.json())["providers"]


async def test_a_program_needs_a_credential_if_origins_name_a_site(tmp_path: Path) -> None:
    _, key = create_key(tmp_path / "keys.json", b"s" * 32, Rights(caller="ada"))
    sessions = Sessions(["a-secret-of-more-than-thirty-two-bytes"])
    token, narrow = (
        sessions.create(caller="ada").token,
        sessions.create(caller="ada", origins=["https://app.example"]).token,
    )
    site = {"origin": "https://shop.example"}
    async with ScriptedProvider(answer("x")) as provider:
        handler = create_chat_handler(
            api_key="k",
            base_url=provider.url,
            model="m",
            identify=FirstOf(ApiKeys(tmp_path / "keys.json", b"s" * 32), PeerAddress()),
            sessions=sessions,
            origins=("https://shop.example",),
            dialects=("native", "openai", "responses", "anthropic", "ai_sdk", "ag_ui", Blog(get=True)),
        )
        async with serve(handler) as port:
            for path, body in DIALECTS.items():
                assert code(await ask(port, body, path=path)) == "origin_not_allowed", path
            async with connect(port) as client:
                reply = await client.request("GET", "/chat?message=Hi")
                await reply.body()
                assert (reply.status, code(reply)) == (403, "origin_not_allowed")
            counted = await ask(port, DIALECTS["/v1/messages"], path="/v1/messages/count_tokens")
            assert (counted.status, code(counted)) == (403, "origin_not_allowed"), "it costs work"
            assert provider.requests == []
            for headers, status in (
                (site, 200),
                ({"sec-fetch-site": "same-origin"}, 200),
                ({"sec-fetch-site": "cross-site"}, 403),
                ({"x-api-key": key}, 200),
                ({"authorization": f"Bearer {token}"}, 200),
                ({"authorization": f"Bearer {token}", **site}, 200),
                ({"authorization": f"Bearer {token}", "origin": "https://evil.example"}, 403),
                ({"authorization": f"Bearer {narrow}"}, 403),
                ({"authorization": f"Bearer {narrow}", **site}, 403),
                ({"authorization": f"Bearer {narrow}", "origin": "https://app.example"}, 403),
                ({"x-api-key": key[:-1]}, 401),
                ({"x-api-key": "sk-unused"}, 401),
                ({"x-api-key": key[:-1], **site}, 401),
            ):
                reply = await ask(port, headers={**JSON, **headers})
                assert reply.status == status, headers
            async with connect(port) as client:
                for origin, named in (("https://shop.example", True), ("https://evil.example", False)):
                    asked = {"origin": origin, "access-control-request-headers": "x-stainless-os"}
                    allowed = await client.request("OPTIONS", "/v1/chat/completions", headers=asked)
                    assert allowed.headers.get("access-control-allow-origin") == (origin if named else None)
                    assert (allowed.headers["access-control-allow-headers"] == "x-stainless-os") == named


async def test_a_page_of_another_origin_is_refused_before_the_caller_is_identified() -> None:
    asked: list[Any] = []

    def identify(scope: Any) -> Caller:
        asked.append(scope)
        return Caller(id="ada")

    async with ScriptedProvider(answer("x")) as provider:
        handler = create_chat_handler(
            api_key="k", base_url=provider.url, model="m", identify=identify, origins=("https://shop.example",)
        )
        async with serve(handler) as port:
            for origin in FOREIGN:
                for path in ("/api/chat", "/api/chat/c1/stop"):
                    assert (await ask(port, path=path, headers={**JSON, "origin": origin})).status == 403
                async with connect(port) as client:
                    follow = await client.request("GET", "/api/chat/c1/stream", headers={"origin": origin})
                    assert follow.status == 403, "a reader takes a place"
            assert asked == []
            assert (await ask(port)).status == 200, "your own identify decides about programs"
            assert len(asked) == 1
