from __future__ import annotations

import re
import sys

import pytest
from chat_nest.core.extras import install
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore
from chat_nest.stores.urls import open_store
from stores_under_test import LEASE, Clock, claim, standing, window


def test_memory():
    assert isinstance(open_store("memory://"), MemoryStore)


async def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///chat-nest.db")
    assert isinstance(store, SQLiteStore)
    await store.ping()
    await store.aclose()
    assert {file.name for file in tmp_path.iterdir()} == {"chat-nest.db", ".chat-nest.db.epoch"}


async def test_an_absolute_path_and_the_clock(tmp_path):
    clock = Clock()
    store = open_store(f"sqlite:///{tmp_path}/deep.db", clock)
    line = window(1_000)
    await store.reserve(claim("a", line), LEASE)
    clock.advance(LEASE)
    assert await store.sweep() == 1
    assert await standing(store, line) == (100, 0)
    await store.aclose()
    assert (tmp_path / "deep.db").exists()


async def test_memory_takes_the_clock_too():
    clock = Clock()
    store = open_store("memory://", clock)
    await store.reserve(claim("a", window(1_000)), LEASE)
    clock.advance(LEASE)
    assert await store.sweep() == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "memory://x",
        "memory:///",
        "sqlite://",
        "sqlite:///",
        "sqlite:////",
        "sqlite://relative.db",
        "sqlite:relative.db",
        "SQLITE:///x.db",
        "sqlite:///x.db?mode=ro",
        "sqlite:///x.db#part",
        "sqlite:///directory/",
        "redis:user:hunter2@localhost",
        "postgresql:/user:hunter2@localhost/db",
        "/var/lib/chat-nest.db",
    ],
)
def test_another_form_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match=r"store.url must be memory://, sqlite:///relative/path.db, ") as failure:
        open_store(url)
    assert "hunter2" not in str(failure.value)


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_store(f"sqlite:///{tmp_path}/missing/store.db")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
async def test_postgresql_and_the_clock(scheme):
    from postgres_server import empty, shared_url

    empty(shared_url())
    clock = Clock()
    store = open_store(scheme + ":" + shared_url().partition(":")[2], clock)
    line = window(1_000)
    await store.reserve(claim("a", line), LEASE)
    clock.advance(LEASE)
    assert await store.sweep() == 1
    await store.aclose()


def test_postgresql_without_its_package_names_the_extra_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("chat_nest.stores.postgres")]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=re.escape(f"run: {install('postgres')}")) as failure:
        open_store("postgresql://user:hunter2@localhost/db")
    assert "hunter2" not in str(failure.value)
