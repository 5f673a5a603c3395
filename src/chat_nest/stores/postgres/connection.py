"""Connections to PostgreSQL: calls to functions of the schema `chat_nest`, each answered or failed by its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any, LiteralString

from psycopg import AsyncConnection, Error, OperationalError
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import LockNotAvailable, QueryCanceled
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from chat_nest.core.errors import LimiterUnavailable, StoreEmptied
from chat_nest.stores.epochs import Epochs
from chat_nest.stores.places import sentence
from chat_nest.stores.postgres.schema import (
    ADDED_QUERY,
    HAS_ADDITIONS,
    VERSION,
    VERSION_QUERY,
    bring_up_to_date,
    check_version,
)

_log = logging.getLogger(__name__)
_MIGRATING = 60.0
"""Seconds that a migration may take. Calls fail at their own deadlines meanwhile."""
_CONNECTING = 2
"""Seconds to connect, at most."""
_EMPTIED = frozenset({"CN001", "3F000", "42704", "42883", "42P01"})
"""SQLSTATEs that mean a known store has lost its epoch, its schema, a type, a function or a table."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.1
"""Seconds between two attempts."""

Row = tuple[Any, ...]
Values = Sequence[str | list[str] | None]


class PostgresLink:
    """Connections and their running calls, for one event loop. Opened as calls need them.

    A call runs in a task of its own that is never cancelled: psycopg would answer a cancellation by asking the server
    to stop, and wait for up to ten seconds. The caller may leave at any time, and gets an error at the deadline. The
    task goes on, so that the connection is clean again: the server times out by itself, and a connection without any
    answer is shut down. The most recently used connection is used next: its server process has planned already.
    """

    def __init__(
        self, url: str, *, place: str, timeout: float, max_connections: int, epochs: Epochs | None = None
    ) -> None:
        self._url = url
        self._place = place
        self._epochs = epochs or Epochs()
        self._timeout = timeout
        settings = {
            # The server times out before the caller does.
            "statement_timeout": f"{int(timeout * 900)}ms",
            "lock_timeout": f"{int(timeout * 800)}ms",
            "idle_in_transaction_session_timeout": f"{int(timeout * 1000)}ms",
            "default_transaction_isolation": r"read\ committed",  # each step must see what others did before it
            "default_transaction_read_only": "off",
            # Short statements on small sets of keys: planned once, and by index for any table size.
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

    async def repair(self) -> None:
        """Create the schema anew if one of its tables is missing; the rest of the old one is renamed and stays.

        Raises LimiterUnavailable.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            if await self._version(deadline) and (await self._exchange(_GONE, (), deadline))[0]:
                await _apply(self._url, self._arguments, f"chat_nest_lost_{secrets.token_hex(4)}")
        except (Error, OSError) as error:
            raise self._unavailable(error) from error

    async def close(self) -> None:
        """Wait for the running calls, then close the connections."""
        while self._calls:
            await asyncio.wait(self._calls)
        if self._migration is not None and not self._migration.done():
            self._migration.cancel()
            await asyncio.wait([self._migration])
        await self._close_idle()

    def _forget(self, task: asyncio.Task[Row]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may have left

    async def _answer(self, query: LiteralString, values: Values, deadline: float) -> Row:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            try:
                if not self._migrated:
                    await self._migrate(deadline)
                row = await self._exchange(query, values, deadline)
            except (LockNotAvailable, QueryCanceled, TimeoutError) as error:  # these used up the time limit
                raise self._unavailable(error) from error
            except OperationalError as error:  # the network, a restart, a deadlock: another attempt may succeed
                if loop.time() + pause >= deadline:
                    raise self._unavailable(error) from error
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except (Error, OSError, StoreEmptied) as error:
                if self._knows() and getattr(error, "sqlstate", "") in _EMPTIED:
                    await self._close_idle()  # their plans use functions that are gone
                    raise self._unavailable(self._epochs.emptied()) from error
                raise self._unavailable(error) from error
            else:
                if self._failing:
                    self._failing = False
                    _log.warning("%s answers again", sentence(self._place))
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
                    raise TimeoutError("no connection in time")  # no caller waits for the answer
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

    def _knows(self) -> bool:
        """Return whether the store has been seen before."""
        return bool(self._epochs.seen())

    def _unavailable(self, cause: Exception) -> LimiterUnavailable:
        if not self._failing:
            self._failing = True
            why = getattr(cause, "advice", "") or getattr(cause, "sqlstate", None) or type(cause).__name__
            _log.warning("%s does not answer: %s", sentence(self._place), why)
        if isinstance(cause, StoreEmptied):
            return cause
        error = LimiterUnavailable()
        error.__cause__ = cause
        return error

    async def _migrate(self, deadline: float) -> None:
        """Update the schema if it is old; calls wait for one attempt together, until their deadlines."""
        version = await self._version(deadline)
        if version == 0 and self._knows():
            raise self._epochs.emptied()  # a new schema would block the restore of a backup
        if version < VERSION:
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
        [version] = await self._exchange(VERSION_QUERY, (), deadline)
        check_version(version)
        [has_additions] = await self._exchange(HAS_ADDITIONS, (), deadline)
        if has_additions:
            [added] = await self._exchange(ADDED_QUERY, (), deadline)
            version = max(version, added)
        return int(version)


_GONE = """
SELECT count(*)
FROM unnest(ARRAY['counters', 'reservations', 'requests', 'controls', 'firsts', 'reports', 'acts']) AS name
WHERE to_regclass('chat_nest.' || name) IS NULL
"""


async def _apply(url: str, arguments: dict[str, Any], aside: str = "") -> None:
    connection = await AsyncConnection.connect(url, **arguments)
    hang_up = asyncio.get_running_loop().call_later(_MIGRATING, _hang_up, connection)
    try:
        await bring_up_to_date(connection, aside)
    finally:
        hang_up.cancel()
        await connection.close()


def _hang_up(connection: AsyncConnection[TupleRow]) -> None:
    """Shut the socket down, so that a waiting call gets an OperationalError at once."""
    with contextlib.suppress(OSError, Error), socket.socket(fileno=os.dup(connection.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)
