"""What only the PostgreSQL store has: a server that others share, restarts, and a clock of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from chat_nest.core.controls import Act, Control
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.claims import Duplicate, Granted
from chat_nest.core.records import Record
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.postgres.schema import VERSION
from hypothesis import settings
from msgspec.structs import replace
from postgres_server import PostgresServer, empty, new_database, rows, shared_url
from sqlite_worker import BUDGET, DAY, LINES
from stores_under_test import LEASE, START, Clock, claim, gauge, quick_directory, rate, standing, window

properties = import_module("stores.test_properties")
WORKER = Path(__file__).parent.parent / "postgres_worker.py"
LATER = 4_000_000_000.0
LINE = window(10**9, resets_at=LATER)


@pytest.fixture
def url():
    empty(shared_url())
    return shared_url()


@pytest.fixture
async def store(url, clock):
    opened = PostgresStore(url, timeout=60.0, _now=clock)
    yield opened
    await opened.aclose()


@pytest.fixture
def fresh():
    """A database in which nothing has been made yet."""
    shared_url()
    base = urlunsplit(urlsplit(shared_url())._replace(path="/postgres"))
    url, remove = new_database(os.environ.get("DATABASE_URL") or base)
    yield url
    remove()


@pytest.fixture
def server():
    """A server of its own, to be hurt."""
    started = PostgresServer()
    yield started
    started.remove()


async def insist(call):
    """What the ledger does: try again where the store can't answer."""
    while True:
        try:
            return await call()
        except LimiterUnavailable:
            await asyncio.sleep(0.01)


# rows


async def test_an_operator_can_read_what_happened(store, url, clock):
    lines = window(1_000, fixed=20), rate(9), gauge(4)
    for id in ("settled", "expired", "released", "open"):
        await store.reserve(claim(id, *lines), 10.0)
    await store.settle(claim("settled", *lines), {"tokens": 33}, "estimated")
    await store.release(claim("released", *lines))
    await store.extend([claim("open", *lines)], 20.0)
    clock.advance(10)
    await store.sweep()
    assert rows(
        url, "SELECT id, fingerprint, state, output, source, expires_at FROM chat_nest.reservations ORDER BY id"
    ) == [
        ("expired", "same", "expired", 100, "assumed", (START + 10) * 1e6),
        ("open", "same", "open", 100, None, (START + 20) * 1e6),
        ("released", "same", "released", 100, None, (START + 10) * 1e6),
        ("settled", "same", "settled", 100, "estimated", (START + 10) * 1e6),
    ]
    assert rows(
        url,
        "SELECT id, name, key, unit, held, actual FROM chat_nest.reservation_lines WHERE kind = 'window' ORDER BY id",
    ) == [
        ("expired", "tokens_per_day", "day", "tokens", 120, 120),
        ("open", "tokens_per_day", "day", "tokens", 120, None),
        ("released", "tokens_per_day", "day", "tokens", 120, 0),
        ("settled", "tokens_per_day", "day", "tokens", 120, 33),
    ]
    assert rows(url, "SELECT key, used, held FROM chat_nest.counters WHERE kind <> 'rate' ORDER BY key") == [
        ("day", 153, 120),
        ("streams", 0, 1),
    ]


