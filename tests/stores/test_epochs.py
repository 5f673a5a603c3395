"""A store that was emptied, replaced or removed admits nobody until an operator says so, also after a restart of all."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from zoneinfo import ZoneInfo

import pytest
from chat_nest.core.controls import GRANT, Act, Control
from chat_nest.core.errors import StoreEmptied
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.core.claims import Granted
from chat_nest.stores.epochs import Epochs
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.redis import RedisStore
from chat_nest.stores.sqlite import SQLiteStore
from msgspec.structs import replace
from postgres_server import new_database, rows, shared_url
from redis_servers import shared_cluster, shared_redis_url
from stores_under_test import LEASE, START, Clock, claim, standing, window

COMMAND = "chat-nest store accept-empty --config chat.toml"
DAY = window(1_000)
RECORD = Record(
    run="r",
    caller="c",
    group="",
    profile="balanced",
    model="p:m",
    started_at=START,
    usage=Usage(input_tokens=5, output_tokens=5),
)


class Place:
    """Where a store of some kind keeps what it knows; `open` is a process of its own that uses it."""

    def __init__(self, folder):
        self.folder = folder
        self.prefix = secrets.token_hex(8)
        self.clock = Clock()
        self.opened = []
        self.close = lambda: None

    def keep(self, store):
        self.opened.append(store)
        return store


class SQLite(Place):
    @property
    def path(self):
        return self.folder / "chat-nest.db"

    def open(self, _state=None):
        return self.keep(SQLiteStore(self.path, self.clock, accept=COMMAND))

    def remove(self):
        for path in self.folder.glob("chat-nest.db*"):
            path.unlink()

    def truncate(self):
        self.query("DELETE FROM counters")

    def drop(self):
        self.query("DROP TABLE counters")

    def drop_claims(self):
        self.query("DROP TABLE reservations")

    def replace(self):
        other = self.folder / "other"
        other.mkdir(exist_ok=True)
        for path in other.glob(".*"):
            path.unlink()
        elsewhere = SQLiteStore(other / "chat-nest.db", self.clock)
        asyncio.run(_use(elsewhere))
        self.remove()
        (other / "chat-nest.db").rename(self.path)

    def query(self, query):
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute(query)
        connection.close()


async def _use(store):
    await store.ping()
    await store.aclose()


class Postgres(Place):
    def __init__(self, folder):
        super().__init__(folder)
        self.url, self.close = new_database(shared_url())

    def open(self, state="state"):
        path = state and self.folder / state
        store = PostgresStore(self.url, max_connections=2, timeout=30.0, state=path, accept=COMMAND, _now=self.clock)
        return self.keep(store)

    def remove(self):
        rows(self.url, "DROP SCHEMA chat_nest CASCADE")

    def truncate(self):
        rows(self.url, "TRUNCATE chat_nest.counters")

    def truncate_all(self):
        rows(self.url, "TRUNCATE chat_nest.counters, chat_nest.reservations, chat_nest.requests")

    def drop(self):
        rows(self.url, "DROP TABLE chat_nest.counters")

    def drop_claims(self):
        rows(self.url, "DROP TABLE chat_nest.reservations CASCADE")


class Redis(Place):
    def __init__(self, folder):
        super().__init__(folder)
        self.url, self.nodes = shared_redis_url(), []

    def open(self, state="state"):
        path = state and self.folder / state
        store = RedisStore(self.url, prefix=self.prefix, state=path, accept=COMMAND, _now=self.clock)
        store._timeout = 60.0  # a busy machine is no outage
        return self.keep(store)

    def remove(self):
        from redis_servers import shared_server

        for node in self.nodes or [shared_server()]:
            for key in node.ask("KEYS", f"*{self.prefix}*"):
                node.ask("DEL", key)


class Cluster(Redis):
    def __init__(self, folder):
        super().__init__(folder)
        self.url, self.nodes = shared_cluster().url, shared_cluster().nodes[:3]


WAYS = [
    (SQLite, "remove"), (SQLite, "truncate"), (SQLite, "drop"), (SQLite, "replace"),
    (Postgres, "remove"), (Postgres, "truncate"), (Postgres, "truncate_all"), (Postgres, "drop"),
    (Redis, "remove"), (Cluster, "remove"),
]  # fmt: skip


def way_name(way):
    return f"{way[0].__name__}-{way[1]}"


NEW_MACHINE = [way for way in WAYS if way[0] is not SQLite and way[1] != "drop"]


@pytest.fixture(params=WAYS, ids=way_name)
async def place(request, tmp_path):
    kind, how = request.param
    found = kind(tmp_path)
    found.empty = lambda: asyncio.to_thread(getattr(found, how))
    yield found
    for store in found.opened:
        await store.aclose()
    found.close()


async def spend(store, id):
    assert isinstance(await store.reserve(claim(id, DAY), LEASE), Granted)
    assert await store.settle(claim(id, DAY), {"tokens": 100}, "reported")


async def refuses(store):
    one = claim(secrets.token_hex(4), DAY)
    for call in (store.ping, lambda: store.reserve(one, LEASE), lambda: store.release(one), store.sweep):
        with pytest.raises(StoreEmptied) as refusal:
            await call()
        assert COMMAND in refusal.value.advice


async def test_an_emptied_store_is_closed_to_all_until_it_is_accepted(place):
    old, idle = place.open(), place.open()
    await spend(old, "a")
    await idle.ping()
    await place.empty()
    await refuses(old)
    later = place.open()
    await refuses(later)
    await refuses(idle)

    operator = place.open()
    await operator.accept()
    for number, store in enumerate((later, old, idle, place.open())):
        await spend(store, f"b{number}")
    assert await standing(old, DAY) == (400, 0)

    await place.empty()
    await refuses(old)  # to accept holds for once
    await refuses(place.open())


async def test_the_controls_of_an_emptied_store_are_closed_too_and_grants_end_with_the_counters(place):
    """A pause that is forgotten would let requests in; a grant raises a budget whose use is forgotten."""
    store, idle = place.open(), place.open()
    await spend(store, "a")
    await idle.ping()
    pause = Control(kind="pause", name="all")
    await store.controls.change([pause, Control(kind=GRANT, name="day 1", value="500")])
    assert await store.controls.first("once", 60)
    await place.empty()
    for one in (store, idle, place.open()):
        for call in (
            one.controls.watch(0),
            one.controls.change([pause]),
            one.controls.first("once", 60),
            one.controls.acts(1),
            one.controls.report([Control(kind="worker", name="x", expires=START + 60)]),
            one.controls.reports("worker"),
        ):
            with pytest.raises(StoreEmptied):
                await call
    await refuses(place.open())
    await place.open().accept()
    found = await store.controls.watch(-1)
    assert GRANT not in {row.kind for row in found.rows}
    await store.controls.change([pause])
    assert (await idle.controls.watch(found.version)).rows == (pause,)


@pytest.mark.parametrize("kind", [SQLite, Postgres, Redis, Cluster])
async def test_a_new_store_is_begun_by_controls_as_by_counters(tmp_path, kind):
    place = kind(tmp_path)
    store = place.open()
    assert await store.controls.watch(0) is None
    await store.controls.change([Control(kind="pause", name="all")])
    await spend(store, "a")
    assert await standing(place.open(), DAY) == (100, 0)
    for one in place.opened:
        await one.aclose()
    place.close()


@pytest.mark.parametrize("kind", [SQLite, Postgres])
async def test_pauses_outlive_lost_counters(tmp_path, kind):
    place = kind(tmp_path)
    store = place.open()
    await spend(store, "a")
    pause = Control(kind="pause", name="all", reason="too dear")
    act = Act(by="cli:ada", act="pause", target="all", reason="too dear")
    await store.controls.change([pause, Control(kind=GRANT, name="day 1", value="500")], act=act)
    place.drop()
    await refuses(store)
    await place.open().accept()
    assert (await store.controls.watch(0)).rows == (pause,)
    assert [act.by for act in await store.controls.acts(9)] == ["cli:ada"]
    for one in place.opened:
        await one.aclose()
    place.close()


async def test_requests_from_before_the_store_was_emptied_take_nothing_from_later_ones(place):
    store = place.open()
    for id in ("ends", "stays", "lost"):
        assert isinstance(await store.reserve(claim(id, DAY), LEASE), Granted)
    place.clock.advance(LEASE / 2)
    await place.empty()
    await refuses(store)
    await place.open().accept()
    for id in ("new", "late"):
        assert isinstance(await store.reserve(claim(id, DAY), LEASE), Granted)
    assert await store.settle(claim("ends", DAY), {"tokens": 10}, "reported") is False
    assert await store.extend([claim("stays", DAY)], LEASE) == frozenset()
    place.clock.advance(LEASE / 2 + 1)
    await store.sweep()
    assert await standing(store, DAY) == (0, 200)
    for id in ("new", "late"):
        assert await store.settle(claim(id, DAY), {"tokens": 30}, "reported")
    assert await standing(store, DAY) == (60, 0)


@pytest.mark.parametrize("kind", [SQLite, Postgres])
async def test_a_store_that_lost_the_table_of_its_claims_is_closed_until_it_is_accepted(tmp_path, kind):
    place = kind(tmp_path)
    store = place.open()
    await spend(store, "a")
    assert isinstance(await store.reserve(claim("b", DAY), LEASE), Granted)
    place.drop_claims()
    await refuses(store)
    await refuses(place.open())
    await place.open().accept()
    assert await store.settle(claim("b", DAY), {"tokens": 10}, "reported") is False
    before, held = await standing(store, DAY)
    assert held == 0
    assert before == (200 if kind is SQLite else 0)  # what was held is charged, or everything is forgotten
    for number, one in enumerate((store, place.open())):
        await spend(one, f"c{number}")
    assert await standing(store, DAY) == (before + 200, 0)
    for one in place.opened:
        await one.aclose()
    place.close()


@pytest.mark.parametrize("kind", [SQLite, Postgres])
async def test_records_outlive_the_table_of_the_counters(tmp_path, kind):
    place = kind(tmp_path)
    store = place.open()
    one = replace(claim("a", DAY), record=RECORD)
    assert isinstance(await store.reserve(one, LEASE), Granted)
    assert await store.settle(one, {"tokens": 10}, "reported", RECORD)
    place.drop()
    await refuses(store)
    await place.open().accept()
    [row] = await store.usage(START - 60, START + 60, (), ZoneInfo("UTC"))
    assert row.requests == 1
    for one in place.opened:
        await one.aclose()
    place.close()


@pytest.mark.parametrize("place", NEW_MACHINE, ids=way_name, indirect=True)
async def test_a_store_recreated_on_a_new_machine_is_closed_to_processes_that_knew_the_old_one(place):
    old = place.open()
    await spend(old, "a")
    await place.empty()
    await spend(place.open("another"), "b")
    await refuses(old)


async def test_a_fleet_that_was_stopped_when_its_store_was_emptied_starts_closed(place):
    store = place.open()
    await spend(store, "a")
    await store.aclose()
    await place.empty()
    restarted = place.open()
    await refuses(restarted)
    await refuses(restarted)
    operator = place.open()
    await operator.accept()
    await spend(restarted, "b")
    assert await standing(restarted, DAY) == (100, 0)


async def test_a_store_that_has_everything_is_used_without_a_word(place):
    first = place.open()
    await spend(first, "a")
    await first.aclose()
    second = place.open()
    await spend(second, "b")
    assert await standing(second, DAY) == (200, 0)


@pytest.mark.parametrize("kind", [Postgres, Redis])
async def test_a_machine_without_a_remembered_epoch_accepts_the_store(tmp_path, kind):
    place = kind(tmp_path)
    await spend(place.open(), "a")
    elsewhere = place.open("another machine")
    await spend(elsewhere, "b")
    assert await standing(elsewhere, DAY) == (200, 0)
    for store in place.opened:
        await store.aclose()
    place.close()


async def test_to_accept_a_file_waits_for_its_lock(tmp_path):
    """Servers ask an emptied file again and again, and each time they have its lock for a moment."""
    place = SQLite(tmp_path)
    store = place.open()
    await spend(store, "a")
    place.truncate()
    server = sqlite3.connect(place.path, isolation_level=None)
    server.execute("BEGIN IMMEDIATE")
    accepting = asyncio.create_task(place.open().accept())
    done, _ = await asyncio.wait([accepting], timeout=0.2)
    assert not done
    server.execute("ROLLBACK")
    server.close()
    await accepting
    await spend(store, "b")
    for one in place.opened:
        await one.aclose()


async def test_a_removed_file_is_not_made_again(tmp_path):
    place = SQLite(tmp_path)
    store = place.open()
    await spend(store, "a")
    await store.aclose()
    place.remove()
    store = place.open()
    await refuses(store)
    assert not place.path.exists()
    await store.aclose()


# The file.


def test_a_line_cut_by_a_crash_is_ignored_and_the_next_one_is_read(tmp_path):
    path = tmp_path / "deep" / "epoch"
    epochs = Epochs(path)
    assert epochs.known() == ""
    epochs.believe("0", "", "first")
    epochs.believe("all", "", "other")
    with path.open("a") as file:
        file.write("\n0 cut-of")
    assert Epochs(path).known() == "first"
    again = Epochs(path)
    again.believe("0", again.known(), "second")
    assert (Epochs(path).known(), Epochs(path).known("all")) == ("second", "other")
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_calls_that_find_different_epochs_are_not_both_believed():
    epochs = Epochs()
    epochs.believe("0", "", "one")
    epochs.believe("0", "", "one")
    with pytest.raises(StoreEmptied):
        epochs.believe("0", "", "two")


def test_a_file_that_is_none_of_ours_is_not_taken_for_an_empty_one(tmp_path):
    path = tmp_path / "epoch"
    path.write_text("<html>\n")
    with pytest.raises(ValueError, match="can't be read"):
        Epochs(path).known()


def test_a_file_that_can_not_be_written_is_reported_once(tmp_path, caplog):
    epochs = Epochs(tmp_path)  # a directory
    epochs._read = True
    epochs.believe("0", "", "one")
    epochs.believe("0", "one", "two")
    assert caplog.text.count("can't be written") == 1
    assert epochs.known() == "two"
