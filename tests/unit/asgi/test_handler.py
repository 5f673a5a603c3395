"""What an embedder passes in, and what a server sees."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from contextlib import asynccontextmanager
from functools import partial

import pytest
from msgspec.structs import replace

from chat_nest.counting import tokens
from chat_nest import (
    Report,
    BALANCED,
    Caller,
    ChatHandler,
    Forbidden,
    Limits,
    MemoryStore,
    Profile,
    Timeouts,
    create_chat_handler,
)
from chat_nest.core.deltas import TextDelta
from chat_nest.dialects.native import Native
from chat_nest.testing import FakeClock, ScriptedProvider, answer, collect

BODY = {"messages": [{"role": "user", "content": "Hello"}]}
JSON = ((b"content-type", b"application/json"),)


def make(provider: ScriptedProvider | None = None, **options) -> ChatHandler:
    return create_chat_handler(providers={"p": provider or ScriptedProvider(answer("a", "b"))}, model="p:m", **options)


async def get(app, path: str, method: str = "GET"):
    """Another method than POST."""

    async def with_method(scope, receive, send):
        await app({**scope, "method": method}, receive, send)

    return await collect(with_method, b"", path=path, headers=())


# What can't be used is told when the handler is made.


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no API key: pass api_key"),
        ({"api_key": ""}, "no API key: pass api_key"),
        ({"api_key": "k", "providers": {"p": ScriptedProvider([])}}, "either `providers` or `api_key`"),
        ({"base_url": "http://x/v1", "providers": {"p": ScriptedProvider([])}}, "either `providers` or `api_key`"),
        ({"api_key": "k", "model": "m", "profiles": {"balanced": BALANCED}}, "either `profiles`"),
        ({"providers": {"p": ScriptedProvider([])}}, "name the model"),
        ({"api_key": "k", "profiles": {"balanced": Profile(model="other:m")}}, "profile 'balanced'.*providers"),
        ({"api_key": "k", "profiles": {"balanced": Profile(model="gpt-4o")}}, "PROVIDER:MODEL"),
        ({"api_key": "k", "profiles": {"balanced": Profile(fallbacks=("x:m",))}}, "PROVIDER:MODEL"),
        ({"api_key": "k", "base_url": "example.com"}, "base_url"),
        ({"api_key": "k", "origins": ["example.com"]}, "origins"),
        ({"api_key": "k", "time_zone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"api_key": "k", "store": "mysql://x"}, "store"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_unusable_arguments_are_refused_at_once(options, said):
    with pytest.raises(ValueError, match=said):
        create_chat_handler(**options)


def test_no_error_contains_a_key():
    with pytest.raises(ValueError) as refused:
        create_chat_handler(api_key="sk-secret\r\nx: y")
    assert "sk-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ({"api_key": "k"}, "openai:gpt-4o-mini"),
        ({"api_key": "k", "model": "gpt-4.1"}, "openai:gpt-4.1"),
        ({"base_url": "http://127.0.0.1:11434/v1", "model": "llama3.2:3b"}, "openai:llama3.2:3b"),
        ({"providers": {"p": ScriptedProvider([])}, "model": "p:m"}, "p:m"),
        ({"providers": {"p": ScriptedProvider([]), "q": ScriptedProvider([])}, "model": "m"}, "p:m"),
        ({"providers": {"p": ScriptedProvider([]), "q": ScriptedProvider([])}, "model": "q:m"}, "q:m"),
    ],
)
async def test_which_model_is_meant(options, model):
    seen: list[str] = []

    class Watch:
        def started(self, id, caller, profile, model):
            seen.append(model)

        def refused(self, id, caller, error): ...
        def finished(self, ending): ...

    options = dict(options.items())
    handler = create_chat_handler(**options, observers=[Watch()], timeouts=Timeouts(connect=0.01, first_token=0.01))
    running = asyncio.create_task(collect(handler, BODY))
    while not seen and not running.done():
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    await handler.aclose()
    assert seen == [model]


async def test_the_key_and_the_address_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    handler = create_chat_handler()
    assert handler.providers["openai"].base_url == "http://127.0.0.1:9/v1"  # type: ignore[attr-defined]
    await handler.aclose()


# Paths.


@pytest.mark.parametrize(
    ("path", "root_path", "status"),
    [
        ("/api/chat", "", 200),
        ("/api/chat/", "", 200),
        ("/Api/CHAT", "", 200),
        ("/", "", 200),
        ("", "", 200),
        ("api/chat/", "", 200),  # Litestar, mounted at "/"
        ("/ai/api/chat", "/ai", 200),
        ("/ai/", "/ai", 200),
        ("/ai", "/ai", 200),
        ("/api/chat", "/ai", 200),  # a server that does not put its root path in front
        ("/api/chats", "", 404),
        ("/api/chat/x", "", 404),
        ("/api", "", 404),
    ],
)
async def test_paths(path, root_path, status):
    handler = make()

    async def mounted(scope, receive, send):
        await handler({**scope, "root_path": root_path}, receive, send)

    assert (await collect(mounted, BODY, path=path)).status == status
    await handler.aclose()


async def test_dialects_have_their_paths_and_two_share_no_root():
    handler = make(dialects=[Native("/One"), Native("/two")])
    for path, status in (("/one", 200), ("/TWO/", 200), ("/", 404), ("/api/chat", 404)):
        assert (await collect(handler, BODY, path=path)).status == status
    await handler.aclose()


async def test_only_http_and_lifespan_are_spoken():
    with pytest.raises(RuntimeError, match="websocket"):
        await make()({"type": "websocket"}, None, None)  # type: ignore[arg-type]


# The lifespan.


async def test_a_server_s_lifespan_closes_the_handler():
    store = MemoryStore()
    handler = make(store=store)
    asked = ["lifespan.startup", "lifespan.shutdown"]
    told = []

    async def receive():
        return {"type": asked.pop(0)}

    async def send(message):
        told.append(message["type"])

    await handler({"type": "lifespan"}, receive, send)
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert (await collect(handler, BODY)).status == 503


class Closable(ScriptedProvider):
    async def aclose(self) -> None:
        self.ended = True


async def test_async_with_closes_the_providers_and_the_store():
    provider = Closable(answer("a"))
    async with make(provider) as handler:
        assert (await collect(handler, BODY)).status == 200
    assert provider.ended
    await handler.aclose()  # once more changes nothing


async def test_a_host_s_lifespan():
    provider = Closable(answer("a"))
    handler = make(provider)
    async with handler.lifespan(object()):
        assert (await collect(handler, BODY)).status == 200
    assert provider.ended


async def test_closing_ends_running_answers_with_an_error_and_settles_them():
    begun = asyncio.Event()

    async def begin() -> None:
        begun.set()
        await asyncio.Event().wait()

    provider = ScriptedProvider([answer("a")[0], begin])
    handler = make(provider, store=(store := MemoryStore()))
    running = asyncio.create_task(collect(handler, BODY))
    await begun.wait()
    await handler.aclose()
    got = await running
    assert [name for name, _ in got.events] == ["start", "token", "error"]
    assert json.loads(got.events[-1][1])["code"] == "shutdown"
    assert got.complete
    assert provider.closed == 1
    limits = await standing(make(store=store))
    assert limits["tokens_per_day"]["held"] == 0
    assert limits["tokens_per_day"]["used"] > 0


async def test_a_body_that_was_on_its_way_when_the_handler_closed_is_refused():
    provider = ScriptedProvider(answer("a"))
    handler = make(provider)
    uploading, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(scope, receive, send):
        async def wait():
            uploading.set()
            await go_on.wait()
            return await receive()

        await handler(scope, wait, send)

    running = asyncio.create_task(collect(slowly, BODY))
    await uploading.wait()
    await handler.aclose()
    go_on.set()
    got = await running
    assert got.status == 503
    assert json.loads(got.body)["code"] == "shutdown"
    assert provider.opened == 0


# What a caller is told.


async def standing(handler: ChatHandler) -> dict[str, dict]:
    got = await get(handler, "/api/usage")
    assert got.status == 200
    return {limit["name"]: limit for limit in json.loads(got.body)["limits"]}


async def test_usage_is_that_of_the_caller():
    clock = FakeClock()
    profile = replace(BALANCED, model="p:m", concurrent_streams=3, tokens_per_minute=5_000)
    handler = create_chat_handler(
        providers={"p": ScriptedProvider(answer("a", "b"))},
        profiles={"balanced": profile},
        limits=Limits(tokens_per_day=50),
        now=clock,
    )
    assert (await collect(handler, BODY)).status == 429, "what all callers have left is too little"
    handler = create_chat_handler(
        providers={"p": ScriptedProvider(answer("a", "b"))}, profiles={"balanced": profile}, now=clock
    )
    await collect(handler, BODY)
    limits = await standing(handler)
    assert set(limits) == {"tokens_per_day", "tokens_per_minute", "requests_per_minute", "concurrent_streams"}
    midnight = 86_400 - int(clock.time) % 86_400 + int(clock.time)
    assert limits["tokens_per_day"] == {
        "name": "tokens_per_day",
        "unit": "tokens",
        "limit": 200_000,
        "used": 7,
        "held": 0,
        "remaining": 199_993,
        "resets_at": midnight,
    }
    assert limits["concurrent_streams"]["used"] == 0
    assert (await get(handler, "/usage")).status == 200
    assert (await get(handler, "/api/usage", "POST")).status == 405
    await handler.aclose()


class BrokenStore(MemoryStore):
    async def peek(self, lines):
        raise ConnectionError("secret address")

    async def reserve(self, claim, lease):
        raise ConnectionError("secret address")


async def test_a_store_that_fails_is_a_503_without_its_message(caplog):
    provider = ScriptedProvider(answer("a"))
    handler = make(provider, store=BrokenStore())
    for got in (await collect(handler, BODY), await get(handler, "/api/usage")):
        assert got.status == 503
        assert json.loads(got.body)["code"] == "limiter_unavailable"
        assert b"secret" not in got.body
    assert provider.opened == 0
    assert "secret" not in caplog.text
    await handler.aclose()


@pytest.mark.looptime(start=0)
async def test_a_store_that_does_not_answer_is_a_503_after_a_second():
    class Frozen(MemoryStore):
        async def peek(self, lines):
            await asyncio.Event().wait()

    handler = make(store=Frozen())
    got = await get(handler, "/api/usage")
    assert got.status == 503
    assert json.loads(got.body)["code"] == "limiter_unavailable"
    assert asyncio.get_running_loop().time() == pytest.approx(1, abs=0.01)
    await handler.aclose()


async def test_the_tables_of_a_tokenizer_are_built_before_the_first_request(monkeypatch):
    """They take half a second, in which no other request would be served."""
    asked: list[str] = []

    def counting(name: str) -> tokens.TokenCounter:
        asked.append(name)
        return tokens.ByteCounter()

    monkeypatch.setattr("chat_nest.counting.tokens.counter_for", counting)
    profile = Profile(model="p:gpt-4o-mini", fallbacks=("p:llama3",))
    create_chat_handler(providers={"p": ScriptedProvider([])}, profiles={"balanced": profile})
    assert asked == ["gpt-4o-mini", "llama3"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_identify_may_refuse_and_may_be_async(asynchronous):
    def plain(scope):
        if scope["client"][0] != "192.0.2.1":
            raise Forbidden("Not from here")
        return Caller(id="known")

    async def waiting(scope):
        await asyncio.sleep(0)
        return plain(scope)

    provider = ScriptedProvider(answer("a"))
    handler = make(provider, identify=waiting if asynchronous else plain)
    got = await collect(handler, BODY)
    assert got.status == 403
    assert json.loads(got.body)["error"] == "Not from here"
    assert provider.opened == 0
    assert (await collect(handler, BODY, client=("192.0.2.1", 1))).status == 200
    assert (await get(handler, "/api/usage")).status == 403
    await handler.aclose()


@pytest.mark.parametrize("asked", ["chat", "usage"])
async def test_identify_that_breaks_is_a_500_without_its_message(asked, caplog):
    def broken(_scope):
        raise KeyError("secret"[::-1])

    handler = make(identify=broken)
    got = await collect(handler, BODY) if asked == "chat" else await get(handler, "/api/usage")
    assert got.status == 500
    assert json.loads(got.body)["error"] == "AI request failed"
    assert b"terces" not in got.body
    assert "terces" not in caplog.text
    assert "KeyError" in caplog.text, "the operator is told what and where"
    await handler.aclose()


class Who:
    """A way to identify callers, which returns what it is given."""

    def __init__(self, returned: object) -> None:
        self.returned = returned

    def __call__(self, _scope):
        return self.returned


def none_of_it(_scope):
    return None


@pytest.mark.parametrize(
    ("identify", "said"),
    [
        (none_of_it, "none_of_it) returned None; return a chat_nest.Caller"),
        (Who("ada-secret"), "Who) returned a str; return a chat_nest.Caller"),
        (partial(none_of_it), "none_of_it) returned None; return a chat_nest.Caller"),
        (Who(Caller), "Who) returned the class Caller; return a chat_nest.Caller"),
        (Who(Forbidden()), "Who) returned a Forbidden; raise it instead"),
        (Who(Caller(id=5)), "Who) returned a Caller whose id is an int; it must be a str"),  # type: ignore[arg-type]
        (Who(Caller(id=None)), "Who) returned a Caller whose id is None; it must be a str"),  # type: ignore[arg-type]
        (Who(Caller(id="a", profile=BALANCED)), "Who) returned a Caller whose profile is a Profile; it must be a str or None"),  # type: ignore[arg-type]
        (Who(Caller(id="a", group=5)), "Who) returned a Caller whose group is an int; it must be a str or None"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "x",
)  # fmt: skip
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("path", ["/api/chat", "/api/usage"])
async def test_identify_that_returns_something_else_is_named_in_one_line(identify, said, asynchronous, path, caplog):
    async def waiting(scope):
        return identify(scope)

    waiting.__qualname__ = said.partition(")")[0]
    provider = ScriptedProvider(answer("a"))
    handler = make(provider, identify=waiting if asynchronous else identify)
    got = await collect(handler, BODY) if path == "/api/chat" else await get(handler, path)
    await handler.aclose()
    assert (got.status, json.loads(got.body)["code"]) == (500, "internal_error")
    lines = [record.getMessage() for record in caplog.records if record.name == "chat_nest.pipeline"]
    assert lines == [f"identify ({__name__}.{said}"]
    assert provider.opened == 0
    assert "secret" not in caplog.text


async def test_identify_that_hangs_is_named(caplog, monkeypatch):
    monkeypatch.setattr("chat_nest.pipeline.callers.IDENTIFY_SECONDS", 0.01)

    async def hangs(_scope):
        await asyncio.Event().wait()

    handler = make(identify=hangs)
    assert (await collect(handler, BODY)).status == 503
    await handler.aclose()
    assert re.search(r"identify \(.*hangs\) took more than 0.01 s: the request is refused", caplog.text)


async def test_a_time_out_raised_by_identify_is_a_bug_of_identify(caplog):
    async def fails(_scope):
        raise TimeoutError

    handler = make(identify=fails)
    assert (await collect(handler, BODY)).status == 500
    await handler.aclose()
    assert re.search(r"identify \(.*fails\) raised TimeoutError\n", caplog.text)


async def test_a_bug_in_a_store_is_logged_once_with_its_place_and_is_no_outage(caplog):
    class Buggy(MemoryStore):
        async def reserve(self, claim, lease):
            return claim.nonsense

    handler = make(store=Buggy())
    for _ in range(3):
        got = await collect(handler, BODY)
        assert (got.status, json.loads(got.body)["code"]) == (503, "limiter_unavailable")
    await handler.aclose()
    lines = [message for message in caplog.messages if "failed to reserve" in message]
    first, *others = lines
    assert re.match(r"the store failed to reserve: a bug in .*Buggy \(logged once\): AttributeError\n", first)
    assert "test_handler.py" in first
    assert others == ["the store failed to reserve: AttributeError"] * 2


async def test_a_store_that_answers_nothing_fails_closed_and_is_named(caplog):
    class Silent(MemoryStore):
        async def reserve(self, claim, lease):
            return None

    provider = ScriptedProvider(answer("a"))
    handler = make(provider, store=Silent())
    assert (await collect(handler, BODY)).status == 503
    await handler.aclose()
    assert "Silent.reserve returned None; return Granted, Refused, Duplicate or Conflict" in caplog.text
    assert provider.opened == 0


async def test_an_outage_of_the_store_is_one_line_without_places(caplog):
    class Down(MemoryStore):
        async def reserve(self, claim, lease):
            raise OSError("secret"[::-1])

    handler = make(store=Down())
    assert (await collect(handler, BODY)).status == 503
    await handler.aclose()
    assert [message for message in caplog.messages if "reserve" in message] == ["the store failed to reserve: OSError"]


class Opens:
    """A provider whose `open` is wrong in some way."""

    def __init__(self, open) -> None:
        self.open = open


async def not_decorated(prompt, timeouts):
    return []


@asynccontextmanager
async def yields_nothing(prompt, timeouts):
    yield


@asynccontextmanager
async def yields(item, prompt, timeouts):
    async def batches():
        yield item

    yield batches()


@pytest.mark.parametrize(
    ("open", "said"),
    [
        (not_decorated, "Opens: open returned a coroutine; decorate it with contextlib.asynccontextmanager"),
        (yields_nothing, "Opens: open yielded None; yield an async iterator of batches"),
        (partial(yields, "text"), "the provider's iterator yielded a str; yield a list of deltas"),
        (partial(yields, TextDelta("text")), "the provider's iterator yielded a TextDelta; yield a list of deltas"),
        (partial(yields, ["text"]), "the provider's iterator yielded a list with a str; yield a list of deltas"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "x",
)
async def test_a_provider_that_breaks_its_protocol_is_named(open, said, caplog):
    handler = create_chat_handler(providers={"p": Opens(open)}, model="p:m")
    got = await collect(handler, BODY)
    await handler.aclose()
    assert (got.status, json.loads(got.body)["code"]) == (500, "internal_error")
    assert said in caplog.text
    assert "Traceback" not in caplog.text


async def test_an_observer_that_breaks_breaks_nothing(caplog):
    class Broken:
        def __getattr__(self, name):
            raise ZeroDivisionError("secret"[::-1])

    handler = make(observers=[Broken()])
    caplog.set_level(logging.DEBUG)
    got = await collect(handler, BODY)
    assert got.events[-1][0] == "done"
    assert "ZeroDivisionError" in caplog.text
    assert "terces" not in caplog.text
    await handler.aclose()


async def test_an_observer_may_have_reported_alone():
    reports: list[Report] = []

    class Reporter:
        def reported(self, report: Report) -> None:
            reports.append(report)

    handler = make(observers=[Reporter()])
    await collect(handler, BODY)
    await collect(handler, {"messages": 1})
    assert [report.code for report in reports] == ["ok", "bad_request"]
    await handler.aclose()


async def test_a_server_that_cancels_the_request_ends_it_as_a_shutdown():
    begun = asyncio.Event()

    async def begin() -> None:
        begun.set()
        await asyncio.Event().wait()

    provider = ScriptedProvider([answer("a")[0], begin])
    handler = make(provider)
    sent: list[bytes] = []

    async def sending(data: bytes) -> None:
        sent.append(data)

    running = asyncio.create_task(collect(handler, BODY, sent=sending))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert provider.closed == 1
    assert b'"code":"shutdown"' in sent[-1]
    assert (await standing(handler))["tokens_per_day"]["held"] == 0
    await handler.aclose()


# What is here.


async def test_a_wrong_path_or_method_lists_the_existing_ones():
    handler = make()
    there = json.loads((await get(handler, "/nowhere")).body)
    assert (there["code"], there["error"]) == (
        "not_found",
        "Nothing is here. The chat answers POST /api/chat and GET /api/usage.",
    )
    for path in ("/api/chat", "/"):
        got = await get(handler, path)
        assert (got.status, got.headers["allow"]) == (405, "POST, OPTIONS")
        assert json.loads(got.body)["error"] == "Use POST, OPTIONS here: a chat is a POST with a JSON body"
    got = await get(handler, "/api/usage", "DELETE")
    assert json.loads(got.body)["error"] == "Use GET, OPTIONS here"
    await handler.aclose()


async def test_below_a_mount_no_path_of_the_clients_is_repeated():
    async def mounted(scope, receive, send):
        await handler({**scope, "root_path": "/tenant-secret"}, receive, send)

    handler = make(dialects=["native", "openai"])
    got = await get(mounted, "/tenant-secret/nowhere")
    assert json.loads(got.body)["error"] == (
        "Nothing is here. The chat answers POST /api/chat, POST /v1/chat/completions, GET /v1/models and "
        "GET /api/usage below the path where it is mounted."
    )
    await handler.aclose()


@pytest.mark.parametrize(
    ("name", "hint"), [("opnai", "did you mean 'openai'? "), ("Native", "did you mean 'native'? "), ("xyz", "")]
)
def test_a_dialect_that_is_not_there_is_met_with_a_similar_one(name, hint):
    with pytest.raises(ValueError, match=f"^there is no dialect '{name}': {re.escape(hint)}there are native, openai"):
        make(dialect=name)
