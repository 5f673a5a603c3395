"""Row 46: the wall clock is stepped by an hour. Deadlines are the event loop's; only windows follow the clock."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from asgi_servers import serve_http
from raw_client import connect, settled
from scripted_provider import DONE, HANG, ScriptedProvider, chunk, finish, stream, usage
from stores_under_test import STORES

from chat_nest import Profile, Timeouts, create_chat_handler
from chat_nest.core.claims import Claim, Granted
from chat_nest.providers.openai import OpenAIProvider

HOUR = 3_600.0


class Clock:
    """Noon, so that an hour either way is the same day."""

    def __init__(self) -> None:
        self.now = 1_800_014_400.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_row46_a_stepped_clock_ends_no_answer_and_no_upload(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, go_on = Clock(), asyncio.Event()
    monkeypatch.setattr(time, "time", clock)
    script = stream(chunk("one"), go_on, chunk("two"), finish(), usage(9, 2), DONE)
    async with ScriptedProvider(script) as provider:
        timeouts = Timeouts(heartbeat=0.1)
        handler = create_chat_handler(api_key="k", base_url=provider.url, model="m", now=clock, timeouts=timeouts)
        async with serve_http(handler) as (port, _):
            async with connect(port) as client, connect(port) as uploading:
                reply = await client.post()
                await reply.until("token")
                uploading.write(b"POST /api/chat HTTP/1.1\r\nhost: x\r\n")
                clock.now += step
                await reply.until("ping")
                await reply.until("ping")
                go_on.set()
                assert (await reply.until("done")).json()["usage"]["total_tokens"] == 11
                uploading.write(b"content-length: 2\r\ncontent-type: application/json\r\n\r\n{}")
                assert (await uploading.reply()).status == 400, "it was read whole, and has no messages"
            assert (await settled(port))["tokens_per_day"]["used"] == 11


async def test_row46_a_silent_provider_is_given_up_while_the_clock_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    async with ScriptedProvider(stream(chunk("one"), HANG)) as provider:
        timeouts = Timeouts(idle=0.3)
        handler = create_chat_handler(api_key="k", base_url=provider.url, model="m", now=clock, timeouts=timeouts)
        async with serve_http(handler) as (port, _), connect(port) as client:
            reply = await client.post()
            assert (await reply.until("error")).json()["code"] == "upstream_idle"


class Kept:
    """A store that knows what runs on it, to renew the leases when a test says so, as the ledger does every 20 s."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._live: dict[str, Claim] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def reserve(self, claim: Claim, lease: float) -> object:
        answer = await self._store.reserve(claim, lease)
        if isinstance(answer, Granted):
            self._live[claim.id] = claim
        return answer

    async def settle(self, claim: Claim, *ending: Any) -> object:
        del self._live[claim.id]
        return await self._store.settle(claim, *ending)

    async def keep(self) -> None:
        """Renew all leases, and charge those of the dead."""
        assert await self._store.extend(list(self._live.values()), 60.0) == self._live.keys()
        await self._store.sweep()


@pytest.mark.parametrize("step", [1.0, -30.0, HOUR, -HOUR, 24 * HOUR, -24 * HOUR])
@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis", "postgres"])
async def test_row46_a_clock_stepped_to_and_fro_during_an_answer_gives_nothing_twice(kind: str, step: float) -> None:
    clock, go_on = Clock(), asyncio.Event()
    profile = Profile(name="one", model="p:m", tokens_per_day=1_000, concurrent_streams=1, max_output_tokens=50)
    script = stream(chunk("one"), go_on, chunk("two"), finish(), usage(9, 2), DONE)
    async with ScriptedProvider(script) as provider, STORES[kind](clock) as opened:
        store = Kept(opened)
        handler = create_chat_handler(
            providers={"p": OpenAIProvider(api_key="k", base_url=provider.url)},
            profiles={"one": profile},
            store=store,
            now=clock,
        )
        async with serve_http(handler) as (port, _):
            async with connect(port) as client, connect(port) as other:
                reply = await client.post()
                await reply.until("token")
                for seconds in (step, -step):
                    clock.now += seconds
                    await store.keep()
                    refused = await other.post()
                    assert refused.status == 429
                    assert (await refused.json())["code"] == "too_many_streams", "a place was given twice"
                go_on.set()
                assert (await reply.until("done")).json()["usage"]["total_tokens"] == 11
            assert (await settled(port))["tokens_per_day"]["used"] == 11
            clock.now += 1.1 * step  # further than before: a store may look again only then
            await store.keep()
            clock.now -= 1.1 * step
            assert (await settled(port))["tokens_per_day"]["used"] == 11, "what was spent was forgotten"
            async with connect(port) as client:
                assert (await (await client.post()).until("done")).json()["usage"]["total_tokens"] == 11
            assert (await settled(port))["tokens_per_day"]["used"] == 22
