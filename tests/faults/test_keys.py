"""Several keys of one provider, on real sockets: which one is asked, what a request costs, and what is never repeated.

The cases are those that users of gateways report: keys that stay in use though they were refused
(https://github.com/BerriAI/litellm/pull/34836), a whole pool that one key takes down
(https://github.com/NousResearch/hermes-agent/pull/106833), waiting for the first key that wakes
(https://github.com/BerriAI/litellm/issues/3646), a retry on the key that was just refused
(https://github.com/thedotmack/claude-mem/pull/3941), 403 and 402 that are about one model or one account
(https://github.com/lidge-jun/opencodex/issues/1267).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from scripted_provider import CLOSE, Connection, ScriptedProvider, answer, chunk, event, failure, http, stream

from chat_nest import Profile, create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.core.errors import UpstreamAuth
from chat_nest.core.timeouts import Timeouts
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers.model_server import ModelServer
from chat_nest.server.health import FRESH_SECONDS, Health
from chat_nest.testing import Answer, FakeClock, collect
from chat_nest.core.watched_file import LOOK_SECONDS

A, B, C = "canary-a", "canary-b", "canary-c"
REFUSED = failure(401, f"Incorrect API key provided: {A}", "invalid_api_key")
LIMITED = failure(429, "Rate limit reached", "rate_limit_exceeded", retry_after="30")
BROKE = failure(429, "You exceeded your current quota", "insufficient_quota")
USED = 8
"""What the answer to a request costs."""

Script = Any


class Vendor(ScriptedProvider):
    """A provider that answers each key by its own script; a key without one gets an answer."""

    def __init__(self, **by_key: Script) -> None:
        super().__init__()
        self.by_key = {f"canary-{name}": script for name, script in by_key.items()}
        self.refused: set[str] = set()
        """The keys that may not see the list of models."""

    @property
    def asked(self) -> list[str]:
        """The keys of the requests, in their order."""
        return [key_of(request.headers) for request in self.requests]

    def _take(self, request: Any) -> Script:
        script = super()._take(request)
        key = key_of(request.headers)
        if request.method == "GET":
            return REFUSED if key in self.refused else script
        return self.by_key.get(key, answer("Hello", 3))


def key_of(headers: dict[str, str]) -> str:
    return headers.get("authorization", "").removeprefix("Bearer ")


@asynccontextmanager
async def chat(
    server: ScriptedProvider, *, other: ScriptedProvider | None = None, **given: Any
) -> AsyncIterator[ChatHandler]:
    """A handler that asks `server` with several keys, and the `other` if that fails."""
    providers = {"p": OpenAIProvider(base_url=server.url, **given)}
    fallbacks: tuple[str, ...] = ()
    if other is not None:
        providers["q"], fallbacks = OpenAIProvider("canary-q", other.url), ("q:m",)
    profiles = {
        "balanced": Profile(model="p:m", fallbacks=fallbacks, requests_per_minute=None),
        "else": Profile(model="p:another", open=True, requests_per_minute=None),
    }
    handler = create_chat_handler(
        providers=providers, profiles=profiles, default_profile="balanced", timeouts=Timeouts(first_token=20)
    )
    yield handler
    await handler.aclose()


async def ask(handler: ChatHandler, **more: Any) -> Answer:
    return await collect(handler, {"messages": [{"role": "user", "content": "Hi"}], **more})


async def spent(handler: ChatHandler) -> int:
    scope = {"type": "http", "client": ("203.0.113.7", 4711), "headers": [], "path": "/"}
    return {line.name: now.used for line, now in await handler._callers.standing(scope)}["tokens_per_day"]


@pytest.fixture(autouse=True)
def no_key_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    monkeypatch.setattr("chat_nest.pipeline.upstream.random.uniform", lambda *_: 0.0)  # no pauses between attempts
    caplog.set_level(logging.DEBUG)
    yield
    assert "canary" not in caplog.text


async def test_requests_take_the_keys_in_turn() -> None:
    async with Vendor() as server, chat(server, api_keys=[A, B, C]) as handler:
        for _ in range(6):
            assert (await ask(handler)).status == 200
        assert server.asked == [A, B, C, A, B, C]


async def test_a_key_with_a_running_answer_is_taken_last() -> None:
    release = asyncio.Event()
    async with Vendor(a=stream(chunk("Hel"), release, CLOSE)) as server, chat(server, api_keys=[A, B]) as handler:
        running = asyncio.create_task(ask(handler))
        await server.request(0)
        for _ in range(3):
            assert (await ask(handler)).status == 200
        assert server.asked == [A, B, B, B]
        release.set()
        await running
        await ask(handler)
        assert server.asked[-1] == A, "the answer that broke off is over"


@pytest.mark.parametrize("refusal", [REFUSED, LIMITED, BROKE, failure(403, code="permission_denied"), failure(402), failure(404, code="model_not_found")])  # fmt: skip
async def test_a_refused_key_rests_and_the_next_one_answers_before_any_fallback(refusal: bytes) -> None:
    async with Vendor(a=refusal) as server, ScriptedProvider() as other:
        async with chat(server, other=other, api_keys=[A, B]) as handler:
            for _ in range(3):
                assert (await ask(handler)).status == 200
            assert server.asked == [A, B, B, B], "a key that rests is not asked"
            assert not other.requests
            assert await spent(handler) == 3 * USED, "one answer each, and nothing for the refusal"
            assert not handler._chat.upstream.breakers["p"]._limited


async def test_a_key_rests_only_for_the_model_with_the_exhausted_limit() -> None:
    async with Vendor(a=LIMITED) as server, chat(server, api_keys=[A, B]) as handler:
        await ask(handler)
        server.by_key.clear()
        assert (await ask(handler, profile="else")).status == 200
        assert server.asked == [A, B, A]
        assert server.requests[-1].json()["model"] == "another"


async def test_a_fallback_answers_once_every_key_rests() -> None:
    async with Vendor(a=REFUSED, b=BROKE) as server, ScriptedProvider(answer("Hi")) as other:
        async with chat(server, other=other, api_keys=[A, B]) as handler:
            for _ in range(3):
                assert (await ask(handler)).status == 200
            assert server.asked == [A, B]
            assert len(other.requests) == 3


@pytest.mark.parametrize(
    ("first", "second", "status", "code"),
    [
        (LIMITED, LIMITED, 503, "upstream_rate_limited"),
        (REFUSED, LIMITED, 503, "upstream_rate_limited"),
        (REFUSED, REFUSED, 502, "upstream_auth"),
        (BROKE, REFUSED, 503, "upstream_quota"),
    ],
)
async def test_with_every_key_at_rest_the_error_is_that_of_the_key_with_the_shortest_rest(
    first: bytes, second: bytes, status: int, code: str
) -> None:
    async with Vendor(a=first, b=second) as server, chat(server, api_keys=[A, B]) as handler:
        for _ in range(2):
            refused = await ask(handler)
            assert (refused.status, json.loads(refused.body)["code"]) == (status, code)
            waits = refused.headers.get("retry-after")
            assert (waits is not None and 1 <= int(waits) <= 30) is (code == "upstream_rate_limited")
        assert server.asked == [A, B]
        assert await spent(handler) == 0


async def test_a_short_rest_of_every_key_is_waited_for() -> None:
    limited = failure(429, retry_after="0")
    async with Vendor(a=limited, b=limited) as server, chat(server, api_keys=[A, B]) as handler:
        rests = asyncio.create_task(ask(handler))
        await server.request(1)
        server.by_key.clear()
        keys = handler._chat.upstream.providers["p"]._keys._keys  # type: ignore[attr-defined]
        while not all(key.rests for key in keys):
            await asyncio.sleep(0)
        for key in keys:
            key.rests.clear()  # instead of waiting for five seconds
        asking = await ask(handler)
        assert asking.status == 200
        rests.cancel()


async def test_limits_of_the_keys_never_open_the_providers_breaker() -> None:
    async with Vendor(a=LIMITED, b=LIMITED) as server, chat(server, api_keys=[A, B]) as handler:
        for _ in range(50):
            await ask(handler)
        breaker = handler._chat.upstream.breakers["p"]
        assert breaker.state == "closed"
        assert server.asked == [A, B]


async def test_an_outage_still_opens_it() -> None:
    async with Vendor(**dict.fromkeys("abc", failure(500))) as server, chat(server, api_keys=[A, B, C]) as handler:
        for _ in range(15):
            await ask(handler)
        assert handler._chat.upstream.breakers["p"].state == "open"
        assert {A, B, C} == set(server.asked)


@pytest.mark.parametrize(
    "script",
    [
        [CLOSE],
        failure(504),
        failure(408),
        failure(408, code="insufficient_quota"),
        stream(event([], error={"message": "x", "code": "insufficient_quota"})),
        stream(chunk("Hel"), event([], error={"message": "x", "code": "rate_limit_exceeded"})),
    ],
    ids=["lost", "504", "408", "a quota after a time-out", "an error in the stream", "an error after text"],
)
async def test_no_other_key_is_tried_if_the_first_attempt_may_have_been_billed(script: Script) -> None:
    """The provider's word on abandoned answers is not known: not even one more attempt is paid for."""
    async with Vendor(a=script) as server, chat(server, api_keys=[A, B], abort_bills="unknown") as handler:
        await ask(handler)
        assert server.asked == [A]
        assert await spent(handler) > 0


