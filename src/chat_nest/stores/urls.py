"""Stores by URL, as in the configuration file. A new store is a row of STORES."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from chat_nest.core.extras import explain
from chat_nest.core.protocols import Now, Store
from chat_nest.core.records import RECORDS_DAYS
from chat_nest.stores.epochs import ACCEPT
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore


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
    kind = _kind_of(url)
    store = None if kind is None else kind.open(_Arguments(url, now, records_days, state, accept))
    if store is None:
        whole = ", ".join(form for each in STORES if not each.driver for form in each.forms)
        *begin, last = (form for each in STORES if each.driver for form in each.forms)
        raise ValueError(f"store.url must be {whole}, or begin with {', '.join(begin)} or {last}")
    return store


def keeps_records(url: str) -> bool:
    """Return whether the store keeps each request's record, for `usage`; the others only know what is running."""
    kind = _kind_of(url)
    return kind is not None and kind.keeps_records


def driver_of(url: str) -> str:
    """Return the extra with the store's driver; an empty string if it needs none."""
    kind = _kind_of(url)
    return "" if kind is None else kind.driver


class _Arguments(Struct, frozen=True):
    """The arguments of `open_store`."""

    url: str
    now: Now
    records_days: float
    state: str | Path | None
    accept: str


class StoreKind(Struct, frozen=True, kw_only=True):
    schemes: tuple[str, ...]
    """The beginnings of its URLs."""
    forms: tuple[str, ...]
    """Its URLs as an error lists them; their beginnings if it has a driver."""
    open: Callable[[_Arguments], Store | None]
    """Returns None for a URL that has only the scheme of this kind."""
    keeps_records: bool = False
    driver: str = ""
    """The extra that it needs."""


def _kind_of(url: str) -> StoreKind | None:
    return next((kind for kind in STORES if url.startswith(kind.schemes)), None)


def _open_memory(given: _Arguments) -> Store | None:
    return MemoryStore(given.now) if given.url == "memory://" else None


def _open_sqlite(given: _Arguments) -> Store | None:
    path = given.url.removeprefix("sqlite:///")
    if path == given.url or not path or path.endswith("/") or "?" in path or "#" in path:
        return None
    return SQLiteStore(path, given.now, records_days=given.records_days, accept=given.accept)


def _open_redis(given: _Arguments) -> Store:
    try:
        from chat_nest.stores.redis import RedisStore  # noqa: PLC0415 - an extra
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "hiredis":
            raise
        raise ValueError(f"store.url: {explain('Redis needs', 'redis', error)}") from None
    return RedisStore(given.url, state=given.state, accept=given.accept)


def _open_postgres(given: _Arguments) -> Store:
    try:
        from chat_nest.stores.postgres import PostgresStore  # noqa: PLC0415 - psycopg is an extra
    except ImportError as error:
        raise ValueError(f"store.url: {explain('PostgreSQL needs', 'postgres', error)}") from error
    return PostgresStore(
        given.url,
        records_days=given.records_days,
        state=given.state,
        accept=given.accept,
        _now=None if given.now is time.time else given.now,
    )


STORES: tuple[StoreKind, ...] = (
    StoreKind(schemes=("memory:",), forms=("memory://",), open=_open_memory),
    StoreKind(
        schemes=("sqlite:",),
        forms=("sqlite:///relative/path.db", "sqlite:////absolute/path.db"),
        open=_open_sqlite,
        keeps_records=True,
    ),
    StoreKind(
        schemes=("postgresql://", "postgres://"),
        forms=("postgresql://",),
        open=_open_postgres,
        keeps_records=True,
        driver="postgres",
    ),
    StoreKind(
        schemes=("redis://", "rediss://", "redis+", "rediss+"),
        forms=("redis://", "rediss://", "redis+cluster://", "redis+sentinel://"),
        open=_open_redis,
        driver="redis",
    ),
)
