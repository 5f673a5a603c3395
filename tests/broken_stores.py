"""Real stores that a test breaks as it likes: `async with store.broken("frozen", dice): ...`, and then they are whole again.

Each has a server, or a file, of its own. `FAULTS` are the ways to break it:

frozen      it answers nobody
slow        its answers take up to a second and a half, longer than most calls wait
lost        it does what it is asked, and every other answer is lost with its connection
refused     nobody can connect, and who was connected is cut off
restarted   it is killed, and begins anew with what was on its disk
full        it takes nothing new: of PostgreSQL, the disk of its tables and its log is full, which it may not survive
read_only   it refuses all writes; of SQLite, the file was replaced by a copy that may only be read
emptied     all is gone, or the counters alone, until an operator accepts that
restored    all is gone, and comes back from a backup
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from postgres_server import PostgresServer, can_mount, rows
from redis_servers import RedisServer
from store_link import StoreLink
from store_servers import PostgresStoreServer, RedisStoreServer, SQLiteStoreFile

from chat_nest.core.errors import LimiterUnavailable
from chat_nest.stores.urls import open_store


EMPTYING = (
    "TRUNCATE chat_nest.counters, chat_nest.reservations, chat_nest.requests",
    "TRUNCATE chat_nest.counters",
    "DROP TABLE chat_nest.counters",
    "DROP SCHEMA chat_nest CASCADE",
)
"""What empties a PostgreSQL."""
_DISK_MB = 80
_FILLING = """
INSERT INTO chat_nest.reservations (id, fingerprint, state, call, output, reserved_at, expires_at, names, keys, units,
  kinds, held, limits, periods, until)
SELECT gen_random_uuid(), 'filling', 'released', 0, 0, 0, 0, array[repeat('x', 300)], '{}', '{}', '{}', '{}', '{}', '{}', '{}'
"""
"""A row that counts for nothing and leaves no room in a page for a row of ours."""


class Redis:
    """It keeps what it has told on its disk."""

    FAULTS = ("frozen", "slow", "lost", "refused", "restarted", "full", "read_only", "emptied", "restored")

    def __init__(self, _folder: Path) -> None:
        self.server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
        self.link = StoreLink(self.server.port)
        self.reader = RedisStoreServer(self.server)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.link.port}"

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.server.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.signal(signal.SIGCONT)

    def restart(self) -> None:
        self.server.kill()
        self.server.start()

    @contextmanager
    def full(self, _pids: Callable[[], list[int]], _dice: random.Random) -> Iterator[None]:
        assert self.server.ask("CONFIG", "SET", "maxmemory", "1") == b"OK"
        yield
        assert self.server.ask("CONFIG", "SET", "maxmemory", "0") == b"OK"

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """A replica of nobody."""
        assert self.server.ask("REPLICAOF", "127.0.0.1", "1") == b"OK"
        yield
        assert self.server.ask("REPLICAOF", "NO", "ONE") == b"OK"

    def empty(self, _dice: random.Random | None = None) -> None:
        assert self.server.ask("FLUSHALL") == b"OK"

    @contextmanager
    def gone(self) -> Iterator[None]:
        assert self.server.ask("SWAPDB", "0", "1") == b"OK"
        yield
        assert self.server.ask("SWAPDB", "0", "1") == b"OK"

    def close(self) -> None:
        self.link.cut()
        self.server.stop()


class Postgres:
    """Those who ask it are no superusers, and own its database. Where root may mount one, it has a small disk to fill."""

    FAULTS = ("frozen", "slow", "lost", "refused", "restarted", "full", "read_only", "emptied", "restored")

    def __init__(self, _folder: Path) -> None:
        self.server = PostgresServer(_DISK_MB if can_mount() else 0)
        self.link = StoreLink(self.server.port)
        rows(self.server.url, "CREATE ROLE nest LOGIN")
        rows(self.server.url, "CREATE DATABASE chats OWNER nest")
        self.reader = PostgresStoreServer(f"postgresql://postgres@127.0.0.1:{self.server.port}/chats")

    @property
    def url(self) -> str:
        return f"postgresql://nest@127.0.0.1:{self.link.port}/chats"

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.server.signal_all(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.signal_all(signal.SIGCONT)

    def restart(self) -> None:
        self.server.crash()
        self.server.start()

    @contextmanager
    def full(self, _pids: Callable[[], list[int]], dice: random.Random) -> Iterator[None]:
        """Fill the disk. The tables take no new row; or the log gets no new file, and the server stops itself."""
        with self.server.full_disk():
            with contextlib.suppress(psycopg.OperationalError):
                if dice.random() < 0.5:
                    self._run("SELECT pg_switch_wal()")
                while True:
                    self._run(_FILLING)
            yield
        self.server.start()
        self._run("DELETE FROM chat_nest.reservations WHERE fingerprint = 'filling'")

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self._run("REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA chat_nest FROM nest")
        yield
        self._run("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA chat_nest TO nest")

    def empty(self, dice: random.Random | None = None) -> None:
        self._run((dice or random).choice(EMPTYING))

    @contextmanager
    def gone(self) -> Iterator[None]:
        self._run("ALTER SCHEMA chat_nest RENAME TO elsewhere")
        yield
        self._run("ALTER SCHEMA elsewhere RENAME TO chat_nest")

    def _run(self, statement: str) -> None:
        """It waits for its locks: so do calls, which last less than a second."""
        with psycopg.connect(self.reader.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def close(self) -> None:
        self.link.cut()
        self.server.remove()


class SQLite:
    """A file, whose server is its kernel."""

    FAULTS = ("frozen", "slow", "full", "read_only", "emptied", "restored")

    def __init__(self, folder: Path) -> None:
        self.path = folder / "chat-nest.db"
        self.url = f"sqlite:///{self.path}"
        self.reader = SQLiteStoreFile(self.path)
        self.link = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with self._locked():
            yield

    @contextmanager
    def full(self, pids: Callable[[], list[int]], _dice: random.Random) -> Iterator[None]:
        """None of these processes can make a file longer, nor can any write behind a file's first byte."""
        limited = pids()
        for pid in limited:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        yield
        for pid in set(limited) & set(pids()):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """What comes of a backup that another user put back. Root may write it, unless it lacks CAP_DAC_OVERRIDE."""
        with self._locked():
            backup = self._backup()
            backup.chmod(0o444)
            self._remove()
            backup.rename(self.path)
        yield
        for path in self._files():
            path.chmod(0o600)

    def restart(self) -> None:
        """A file has no server."""

    def empty(self, dice: random.Random | None = None) -> None:
        how = (dice or random).randrange(3)
        with self._locked() as connection:
            if how == 0:
                self._remove()
            else:
                connection.execute(("DELETE FROM counters", "DROP TABLE counters")[how - 1])
                connection.execute("COMMIT")

    @contextmanager
    def gone(self) -> Iterator[None]:
        with self._locked():  # nothing is written between the backup and the loss
            backup = self._backup()
            self._remove()
        yield
        backup.rename(self.path)

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connection()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def _connection(self) -> sqlite3.Connection:
        """Broken in one thread, it is mended in another."""
        return sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)

    def _backup(self) -> Path:
        backup = self.path.with_name("backup")
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(backup)) as target:
            source.backup(target)
        return backup

    def _files(self) -> list[Path]:
        return list(self.path.parent.glob(f"{self.path.name}*"))

    def _remove(self) -> None:
        for path in self._files():
            path.unlink()

    def close(self) -> None:
        pass


