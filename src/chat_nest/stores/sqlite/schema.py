"""The schema of the SQLite file: its version, and its updates."""

from __future__ import annotations

import contextlib
import sqlite3
from functools import cache
from importlib.resources import files
from typing import Final

RECORDS_SINCE = 2
"""The version that added the table `requests`."""


COMPATIBLE: Final = 2
"""Code that knows this version can use a file of any later one here: these only add tables, and columns with defaults.

The file's `user_version` never passes it, so that a release can be taken back. The table `additions` has the later
versions. A change that older code can't work with raises COMPATIBLE to its own version.
"""


def migrate(connection: sqlite3.Connection) -> None:
    """Update the schema, once: others that open the file meanwhile wait, and find it up to date.

    Raises sqlite3.Error; NotSupportedError for a file that only a newer version can use.
    """
    migrations = _migrations()
    if version_of(connection) >= len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number in range(version_of(connection) + 1, len(migrations) + 1):
            _run_script(connection, migrations[number - 1])
            if number <= COMPATIBLE:
                connection.execute(f"PRAGMA user_version = {number}")
            else:
                connection.execute("CREATE TABLE IF NOT EXISTS additions (version INTEGER PRIMARY KEY)")
                connection.execute("INSERT INTO additions (version) VALUES (?)", (number,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def version_of(connection: sqlite3.Connection) -> int:
    """Return the file's version, 0 for an empty one; it may be newer than is known here, and can be used all the same.

    Raises NotSupportedError for a file that only a newer version can use.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > COMPATIBLE:
        raise sqlite3.NotSupportedError("the file was written by a newer version of chat-nest")
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'additions'").fetchone():
        version = max(version, int(connection.execute("SELECT coalesce(max(version), 0) FROM additions").fetchone()[0]))
    return version


def gone(connection: sqlite3.Connection) -> list[str]:
    """Return the statements that create the tables of the schema that the file has lost."""
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    return [statement for name, statement in _made() if name not in there]


@cache
def _made() -> list[tuple[str, str]]:
    """Return the name of each table, index and view, and the statement that creates it."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as whole:
        migrate(whole)
        return whole.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").fetchall()


def _migrations() -> list[str]:
    """Return the scripts, oldest first: the first one makes version 1."""
    scripts = {file.name: file for file in files("chat_nest.stores.sqlite").joinpath("sql").iterdir()}
    return [scripts[name].read_text(encoding="utf-8") for name in sorted(scripts)]


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run the statements inside the caller's transaction, which `executescript` would commit."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
