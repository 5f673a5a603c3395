"""The PostgreSQL schema `chat_nest`: created in an empty database, and updated in an older one.

tables.sql, functions.sql and batches.sql are the current schema. A change raises VERSION; a change of a table, or of a
function's arguments or result, also gets a statement in CHANGES. Each new version replaces the functions.

A change that only adds (tables, columns with defaults, functions) leaves COMPATIBLE as it is: code that knows version
COMPATIBLE can use a database of any later one here, so that a release can be taken back. The table `migrations` never
passes COMPATIBLE; the table `additions` has the later versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final, LiteralString

from psycopg import AsyncConnection, NotSupportedError
from psycopg.sql import SQL, Identifier

from chat_nest.stores.reports import COLUMNS

VERSION: Final = 10
COMPATIBLE: Final = 5
VERSION_QUERY: Final = "SELECT coalesce(max(version), 0) FROM chat_nest.migrations"
HAS_ADDITIONS: Final = "SELECT to_regclass('chat_nest.additions') IS NOT NULL"
ADDED_QUERY: Final = "SELECT coalesce(max(version), 0) FROM chat_nest.additions"

CHANGES: Final[Mapping[int, LiteralString]] = {
    5: "DROP FUNCTION IF EXISTS chat_nest.reserve(text, text, bigint, bigint, bigint, bigint, bigint,"
    " text[], text[], text[], text[], bigint[], bigint[], bigint[], bigint[], bigint[])",
    6: 'CREATE TABLE chat_nest.controls ( kind text COLLATE "C" NOT NULL, name text COLLATE "C" NOT'
    " NULL, value text NOT NULL, reason text NOT NULL, expires_at bigint, PRIMARY KEY (kind, name) );"
    ' CREATE TABLE chat_nest.firsts ( key text COLLATE "C" PRIMARY KEY, call bigint NOT NULL,'
    " expires_at bigint NOT NULL );"
    " CREATE INDEX firsts_by_end ON chat_nest.firsts (expires_at);"
    ' CREATE TABLE chat_nest.reports ( kind text COLLATE "C" NOT NULL, name text COLLATE "C" NOT NULL,'
    " value text NOT NULL, expires_at bigint NOT NULL, PRIMARY KEY (kind, name) )"
    " WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);"
    " CREATE INDEX reports_by_end ON chat_nest.reports (expires_at);"
    " CREATE TABLE chat_nest.acts ( seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at bigint NOT"
    " NULL, operator text NOT NULL, act text NOT NULL, target text NOT NULL, reason text NOT NULL,"
    " detail text NOT NULL )",
    7: "SELECT 'only functions are new'",
    8: "SELECT 'only functions are new'",
    9: "SELECT 'only functions are new'",
    10: "SELECT 'only functions are new'",
}
"""The statements that make each version from the one before it, for existing databases."""

_TAKEN_OVER: Final[Mapping[str, LiteralString]] = {
    "requests": COLUMNS,
    "controls": "kind, name, value, reason, expires_at",
    "firsts": "key, call, expires_at",
    "acts": "at, operator, act, target, reason, detail",
}
"""Tables, with their columns, that outlive lost counters."""

_OLDEST: Final = min(CHANGES) - 1
_LOCK: Final = 7_160_921_001
"""The key of an advisory lock."""


def check_version(version: int) -> int:
    """Return the version in `migrations`, 0 for an empty database. Raises NotSupportedError for an unusable one."""
    if version > COMPATIBLE:
        raise NotSupportedError("the schema chat_nest was made by a newer version of chat-nest")
    if 0 < version < _OLDEST:
        raise NotSupportedError(
            f"the schema chat_nest has version {version}, from before the first release; the oldest that can be"
            f" updated is {_OLDEST}: drop the schema to start from zero"
        )
    return version


async def bring_up_to_date(connection: AsyncConnection[Any], aside: str = "") -> None:
    """Create or update the schema in one transaction. Workers that start together wait for one another.

    With the name of a schema `aside`, rename the present one, create a new one, and copy the records of requests, the
    controls and the operators' acts.
    """
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        if aside:
            await connection.execute(SQL("ALTER SCHEMA chat_nest RENAME TO {}").format(Identifier(aside)))
        cursor = await connection.execute("SELECT to_regnamespace('chat_nest') IS NULL")
        if await cursor.fetchone() == (True,):  # a role without CREATE on the database may find it there
            await connection.execute("CREATE SCHEMA chat_nest")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS chat_nest.migrations"
            " (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        cursor = await connection.execute(VERSION_QUERY)
        row = await cursor.fetchone()
        version = max(check_version(row[0] if row else 0), await _added(connection))
        if version >= VERSION:
            return
        if version == 0:
            await connection.execute(_script("tables.sql"))
        for number in range(version + 1, VERSION + 1) if version else ():
            await connection.execute(CHANGES[number])
        await connection.execute(_script("functions.sql"))
        await connection.execute(_script("batches.sql"))
        await _note_versions(connection, version)
        if aside:
            await _take_over(connection, aside)


async def _added(connection: AsyncConnection[Any]) -> int:
    """Return the version in `additions`, 0 without that table."""
    cursor = await connection.execute(HAS_ADDITIONS)
    if await cursor.fetchone() != (True,):
        return 0
    cursor = await connection.execute(ADDED_QUERY)
    row = await cursor.fetchone()
    return row[0] if row else 0


async def _note_versions(connection: AsyncConnection[Any], before: int) -> None:
    """Note that the schema has VERSION, in the table that older code reads only if that code can't use it."""
    if before < COMPATIBLE:
        await connection.execute("INSERT INTO chat_nest.migrations (version) VALUES (%s)", [min(VERSION, COMPATIBLE)])
    if VERSION > COMPATIBLE:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS chat_nest.additions"
            " (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        await connection.execute("INSERT INTO chat_nest.additions (version) VALUES (%s)", [VERSION])


async def _take_over(connection: AsyncConnection[Any], aside: str) -> None:
    """Copy what does not depend on the counters from another schema, as far as it has it."""
    for table, columns in _TAKEN_OVER.items():
        cursor = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", [f"{aside}.{table}"])
        if await cursor.fetchone() == (True,):
            copying = SQL("INSERT INTO chat_nest.{0} ({1}) SELECT {1} FROM {2}.{0}")
            await connection.execute(copying.format(Identifier(table), SQL(columns), Identifier(aside)))


def _script(name: str) -> bytes:
    return files("chat_nest.stores.postgres").joinpath(name).read_bytes()
