"""What a store holds, read without our code: Redis's own commands, or SQL.

`counters()` are the used and held of each window, `claims()` what it keeps of each request, `streams()` how many running
answers all its gauges count.
"""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from postgres_server import new_database, rows, shared_url
from redis_servers import RedisCluster, RedisServer


@dataclass(frozen=True)
class Claimed:
    """A request as the store keeps it: what it was charged or, while it is open, what it holds."""

    state: str
    tokens: int
    source: str


class RedisStoreServer:
    """The counters of a fleet in Redis, read with Redis's own words."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.url = server.url

    def counters(self) -> dict[str, tuple[int, int]]:
        """The used and held of each window."""
        found = {}
        for name in self.server.ask("KEYS", "*:window:*"):
            used, held = self.server.ask("HMGET", name, "used", "held")
            found[name.decode().partition(":window:")[2]] = int(used or 0), int(held or 0)
        return found

    def streams(self) -> int:
        names = self.server.ask("KEYS", "*:gauge:*")
        return sum(int(self.server.ask("HGET", name, "held") or 0) for name in names)

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """It answers nobody while this is open."""
        self.server.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.signal(signal.SIGCONT)

    def claims(self) -> dict[str, Claimed]:
        """What it keeps of each request, by its id."""
        names = self.server.ask("KEYS", "*:claim:*")
        packed = self.server.ask("MGET", *names) if names else []
        found = {}
        for name, one in zip(names, packed, strict=True):
            claim = msgspec.msgpack.decode(one, type=_Claim)
            found[name.decode().partition(":claim:")[2]] = Claimed(claim.state, _tokens(claim), claim.source)
        return found


class ClusterStoreServer:
    """The counters of a fleet in a Redis Cluster, as its masters have them now."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.cluster = cluster
        self.url = cluster.url

    def counters(self) -> dict[str, tuple[int, int]]:
        """The used and held of each window."""
        found: dict[str, tuple[int, int]] = {}
        for node in self.cluster.nodes:
            if node.process.poll() is None and node.ask("ROLE")[0] == b"master":
                found |= RedisStoreServer(node).counters()
        return found


class _Claim(msgspec.Struct):
    """What is of interest here of a claim in Redis."""

    state: str
    source: str = ""
    actual: Any = None
    holds: Any = ()


def _tokens(claim: _Claim) -> int:
    if claim.state == "settled":
        return claim.actual["tokens"]
    return next((hold["held"] for hold in claim.holds or () if hold["unit"] == "tokens"), 0)


class PostgresStoreServer:
    """The same in PostgreSQL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def counters(self) -> dict[str, tuple[int, int]]:
        found = rows(self.url, "SELECT key, used, held FROM chat_nest.counters WHERE kind = 'window'")
        return {key: (used, held) for key, used, held in found}

    def records(self) -> dict[str, int]:
        """The tokens of each request that is over, by its id."""
        return dict(rows(self.url, "SELECT id, (input_tokens + output_tokens)::int FROM chat_nest.requests"))

    def streams(self) -> int:
        [[held]] = rows(self.url, "SELECT coalesce(sum(held), 0)::int FROM chat_nest.counters WHERE kind = 'gauge'")
        return held

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """It answers nobody while this is open."""
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            await connection.execute("LOCK TABLE chat_nest.reservations, chat_nest.counters")
            yield

    def claims(self) -> dict[str, Claimed]:
        """What it keeps of each request, by its id."""
        found = rows(
            self.url,
            "SELECT r.id, r.state, max(coalesce(l.actual, l.held)), r.source FROM chat_nest.reservations r"
            " LEFT JOIN chat_nest.reservation_lines l ON l.id = r.id AND l.unit = 'tokens' GROUP BY r.id",
        )
        return {id: Claimed(state, tokens or 0, source or "") for id, state, tokens, source in found}


class SQLiteStoreFile:
    """The same in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def counters(self) -> dict[str, tuple[int, int]]:
        found = self._rows("SELECT key, used, held FROM counters WHERE kind = 'window'")
        return {key: (used, held) for key, used, held in found}

    def claims(self) -> dict[str, Claimed]:
        found = {}
        for id, state, source, lines in self._rows("SELECT id, state, source, lines FROM reservations"):
            tokens = [line.get("actual", line["held"]) for line in json.loads(lines) if line["unit"] == "tokens"]
            found[id] = Claimed(state, max(tokens, default=0), source or "")
        return found

    def records(self) -> dict[str, int]:
        return dict(self._rows("SELECT id, input_tokens + output_tokens FROM requests"))

    def streams(self) -> int:
        [[held]] = self._rows("SELECT coalesce(sum(held), 0) FROM counters WHERE kind = 'gauge'")
        return held

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """It answers nobody while this is open."""
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield

    def _rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            return connection.execute(query).fetchall()


Store = RedisStoreServer | PostgresStoreServer


@asynccontextmanager
async def new_store(kind: str) -> AsyncIterator[Store]:
    """An empty store of this kind: a Redis server, or a database, of its own."""
    if kind == "redis":
        server = RedisServer()
        try:
            yield RedisStoreServer(server)
        finally:
            server.stop()
    else:
        url, remove = new_database(shared_url())
        try:
            yield PostgresStoreServer(url)
        finally:
            remove()
