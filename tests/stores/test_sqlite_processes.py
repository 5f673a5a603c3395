"""Several real processes on one SQLite file, and what is left when one is killed."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_nest.core.claims import Duplicate
from chat_nest.stores.sqlite import SQLiteStore
from sqlite_worker import BUDGET, DAY, LINES
from stores_under_test import Clock, claim, quick_directory

WORKER = Path(__file__).parent.parent / "sqlite_worker.py"


@pytest.fixture
def path():
    with quick_directory() as directory:
        yield directory / "store.db"


def start(path, name, task):
    paths = os.pathsep.join([str(WORKER.parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, WORKER, path, name, task],
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


def rows(path, query):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_four_processes_open_a_new_file_together_and_never_exceed_its_budget(path):
    workers = [start(path, f"w{n}", "race") for n in range(4)]
    go(workers)
    granted = {}
    for worker in workers:
        output, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0
        granted |= told(output)
    assert len(granted) == 40
    assert rows(path, "SELECT used, held FROM counters WHERE key = 'budget'") == [(0, BUDGET.limit)]
    assert {(id,) for _, id in granted} == set(rows(path, "SELECT id FROM reservations WHERE state = 'open'"))
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_four_processes_settle_and_the_sum_is_exact(path):
    workers = [start(path, f"w{n}", "chat") for n in range(4)]
    go(workers)
    settled = {}
    for worker in workers:
        output, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0
        settled |= {id: tokens for (word, id), tokens in told(output).items() if word == "settled"}
    assert len({id.split("-")[0] for id in settled}) > 1
    spent = sum(settled.values())
    assert rows(path, "SELECT key, used, held FROM counters WHERE kind = 'window' ORDER BY key") == [
        ("all", spent, 0),
        ("day", spent, 0),
    ]
    assert DAY.limit - 51 < spent <= DAY.limit
    assert rows(path, "SELECT held FROM counters WHERE kind = 'gauge'") == [(0,)]


@pytest.mark.parametrize("seed", range(4))
async def test_a_killed_process_loses_nothing_that_was_answered(path, seed):
    chance = random.Random(seed)
    victim, *others = workers = [start(path, name, "chat") for name in ("victim", "w1", "w2")]
    go(workers)
    heard = [victim.stdout.readline() for _ in range(chance.randint(1, 250))]
    victim.kill()
    heard += victim.communicate(timeout=240)[0].splitlines(keepends=True)
    answers = told("".join(heard))
    for worker in others:
        output, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0  # the others go on
        answers |= told(output)

    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    found = {id: (state, output) for id, state, output in rows(path, "SELECT id, state, output FROM reservations")}
    actual = dict(rows(path, "SELECT id, actual FROM reservation_lines WHERE key = 'day'"))
    for (word, id), amount in answers.items():
        if word == "reserved":
            assert found[id][1] == amount
        else:
            assert (found[id][0], actual[id]) == ("settled", amount)
    open_ids = {id for id, (state, _) in found.items() if state == "open"}
    assert all(id.startswith("victim") for id in open_ids)

    later = SQLiteStore(path, Clock(time.time() + 61))
    held = dict(rows(path, "SELECT id, held FROM reservation_lines WHERE key = 'day'"))
    before = {stand.used + stand.held for stand in await later.peek([DAY, LINES[1]])}
    assert await later.sweep() == len(open_ids)
    day, everyone, streams = await later.peek(LINES[:3])
    spent = sum(held[id] if id in open_ids else actual[id] for id in found)
    assert (day.used, day.held) == (everyone.used, everyone.held) == (spent, 0)
    assert before == {spent}
    assert spent <= DAY.limit
    assert streams.held == 0
    for id, state, source, charged in rows(
        path, "SELECT id, state, source, actual = held FROM reservation_lines WHERE source = 'assumed'"
    ):
        assert (id in open_ids, state, source, charged) == (True, "expired", "assumed", 1)
    assert rows(path, "SELECT count(*) FROM reservations WHERE state = 'expired'") == [(len(open_ids),)]
    for id in open_ids:
        answer = await later.reserve(claim(id, *LINES), 60.0)
        assert answer == Duplicate(output_tokens=found[id][1], state="expired")
    await later.aclose()


async def test_a_process_killed_while_it_opens_a_new_file_leaves_one_that_opens(path):
    for number in range(6):
        worker = start(path, f"w{number}", "chat")
        go([worker])
        while not path.exists():
            time.sleep(0)
        worker.kill()
        worker.communicate(timeout=240)
        store = SQLiteStore(path)
        await store.ping()
        await store.aclose()
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]
        for file in path.parent.iterdir():
            file.unlink()
