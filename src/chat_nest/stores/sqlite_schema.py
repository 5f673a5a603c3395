"""The schema of the SQLite file: which version it has, and how to bring it up to date."""

from __future__ import annotations

import sqlite3
from importlib.resources import files

RECORDS_SINCE = 2
"""The version that brought the table `requests`."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date, once: others that open the file meanwhile wait, and find it done.

    Raises sqlite3.Error; NotSupportedError for a file of a newer version.
    """
    migrations = _migrations()
    if version_of(connection) == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for migration in migrations[version_of(connection) :]:
            _run_script(connection, migration)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def version_of(connection: sqlite3.Connection) -> int:
    """Return the file's version, 0 for an empty one. Raises NotSupportedError for a newer one than is known here."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(_migrations()):
        raise sqlite3.NotSupportedError("the file was written by a newer version of chat-nest")
    return version


def _migrations() -> list[str]:
    """The scripts, oldest first: the first one makes version 1."""
    found = files("chat_nest.stores").joinpath("sql").iterdir()
    scripts = {file.name: file for file in found if file.name.startswith("sqlite_")}
    return [scripts[name].read_text(encoding="utf-8") for name in sorted(scripts)]


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run the statements inside the caller's transaction, which `executescript` would commit."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
