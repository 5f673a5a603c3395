"""The standalone application: which path is answered by whom."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import sqlite3
import time
from base64 import b64encode
from collections.abc import MutableMapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from scripted_provider import DONE, ScriptedProvider, chunk, finish, stream, usage
from stores_under_test import claim, window

from chat_nest.asgi.settings import ChangeableSettings, HandlerSettings
from chat_nest.core.records import Record
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.server import app as app_module
from chat_nest.server import chat_arguments
from chat_nest.server.app import ServerApp, build
from chat_nest.server.config.provider import ProviderConfig, Secret
from chat_nest.server.config.settings import Config, load
from chat_nest.server.page_files import packaged
from chat_nest.server.providers import make_provider

PAGE = Path(__file__).parents[3] / "src/chat_nest/server/page"


class Answer:
    """What an application sent for one request."""

    def __init__(self, messages: list[dict]) -> None:
        start, *rest = messages
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in rest)


async def ask(app: ServerApp, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
    sent: list[Any] = []
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict:
        if left:
            return left.pop()
        return await asyncio.Future()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": fields, "client": ("127.0.0.1", 1)}
    await app(scope, receive, send)
    return Answer(sent)


async def lifespan(app: ServerApp, *messages: str) -> list[dict]:
    sent: list[Any] = []
    waiting = [{"type": message} for message in reversed(messages)]

    async def receive() -> dict:
        return waiting.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    return sent


def config(url: str, **environ: str) -> Config:
    return load("", {"OPENAI_BASE_URL": url, "CHAT_NEST_STORE_URL": "memory://", **environ})


@pytest.fixture
async def provider():
    script = stream(chunk("Hello"), finish(), usage(5, 1), DONE)
    async with ScriptedProvider(script) as provider:
        yield provider


@pytest.fixture
async def app(provider):
    app = build(config(provider.url))
    yield app
    await lifespan(app, "lifespan.startup", "lifespan.shutdown")


async def test_the_page_and_its_files(app):
    page = await ask(app, "/")
    assert page.status == 200
    assert b"<title>Chat Nest</title>" in page.body
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    styles = page.body.partition(b"<style>")[2].partition(b"</style>")[0]
    assert b"stylesheet" not in page.body, "the first paint waits for the page only"
    assert styles.startswith((PAGE / "parts.css").read_bytes() + (PAGE / "chat.css").read_bytes())
    digest = b64encode(sha256(styles).digest()).decode()
    script = page.body.partition(b'<script type="module">')[2].partition(b"</script>")[0]
    assert script == (PAGE / "start.js").read_bytes()
    start = b64encode(sha256(script).digest()).decode()
    assert page.headers["content-security-policy"] == (
        f"default-src 'none'; script-src 'self' 'sha256-{start}'; worker-src 'self'; "
        f"style-src 'self' 'sha256-{digest}'; font-src 'self'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
        "trusted-types dompurify chat-nest; frame-ancestors 'none'"
    )
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-cache"
    chat = await ask(app, "/chat.js")
    assert chat.headers["content-type"] == "text/javascript; charset=utf-8"
    assert chat.body == (PAGE / "chat.js").read_bytes()


def test_every_file_of_the_page_is_served():
    there = {str(file.relative_to(PAGE)) for file in PAGE.rglob("*") if file.is_file()}
    assert set(packaged()) == {name for name in there if not name.endswith(("LICENSE", ".md"))}


async def test_a_file_is_compressed_on_request_and_that_of_a_library_is_cacheable(app):
    plain = await ask(app, "/chat.js")
    squeezed = await ask(app, "/chat.js", accept_encoding="br, gzip")
    assert squeezed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(squeezed.body) == plain.body
    assert plain.headers["vary"] == squeezed.headers["vary"] == "accept-encoding"
    assert plain.headers["etag"] != squeezed.headers["etag"]
    again = await ask(app, "/chat.js", accept_encoding="gzip", if_none_match=squeezed.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    library = await ask(app, "/lib/marked-18.2.1/marked.esm.js")
    assert library.headers["cache-control"] == "public, max-age=31536000, immutable"
    font = await ask(app, "/lib/katex-0.19.1/fonts/KaTeX_Main-Regular.woff2", accept_encoding="gzip")
    assert (font.headers["content-type"], "content-encoding" in font.headers) == ("font/woff2", False)


async def test_a_file_that_the_browser_has_is_not_sent_again(app):
    first = await ask(app, "/")
    again = await ask(app, "/", if_none_match=f'"other", W/{first.headers["etag"]}')
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert (await ask(app, "/", if_none_match='"other"')).status == 200


async def test_the_openapi_document_is_served_like_a_file_of_the_page(app):
    document = await ask(app, "/openapi.json")
    assert (document.status, document.headers["content-type"]) == (200, "application/json")
    assert document.headers["cache-control"] == "no-cache"
    described = json.loads(document.body)
    assert described["openapi"] == "3.1.1"
    assert "/api/chat" in described["paths"]
    assert "/chat" not in described["paths"]  # the blog's is off
    head = await ask(app, "/openapi.json", "HEAD")
    assert (head.status, head.body, head.headers) == (200, b"", document.headers)
    again = await ask(app, "/openapi.json", if_none_match=document.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert (await ask(app, "/openapi.json", "POST")).headers["allow"] == "GET, HEAD"


async def test_head_has_the_length_and_no_body(app):
    answer = await ask(app, "/", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) == len((await ask(app, "/")).body)


@pytest.mark.parametrize("path", ["/", "/chat.js", "/healthz", "/readyz", "/api/info"])
async def test_other_methods_are_refused_on_the_paths_of_the_server(app, provider, path):
    answer = await ask(app, path, "POST", b"{}", content_type="application/json")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert provider.requests == []


async def test_the_process_lives(app):
    answer = await ask(app, "/healthz")
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')


async def test_ready_and_not_ready(app, provider):
    answer = await ask(app, "/readyz")
    assert answer.status == 200
    assert json.loads(answer.body)["providers"] == {"openai": {"status": "ok"}}
    assert len(provider.checks) == 1
    lonely = build(config("http://127.0.0.1:9/v1"))
    answer = await ask(lonely, "/readyz")
    assert answer.status == 503
    assert json.loads(answer.body)["providers"]["openai"]["status"] == "upstream_unreachable"
    await lifespan(lonely, "lifespan.startup", "lifespan.shutdown")


async def test_the_page_gets_the_name_of_the_model(app):
    assert (await ask(app, "/api/info")).body == b'{"demo":false,"model":"gpt-4o-mini","resumable":false}'


async def test_everything_else_is_the_chats(app, provider):
    body = b'{"messages":[{"role":"user","content":"Hi"}]}'
    answer = await ask(app, "/api/chat", "POST", body, content_type="application/json")
    assert answer.status == 200
    assert b'event: token\ndata: "Hello"\n\n' in answer.body
    assert provider.requests[0].json()["model"] == "gpt-4o-mini"
    usage = json.loads((await ask(app, "/api/usage")).body)["limits"]
    assert {limit["name"]: limit["used"] for limit in usage}["tokens_per_day"] == 6
    assert (await ask(app, "/nope")).status == 404


async def test_the_chats_send_is_passed_on_untouched(app):
    seen = []

    class Handler:
        async def __call__(self, scope, receive, send):
            seen.append((scope, receive, send))

    app._handler, handler = Handler(), app._handler
    scope, receive, send = {"type": "http", "method": "POST", "path": "/api/chat"}, object(), object()
    await app(scope, receive, send)
    app._handler = handler
    assert seen == [(scope, receive, send)]


async def test_settings_reach_the_handler(provider):
    app = build(
        config(
            provider.url,
            CHAT_NEST_SERVER_MAX_BODY_BYTES="60",
            CHAT_NEST_SERVER_ORIGINS="https://a.example",
            CHAT_NEST_SERVER_TRUSTED_PROXIES="127.0.0.1",
            CHAT_NEST_PROFILES_BALANCED_MAX_OUTPUT_TOKENS="77",
            CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_MINUTE="1",
            CHAT_NEST_LIMITS_REQUESTS_PER_MINUTE="2",
        )
    )
    small = b'{"messages":[{"role":"user","content":"Hi"}]}'
    answers = [
        await ask(
            app,
            "/api/chat",
            "POST",
            small,
            content_type="application/json",
            x_forwarded_for=f"10.0.0.{n}",
            sec_fetch_site="none",
        )
        for n in range(3)
    ]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert "access-control-allow-origin" not in answers[0].headers
    assert provider.requests[0].json()["max_tokens"] == 77
    big = await ask(app, "/api/chat", "POST", small + b" " * 20, content_type="application/json", sec_fetch_site="none")
    assert big.status == 413
    await lifespan(app, "lifespan.startup", "lifespan.shutdown")


async def test_the_start_checks_the_provider_and_logs_problems(caplog):
    app = build(config("http://127.0.0.1:9/v1"))
    started = asyncio.Event()
    stop = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> dict:
        if not started.is_set():
            started.set()
            return {"type": "lifespan.startup"}
        await stop.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    running = asyncio.create_task(app({"type": "lifespan"}, receive, send))
    while not (said := [record.getMessage() for record in caplog.records if record.name == "chat_nest.server"]):
        await asyncio.sleep(0.01)
    stop.set()
    await running
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "check base_url of [providers.openai]" in said[0]


async def test_a_store_that_cannot_be_used_does_not_start(provider, tmp_path):
    (tmp_path / "not-a-database.db").write_bytes(b"something else, and quite long " * 100)
    app = build(config(provider.url, CHAT_NEST_STORE_URL=f"sqlite:///{tmp_path}/not-a-database.db"))
    (failed,) = await lifespan(app, "lifespan.startup")
    assert failed["type"] == "lifespan.startup.failed"
    assert failed["message"].startswith("the store can't be used: ")


def test_providers_are_made_as_configured():
    demo = make_provider(ProviderConfig(kind="demo"))
    assert isinstance(demo, DemoProvider)
    given = make_provider(ProviderConfig(kind="openai", base_url="http://a.example/v1", api_key=Secret("k")))
    assert isinstance(given, OpenAIProvider)
    assert (given.base_url, given.abort_bills) == ("http://a.example/v1", "unknown")
    full = make_provider(ProviderConfig(kind="openai", base_url="http://a.example/v1", abort_bills="full"))
    assert isinstance(full, OpenAIProvider)
    assert full.abort_bills == "full"


@pytest.mark.parametrize(("days", "kept"), [("0", 0), ("30", 1)])
async def test_the_store_keeps_records_for_the_configured_days(tmp_path, provider, days, kept):
    path = tmp_path / "store.db"
    app = build(config(provider.url, CHAT_NEST_STORE_URL=f"sqlite:///{path}", CHAT_NEST_STORE_RECORDS_DAYS=days))
    record = Record(run="r", caller="c", started_at=time.time())
    one = replace(claim("a", window(1_000)), record=record)
    await app._handler.store.reserve(one, 60.0)
    await app._handler.store.settle(one, None, "assumed", record)
    await lifespan(app, "lifespan.startup", "lifespan.shutdown")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM requests").fetchone() == (kept,)


def test_every_setting_of_the_chat_is_given_or_is_meant_for_applications_only(monkeypatch):
    changeable: set[str] = set()
    fixed: set[str] = set()
    make = app_module.create_chat_handler
    monkeypatch.setattr(
        chat_arguments,
        "ChangeableSettings",
        lambda **settings: changeable.update(settings) or ChangeableSettings(**settings),
    )
    monkeypatch.setattr(
        app_module, "create_chat_handler", lambda **settings: fixed.update(settings) or make(**settings)
    )
    build(config("http://127.0.0.1:9/v1"))
    given = changeable | fixed - set(ChangeableSettings.__struct_fields__)
    shorthand = {"api_key", "base_url", "model", "preset", "dialect"}  # for `providers`, `profiles` and `dialects`
    shorthand.add("cors_origins")  # the old name of `origins`
    assert set(HandlerSettings.__struct_fields__) - given == shorthand | {"now"}
