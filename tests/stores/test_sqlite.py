"""What only the SQLite store has: a file, a thread, and ways to fail."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import sqlite3
import stat
import tempfile
import threading
from pathlib import Path
from zoneinfo import ZoneInfo

import chat_nest.stores.sqlite as sqlite_module
import pytest
from blockbuster import BlockBuster
from chat_nest.core.controls import Act, Control
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.claims import Duplicate, Granted, Refused
from chat_nest.core.records import Record
from chat_nest.stores.rules import Book
from chat_nest.stores.sqlite import SQLiteStore
from chat_nest.stores.sqlite.file import SQLiteFile
from msgspec.structs import replace
from stores_under_test import LEASE, START, Clock, claim, gauge, rate, standing, window

LINE = window(10**9)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
async def store(path, clock):
    opened = SQLiteStore(path, clock, lock_timeout=0.1)
    yield opened
    await opened.aclose()


def rows(path, query):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


# the file


async def test_an_operator_can_read_what_happened(store, path, clock):
    lines = window(1_000, fixed=20), rate(9), gauge(4)
    for id in ("settled", "expired", "released", "open"):
        await store.reserve(claim(id, *lines), 10.0)
    await store.settle(claim("settled", *lines), {"tokens": 33}, "estimated")
    await store.release(claim("released", *lines))
    await store.extend([claim("open", *lines)], 20.0)
    clock.advance(10)
    await store.sweep()
    assert rows(path, "SELECT id, fingerprint, state, output, source, expires_at FROM reservations ORDER BY id") == [
        ("expired", "same", "expired", 100, "assumed", (START + 10) * 1e6),
        ("open", "same", "open", 100, None, (START + 20) * 1e6),
        ("released", "same", "released", 100, None, (START + 10) * 1e6),
        ("settled", "same", "settled", 100, "estimated", (START + 10) * 1e6),
    ]
    assert rows(path, "SELECT id, name, key, unit, held, actual FROM reservation_lines WHERE kind = 'window'") == [
        ("settled", "tokens_per_day", "day", "tokens", 120, 33),
        ("expired", "tokens_per_day", "day", "tokens", 120, 120),
        ("released", "tokens_per_day", "day", "tokens", 120, 0),
        ("open", "tokens_per_day", "day", "tokens", 120, None),
    ]
    assert rows(path, "SELECT key, used, held FROM counters WHERE kind <> 'rate' ORDER BY key") == [
        ("day", 153, 120),
        ("streams", 0, 1),
    ]


async def test_the_files_are_for_their_owner_only(store, path):
    before = os.umask(0)
    try:
        await store.reserve(claim("a", LINE), LEASE)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600, ".store.db.epoch": 0o600}


async def test_nothing_is_lost_between_two_processes(store, path, clock):
    lines = window(1_000), rate(9), gauge(3)
    await store.reserve(claim("a", *lines), LEASE)
    await store.reserve(claim("b", *lines), LEASE)
    await store.settle(claim("b", *lines), {"tokens": 7}, "reported")
    stands = await store.peek(lines)
    await store.aclose()
    again = SQLiteStore(path, clock)
    assert await again.peek(lines) == stands
    assert await again.reserve(claim("a", *lines), LEASE) == Duplicate(output_tokens=100, state="open")
    assert await again.reserve(claim("b", *lines), LEASE) == Duplicate(output_tokens=100, state="settled")
    assert await again.settle(claim("a", *lines), {"tokens": 5}, "reported") is True
    assert await standing(again, lines[0]) == (12, 0)
    await again.aclose()


async def test_two_stores_share_one_file(store, path, clock):
    line, other = window(150), SQLiteStore(path, clock)
    assert (await store.reserve(claim("a", line), LEASE)).output_tokens == 100
    assert (await other.reserve(claim("b", line), LEASE)).output_tokens == 50
    assert isinstance(await store.reserve(claim("c", line), LEASE), Refused)
    assert await store.settle(claim("b", line), {"tokens": 0}, "reported") is True
    assert await other.settle(claim("b", line), {"tokens": 9}, "reported") is False
    await other.aclose()


async def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("here.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await store.ping()
    await store.aclose()
    assert (tmp_path / "here.db").exists()


async def test_a_path_may_hold_what_a_uri_would_not(tmp_path):
    store = SQLiteStore(tmp_path / "a b%20?mode=ro#c.db")
    await store.ping()
    await store.aclose()
    assert (tmp_path / "a b%20?mode=ro#c.db").exists()


def test_a_path_that_can_not_be_is_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="directory of the SQLite file does not exist"):
        SQLiteStore(tmp_path / "missing" / "store.db")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        SQLiteStore(tmp_path)
    with pytest.raises(ValueError, match="MemoryStore"):
        SQLiteStore(":memory:")


async def test_a_file_of_a_newer_version_is_left_alone(store, path):
    await store.ping()
    await store.aclose()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LimiterUnavailable) as failure:
        await store.ping()
    assert "newer version" in str(failure.value.__cause__)
    assert rows(path, "PRAGMA user_version") == [(99,)]


SCRIPTS = Path(sqlite_module.__file__).parent / "sql"
VERSION_1 = """
INSERT INTO counters (key, kind, used, held, tat, ends_at) VALUES
  ('day', 'window', 40, 220, 0, {end}), ('streams', 'gauge', 0, 2, 0, 0);
