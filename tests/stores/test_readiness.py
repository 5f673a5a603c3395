"""Whether a store that can be read but not written to counts as ready: it admits no request."""

from __future__ import annotations

import asyncio
import resource
from contextlib import asynccontextmanager

import pytest
from postgres_server import PostgresServer
from redis_servers import RedisServer

from chat_nest.server.health import UNWRITABLE, Health
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.redis import RedisStore
from chat_nest.stores.sqlite import SQLiteStore
from chat_nest.testing import FakeClock


@asynccontextmanager
async def checked(store):
    """Yield a function that checks the store again, and returns its part of the readiness."""
    clock = FakeClock()
    health = Health(store, {}, {}, store_seconds=60, clock=clock)

    async def part():
        clock.advance(10)
        return (await health.readiness()).store

    try:
        assert (await part()).status == "ok"
        yield part
        while (await part()).status != "ok":  # a connection may first have to be opened again
            await asyncio.sleep(0.05)
    finally:
        await health.aclose()
        await store.aclose()


def unwritable(part):
    return part.status == "limiter_unavailable" and part.advice.endswith(
        f"answers, but can't be written to: {UNWRITABLE}"
    )


async def test_sqlite_on_a_full_disk(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with checked(SQLiteStore(tmp_path / "store.db")) as part:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
            found = [await part(), await part()]  # a second time on a connection that was opened anew
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert unwritable(found[0])
        assert found[1].status == "limiter_unavailable"


@pytest.fixture
def redis():
    server = RedisServer()
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("breaks", "mends"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("CONFIG", "SET", "min-replicas-to-write", "3"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
    ],
    ids=["out of memory", "too few replicas"],
)
async def test_redis_that_takes_no_writes(redis, breaks, mends):
    async with checked(RedisStore(redis.url)) as part:
        assert redis.ask(*breaks) == b"OK"
        assert unwritable(await part())
        assert redis.ask(*mends) == b"OK"


async def test_redis_that_became_a_replica(redis):
    other = RedisServer()
    try:
        async with checked(RedisStore(redis.url)) as part:
            redis.ask("REPLICAOF", "127.0.0.1", str(other.port))
            found = await part()
            assert found.status == "limiter_unavailable"
            redis.ask("REPLICAOF", "NO", "ONE")
    finally:
        other.stop()


async def test_postgres_that_is_a_standby():
    server = PostgresServer()
    try:
        async with checked(PostgresStore(server.url)) as part:
            server.become_standby()
            assert unwritable(await until(part, lambda found: "written" in found.advice))
            server.promote()
    finally:
        server.remove()


async def until(part, true):
    while not true(found := await part()):
        await asyncio.sleep(0.05)
    return found
