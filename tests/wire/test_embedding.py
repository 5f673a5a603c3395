"""What docs/embedding.md and its neighbours say: their code runs, each way of mounting answers, and nginx in front passes everything on."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgi_servers import serve
from ports import free_port
from fastapi import FastAPI
from litestar import Litestar, asgi
from raw_client import HELLO, JSON, Event, ask, connect, settled, standing
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, finish, stream, usage
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount, Route

from chat_nest import PeerAddress, Timeouts, create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.core.request_log import EventLine

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "embedding.md").read_text()
PAGES = PAGE + (DOCS / "logging.md").read_text() + (DOCS / "metrics.md").read_text()
EVERY_BLOCK = re.findall(r"^```python\n(.*?)^```$", PAGES, re.DOTALL | re.MULTILINE)
BLOCKS = [block for block in EVERY_BLOCK if "create_chat_handler" in block]
NGINX = re.findall(r"^```nginx\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as scripted:
        monkeypatch.setenv("OPENAI_BASE_URL", scripted.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-embedding")
        yield scripted


async def site(scope: Any, receive: Any, send: Any) -> None:
    """Somebody's application."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"site"})


# The page's code.


async def test_the_lines_of_the_page_have_level_and_name(provider, monkeypatch, capsys):
    [block] = [block for block in BLOCKS if "basicConfig" in block]
    logging.getLogger().handlers.clear()  # pytest's own, which basicConfig would leave alone
    made: dict[str, Any] = {}
    exec(compile(block, "docs/embedding.md", "exec"), made)
    async with serve(made["app"], log_config=None) as port:
        assert (await ask(port)).status == 200
    assert re.search(r"^\d{4}-\S+ \S+ INFO chat_nest: finished id=", capsys.readouterr().err, re.MULTILINE)


