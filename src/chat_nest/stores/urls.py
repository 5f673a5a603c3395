"""Stores by URL, as in the configuration file."""

from __future__ import annotations

import time
from pathlib import Path

from chat_nest.core.extras import explain
from chat_nest.core.protocols import Now, Store
from chat_nest.core.records import RECORDS_DAYS
from chat_nest.stores.epochs import ACCEPT
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore

_FORMS = (
    "memory://, sqlite:///relative/path.db, sqlite:////absolute/path.db, or begin with postgresql://, redis://, "
    "rediss://, redis+cluster:// or redis+sentinel://"
)


def open_store(
    url: str,
    now: Now = time.time,
    *,
    records_days: float = RECORDS_DAYS,
    state: str | Path | None = None,
    accept: str = ACCEPT,
) -> Store:
    """Return the store that the URL names; nothing is opened before its first call.

    `state` is a directory that keeps the epoch of a Redis or PostgreSQL store, so that an emptied one is detected;
    SQLite keeps it beside its file. `accept` is the command that the error then names.

    If `keeps_records` is true of the URL, the store keeps each request's record for `records_days` days.

    The text after `sqlite:///` is the path as it is, without escapes or parameters; for Redis see
    `redis.topology.read_url`. Redis uses the server's clock, not `now`, and so does PostgreSQL, unless `now` is not the
    system's. Raises ValueError for another form, or if the extra that the form needs is not installed, and OSError if
    the SQLite file can't exist there.
    """
    if url == "memory://":
        return MemoryStore(now)
    if url.startswith(("postgresql://", "postgres://")):
        return _open_postgres(url, now, records_days, state, accept)
    if url.startswith(("redis://", "rediss://", "redis+", "rediss+")):
        return _open_redis(url, state, accept)
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.endswith("/") or "?" in path or "#" in path:
        raise ValueError(f"store.url must be {_FORMS}")
    return SQLiteStore(path, now, records_days=records_days, accept=accept)


def keeps_records(url: str) -> bool:
    """Return whether the store keeps each request's record, for `usage`; the others only know what is running."""
    return url.startswith(("sqlite:", "postgresql:", "postgres:"))


def _open_redis(url: str, state: str | Path | None, accept: str) -> Store:
    try:
        from chat_nest.stores.redis import RedisStore  # noqa: PLC0415 - an extra
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "hiredis":
            raise
        raise ValueError(f"store.url: {explain('Redis needs', 'redis', error)}") from None
    return RedisStore(url, state=state, accept=accept)


def _open_postgres(url: str, now: Now, records_days: float, state: str | Path | None, accept: str) -> Store:
    try:
        from chat_nest.stores.postgres import PostgresStore  # noqa: PLC0415 - psycopg is an extra
    except ImportError as error:
        raise ValueError(f"store.url: {explain('PostgreSQL needs', 'postgres', error)}") from error
    own = None if now is time.time else now
    return PostgresStore(url, records_days=records_days, state=state, accept=accept, _now=own)