async def test_a_key_rests_after_a_limit_is_reported_inside_a_stream() -> None:
    script = stream(event([], error={"message": "x", "code": "insufficient_quota"}))
    async with Vendor(a=script) as server, chat(server, api_keys=[A, B], abort_bills="unknown") as handler:
        for _ in range(3):
            await ask(handler)
        assert server.asked == [A, B, B]


async def test_a_client_that_leaves_while_keys_are_tried_leaves_no_answer_running() -> None:
    async def hold(connection: Connection) -> None:
        await connection.closed

    async with Vendor(a=LIMITED, b=hold) as server, chat(server, api_keys=[A, B]) as handler:
        asking = asyncio.create_task(ask(handler))
        await server.request(1)
        asking.cancel()
        await asyncio.wait([asking])
        await server.closed(1)
        keys = handler._chat.upstream.providers["p"]._keys  # type: ignore[attr-defined]
        assert [key.running for key in keys._keys] == [0, 0]


async def test_keys_in_a_file_change_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_nest.core.watched_file.LOOK_SECONDS", 0.0)
    assert LOOK_SECONDS == 1.0
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{A}\n")
    async with Vendor() as server, chat(server, api_keys_file=file) as handler:
        await ask(handler)
        file.write_text(f"{B}  # of another team\n{C}\n")
        for _ in range(2):
            await ask(handler)
        assert server.asked == [A, B, C]
        file.write_text("not a key")
        await ask(handler)
        file.unlink()
        await ask(handler)
        assert server.asked[3:] == [B, C], "what it held stays in force"