BrokenStore = Redis | Postgres | SQLite
KINDS: dict[str, type[Redis] | type[Postgres] | type[SQLite]] = {
    "sqlite": SQLite,
    "redis": Redis,
    "postgresql": Postgres,
}


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[BrokenStore]:
    """A new store of this kind."""
    store: BrokenStore = await asyncio.to_thread(lambda: KINDS[kind](folder))
    try:
        if store.link is not None:
            await store.link.repair()
        yield store
    finally:
        store.close()


@asynccontextmanager
async def broken(
    store: BrokenStore, fault: str, dice: random.Random, pids: Callable[[], list[int]]
) -> AsyncIterator[None]:
    """Break the store while this is open. `pids` are the processes that use it."""
    async with _BREAKS.get(fault, _by_itself(fault))(store, dice, pids):
        yield


@asynccontextmanager
async def _slow(store: BrokenStore, dice: random.Random, _pids: Any) -> AsyncIterator[None]:
    if store.link is not None:
        store.link.delay = lambda: dice.uniform(0.0, 1.5)
        try:
            yield
        finally:
            store.link.delay = None
        return

    async def hold() -> None:
        """The lock of the file, most of the time."""
        while True:
            with store.frozen():
                await asyncio.sleep(dice.uniform(0.0, 1.5))
            await asyncio.sleep(0.01)

    holding = asyncio.create_task(hold())
    try:
        yield
    finally:
        holding.cancel()
        await asyncio.wait([holding])
        if not holding.cancelled():
            holding.result()


@asynccontextmanager
async def _lost(store: BrokenStore, dice: random.Random, _pids: Any) -> AsyncIterator[None]:
    assert store.link is not None
    store.link.loses = lambda: dice.random() < 0.5
    try:
        yield
    finally:
        store.link.loses = None


@asynccontextmanager
async def _refused(store: BrokenStore, _dice: Any, _pids: Any) -> AsyncIterator[None]:
    assert store.link is not None
    store.link.cut()
    try:
        yield
    finally:
        await store.link.repair()


@asynccontextmanager
async def _restarted(store: BrokenStore, _dice: Any, _pids: Any) -> AsyncIterator[None]:
    restarting = asyncio.create_task(asyncio.to_thread(store.restart))
    try:
        yield
    finally:
        await restarting


@asynccontextmanager
async def _emptied(store: BrokenStore, dice: random.Random, _pids: Any) -> AsyncIterator[None]:
    await asyncio.to_thread(store.empty, dice)
    yield
    ours: Any = open_store(store.url)
    try:
        while True:
            with contextlib.suppress(LimiterUnavailable):  # a busy machine; an operator tries again
                await ours.accept()
                break
    finally:
        await ours.aclose()


_BREAKS: dict[str, Any] = {
    "slow": _slow,
    "lost": _lost,
    "refused": _refused,
    "restarted": _restarted,
    "emptied": _emptied,
}


def _by_itself(fault: str) -> Any:
    """A fault that the store's own method makes."""

    @asynccontextmanager
    async def break_it(store: Any, dice: random.Random, pids: Callable[[], list[int]]) -> AsyncIterator[None]:
        name = {"restored": "gone"}.get(fault, fault)
        manager = store.full(pids, dice) if name == "full" else getattr(store, name)()
        await asyncio.to_thread(manager.__enter__)
        try:
            yield
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)

    return break_it