INSERT INTO reservations (id, fingerprint, state, output, reserved_at, expires_at, finished_at, source, lines) VALUES
  ('done', 'same', 'settled', 100, {now}, {lease}, {now}, 'reported', '[{{"name":"tokens_per_day","key":"day",
    "unit":"tokens","kind":"window","held":120,"actual":40}}]'),
  ('late', 'same', 'open', 100, {now}, {now}, NULL, NULL, '[{{"name":"tokens_per_day","key":"day","unit":"tokens",
    "kind":"window","held":120}},{{"name":"concurrent_streams","key":"streams","unit":"streams","kind":"gauge","held":1}}]'),
  ('open', 'same', 'open', 80, {now}, {lease}, NULL, NULL, '[{{"name":"tokens_per_day","key":"day","unit":"tokens",
    "kind":"window","held":100}},{{"name":"concurrent_streams","key":"streams","unit":"streams","kind":"gauge","held":1}}]');
PRAGMA user_version = 1;
"""


def make_version_1(path):
    """A file as the first version left it: one request settled, one lost, one running."""
    us = int(START * 1e6)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript((SCRIPTS / "0001.sql").read_text())
        connection.executescript(VERSION_1.format(now=us, lease=us + 60_000_000, end=us + 86_400_000_000))


async def test_a_file_of_version_1_is_brought_up_to_date_with_what_is_running(store, path, clock):
    make_version_1(path)
    assert await store.usage(START, START + 1, (), ZoneInfo("UTC")) == []
    assert rows(path, "PRAGMA user_version") == [(1,)]  # reading changes nothing
    lines = window(1_000, fixed=20), gauge(4)
    record = Record(run="r", caller="c", started_at=START, ending="stop", source="reported")
    asked = replace(claim("open", *lines), record=replace(record, ending="lost"))
    clock.advance(1)
    assert await store.reserve(claim("open", *lines), LEASE) == Duplicate(output_tokens=80, state="open")
    assert rows(path, "PRAGMA user_version") == [(2,)]  # the release before can use the file, too
    assert rows(path, "SELECT version FROM additions") == [(3,)]
    assert await standing(store, lines[0]) == (160, 100)
    assert await standing(store, lines[1]) == (0, 1)
    assert await store.reserve(claim("done", *lines), LEASE) == Duplicate(output_tokens=100, state="settled")
    assert await store.reserve(claim("late", *lines), LEASE) == Duplicate(output_tokens=100, state="expired")
    assert rows(path, "SELECT count(*) FROM requests") == [(0,)]  # nothing is known of what was lost
    assert await store.extend([asked], LEASE) == {"open"}
    assert await store.settle(asked, {"tokens": 30}, "reported", record)
    assert await store.settle(claim("late", *lines), {"tokens": 20}, "reported", replace(record, run="late"))
    assert await standing(store, lines[0]) == (90, 0)
    assert rows(path, "SELECT id, run, ending FROM requests ORDER BY id") == [
        ("late", "late", "stop"),
        ("open", "r", "stop"),
    ]


async def test_a_process_of_version_1_continues_with_an_upgraded_file(store, path):
    make_version_1(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        assert old.execute("SELECT count(*) FROM reservations").fetchone() == (3,)
        await store.ping()
        old.execute(
            "INSERT INTO reservations (id, fingerprint, state, output, reserved_at, expires_at, finished_at, source, lines)"
            " SELECT 'new', fingerprint, state, output, reserved_at, expires_at, finished_at, source, lines"
            " FROM reservations WHERE id = 'open' ON CONFLICT (id) DO UPDATE SET state = excluded.state"
        )
    assert await store.reserve(claim("new", LINE), LEASE) == Duplicate(output_tokens=80, state="open")


async def test_many_endings_at_once_stay_within_the_limits_of_old_sqlite(store, path, monkeypatch):
    execute, most = SQLiteFile.execute, []
    monkeypatch.setattr(
        SQLiteFile, "execute", lambda file, text, values=(): (most.append(len(values)), execute(file, text, values))[1]
    )
    record = Record(run="r", caller="c", started_at=START)
    claims = [replace(claim(f"{n}", LINE), record=record) for n in range(300)]
    await asyncio.gather(*(store.reserve(one, LEASE) for one in claims))
    await asyncio.gather(*(store.settle(one, None, "assumed", record) for one in claims))
    assert 500 < max(most) <= 999
    assert rows(path, "SELECT count(*) FROM requests") == [(300,)]


async def test_every_commit_is_synced_to_a_write_ahead_log(store, path, monkeypatch):
    seen = []
    commit = SQLiteFile.commit

    def watched(file):
        seen.append([file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")])
        commit(file)

    monkeypatch.setattr(SQLiteFile, "commit", watched)
    await store.reserve(claim("a", LINE), LEASE)
    assert seen == [[2, "wal"]]


# the thread


async def test_calls_that_wait_share_a_commit_and_are_answered_after_it(store, path, monkeypatch):
    commits = []
    commit = SQLiteFile.commit
    monkeypatch.setattr(SQLiteFile, "commit", lambda file: (commit(file), commits.append(1)))
    await store.ping()
    commits.clear()
    with contextlib.closing(sqlite3.connect(path)) as reader:

        async def reserve(id):
            answer = await store.reserve(claim(id, LINE, gauge(10_000)), LEASE)
            assert reader.execute("SELECT count(*) FROM reservations WHERE id = ?", (id,)).fetchone() == (1,)
            return answer

        answers = await asyncio.gather(*(reserve(f"{n}") for n in range(1_300)))
    assert {type(answer) for answer in answers} == {Granted}
    assert [answer.room[1] for answer in answers] == list(range(9_999, 8_699, -1))  # in the order of the calls
    assert len(commits) <= 30
    assert await standing(store, LINE) == (0, 130_000)


async def test_a_refusal_counts_the_leases_of_the_same_transaction(store):
    await store.ping()
    calls = []
    for n in range(50):
        calls += [store.reserve(claim(f"{n}-{which}", gauge(1, key=f"{n}")), 20.0) for which in "ab"]
    answers = await asyncio.gather(*calls)
    assert {type(answer) for answer in answers[::2]} == {Granted}
    assert answers[1::2] == [Refused(line=0, room=0, retry_after=20.0)] * 50


async def test_the_event_loop_is_never_blocked(path):
    store = SQLiteStore(path)
    blockbuster = BlockBuster()
    blockbuster.activate()
    try:
        one = claim("a", LINE, gauge(1))
        await store.reserve(one, LEASE)
        await store.reserve(claim("b", gauge(1)), LEASE)
        await store.extend([one], LEASE)
        await store.peek([LINE])
        await store.settle(one, None, "reported")
        await store.release(one)
        await store.sweep()
        await store.ping()
        await store.aclose()
    finally:
        blockbuster.deactivate()


async def test_nothing_runs_before_the_first_call_and_nothing_after_closing(path):
    before = set(threading.enumerate())

    def writers():
        return [thread for thread in threading.enumerate() if thread not in before]

    store = SQLiteStore(path)
    assert writers() == []
    assert not path.exists()
    await store.aclose()
    await asyncio.gather(*(store.ping() for _ in range(5)))
    [thread] = writers()
    await store.aclose()
    thread.join(5)
    assert writers() == []
    assert {file.name for file in path.parent.iterdir()} == {"store.db", ".store.db.epoch"}  # the log is folded in
    await store.ping()
    assert len(writers()) == 1
    await store.aclose()


def test_one_event_loop_after_another(path, clock):
    store = SQLiteStore(path, clock)

    async def use(id):
        return await store.reserve(claim(id, LINE), LEASE)

    assert isinstance(asyncio.run(use("a")), Granted)
    assert isinstance(asyncio.run(use("b")), Granted)
    asyncio.run(store.aclose())
    assert asyncio.run(standing(store, LINE)) == (0, 200)
    asyncio.run(store.aclose())


def test_a_loop_that_closed_before_its_answer_does_no_harm(path, clock):
    store = SQLiteStore(path, clock, lock_timeout=5.0)
    asyncio.run(store.ping())

    async def leave():
        call = asyncio.ensure_future(store.reserve(claim("a", LINE), LEASE))
        await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        asyncio.run(leave())
        other.execute("ROLLBACK")
    assert asyncio.run(standing(store, LINE)) == (0, 100)  # it was called, and ran
    asyncio.run(store.aclose())


async def test_a_release_follows_the_call_that_was_cancelled(store):
    await store.ping()
    claims = [claim(f"{n}", LINE, gauge(1_000)) for n in range(60)]
    calls = [asyncio.ensure_future(store.reserve(one, LEASE)) for one in claims]
    await asyncio.sleep(0)  # queued
    for call in calls:
        call.cancel()
    assert await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.gather(*(store.release(one) for one in claims))
    assert await standing(store, LINE) == (0, 0)
    assert await standing(store, gauge(1_000)) == (0, 0)
    assert {answer.state for answer in [await store.reserve(one, LEASE) for one in claims]} == {"released"}


async def test_one_call_that_fails_does_not_take_the_others_along(store, monkeypatch):
    settle = Book.settle

    def broken(book, one, *rest):
        if one.id == "bad":
            raise ZeroDivisionError
        return settle(book, one, *rest)

    monkeypatch.setattr(Book, "settle", broken)
    ids = ["a", "bad", "b"]
    await asyncio.gather(*(store.reserve(claim(id, LINE), LEASE) for id in ids))
    settled = [store.settle(claim(id, LINE), {"tokens": 1}, "reported") for id in ids]
    first, second, third = await asyncio.gather(*settled, return_exceptions=True)
    assert (first, type(second), third) == (True, ZeroDivisionError, True)
    assert await standing(store, LINE) == (2, 100)


async def test_a_claim_with_more_lines_than_a_statement_has_rows(store):
    lines = [window(1_000, key=f"key-{n}") for n in range(150)]
    await store.reserve(claim("a", *lines), LEASE)
    await store.settle(claim("a", *lines), {"tokens": 3}, "reported")
    assert {(found.used, found.held) for found in await store.peek(lines)} == {(3, 0)}


# failures


async def test_a_lock_that_can_not_be_had(store, path, caplog):
    await store.reserve(claim("a", LINE), LEASE)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for id in ("secret-b", "secret-c"):
            with pytest.raises(LimiterUnavailable) as failure:
                await store.reserve(claim(id, LINE), LEASE)
            assert "locked" in str(failure.value.__cause__)
        with pytest.raises(LimiterUnavailable):
            await store.ping()
        assert await standing(store, LINE) == (0, 100)  # reading needs no lock
        other.execute("ROLLBACK")
    assert await standing(store, LINE) == (0, 100)
    assert isinstance(await store.reserve(claim("secret-b", LINE), LEASE), Granted)
    assert "secret" not in caplog.text
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"The SQLite store {path} does not answer: SQLITE_BUSY",
        f"The SQLite store {path} answers again",
    ]


async def test_a_lock_that_is_freed_in_time(path, clock):
    store = SQLiteStore(path, clock, lock_timeout=10.0)
    await store.ping()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        call = asyncio.ensure_future(store.reserve(claim("a", LINE), LEASE))
        bystander = SQLiteStore(path, clock)
        assert await standing(bystander, LINE) == (0, 0)  # some time passes, without the lock
        await bystander.aclose()
        assert not call.done()
        other.execute("ROLLBACK")
        assert isinstance(await call, Granted)
    await store.aclose()


async def test_a_file_that_is_no_database(store, path):
    path.write_bytes(b"this is not a database, and longer than the header of one " * 40)
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("a", LINE), LEASE)
    path.unlink()
    assert isinstance(await store.reserve(claim("a", LINE), LEASE), Granted)


async def test_a_file_that_was_damaged(store, path):
    for number in range(300):
        await store.reserve(claim(f"{number}", window(1_000, key=f"key-{number}")), LEASE)
    await store.aclose()
    good = path.read_bytes()
    path.write_bytes(good[:4096] + os.urandom(len(good) - 4096))
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("7", window(1_000, key="key-7")), LEASE)
    path.write_bytes(good)
    assert isinstance(await store.reserve(claim("7", window(1_000, key="key-7")), LEASE), Duplicate)


async def test_a_file_that_was_removed_is_not_an_empty_budget(store, path, tmp_path):
    line = window(100)
    await store.reserve(claim("a", line), LEASE)
    away = tmp_path / "away"
    away.mkdir()
    for file in list(path.parent.glob("store.db*")):
        shutil.move(file, away)
    for _ in range(2):
        with pytest.raises(LimiterUnavailable):
            await store.reserve(claim("b", line), LEASE)
    assert not path.exists()
    for file in list(away.iterdir()):
        shutil.move(file, path.parent)
    assert isinstance(await store.reserve(claim("b", line), LEASE), Refused)


async def test_a_file_that_was_replaced_is_followed(store, path, clock, tmp_path):
    line = window(100)
    await store.ping()
    with (
        contextlib.closing(sqlite3.connect(path)) as original,
        contextlib.closing(sqlite3.connect(tmp_path / "backup.db")) as copy,
    ):
        original.backup(copy)
    await store.reserve(claim("a", line), LEASE)
    backup = SQLiteStore(tmp_path / "backup.db", clock)
    await backup.reserve(claim("b", line, most=30), LEASE)
    await backup.aclose()
    os.replace(tmp_path / "backup.db", path)
    for rest in ("store.db-wal", "store.db-shm"):
        (path.parent / rest).unlink(missing_ok=True)
    assert await standing(store, line) == (0, 30)


async def test_a_full_disk(store):
    await store.reserve(claim("a", LINE), LEASE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    many = [claim(f"many-{n}", window(1_000, key=f"key-{n}")) for n in range(400)]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # no file may grow beyond this
        answers = await asyncio.gather(*(store.reserve(one, LEASE) for one in many), return_exceptions=True)
        failed = [one for one, answer in zip(many, answers, strict=True) if isinstance(answer, LimiterUnavailable)]
        granted = [one for one, answer in zip(many, answers, strict=True) if isinstance(answer, Granted)]
        assert len(failed) + len(granted) == len(many)
        assert failed
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    stands = await store.peek([one.lines[0] for one in many])
    assert [found.held for found in stands] == [0 if one in failed else 100 for one in many]
    assert isinstance(await store.reserve(failed[0], LEASE), Granted)
    assert await store.settle(claim("a", LINE), {"tokens": 5}, "reported") is True


async def test_on_a_full_disk_an_act_is_done_and_in_the_trail_or_refused(store):
    await store.controls.change([Control(kind="pause", name="first")], act=Act(by="ops", act="pause", target="first"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    done, refused = ["first"], []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        for number in range(400):
            row = Control(kind="pause", name=f"model:p:{number}", reason="x" * 400)
            try:
                await store.controls.change([row], act=Act(by="ops", act="pause", target=row.name, reason=row.reason))
                done.append(row.name)
            except LimiterUnavailable:
                refused.append(row.name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused
    assert sorted(row.name for row in (await store.controls.watch(-1)).rows) == sorted(done)
    assert sorted(act.target for act in await store.controls.acts(1_000)) == sorted(done)


async def test_a_read_only_file(clock):
    directory = Path(tempfile.mkdtemp())
    store = SQLiteStore(directory / "store.db", clock)
    try:
        await store.reserve(claim("a", LINE), LEASE)
        await store.aclose()
        (directory / "store.db").chmod(0o444)
        directory.chmod(0o555)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)  # root may write anything
        try:
            with pytest.raises(LimiterUnavailable):
                await store.reserve(claim("b", LINE), LEASE)
        finally:
            if was_root:
                os.seteuid(0)
        directory.chmod(0o700)
        (directory / "store.db").chmod(0o600)
        assert isinstance(await store.reserve(claim("b", LINE), LEASE), Granted)
    finally:
        await store.aclose()
        directory.chmod(0o700)
        shutil.rmtree(directory)


async def test_a_clock_that_fails_answers_with_an_error(path):
    def broken():
        raise OSError

    store = SQLiteStore(path, broken)
    with pytest.raises(LimiterUnavailable):
        await store.ping()
    await store.aclose()


# retention


async def test_old_rows_are_purged_and_live_ones_are_not(path, clock):
    store = SQLiteStore(path, clock, retention=1_000.0)
    everyone = window(10**9, key="all")
    await store.reserve(claim("long", everyone, gauge(9)), 10**6)
    for number in range(30):
        ends = clock.now + 100
        claims = [
            claim(
                f"{number}-{n}",
                everyone,
                window(1_000, key=f"{number}-{n}", resets_at=ends),
                rate(9, key=f"rpm-{number}-{n}"),
                gauge(9, key=f"streams-{n}"),
            )
            for n in range(100)
        ]
        await asyncio.gather(*(store.reserve(one, LEASE) for one in claims))
        await asyncio.gather(*(store.settle(one, {"tokens": 1}, "reported") for one in claims))
        clock.advance(200)
    [[kept]] = rows(path, "SELECT count(*) FROM reservations")
    [[counters]] = rows(path, "SELECT count(*) FROM counters WHERE key <> ''")
    assert kept < 1_500  # 500 are younger than the retention
    assert counters < 3_000
    assert await standing(store, everyone) == (3_000, 100)
    clock.advance(1_100)
    for _ in range(5):
        await store.sweep()
    assert rows(path, "SELECT id FROM reservations") == [("long",)]
    assert rows(path, "SELECT key FROM counters WHERE key <> '' ORDER BY key") == [("all",), ("streams",)]
    assert await store.settle(claim("long", everyone, gauge(9)), {"tokens": 2}, "reported") is True
    await store.aclose()


async def test_a_window_stays_until_the_retention_after_its_end(path):
    clock = Clock()
    store = SQLiteStore(path, clock, retention=100.0)
    line = window(1_000, resets_at=START + 50)
    await store.reserve(claim("a", line), LEASE)
    await store.settle(claim("a", line), {"tokens": 7}, "reported")
    clock.advance(149)
    for _ in range(3):
        await store.sweep()
    assert await standing(store, line) == (7, 0)
    clock.advance(1)
    for _ in range(3):
        await store.sweep()
    assert rows(path, "SELECT count(*) FROM counters WHERE key <> ''") == [(0,)]
    await store.aclose()
