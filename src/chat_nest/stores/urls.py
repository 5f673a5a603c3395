"""A store by its URL, as the config file names it."""

from __future__ import annotations

import time

from chat_nest.extras import explain
from chat_nest.protocols import Now, Store
from chat_nest.records import RECORDS_DAYS
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore

_FORMS = (
    "memory://, sqlite:///relative/path.db, sqlite:////absolute/path.db, or begin with postgresql://, redis://, "
    "rediss://, redis+cluster:// or redis+sentinel://"
)


def open_store(url: str, now: Now = time.time, *, records_days: float = RECORDS_DAYS) -> Store:
    """Return the store that the URL names; nothing is opened before its first call.

    Where `keeps_records` is true of the URL, the store keeps what each request used for `records_days` days.

    What follows `sqlite:///` is the path as it is, without escapes or parameters; for Redis see
    `redis_servers.read_url`. There the server's clock counts, not `now`, and so it does for PostgreSQL, unless `now` is
    not the system's. Raises ValueError for another form, or where the extra that the form needs is not installed, and
    OSError where the SQLite file can't exist there.
    """
    if url == "memory://":
        return MemoryStore(now)
    if url.startswith(("postgresql://", "postgres://")):
        return _open_postgres(url, now, records_days)
    if url.startswith(("redis://", "rediss://", "redis+", "rediss+")):
        return _open_redis(url)
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.endswith("/") or "?" in path or "#" in path:
        raise ValueError(f"store.url must be {_FORMS}")
    return SQLiteStore(path, now, records_days=records_days)


def keeps_records(url: str) -> bool:
    """Whether the store keeps what each request used, for `usage`; the others only know what is running."""
    return url.startswith(("sqlite:", "postgresql:", "postgres:"))


def _open_redis(url: str) -> Store:
    try:
        from chat_nest.stores.redis import RedisStore  # noqa: PLC0415 - an extra
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "hiredis":
            raise
        raise ValueError(f"store.url: {explain('Redis needs', 'redis', error)}") from None
    return RedisStore(url)


def _open_postgres(url: str, now: Now, records_days: float) -> Store:
    try:
        from chat_nest.stores.postgres import PostgresStore  # noqa: PLC0415 - psycopg is an extra
    except ImportError as error:
        raise ValueError(f"store.url: {explain('PostgreSQL needs', 'postgres', error)}") from error
    return PostgresStore(url, records_days=records_days, _now=None if now is time.time else now)