def test_a_formatter_of_an_application_gets_the_values_of_a_line():
    [block] = [block for block in EVERY_BLOCK if "logging.Formatter" in block]
    made: dict[str, Any] = {}
    exec(compile(block, "docs/logging.md", "exec"), made)
    line = EventLine("finished", {"seconds": 1.5})
    record = logging.LogRecord("chat_nest", logging.INFO, __file__, 1, line, (), None)
    assert json.loads(made["Fields"]().format(record)) == {"level": "INFO", "seconds": 1.5}


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
async def test_each_block_of_the_page_is_an_application_that_chats(provider, number, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    block: dict[str, Any] = {"__name__": "block"}
    exec(compile(BLOCKS[number], "docs/embedding.md", "exec"), block)
    app = block["app"] if "app" in block else block["with_chat"](site)
    path = "/talk" if '"/talk"' in BLOCKS[number] else "/api/chat"
    if 'dialect="openai"' in BLOCKS[number]:
        async with serve(app) as port:
            reply = await ask(port, {**HELLO, "stream": True}, path="/ai/v1/chat/completions")
            assert reply.raw.count(b'{"content":"Hello "}') == 3
        return
    async with serve(app) as port:
        if "raise Unauthorized" in BLOCKS[number]:
            assert (await ask(port)).status == 401
        headers = {**JSON, "authorization": "Bearer token-of-ada"}
        while (reply := await ask(port, path=path, headers=headers)).status == 503:
            pass  # Redis has less than a second, and may have to start on a busy machine
        assert reply.status == 200
        assert reply.raw.count(b'event: token\ndata: "Hello "\n\n') == 3
        if "metrics" in block:
            async with connect(port) as client:
                shown = await (await client.request("GET", "/internal/metrics/")).body()
            assert b'chat_nest_requests_total{code="ok",dialect="native",profile="balanced"} 1.0' in shown
        if "with_chat" in block:
            assert (await ask(port, path="/")).raw == b"site"
        if "/hello" in BLOCKS[number]:
            async with connect(port) as client:
                assert await (await client.request("GET", "/hello")).json() == "Hello"
        if "add_chat" in BLOCKS[number]:
            async with connect(port) as client:
                document = await (await client.request("GET", "/openapi.json")).json()
            assert {"/api/chat", "/api/usage"} <= set(document["paths"])
            assert "native_request" in document["components"]["schemas"]
            async with connect(port) as client:
                assert (await client.request("GET", "/docs")).status == 200
    assert provider.active == 0, "the lifespan closed the provider's connections"
    assert NOT_STARTED not in caplog.text


def test_the_page_has_its_blocks():
    assert len(BLOCKS) == 17
    assert len(EVERY_BLOCK) == 18
    assert len(NGINX) == 2


# Mounting.


def starlette_route(chat: ChatHandler) -> Any:
    return Starlette(routes=[Route("/api/chat", chat), Route("/api/usage", chat)], lifespan=chat.lifespan)


def starlette_mount(chat: ChatHandler) -> Any:
    return Starlette(routes=[Mount("/ai", chat)], lifespan=chat.lifespan)


def starlette_mount_in_mount(chat: ChatHandler) -> Any:
    inner = Starlette(routes=[Mount("/chat", chat)])
    return Starlette(routes=[Mount("/v1", inner)], lifespan=chat.lifespan)


def fastapi_last(chat: ChatHandler) -> Any:
    app = FastAPI(lifespan=chat.lifespan)
    app.mount("/", chat)
    return app


def fastapi_mount(chat: ChatHandler) -> Any:
    app = FastAPI(lifespan=chat.lifespan)
    app.mount("/ai", chat)
    return app


def fastapi_route(chat: ChatHandler) -> Any:
    app = FastAPI(lifespan=chat.lifespan)
    app.add_route("/api/chat", chat)
    app.add_route("/api/usage", chat)
    return app


def litestar_routes(chat: ChatHandler) -> Any:
    return Litestar([asgi(["/api/chat", "/api/usage"], copy_scope=True)(chat)], lifespan=[chat.lifespan])


def litestar_mount(chat: ChatHandler) -> Any:
    return Litestar([asgi("/ai", is_mount=True, copy_scope=True)(chat)], lifespan=[chat.lifespan])


def litestar_root(chat: ChatHandler) -> Any:
    return Litestar([asgi("/", is_mount=True, copy_scope=True)(chat)], lifespan=[chat.lifespan])


@pytest.mark.parametrize(
    ("mounted", "prefix", "paths"),
    [
        (starlette_route, "", ["/api/chat"]),
        (starlette_mount, "/ai", ["/ai/api/chat", "/ai/"]),
        (starlette_mount_in_mount, "/v1/chat", ["/v1/chat/api/chat", "/v1/chat/"]),
        (fastapi_last, "", ["/api/chat", "/"]),
        (fastapi_mount, "/ai", ["/ai/api/chat", "/ai/"]),
        (fastapi_route, "", ["/api/chat"]),
        (litestar_routes, "", ["/api/chat"]),
        (litestar_mount, "/ai", ["/ai/api/chat", "/ai"]),
        (litestar_root, "", ["/api/chat", "/"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_each_way_of_mounting(provider, mounted, prefix, paths, caplog, capsys):
    """The first try has no redirect, whatever the method; the usage is beside the chat."""
    async with serve(mounted(create_chat_handler())) as port:
        for path in paths:
            assert (await ask(port, path=path)).status == 200
            async with connect(port) as client:
                assert (await client.request("OPTIONS", path)).status == 204
            async with connect(port) as client:
                reply = await client.request("GET", path)
                assert reply.status == 405
                assert (await reply.json())["code"] == "method_not_allowed"
        assert len(provider.requests) == len(paths)
        async with connect(port) as client:
            reply = await client.request("GET", f"{prefix}/api/usage")
            assert reply.status == 200
            assert {"tokens_per_day", "requests_per_minute"} <= {
                limit["name"] for limit in (await reply.json())["limits"]
            }
    assert NOT_STARTED not in caplog.text + capsys.readouterr().err  # Litestar logs in a way of its own


NOT_STARTED = "the chat was not started, so nothing settles its open answers when the server stops: pass lifespan="


@pytest.mark.parametrize(
    "app",
    [
        lambda chat: Starlette(routes=[Mount("/", chat)]),
        lambda chat: Starlette(routes=[Route("/api/chat", chat)]),
        lambda chat: mounted_in_fastapi(FastAPI(), chat),
        lambda chat: Litestar([asgi("/", is_mount=True, copy_scope=True)(chat)], logging_config=None),
    ],
    ids=["starlette mount", "starlette route", "fastapi mount", "litestar mount"],
)
async def test_a_forgotten_lifespan_is_a_warning_at_the_first_request_and_only_there(provider, app, caplog):
    async with create_chat_handler() as other:
        assert other.running == 0
    chat = create_chat_handler()
    async with serve(app(chat)) as port:
        assert (await ask(port)).status == 200
        assert (await ask(port)).status == 200
    assert caplog.text.count(NOT_STARTED) == 1
    assert next(record for record in caplog.records if NOT_STARTED in record.message).levelname == "WARNING"
    await chat.aclose()


def mounted_in_fastapi(app: FastAPI, chat: ChatHandler) -> FastAPI:
    app.mount("/", chat)
    return app


async def test_a_handler_that_was_started_or_closed_is_not_warned_of(provider, caplog):
    async with serve(create_chat_handler()) as port:  # the server's own lifespan
        assert (await ask(port)).status == 200
    async with create_chat_handler() as chat, serve(Starlette(routes=[Mount("/", chat)])) as port:
        assert (await ask(port)).status == 200
    async with serve(Starlette(routes=[Mount("/", chat)])) as port:
        assert (await ask(port)).status == 503
    closed = create_chat_handler()
    await closed.aclose()
    async with serve(Starlette(routes=[Mount("/", closed)])) as port:
        assert (await ask(port)).status == 503
    assert NOT_STARTED not in caplog.text


async def test_below_a_root_path_that_the_server_sets(provider):
    async with serve(create_chat_handler(), root_path="/behind/a/proxy") as port:
        assert (await ask(port)).status == 200


async def test_a_mount_without_its_slash_is_a_redirect_in_starlette(provider):
    async with serve(starlette_mount(create_chat_handler())) as port:
        assert (await ask(port, path="/ai")).status == 307


# Middleware.


@pytest.mark.parametrize("middleware", [BaseHTTPMiddleware, GZipMiddleware])
async def test_leaving_and_streaming_through_middleware(provider, middleware):
    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    options = {"dispatch": dispatch} if middleware is BaseHTTPMiddleware else {}
    go_on = asyncio.Event()
    provider.scripts = [stream(chunk("one"), go_on, finish(), usage(9, 1), DONE), stream(chunk("one"), HANG)]
    chat = create_chat_handler()
    app = Starlette(routes=[Mount("/", chat)], lifespan=chat.lifespan, middleware=[Middleware(middleware, **options)])
    async with serve(app) as port:
        async with connect(port) as client:
            reply = await client.post(headers={**JSON, "accept-encoding": "gzip"})
            assert "content-encoding" not in reply.headers
            assert await reply.until("token") == Event("token", '"one"')
            go_on.set()
            await reply.until("done")
        async with connect(port) as client:
            await (await client.post(headers={**JSON, "accept-encoding": "gzip"})).until("token")
            client.reset()
            async with asyncio.timeout(240):
                await provider.closed(1)
        await settled(port)


# nginx.


@asynccontextmanager
async def nginx(directory: Path, upstream: int) -> AsyncIterator[int]:
    """nginx with the page's block in front of a port; yields its own port."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        assert not os.environ.get("CI"), "nginx is missing, and in CI no test may be left out"
        pytest.skip("nginx is not installed")
    port = free_port()
    location = NGINX[0].replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    temporary = "".join(
        f"{name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/errors.log;\n"
        f"events {{}}\nhttp {{ access_log off; gzip on; gzip_types *; gzip_min_length 0; {temporary}"
        f"server {{ listen 127.0.0.1:{port};\n{location} }} }}\n"
    )
    process = await asyncio.create_subprocess_exec(program, "-e", f"{directory}/errors.log", "-c", str(config))
    try:
        async with asyncio.timeout(240):
            while True:
                assert process.returncode is None, (directory / "errors.log").read_text()
                try:
                    async with connect(port):
                        break
                except OSError:
                    await asyncio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def test_behind_nginx_with_the_configuration_of_the_page(provider, tmp_path):
    go_on = asyncio.Event()
    provider.scripts = [
        stream(chunk("one"), go_on, chunk("two"), finish(), usage(9, 2), DONE),
        stream(chunk("one"), HANG),
        [HANG],
    ]
    handler = create_chat_handler(
        identify=PeerAddress(trusted_proxies=["127.0.0.1"]), timeouts=Timeouts(heartbeat=0.2, commit=5)
    )
    async with serve(handler, proxy_headers=False) as upstream, nginx(tmp_path, upstream) as port:
        async with connect(port) as client:
            reply = await client.post(headers={**JSON, "accept-encoding": "gzip"})
            assert "content-encoding" not in reply.headers, "an event stream is not compressed"
            assert await reply.until("token") == Event("token", '"one"')
            assert await reply.until("ping") == Event("ping", ""), "nothing is held back"
            go_on.set()
            assert (await reply.until("done")).json()["usage"]["total_tokens"] == 11

        async with connect(port) as client:
            await (await client.post()).until("token")
            client.reset()
            async with asyncio.timeout(240):
                await provider.closed(1)
        async with connect(port) as client:
            client.send("POST", "/api/chat", HELLO, JSON)
            await provider.request(2)
            client.finish()
            async with asyncio.timeout(240):
                await provider.closed(2)

        provider.scripts = [answer("Hello ", 3, input_tokens=9)]
        spoofed = {"x-forwarded-for": "198.51.100.7"}
        async with connect(port, source="127.0.0.2") as client:
            await (await client.post(headers={**JSON, **spoofed})).body()
            limits = (await (await client.request("GET", "/api/usage", headers=spoofed)).json())["limits"]
            assert {limit["used"] for limit in limits} == {1, 12}, "a reader's own header is not believed"
        assert (await standing(upstream, spoofed))["tokens_per_day"]["used"] == 0
        assert (await standing(upstream, {"x-forwarded-for": "127.0.0.2"}))["tokens_per_day"]["used"] == 12
        assert (await settled(port))["tokens_per_day"]["used"] > 11
        refused = await ask(port, {**HELLO, "padding": "x" * 262_144})
        assert refused.status == 413
        assert b"body_too_large" in refused.raw
