"""Calls to functions of the schema `chat_nest` in a PostgreSQL database, each answered or failed by its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, LiteralString

from psycopg import AsyncConnection, Error, NotSupportedError, OperationalError
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import LockNotAvailable, QueryCanceled
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from chat_nest.errors import LimiterUnavailable

_log = logging.getLogger(__name__)
_MIGRATING = 60.0
"""Seconds that a migration may take. Calls fail at their own deadlines meanwhile."""
_MIGRATION_LOCK = 7_160_921_001
"""The key of an advisory lock."""
_CONNECTING = 2
"""Seconds to connect, at most."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.1
"""Seconds between two tries."""

Row = tuple[Any, ...]
Values = Sequence[str | list[str] | None]


class PostgresLink:
    """Connections and the calls that are under way on them, for one event loop. Opened as calls need them.

    A call runs in a task of its own, which nobody cancels: psycopg would answer a cancellation by asking the server to
    stop, and wait for up to ten seconds. Whoever waits for a call may leave at any time; at the deadline they are sent
    away. The task goes on, so that the connection is clean again: the server gives up by itself, and one that does not
    answer at all is hung up on. The connection that was used last is used next: its server process has planned already.
    """

    def __init__(self, url: str, *, timeout: float, max_connections: int) -> None:
        self._url = url
        self._timeout = timeout
        settings = {
            # The server gives up before the caller does.
            "statement_timeout": f"{int(timeout * 900)}ms",
            "lock_timeout": f"{int(timeout * 800)}ms",
            "idle_in_transaction_session_timeout": f"{int(timeout * 1000)}ms",
            "default_transaction_isolation": r"read\ committed",  # each step must see what others did before it
            "default_transaction_read_only": "off",
            # Short statements on small sets of keys: planned once, and by index however small the table is by then.
            "plan_cache_mode": "force_generic_plan",
            "enable_seqscan": "off",
            "jit": "off",
        }
        given = conninfo_to_dict(url)
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._arguments: dict[str, Any] = {
            "autocommit": True,
            "connect_timeout": _CONNECTING,
            "application_name": given.get("application_name") or "chat-nest",
            "options": f"{given.get('options') or ''} {options}".strip(),
        }
        self._turns = asyncio.Semaphore(max_connections)
        self._idle: list[AsyncConnection[TupleRow]] = []
        self._calls: set[asyncio.Task[Row]] = set()
        self._migration: asyncio.Task[None] | None = None
        self._migrated = False
        self._failing = False

    async def call(self, query: LiteralString, values: Values) -> Row:
        """Return the row that the function returns. Raises LimiterUnavailable."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        task = asyncio.create_task(self._answer(query, values, deadline))
        self._calls.add(task)
        task.add_done_callback(self._forget)
        await asyncio.wait([task], timeout=self._timeout)
        if not task.done():
            raise self._unavailable(TimeoutError("no answer in time"))
        return task.result()

    async def close(self) -> None:
        """Wait for the calls that are under way, then close the connections."""
        while self._calls:
            await asyncio.wait(self._calls)
        if self._migration is not None and not self._migration.done():
            self._migration.cancel()
            await asyncio.wait([self._migration])
        await self._close_idle()

    def _forget(self, task: asyncio.Task[Row]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # who called may have left

    async def _answer(self, query: LiteralString, values: Values, deadline: float) -> Row:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            try:
                if not self._migrated:
                    await self._migrate(deadline)
                row = await self._exchange(query, values, deadline)
            except (LockNotAvailable, QueryCanceled, TimeoutError) as error:  # this took as long as it may
                raise self._unavailable(error) from error
            except OperationalError as error:  # the network, a restart, a deadlock: another try may succeed
                if loop.time() + pause >= deadline:
                    raise self._unavailable(error) from error
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except (Error, OSError) as error:
                raise self._unavailable(error) from error
            else:
                if self._failing:
                    self._failing = False
                    _log.warning("The PostgreSQL store answers again")
                return row

    async def _exchange(self, query: LiteralString, values: Values, deadline: float) -> Row:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(deadline):
            await self._turns.acquire()
        try:
            connection = self._idle.pop() if self._idle else await AsyncConnection.connect(self._url, **self._arguments)
            hang_up = loop.call_later(self._timeout, _hang_up, connection)
            try:
                if loop.time() >= deadline:
                    raise TimeoutError("no connection in time")  # nobody waits for the answer
                cursor = await connection.execute(query, values)
                row = await cursor.fetchone()
            finally:
                hang_up.cancel()
                await self._take_back(connection)
        finally:
            self._turns.release()
        if row is None:
            raise OperationalError("no row")
        return row

    async def _take_back(self, connection: AsyncConnection[TupleRow]) -> None:
        if connection.pgconn.transaction_status == TransactionStatus.IDLE:
            self._idle.append(connection)
        else:  # the server went away: the other connections are then lost too
            await connection.close()
            await self._close_idle()

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()

    def _unavailable(self, cause: Exception) -> LimiterUnavailable:
        if not self._failing:
            self._failing = True
            state = getattr(cause, "sqlstate", None)
            _log.warning("The PostgreSQL store does not answer: %s", state or type(cause).__name__)
        error = LimiterUnavailable()
        error.__cause__ = cause
        return error

    async def _migrate(self, deadline: float) -> None:
        """Bring the schema up to date if it is not; calls wait for one attempt together, until their deadlines."""
        version = await self._version(deadline)
        if version < len(_migrations()):
            if self._migration is None or self._migration.done():
                self._migration = asyncio.create_task(_apply(self._url, self._arguments))
            await asyncio.wait([self._migration], timeout=deadline - asyncio.get_running_loop().time())
            if not self._migration.done():
                raise OperationalError("the schema is being migrated")
            self._migration.result()
        self._migrated = True

    async def _version(self, deadline: float) -> int:
        [exists] = await self._exchange("SELECT to_regclass('chat_nest.migrations') IS NOT NULL", (), deadline)
        if not exists:
            return 0
        [version] = await self._exchange(_VERSION, (), deadline)
        return _checked(version)


_VERSION = "SELECT coalesce(max(version), 0) FROM chat_nest.migrations"


def _checked(version: int) -> int:
    if version > len(_migrations()):
        raise NotSupportedError("the schema chat_nest was made by a newer version of chat-nest")
    return version


def _migrations() -> list[str]:
    """The scripts, oldest first: the first one makes version 1."""
    found = files("chat_nest.stores").joinpath("sql").iterdir()
    scripts = {file.name: file for file in found if file.name.startswith("postgres_")}
    return [scripts[name].read_text(encoding="utf-8") for name in sorted(scripts)]


async def _apply(url: str, arguments: dict[str, Any]) -> None:
    """Apply what is missing, once: others that come meanwhile wait, and find it done."""
    connection = await AsyncConnection.connect(url, **arguments)
    hang_up = asyncio.get_running_loop().call_later(_MIGRATING, _hang_up, connection)
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])
            cursor = await connection.execute("SELECT to_regnamespace('chat_nest') IS NULL")
            if await cursor.fetchone() == (True,):  # who may not create it may find it there
                await connection.execute("CREATE SCHEMA chat_nest")
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS chat_nest.migrations"
                " (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            cursor = await connection.execute(_VERSION)
            row = await cursor.fetchone()
            version = _checked(row[0] if row else 0)
            for number, script in enumerate(_migrations()[version:], start=version + 1):
                await connection.execute(script.encode())
                await connection.execute("INSERT INTO chat_nest.migrations (version) VALUES (%s)", [number])
    finally:
        hang_up.cancel()
        await connection.close()


def _hang_up(connection: AsyncConnection[TupleRow]) -> None:
    """Shut the socket down, so that whoever waits for an answer gets an OperationalError at once."""
    with contextlib.suppress(OSError, Error), socket.socket(fileno=os.dup(connection.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)
