"""An upgrade, and a rollback: the release before and the present code use the same store in turn."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from postgres_server import new_database, rows, shared_url
from redis_servers import RedisServer

from chat_nest.stores.sqlite import schema

FOLDER = Path(__file__).parent
BEFORE, NOW = FOLDER / "stores_before.zip", FOLDER.parents[1] / "src"


@pytest.fixture
def database():
    url, remove = new_database(shared_url())
    yield url
    remove()


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/store.db"
    elif request.param == "postgres":
        yield request.getfixturevalue("database")
    else:
        server = RedisServer()
        yield server.url
        server.stop()


def use(code: Path, url: str, *actions: list) -> list:
    """Let a process with this code of the stores act; return what it saw."""
    environ = {**os.environ, "PYTHONPATH": str(code), "TZ": "UTC"}
    done = subprocess.run(
        [sys.executable, "-P", FOLDER.parent / "store_driver.py", url, json.dumps(actions)],
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(code) in done.stderr.splitlines()[0], "the code of the other version ran"
    return json.loads(done.stdout)


def test_both_versions_use_a_store_in_turn_and_count_the_same(url) -> None:
    reports = [["usage"]] if not url.startswith("redis") else []
    use(BEFORE, url, ["spend", "a", 100], ["hold", "b", 30])
    seen = use(NOW, url, ["standing"], ["settle", "b", 20], ["spend", "c", 5], ["hold", "d", 40])
    assert seen == [[[100, 30], [0, 1]]]
    seen = use(BEFORE, url, ["standing"], ["settle", "d", 10], ["spend", "e", 1], *reports)
    assert seen == [[[125, 40], [0, 1]], *([[5, 136]] if reports else [])]
    seen = use(NOW, url, ["standing"], *reports)
    assert seen == [[[136, 0], [0, 0]], *([[5, 136]] if reports else [])]
    assert [use(code, url, ["key"]) for code in (BEFORE, NOW)] == [[[[136, 0]]]] * 2, "the limits of a key, too"


def test_sqlite_of_a_release_after_this_one_that_added_something_is_used_as_it_is(tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    use(NOW, url, ["spend", "a", 100])
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as later:
        later.executescript(
            "CREATE TABLE IF NOT EXISTS additions (version INTEGER PRIMARY KEY); INSERT INTO additions VALUES (99);"
            "CREATE TABLE tariffs (name TEXT); ALTER TABLE counters ADD COLUMN note TEXT NOT NULL DEFAULT '';"
            "ALTER TABLE requests ADD COLUMN tariff TEXT NOT NULL DEFAULT 'usual';"
        )
    assert use(NOW, url, ["spend", "b", 10], ["standing"], ["usage"]) == [[[110, 0], [0, 0]], [2, 110]]
    with closing(sqlite3.connect(tmp_path / "store.db")) as later:
        assert later.execute("SELECT tariff FROM requests").fetchall() == [("usual",)] * 2


def test_postgres_of_a_release_after_this_one_that_added_something_is_used_as_it_is(database) -> None:
    use(NOW, database, ["spend", "a", 100])
    rows(
        database,
        "CREATE TABLE IF NOT EXISTS chat_nest.additions"
        " (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());"
        "INSERT INTO chat_nest.additions (version) VALUES (99); CREATE TABLE chat_nest.tariffs (name text);"
        "ALTER TABLE chat_nest.requests ADD COLUMN tariff text NOT NULL DEFAULT 'usual'",
    )
    assert use(NOW, database, ["spend", "b", 10], ["standing"], ["usage"]) == [[[110, 0], [0, 0]], [2, 110]]
    assert rows(database, "SELECT max(version) FROM chat_nest.additions") == [(99,)]


def test_a_change_that_only_adds_leaves_the_version_that_older_code_reads(tmp_path, monkeypatch) -> None:
    """As if the newest migration of today were such a change."""
    whole = len(schema._migrations())
    monkeypatch.setattr(schema, "COMPATIBLE", whole - 1)
    monkeypatch.setattr(schema, "_made", schema._made.__wrapped__)  # what it remembers is of another version
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as connection:
        schema.migrate(connection)
        assert connection.execute("PRAGMA user_version").fetchone() == (whole - 1,)
        assert connection.execute("SELECT version FROM additions").fetchall() == [(whole,)]
        schema.migrate(connection)
        assert schema.version_of(connection) == whole
        assert not schema.gone(connection)


def test_a_new_file_of_this_release_is_readable_by_the_previous_one(tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    use(NOW, url, ["hold", "a", 7])
    assert use(BEFORE, url, ["settle", "a", 6], ["standing"], ["usage"]) == [[[6, 0], [0, 0]], [1, 6]]
