"""The stores that the contract is run on, a clock to hold in hand, and short ways to make lines and claims."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from chat_nest.core.claims import Claim, Line
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.redis import RedisStore
from chat_nest.stores.sqlite import SQLiteStore
from postgres_server import empty, shared_url
from redis_servers import shared_cluster, shared_redis_url

START = 1_790_000_000.0
LEASE = 60.0


class Clock:
    def __init__(self, now=START):
        self.now = now

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@asynccontextmanager
async def memory(now):
    yield MemoryStore(now)


@asynccontextmanager
async def sqlite(now):
    with quick_directory() as directory:
        store = SQLiteStore(directory / "store.db", now)
        try:
            yield store
        finally:
            await store.aclose()


@asynccontextmanager
async def postgres(now):
    from chat_nest.stores.postgres import PostgresStore

    url = shared_url()
    empty(url)
    store = PostgresStore(url, max_connections=4, timeout=60.0, _now=now)  # each plans its functions anew
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def redis(now):
    store = RedisStore(shared_redis_url(), prefix=secrets.token_hex(8), _now=now)
    store._timeout = 60.0  # a busy machine is no outage
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def cluster(now):
    store = RedisStore(shared_cluster().url, prefix=secrets.token_hex(8), _now=now)
    store._timeout = 60.0  # a busy machine is no outage
    try:
        yield store
    finally:
        await store.aclose()


STORES = {"memory": memory, "sqlite": sqlite, "postgres": postgres, "redis": redis, "cluster": cluster}


@contextmanager
def quick_directory():
    """A directory in memory where there is one: thousands of commits should not wait for a disk."""
    quick = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=quick if os.access(quick, os.W_OK) else None) as directory:
        yield Path(directory)


def window(limit, fixed=0, per_token=1, *, key="day", unit="tokens", resets_at=START + 86_400, name="tokens_per_day"):
    return Line(
        name=name,
        scope="caller",
        key=key,
        unit=unit,
        kind="window",
        limit=limit,
        fixed=fixed,
        per_million=per_token * 1_000_000,
        resets_at=resets_at,
    )


def rate(limit, fixed=1, per_token=0, *, key="minute", unit="requests", period=60, name="requests_per_minute"):
    return Line(
        name=name,
        scope="caller",
        key=key,
        unit=unit,
        kind="rate",
        limit=limit,
        fixed=fixed,
        per_million=per_token * 1_000_000,
        period=period,
    )


def gauge(limit, *, key="streams"):
    return Line(name="concurrent_streams", scope="caller", key=key, unit="streams", kind="gauge", limit=limit, fixed=1)


def request(limit, fixed=0, per_token=1, *, key="request"):
    return Line(
        name="tokens_per_request",
        scope="caller",
        key=key,
        unit="tokens",
        kind="request",
        limit=limit,
        fixed=fixed,
        per_million=per_token * 1_000_000,
    )


def claim(id, *lines, most=100, least=1, fingerprint="same"):
    return Claim(id=id, fingerprint=fingerprint, lines=tuple(lines), max_output_tokens=most, min_output_tokens=least)


async def standing(store, line):
    """(used, held) of one line."""
    [found] = await store.peek([line])
    return found.used, found.held
