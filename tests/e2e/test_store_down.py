"""`chat-nest serve` on a real Redis that freezes, or can't be reached: what its users and its ledger see."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import asynccontextmanager
from pathlib import Path

import forked_command
import pytest
from raw_client import HELLO, connect
from redis_servers import RedisServer
from scripted_provider import DONE, ScriptedProvider, answer, chunk, finish, stream, usage
from store_link import StoreLink

from chat_nest.core.limits import Limits
from chat_nest.limits.spec import BUILT_IN_PROFILES, HARD_CAPS
from chat_nest.core.messages import Caller
from chat_nest.limits.profiles import Profiles
from chat_nest.stores.redis import RedisStore

LISTENING = re.compile(rb"chat-nest: listening on http://127\.0\.0\.1:(\d+)\n")
BUDGET = 100_000
SPENT = 8
"""Tokens of one answer, as the scripted provider reports them."""
BUSY = 503, "limiter_unavailable"


@pytest.fixture
def redis():
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
async def link(redis):
    link = StoreLink(redis.port)
    await link.repair()
    yield link
    link.cut()


@asynccontextmanager
async def serving(folder: Path, provider: ScriptedProvider, store: int, **environ: str):
    """(port, process) of a server whose Redis is on the port `store`."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    clean |= {
        "OPENAI_BASE_URL": provider.url,
        "OPENAI_API_KEY": "sk-canary",
        "CHAT_NEST_STORE_URL": f"redis://127.0.0.1:{store}",
        "CHAT_NEST_LIMITS_TOKENS_PER_DAY": str(BUDGET),
    }
    process = await forked_command.run(
        *("serve", "--port", "0"), cwd=folder, env=clean | environ, stdout=PIPE, stderr=DEVNULL
    )
    said = b""
    while not (found := LISTENING.search(said)):
        piece = await process.stdout.read(4_096)
        assert piece, said
        said += piece
    try:
        yield int(found[1]), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ask(port: int) -> tuple[int, str]:
    """The status, and the code of what went wrong or the name of the last event."""
    async with connect(port) as client:
        reply = await client.post(HELLO)
        if reply.status != 200:
            return reply.status, (await reply.json())["code"]
        return reply.status, (await reply.events())[-1].name


def journalled(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*.journal"))


async def readiness(port: int) -> tuple[int, str, str]:
    async with connect(port) as client:
        reply = await client.request("GET", "/readyz")
        found = json.loads(await reply.body())
        return reply.status, found["status"], found["store"]["status"]


async def standings(server: RedisServer) -> tuple[tuple[int, int], tuple[int, int]]:
    """(used, held) of all callers' day, and of our own."""
    rules = Profiles(BUILT_IN_PROFILES, Limits(tokens_per_day=BUDGET), HARD_CAPS, "UTC")
    lines = rules.lines(Caller(id="127.0.0.1"), BUILT_IN_PROFILES["balanced"], 0, time.time())
    store = RedisStore(server.url)
    try:
        days = [line for line in lines if line.name == "tokens_per_day"]
        own, everybodys = await store.peek(sorted(days, key=lambda line: line.scope == "all"))
        return (everybodys.used, everybodys.held), (own.used, own.held)
    finally:
        await store.aclose()


async def until(server: RedisServer, everybodys: tuple[int, int], own: tuple[int, int]) -> None:
    """Wait until the ledger says so; the test's time-out is the bound."""
    while await standings(server) != (everybodys, own):
        await asyncio.sleep(0.05)


def slow_answer(release: asyncio.Event):
    return stream(chunk("Hel"), release, chunk("lo"), finish(), usage(5, 3), DONE)


async def test_row43_a_frozen_store_ends_no_stream_and_admits_no_request(tmp_path, redis) -> None:
    release = asyncio.Event()
    async with ScriptedProvider(slow_answer(release)) as provider, serving(tmp_path, provider, redis.port) as served:
        port, process = served
        async with connect(port) as client:
            reply = await client.post(HELLO)
            await reply.until("token")
            redis.signal(signal.SIGSTOP)
            async with asyncio.timeout(240):
                assert await asyncio.gather(*(ask(port) for _ in range(5))) == [BUSY] * 5
            release.set()
            assert (await reply.events())[-1].name == "done"
        assert len(provider.requests) == 1
        redis.signal(signal.SIGCONT)
        await until(redis, (SPENT, 0), (SPENT, 0))
        assert await ask(port) == (200, "done")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert list(tmp_path.rglob("*.journal")) == []


async def test_row43_degraded_mode_answers_within_its_allowance(tmp_path, redis) -> None:
    async with (
        ScriptedProvider(answer("Hello", 3)) as provider,
        serving(
            tmp_path, provider, redis.port, CHAT_NEST_DEGRADED_TOKENS="2000", CHAT_NEST_DEGRADED_REQUESTS="3"
        ) as served,
    ):
        port, process = served
        await until(redis, (0, 2_000), (0, 0))
        assert await ask(port) == (200, "done")
        redis.signal(signal.SIGSTOP)
        async with asyncio.timeout(240):
            assert [await ask(port) for _ in range(4)] == [(200, "done")] * 3 + [BUSY]
            while (ready := await readiness(port)) == (200, "ready", "ok"):  # what it found out before is still fresh
                await asyncio.sleep(0.1)
        assert ready == (200, "degraded", "degraded")
        assert len(provider.requests) == 4
        redis.signal(signal.SIGCONT)
        await until(redis, (4 * SPENT, 2_000), (4 * SPENT, 0))
        assert await ask(port) == (200, "done")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        await until(redis, (5 * SPENT, 0), (5 * SPENT, 0))


@pytest.mark.parametrize("degraded", [False, True])
async def test_row48_a_settlement_outlives_the_process_that_was_killed(tmp_path, redis, link, degraded) -> None:
    release = asyncio.Event()
    environ = {"CHAT_NEST_DEGRADED_TOKENS": "2000"} if degraded else {}
    async with ScriptedProvider(slow_answer(release), answer("Hello", 3)) as provider:
        async with serving(tmp_path, provider, link.port, **environ) as (port, process):
            await until(redis, (0, 2_000 if degraded else 0), (0, 0))
            async with connect(port) as client:
                reply = await client.post(HELLO)
                await reply.until("token")
                link.cut()
                release.set()
                assert (await reply.events())[-1].name == "done"
            if degraded:
                assert await ask(port) == (200, "done")
            endings = [b'"ending":"settle"', b'"ending":"post"'] if degraded else [b'"ending":"settle"']
            while not all(ending in journalled(tmp_path) for ending in endings):
                await asyncio.sleep(0.01)
            process.kill()
            await process.wait()
        [path] = tmp_path.rglob("*.journal")
        assert "sk-canary" not in path.read_text() and "Hel" not in path.read_text()
        (everybodys, held), _ = await standings(redis)
        assert everybodys == 0 and held > SPENT
        await link.repair()
        async with serving(tmp_path, provider, link.port, **environ):
            # The dead process's allowance stays held until its lease expires; then all of it is charged.
            spent = 2 * SPENT if degraded else SPENT
            await until(redis, (SPENT, 4_000 if degraded else 0), (spent, 0))
            while list(tmp_path.rglob("*.journal")):  # which goes once the ledger has it; the time-out is the bound
                await asyncio.sleep(0.01)
