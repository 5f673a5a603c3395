"""Row 46, with real servers: the machine's clock is stepped by a day under Redis, PostgreSQL and `chat-nest serve`."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_nest.core.claims import Granted, Refused
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.redis import RedisStore
from msgspec.structs import replace
from postgres_server import PostgresServer
from raw_client import JSON, connect, settled
from redis_servers import RedisServer
from scripted_provider import DONE, HANG, ScriptedProvider, chunk, finish, stream, usage
from served_workers import workers
from stepped_clock import SteppedClock
from stores_under_test import claim, gauge, standing, window

HOUR, DAY = 3_600, 86_400


def redis() -> tuple[Any, Callable[[], None]]:
    server = RedisServer("--maxmemory-policy", "noeviction")
    return RedisStore(server.url), server.stop


def postgres() -> tuple[Any, Callable[[], None]]:
    server = PostgresServer()
    return PostgresStore(server.url, timeout=60.0), server.remove


@pytest.mark.parametrize("kind", [redis, postgres])
async def test_row46_a_store_with_a_wrong_clock_for_a_while_forgets_nothing(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SteppedClock(tmp_path)
    day = replace(window(1_000, resets_at=time.time() + 12 * HOUR), period=DAY)
    with monkeypatch.context() as patched:
        for name, value in clock.environ.items():
            patched.setenv(name, value)
        store, stop = kind()
    try:
        one, running = claim("a", day), claim("running", day, gauge(2))
        assert isinstance(await store.reserve(one, 60.0), Granted)
        assert isinstance(await store.reserve(running, 60.0), Granted)
        assert await store.settle(one, {"tokens": 70}, "reported")
        for step in (DAY, -DAY, HOUR, -HOUR, 30, -30):
            clock.step(step)
            assert await store.extend([running], 60.0) == {"running"}
            dead = claim(f"dead-{step}", gauge(2))
            assert isinstance(await store.reserve(dead, 60.0), Granted), "the process that has it will be killed"
            await store.sweep()
            clock.step(0)
            assert await store.extend([running], 60.0) == {"running"}
            await store.sweep()
            assert await standing(store, day) == (70, 100), f"after a step by {step}"
            refused = await store.reserve(claim(f"next-{step}", gauge(2)), 60.0)
            if isinstance(refused, Refused):  # if the clock was behind, the dead one's lease has ended
                assert refused.retry_after <= 121, f"a dead request holds its place after a step by {step}"
            await store.release(dead)
            await store.release(claim(f"next-{step}", gauge(2)))
        assert await store.settle(running, {"tokens": 10}, "reported") is True
        assert await store.settle(running, {"tokens": 99}, "reported") is False
        assert await standing(store, day) == (80, 0)
    finally:
        await store.aclose()
        stop()


@pytest.mark.parametrize("kind", ["local", "redis"])
async def test_row46_a_worker_killed_while_the_clock_is_a_day_ahead_holds_no_place_for_a_day(
    kind: str, tmp_path: Path
) -> None:
    clock, user = SteppedClock(tmp_path), {"x-user": secrets.token_hex(6)}
    answer = stream(chunk("one"), finish(), usage(9, 2), DONE)
    limits = {
        "CHAT_NEST_STORE_LEASE": "5",
        "CHAT_NEST_PROFILES_BALANCED_CONCURRENT_STREAMS": "1",
        "CHAT_NEST_PROFILES_BALANCED_TOKENS_PER_DAY": "5000",
        "CHAT_NEST_PROFILES_BALANCED_MAX_OUTPUT_TOKENS": "1000",
        **clock.environ,
    }
    async with ScriptedProvider(stream(chunk("one"), HANG), answer) as provider:
        async with workers(tmp_path, provider, kind, 2, **limits) as (first, second), connect(second.port) as client:
            before = await settled(second.port, headers=user)
            async with connect(first.port) as killed:
                clock.step(DAY)
                await (await killed.post(headers={**JSON, **user})).until("token")
                await first.kill()
            clock.step(0)
            async with asyncio.timeout(120):
                while (reply := await client.post(headers={**JSON, **user})).status == 429:
                    assert (await reply.json())["code"] == "too_many_streams"
                    await asyncio.sleep(0.2)
            assert reply.status == 200
            await reply.until("done")
            after = await settled(second.port, headers=user)
            assert after["tokens_per_day"]["used"] - before["tokens_per_day"]["used"] == 11
            clock.step(DAY)
            tomorrow = (await settled(second.port, headers=user))["tokens_per_day"]["used"]
            assert tomorrow >= 1_000, "the lost answer is charged to the day that its worker believed in"