async def test_time_is_the_servers(url, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    store = PostgresStore(url, timeout=60.0)
    assert isinstance(await store.reserve(claim("a", LINE), 0.05), Granted)
    await store.reserve(claim("b", LINE), 60.0)
    [(behind, lease)] = rows(
        url,
        "SELECT extract(epoch FROM clock_timestamp()) - reserved_at / 1e6, expires_at - reserved_at"
        " FROM chat_nest.reservations WHERE id = 'b'",
    )
    assert 0 <= behind < 20
    assert lease == 60_000_000
    rows(url, "SELECT pg_sleep(0.06)")
    await store.sweep()  # on a busy machine the second call has charged it already
    assert rows(url, "SELECT state FROM chat_nest.reservations ORDER BY id") == [("expired",), ("open",)]
    assert await standing(store, LINE) == (100, 100)
    await store.aclose()


async def test_expired_rows_are_deleted_in_steps(url, clock):
    store = PostgresStore(url, timeout=60.0, retention=100.0, _now=clock)
    old, drained, streams = window(10**9, key="old", resets_at=START + 50), rate(10**6), gauge(10**6)
    for n in range(20):
        await store.reserve(claim(f"done-{n}", old, drained, streams), LEASE)
        await store.settle(claim(f"done-{n}", old, drained, streams), None, "reported")
    await store.reserve(claim("open", LINE, gauge(9, key="held")), 10_000.0)
    await store.release(claim("tomb", LINE))
    clock.advance(99)
    await store.sweep()
    assert rows(url, "SELECT count(*) FROM chat_nest.reservations") == [(22,)]
    clock.advance(1)
    await store.sweep()
    await store.sweep()
    assert rows(url, "SELECT id FROM chat_nest.reservations") == [("open",)]
    assert rows(url, "SELECT key FROM chat_nest.counters WHERE key <> '' ORDER BY key") == [
        ("day",),
        ("held",),
        ("minute",),
        ("old",),
    ]
    clock.advance(60)
    await store.sweep()
    assert rows(url, "SELECT key FROM chat_nest.counters WHERE key <> '' ORDER BY key") == [("day",), ("held",)]
    assert isinstance(await store.reserve(claim("done-1", old, drained, streams), LEASE), Granted)
    await store.aclose()


async def test_deleting_goes_round_all_counters_a_part_at_a_time(store, url, clock, monkeypatch):
    monkeypatch.setattr("chat_nest.stores.postgres.store._MOST_PURGED", 4)
    for n in range(10):
        one = claim(f"{n}", gauge(5, key=f"g{n}"))
        await store.reserve(one, LEASE)
        await store.settle(one, None, "reported")
    left = []
    for _ in range(3):
        await store.sweep()
        left += rows(url, "SELECT count(*) FROM chat_nest.counters WHERE key <> ''")
    assert left == [(6,), (2,), (0,)]


async def test_a_call_charges_some_overdue_leases_and_its_own_and_a_sweep_the_rest(store, clock):
    line, streams = window(10**9), gauge(10**6)
    claims = [claim(f"{n:04}", line, streams) for n in range(620)]
    for start in range(0, 620, 50):
        await asyncio.gather(*(store.reserve(one, 10.0 + 0.001 * start) for one in claims[start : start + 50]))
    clock.advance(20)
    last = claims[-1]
    assert await store.reserve(last, LEASE) == Duplicate(output_tokens=100, state="expired")
    assert await standing(store, line) == (62_000, 0)
    assert await store.sweep() == 620 - 101
    assert await standing(store, line) == (62_000, 0)
    assert await standing(store, streams) == (0, 0)


# many at once


async def test_of_two_hundred_racing_duplicates_one_is_granted(url):
    stores = [PostgresStore(url, timeout=60.0) for _ in range(2)]
    streams = gauge(1_000)
    answers = await asyncio.gather(*(stores[n % 2].reserve(claim("a", LINE, streams), LEASE) for n in range(200)))
    assert sum(isinstance(answer, Granted) for answer in answers) == 1
    assert answers.count(Duplicate(output_tokens=100, state="open")) == 199
    assert await standing(stores[0], LINE) == (0, 100)
    assert await standing(stores[0], streams) == (0, 1)
    for store in stores:
        await store.aclose()


async def test_the_same_lines_in_different_orders_do_not_deadlock(url):
    store = PostgresStore(url, timeout=60.0)
    lines = [window(10**9, key=f"line {n}", resets_at=LATER) for n in range(6)]
    before = rows(url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    spent = dict.fromkeys((line.key for line in lines), 0)

    async def chat(number):
        chance = random.Random(number)
        one = claim(f"{number}", *chance.sample(lines, chance.randint(2, 6)), most=10)
        assert isinstance(await insist(lambda: store.reserve(one, 0.01 if number % 3 == 0 else LEASE)), Granted)
        if number % 5 == 0:
            await insist(store.sweep)
        await insist(lambda: store.extend([one, claim(f"{number - 1}"), claim(f"{number + 1}")], LEASE))
        assert await insist(lambda: store.settle(one, {"tokens": 7}, "reported"))
        for line in one.lines:
            spent[line.key] += 7

    await asyncio.gather(*(chat(number) for number in range(120)))
    found = await store.peek(lines)
    assert [stand.used for stand in found] == [spent[line.key] for line in lines]
    assert {stand.held for stand in found} == {0}
    await store.aclose()
    assert rows(url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == before


async def waits(url, function, blocker):
    """Return when a call of the function waits for the connection `blocker`, or for a call of that name."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'chat-nest' AND query LIKE '%{}(%'"
    of = query.format(blocker) if isinstance(blocker, str) else f"VALUES ({blocker.info.backend_pid})"
    found = f"{query.format(function)} AND EXISTS (({of}) INTERSECT SELECT unnest(pg_blocking_pids(pid)))"
    while not await asyncio.to_thread(rows, url, found):
        await asyncio.sleep(0.01)


async def test_a_renewal_does_not_wait_for_a_claim_that_is_reserved_after_it_began(url, store, clock):
    """A sweep that holds the new claim may wait for the counters that the renewal holds."""
    one, two = (window(10**9, key=f"line {n}", resets_at=LATER) for n in (1, 2))
    old, new = claim("old", one, two), claim("new", one)
    await store.reserve(old, 1.0)
    clock.advance(2)
    with psycopg.connect(url) as row, psycopg.connect(url) as counter:
        row.execute("SELECT FROM chat_nest.reservations WHERE id = 'old' FOR UPDATE")
        renewal = asyncio.create_task(store.extend([new, old], LEASE))
        await waits(url, "extend", row)
        assert isinstance(await store.reserve(new, 1.0), Granted)
        clock.advance(2)  # the renewal does not find it overdue, the sweep does
        counter.execute("SELECT FROM chat_nest.counters WHERE key = 'line 2' FOR UPDATE")
        row.rollback()
        await waits(url, "extend", counter)
        sweep = asyncio.create_task(store.sweep())
        await waits(url, "sweep", "extend")
        counter.rollback()
        assert await renewal == {"old"}
        assert await sweep == 1
    assert rows(url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


def start(url, name, task):
    paths = os.pathsep.join([str(WORKER.parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, WORKER, url, name, task],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, "PYTHONPATH": paths},
    )


def go(workers):
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()


def told(output):
    """{(word, id): amount} of the whole lines."""
    lines = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    return {(words[0], words[1]): int(words[2]) for words in lines if len(words) == 3}


def test_four_processes_make_the_schema_together_and_never_exceed_the_budget(fresh):
    workers = [start(fresh, f"w{n}", "race") for n in range(4)]
    go(workers)
    granted = {}
    for worker in workers:
        output, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0
        granted |= told(output)
    assert len(granted) == 40
    assert rows(fresh, "SELECT used, held FROM chat_nest.counters WHERE key = 'budget'") == [(0, BUDGET.limit)]
    assert {(id,) for _, id in granted} == set(
        rows(fresh, "SELECT id FROM chat_nest.reservations WHERE state = 'open'")
    )
    assert rows(fresh, "SELECT version FROM chat_nest.additions") == [(VERSION,)]


async def test_a_killed_process_loses_nothing_that_was_answered(url):
    victim, *others = workers = [start(url, name, "chat") for name in ("victim", "w1", "w2")]
    go(workers)
    heard = [victim.stdout.readline() for _ in range(100)]
    victim.kill()
    heard += victim.communicate(timeout=240)[0].splitlines(keepends=True)
    answers = told("".join(heard))
    for worker in others:
        output, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0  # the others go on
        answers |= told(output)

    while rows(url, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chat-nest'") != [(0,)]:
        await asyncio.sleep(0.01)  # the server may still be at work for the victim
    found = {
        id: (state, output) for id, state, output in rows(url, "SELECT id, state, output FROM chat_nest.reservations")
    }
    actual = dict(rows(url, "SELECT id, actual FROM chat_nest.reservation_lines WHERE key = 'day'"))
    held = dict(rows(url, "SELECT id, held FROM chat_nest.reservation_lines WHERE key = 'day'"))
    for (word, id), amount in answers.items():
        if word == "reserved":
            assert found[id][1] == amount
        else:
            assert (found[id][0], actual[id]) == ("settled", amount)
    open_ids = {id for id, (state, _) in found.items() if state == "open"}
    assert all(id.startswith("victim") for id in open_ids)

    later = PostgresStore(url, timeout=60.0, _now=Clock(time.time() + 61))
    assert await later.sweep() == len(open_ids)
    day, everyone, streams = await later.peek(LINES[:3])
    spent = sum(held[id] if id in open_ids else actual[id] for id in found)
    assert (day.used, day.held) == (everyone.used, everyone.held) == (spent, 0)
    assert spent <= DAY.limit
    assert streams.held == 0
    assert {(id,) for id in open_ids} == set(
        rows(
            url,
            "SELECT id FROM chat_nest.reservation_lines"
            " WHERE state = 'expired' AND source = 'assumed' AND actual = held AND key = 'day'",
        )
    )
    await later.aclose()


# the schema


async def test_a_newer_schema_is_refused_and_left_alone(fresh):
    store = PostgresStore(fresh, timeout=60.0)
    await store.ping()
    await store.aclose()
    rows(fresh, "INSERT INTO chat_nest.migrations (version) VALUES (99)")
    with pytest.raises(LimiterUnavailable) as failure:
        await store.reserve(claim("a", LINE), LEASE)
    assert isinstance(failure.value.__cause__, psycopg.NotSupportedError)
    assert rows(fresh, "SELECT count(*) FROM chat_nest.reservations") == [(0,)]
    await store.aclose()


async def test_a_dropped_schema_is_an_error_and_not_an_empty_budget(fresh):
    store = PostgresStore(fresh, timeout=60.0)
    await store.reserve(claim("a", window(100, resets_at=LATER)), LEASE)
    rows(fresh, "DROP SCHEMA chat_nest CASCADE")
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("b", window(100, resets_at=LATER)), LEASE)
    await store.aclose()


async def test_a_role_that_may_only_use_the_schema_can_work_with_it(fresh):
    store = PostgresStore(fresh, timeout=60.0)
    await store.ping()
    await store.aclose()
    role = f"guest_{os.getpid()}"
    rows(
        fresh,
        f"CREATE ROLE {role} LOGIN PASSWORD 'pass'; GRANT USAGE ON SCHEMA chat_nest TO {role};"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA chat_nest TO {role}",
    )
    parts = urlsplit(fresh)
    guest = PostgresStore(
        urlunsplit(parts._replace(netloc=f"{role}:pass@{parts.hostname}:{parts.port}")), timeout=60.0, _now=Clock()
    )
    assert isinstance(await guest.reserve(claim("a", window(100)), LEASE), Granted)
    assert await guest.settle(claim("a", window(100)), None, "reported")
    assert await guest.sweep() == 0
    await guest.aclose()
    rows(fresh, f"DROP OWNED BY {role}; DROP ROLE {role}")


def make_version_4(url):
    """Turn a new database into one as version 4 left it."""
    rows(
        url,
        "DELETE FROM chat_nest.migrations; INSERT INTO chat_nest.migrations (version) VALUES (1), (2), (3), (4);"
        "DROP FUNCTION chat_nest.accept(bigint);"
        "DROP TABLE chat_nest.controls, chat_nest.firsts, chat_nest.reports, chat_nest.acts, chat_nest.additions;"
        "CREATE FUNCTION chat_nest.reserve(text, text, bigint, bigint, bigint, bigint, bigint, text[], text[], text[],"
        " text[], bigint[], bigint[], bigint[], bigint[], bigint[]) RETURNS text LANGUAGE sql AS $$ SELECT 'old' $$",
    )


async def test_a_database_of_version_4_is_brought_up_to_date_with_what_is_running(fresh, clock):
    lines = window(1_000, fixed=20), gauge(4)
    before = PostgresStore(fresh, timeout=60.0, _now=clock)
    for id in ("done", "open"):
        assert isinstance(await before.reserve(claim(id, *lines), LEASE), Granted)
    assert await before.settle(claim("done", *lines), {"tokens": 40}, "reported")
    make_version_4(fresh)
    store = PostgresStore(fresh, timeout=60.0, _now=clock)
    assert await store.settle(claim("open", *lines), {"tokens": 30}, "reported")
    assert await standing(store, lines[0]) == (70, 0)
    assert rows(fresh, "SELECT max(version) FROM chat_nest.migrations") == [(5,)]
    assert rows(fresh, "SELECT max(version) FROM chat_nest.additions") == [(VERSION,)]
    assert rows(fresh, "SELECT count(*) FROM pg_proc WHERE proname = 'reserve'") == [(1,)]
    await store.controls.change([Control(kind="pause", name="all")], act=Act(by="cli:a", act="pause", target="all"))
    assert [row.name for row in (await store.controls.watch(0)).rows] == ["all"]
    assert await store.controls.first("a", 60)
    await store.controls.report([Control(kind="worker", name="a", expires=clock() + 60)])
    assert isinstance(await store.accept(), type(None))
    assert isinstance(await before.reserve(claim("next", *lines), LEASE), Granted)  # a worker that runs goes on
    await before.aclose()
    await store.aclose()


async def test_a_schema_from_before_the_first_release_is_refused_and_left_alone(fresh):
    store = PostgresStore(fresh, timeout=60.0)
    await store.ping()
    await store.aclose()
    rows(fresh, "UPDATE chat_nest.migrations SET version = 3")
    with pytest.raises(LimiterUnavailable) as failure:
        await store.reserve(claim("a", LINE), LEASE)
    assert "drop the schema" in str(failure.value.__cause__)
    assert rows(fresh, "SELECT version FROM chat_nest.migrations") == [(3,)]
    await store.aclose()


async def test_a_cancelled_call_runs_to_its_end_and_leaves_a_clean_connection(url, clock):
    store = PostgresStore(url, max_connections=1, timeout=10.0, _now=clock)
    await store.ping()
    with psycopg.connect(url) as other:
        await store.reserve(claim("first", LINE), LEASE)
        other.execute("SELECT FROM chat_nest.counters FOR UPDATE")
        call = asyncio.create_task(store.reserve(claim("a", LINE), LEASE))
        while not rows(
            url, "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%reserve_all(%' AND wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.01)
        pids = rows(url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'chat-nest'")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        other.rollback()
    assert await store.reserve(claim("a", LINE), LEASE) == Duplicate(output_tokens=100, state="open")
    assert rows(url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'chat-nest'") == pids
    assert await standing(store, LINE) == (0, 200)
    await store.aclose()


async def test_a_locked_row_is_given_up_on_and_nothing_is_held(url, clock):
    store = PostgresStore(url, timeout=3, _now=clock)  # the server gives up on the lock after 2.4 of them
    await insist(lambda: store.reserve(claim("first", LINE), LEASE))
    with psycopg.connect(url) as other:
        other.execute("SELECT FROM chat_nest.counters FOR UPDATE")
        with pytest.raises(LimiterUnavailable):
            await store.reserve(claim("a", LINE), LEASE)
    assert rows(url, "SELECT id FROM chat_nest.reservations") == [("first",)]
    assert isinstance(await insist(lambda: store.reserve(claim("a", LINE), LEASE)), Granted)
    await store.aclose()


class Proxy:
    """Between a store and its server. Told to `lose(n)`, it hangs up instead of delivering the next n answers that hold `t`."""

    def __init__(self, url):
        self._to = urlsplit(url)
        self._losing = 0
        self._open = 0
        self._accepted = self._stalled = 0
        self.lost = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = urlunsplit(self._to._replace(netloc=f"postgres@127.0.0.1:{port}"))
        return self

    async def __aexit__(self, *_):
        self._server.close()
        while self._open:
            await asyncio.sleep(0)

    def lose(self, answers):
        self._losing = answers

    def stall(self):
        """Deliver nothing more on the connections that are open now, and keep them open."""
        self._stalled = self._accepted

    async def _serve(self, reader, writer):
        self._open += 1
        self._accepted += 1
        number = self._accepted
        there, to_there = await asyncio.open_connection(self._to.hostname, self._to.port)
        ways = [self._copy(reader, to_there, number, lossy=False), self._copy(there, writer, number, lossy=True)]
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, to_there):
            each.transport.abort()
        await asyncio.wait(tasks)
        self._open -= 1

    async def _copy(self, reader, writer, number, *, lossy):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                if lossy and self._losing and data.endswith(b"Z\0\0\0\5I") and b"D\0" in data:  # a row, then idle
                    self._losing -= 1
                    self.lost += 1
                    return
                if number > self._stalled:
                    writer.write(data)
                    await writer.drain()


@pytest.mark.skipif("DATABASE_URL" in os.environ, reason="the proxy speaks to a server without TLS or passwords")
async def test_row44_an_answer_that_was_lost_is_given_again(url, clock):
    async with Proxy(url) as proxy:
        store = PostgresStore(proxy.url, max_connections=1, timeout=5.0, _now=clock)
        line, streams = window(1_000), gauge(3)
        one, two = claim("one", line, streams), claim("two", line, streams)
        await store.ping()
        proxy.lose(2)
        assert await store.reserve(one, LEASE) == Granted(output_tokens=100, room=(900, 2))
        proxy.lose(1)
        assert await store.reserve(two, LEASE) == Granted(output_tokens=100, room=(800, 1))
        proxy.lose(1)
        assert await store.settle(one, {"tokens": 30}, "reported") is True
        proxy.lose(2)
        assert await store.release(two) is True
        proxy.lose(1)
        assert await store.release(claim("never", line)) is False
        assert proxy.lost == 7
        assert await standing(store, line) == (30, 0)
        assert await store.settle(one, {"tokens": 50}, "reported") is False
        assert await store.release(two) is False
        assert await store.reserve(one, LEASE) == Duplicate(output_tokens=100, state="settled")
        assert await standing(store, line) == (30, 0)
        await store.aclose()


@pytest.mark.skipif("DATABASE_URL" in os.environ, reason="the proxy speaks to a server without TLS or passwords")
async def test_a_request_whose_answers_were_lost_is_recorded_once(url, clock):
    async with Proxy(url) as proxy:
        store = PostgresStore(proxy.url, max_connections=1, timeout=5.0, _now=clock)
        record = Record(run="r", caller="c", started_at=START, ending="stop", cost=5)
        one, two, three = (
            replace(claim(id, LINE), record=replace(record, cost=None)) for id in ("one", "two", "three")
        )
        await store.ping()
        proxy.lose(1)
        await store.reserve(one, LEASE)
        proxy.lose(2)
        assert await store.settle(one, {"tokens": 30}, "reported", record) is True
        await store.reserve(two, LEASE)
        await store.reserve(three, LEASE)
        clock.advance(LEASE)
        proxy.lose(1)
        await store.sweep()
        proxy.lose(2)
        assert await store.settle(two, {"tokens": 30}, "reported", record) is True
        proxy.lose(1)
        assert (await store.reserve(two, LEASE)).record == record
        assert proxy.lost == 7
        assert rows(url, "SELECT id, ending, cost_nanousd FROM chat_nest.requests ORDER BY id") == [
            ("one", "stop", 5),
            ("three", "stop", None),
            ("two", "stop", 5),
        ]
        await store.aclose()


@pytest.mark.skipif("DATABASE_URL" in os.environ, reason="the proxy speaks to a server without TLS or passwords")
async def test_a_connection_on_which_nothing_comes_any_more_is_hung_up_on(url):
    async with Proxy(url) as proxy:
        store = PostgresStore(proxy.url, max_connections=1, timeout=0.3)
        await insist(store.ping)
        proxy.stall()
        with pytest.raises(LimiterUnavailable):
            await store.ping()
        await insist(store.ping)  # on a new one
        await store.aclose()


async def test_row45_a_server_that_crashes_and_restarts_under_load_posts_nothing_twice(server):
    store = PostgresStore(server.url, max_connections=4)
    await insist(store.ping)
    line, streams = window(10**9, resets_at=LATER), gauge(10_000)
    stop = asyncio.Event()
    reserved, settled, failures, longest = {}, {}, 0, 0.0

    async def bounded(call):
        """The answer, or None. Each call ends by itself, in time."""
        nonlocal failures, longest
        began = time.monotonic()
        try:
            return await call
        except LimiterUnavailable:
            failures += 1
        finally:
            longest = max(longest, time.monotonic() - began)

    async def caller(which):
        number = 0
        while not stop.is_set():
            number += 1
            one = claim(f"{which}-{number}", line, streams, most=10)
            answer = None
            while answer is None:
                answer = await bounded(store.reserve(one, 600.0))
            # A call that failed may have reserved it.
            assert isinstance(answer, Granted) or answer == Duplicate(output_tokens=10, state="open")
            reserved[one.id] = answer
            done = None
            while done is None:
                done = await bounded(store.settle(one, {"tokens": number % 10}, "reported"))
            settled[one.id] = number % 10

    callers = [asyncio.create_task(caller(which)) for which in range(8)]
    for _ in range(2):
        before = len(settled)
        while len(settled) < before + 30:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.crash)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(server.start)
    before = len(settled)
    while len(settled) < before + 30:  # it recovers by itself
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*callers)
    assert longest < 60  # 0.9 s, on a busy machine
    assert await standing(store, line) == (sum(settled.values()), 0)
    assert await standing(store, streams) == (0, 0)
    assert dict(rows(server.url, "SELECT id, actual[1] FROM chat_nest.reservations WHERE state = 'settled'")) == settled
    assert rows(server.url, "SELECT count(*) FROM chat_nest.reservations") == [(len(settled),)]
    await store.aclose()


async def test_a_frozen_server_is_given_up_on_in_time_and_used_again_when_it_thaws(server, caplog):
    store = PostgresStore(server.url, max_connections=4)
    line = window(10**9, resets_at=LATER)
    one = claim("one", line)
    await insist(lambda: store.reserve(one, 600.0))
    server.signal_all(signal.SIGSTOP)
    try:
        async with asyncio.timeout(240):  # 0.9 s each, on a busy machine
            answers = await asyncio.gather(
                *(store.reserve(claim(f"{n}", line), 600.0) for n in range(10)),
                store.settle(one, {"tokens": 7}, "reported"),
                return_exceptions=True,
            )
            assert {type(answer) for answer in answers} == {LimiterUnavailable}
            with pytest.raises(LimiterUnavailable):
                await store.peek([line])
    finally:
        server.signal_all(signal.SIGCONT)
    assert await insist(lambda: store.settle(one, {"tokens": 7}, "reported")) in {True, False}
    for n in range(10):
        await insist(lambda n=n: store.release(claim(f"{n}", line)))
    assert await insist(lambda: standing(store, line)) == (7, 0)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("chat_nest")]
    assert said[0].startswith("The PostgreSQL store at ")
    assert " does not answer: " in said[0]
    assert said[-1] == said[0].partition(" does not answer")[0] + " answers again"
    await store.aclose()


async def test_an_unreachable_server_is_unavailable_and_the_password_is_not_shown(caplog):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        store = PostgresStore(f"postgresql://user:hunter2@127.0.0.1:{closed.getsockname()[1]}/db", timeout=0.1)
        with pytest.raises(LimiterUnavailable) as failure:
            await store.ping()
        await store.aclose()
    told = repr(failure.value) + repr(failure.value.__cause__) + caplog.text
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("mysql://user:hunter2@host/db", {}),
        ("host=localhost password=hunter2", {}),
        ("postgresql://user:hunter2@host/db?nonsense=1", {}),
        ("postgresql://user:hunter2@[host/db", {}),
        ("postgresql://user:hunter2@host/%zz", {}),
        ("postgresql://user:hunter2@host/db", {"timeout": 0}),
        ("postgresql://user:hunter2@host/db", {"max_connections": 0}),
    ],
)
def test_what_can_not_be_is_refused_without_repeating_it(url, options):
    with pytest.raises(ValueError, match="must be|must start") as failure:
        PostgresStore(url, **options)
    assert "hunter2" not in repr(failure.value) + repr(failure.value.__cause__)


async def test_options_in_the_url_are_kept(url):
    store = PostgresStore(f"{url}?application_name=mine&options=-c%20work_mem%3D5MB", timeout=60.0)
    await store.ping()
    assert rows(url, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mine'") == [(1,)]
    await store.aclose()


# the same answers as memory


class PostgresHistory(properties.History):
    """The random histories of the SQLite store, told to this one."""

    @properties.initialize()
    def open(self):
        empty(shared_url())
        self.clock = Clock()
        self.runner = properties.asyncio.Runner()
        self.directory = quick_directory()
        self.directory.__enter__()
        self.memory = MemoryStore(self.clock, retention=properties.FOREVER)
        self.sqlite = self.opened()
        self.told = {}
        self.tombs = {}

    @properties.rule()
    def the_process_is_replaced(self):
        self.run(self.sqlite.aclose())
        self.sqlite = self.opened()

    def opened(self):
        return PostgresStore(shared_url(), timeout=60.0, retention=properties.FOREVER, _now=self.clock)


TestPostgresHistory = PostgresHistory.TestCase
TestPostgresHistory.settings = settings(max_examples=20, stateful_step_count=40)
