"""Where a store is, in words that an operator may see: never with a login."""

from __future__ import annotations

import pytest

from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.places import place_of, remedy_of, sentence
from chat_nest.stores.urls import open_store


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://127.0.0.1/0", "the Redis store at 127.0.0.1:6379"),
        ("redis://u:canary@db:7000", "the Redis store at db:7000"),
        ("redis://:can@ry@[::1]:6379/3", "the Redis store at [::1]:6379"),
        ("redis+cluster://u:canary@a:7000,b:7001", "the Redis Cluster store at a:7000,b:7001"),
        ("redis+sentinel://u:canary@a,b/m?sentinel_password=canary", "the Redis Sentinel store at a:26379,b:26379"),
        ("postgresql://u:canary@db/chat", "the PostgreSQL store at db:5432"),
        ("postgresql://u:can?ary@db:5433/chat?password=canary", "the PostgreSQL store at db:5433"),
        ("postgres://u:canary@a:1,b:2/chat", "the PostgreSQL store at a:1,b:2"),
        ("postgresql:///chat?host=/run/postgresql", "the PostgreSQL store at /run/postgresql:5432"),
        ("postgresql:///chat", "the PostgreSQL store at libpq's default place"),
        ("memory://", "the store in this process's memory"),
    ],
)
def test_a_store_is_named_by_its_servers(url: str, place: str) -> None:
    assert place_of(open_store(url)) == place
    assert "can" not in place


def test_a_file_is_named_whole_wherever_the_process_was_started(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place_of(open_store("sqlite:///chat.db")) == f"the SQLite store {tmp_path}/chat.db"


def test_no_disk_remedy_is_given_for_redis() -> None:
    assert "disk" not in remedy_of(open_store("redis://h"))
    assert "disk" not in remedy_of(open_store("postgresql://h"))
    assert "disk" in remedy_of(open_store("sqlite:///chat.db"))


def test_a_custom_store_is_named_by_its_class() -> None:
    class Own(MemoryStore):
        place = ""

    assert place_of(Own()).endswith(".Own")
    assert remedy_of(Own())
    assert sentence("the store") == "The store"