async def test_the_only_key_is_refused_while_another_joins_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_nest.core.watched_file.LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(f"{A}\n")
    async with Vendor() as server, chat(server, api_keys_file=file) as handler:
        keys = handler._chat.upstream.providers["p"]._keys  # type: ignore[attr-defined]

        async def refuse_later(connection: Connection) -> None:
            file.write_text(f"{A}\n{B}\n")
            await keys.refresh()  # as another request does
            await connection.send(LIMITED)

        server.by_key[A] = refuse_later
        assert (await ask(handler)).status == 503
        assert (await ask(handler)).status == 200
        assert server.asked == [A, B]


async def test_readyz_counts_the_keys_that_rest_and_until_when_but_names_none() -> None:
    clock = FakeClock(0.0)
    async with Vendor(a=BROKE, b=LIMITED) as server, chat(server, api_keys=[A, B, C]) as handler:
        health = Health(handler.store, handler.providers, {}, clock=clock)
        body = (await health.readiness()).body()
        assert json.loads(body)["providers"]["p"]["keys"] == {"count": 3, "resting": 0, "rests": []}
        began = datetime.now(UTC)
        for _ in range(3):  # until each key was tried
            await ask(handler)
        clock.advance(FRESH_SECONDS)
        body = (await health.readiness()).body()
        keys = json.loads(body)["providers"]["p"]["keys"]
        assert (keys["count"], keys["resting"]) == (3, 2)
        limited, broke = keys["rests"]
        assert (limited["model"], limited["reason"]) == ("m", "upstream_rate_limited")
        assert "model" not in broke, "it rests for every model"
        assert broke["reason"] == "upstream_quota"
        for rest, seconds in ((limited, 30), (broke, 300)):
            passed = datetime.fromisoformat(rest["until"]) - began
            assert timedelta(seconds=seconds - 1) <= passed <= timedelta(seconds=seconds + 120)
        for key in (A, B, C):
            assert key.encode() not in body
            assert sha256(key.encode()).hexdigest()[:8].encode() not in body
        assert b"keys" not in (await health.readiness()).public_body()


async def test_the_only_key_of_a_provider_is_not_mentioned() -> None:
    async with Vendor() as server, chat(server, api_key=A) as handler:
        assert b"keys" not in (await Health(handler.store, handler.providers, {}).readiness()).body()


async def test_one_accepted_key_is_enough_to_be_ready(caplog: pytest.LogCaptureFixture) -> None:
    async with Vendor() as server:
        client = OpenAIProvider(base_url=server.url, api_keys=[A, B, C])
        server.refused = {A, B}
        assert await client.check()
        assert [key_of(check.headers) for check in server.checks] == [A, B, C]
        assert caplog.text.count("rests for 600 s, for every model: upstream_auth") == 2
        assert await client.check()
        assert [key_of(check.headers) for check in server.checks][3:] == [C]
        server.refused = {A, B, C}
        with pytest.raises(UpstreamAuth, match="refused the API key"):
            await client.check()
        server.refused = set()
        assert await client.check(), "it is asked again with a key that rests, and wakes it"
        assert not server.requests
        await client.aclose()


@pytest.mark.parametrize("make", [OpenAIProvider, AnthropicProvider, GeminiProvider, OllamaProvider])
def test_every_provider_takes_keys(make: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{A}\n{B}\n{C}\n")
    for given, count in (({"api_keys": [A, B]}, 2), ({"api_keys_file": tmp_path / "keys"}, 3)):
        server: ModelServer = make(**given)
        assert server._keys is not None
        assert len(server._keys) == count
    with pytest.raises(ValueError, match="^give one of api_key, api_keys and api_keys_file, not several$"):
        make(A, api_keys=[B])


def test_a_file_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        OpenAIProvider(api_keys_file=tmp_path / "keys")


async def test_a_status_200_of_another_key_costs_one_answer() -> None:
    """The refusal's body may be slow and long: it is read for a second at most, and the socket is not kept."""
    slow = http(429, b"x" * 100_000)
    async with Vendor(a=slow) as server, chat(server, api_keys=[A, B]) as handler:
        assert (await ask(handler)).status == 200
        assert server.asked == [A, B]
        assert await spent(handler) == USED
