"""What SQLite and PostgreSQL keep of requests: a row each, exactly once, for as long as it is wanted; and the report."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections import Counter
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.claims import Duplicate, Granted
from chat_nest.core.records import Record, UsageRow
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.reports import request_row
from chat_nest.stores.sqlite import SQLiteStore
from chat_nest.stores.urls import keeps_records, open_store
from chat_nest.core.usage import Usage
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from postgres_server import empty, rows, shared_url
from stores_under_test import LEASE, START, Clock, claim, quick_directory, window

UTC = ZoneInfo("UTC")
DAY = 86_400.0
DOCS = Path(__file__).parents[2] / "docs"
LINE = window(10**9)
ASKED = Record(
    run="run", caller="c" * 16, group="acme", profile="balanced", model="p:m:7b", started_at=START, usage=Usage(input_tokens=7)
)  # fmt: skip
ANSWERED = replace(
    ASKED,
    seconds=1.25,
    first_token_seconds=0.5,
    usage=Usage(input_tokens=7, output_tokens=2**50, cached_input_tokens=3, cache_write_tokens=1, reasoning_tokens=2),
    cost=2**50,
    price="own",
    source="reported",
    ending="stop",
)


class Place:
    """Where a store's rows are, and how to open stores there and to look at them."""

    def __init__(self, kind, path):
        self.kind = kind
        self.path = path
        self.opened = []

    def store(self, clock, **options):
        if self.kind == "sqlite":
            store = SQLiteStore(self.path, clock, **options)
        else:
            store = PostgresStore(shared_url(), max_connections=4, timeout=10.0, _now=clock, **options)
        self.opened.append(store)
        return store

    def look(self, query):
        """The rows; tables are named as in SQLite."""
        if self.kind == "sqlite":
            with contextlib.closing(sqlite3.connect(self.path)) as connection:
                return connection.execute(query).fetchall()
        return rows(shared_url(), re.sub(r"\b(requests|reservations)\b", r"chat_nest.\1", query))

    def requests(self):
        return self.look("SELECT * FROM requests ORDER BY id, started_at")

    async def aclose(self):
        for store in self.opened:
            await store.aclose()


@contextlib.asynccontextmanager
async def place_of(kind):
    if kind == "postgres":
        empty(shared_url())
    with quick_directory() as directory:
        place = Place(kind, directory / "store.db")
        try:
            yield place
        finally:
            await place.aclose()


@pytest.fixture(params=["sqlite", "postgres"])
async def place(request):
    async with place_of(request.param) as place:
        yield place


def asking(id, *lines, record=ASKED, most=100, owner=""):
    return replace(claim(id, *(lines or [LINE]), most=most), record=record, owner=owner)


async def chat(store, id, record=ANSWERED, *lines):
    one = asking(
        id, *lines, record=replace(record, ending="lost", usage=Usage(input_tokens=7), source="assumed", cost=None)
    )
    assert isinstance(await store.reserve(one, LEASE), Granted)
    assert await store.settle(one, {"tokens": 1}, record.source, record)


# rows


async def test_a_settled_request_is_one_row_with_all_that_is_known(place, clock):
    store = place.store(clock)
    one = asking("a")
    await store.reserve(one, LEASE)
    assert place.requests() == []
    await store.settle(one, {"tokens": 9}, "reported", ANSWERED)
    kept = (
        int(START * 1e6), "a", "run", "c" * 16, "acme", "balanced", "p", "m:7b", 1.25, 0.5, 7, 2**50, 3, 1, 2, 2**50, "own",
        "reported", "stop",
    )  # fmt: skip
    assert place.requests() == [kept]
    assert not await store.settle(one, {"tokens": 8}, "reported", replace(ANSWERED, ending="length"))
    await store.sweep()
    assert place.requests() == [kept]


async def test_a_lost_request_is_a_row_that_a_late_settlement_corrects(place, clock):
    store = place.store(clock)
    one = asking("a", LINE, window(10**6, fixed=70, per_token=10, key="money", unit="nanousd"))
    await store.reserve(one, LEASE)
    clock.advance(LEASE)
    assert place.requests() == []
    assert await store.sweep() == 1
    [lost] = place.requests()
    assert lost[8:] == (0.0, None, 7, 100, 0, 0, 0, 1_070, "", "assumed", "lost")
    late = replace(ANSWERED, started_at=START + 3)  # another clock's word for the same moment
    assert await store.settle(one, {"tokens": 9}, "reported", late)
    assert place.requests() == [request_row("a", ANSWERED)]
    assert (await store.reserve(one, LEASE)).record == ANSWERED


async def test_a_settlement_after_its_lease_expired_is_one_row(place, clock):
    store = place.store(clock)
    for id, record in (("a", ANSWERED), ("b", None)):
        await store.reserve(asking(id), LEASE)
        clock.advance(LEASE)
        assert await store.settle(asking(id), {"tokens": 9}, "reported", record)
    assert place.requests() == [
        request_row("a", ANSWERED),
        request_row("b", replace(ASKED, usage=Usage(input_tokens=7, output_tokens=100))),
    ]


async def test_the_next_call_charges_lost_requests_and_writes_their_rows(place, clock):
    store = place.store(clock)
    for n in range(3):
        await store.reserve(asking(f"{n}"), LEASE)
    clock.advance(LEASE)
    await store.reserve(asking("next"), LEASE)
    assert [row[1] for row in place.requests()] == ["0", "1", "2"]


async def test_released_and_refused_requests_have_no_row(place, clock):
    store = place.store(clock)
    await store.reserve(asking("a"), LEASE)
    await store.release(asking("a"))
    await store.release(asking("never"))
    await store.reserve(asking("b", window(0)), LEASE)
    assert not await store.settle(asking("a"), {"tokens": 9}, "reported", ANSWERED)
    clock.advance(LEASE)
    await store.sweep()
    assert place.requests() == []


async def test_a_settlement_by_another_owner_writes_nothing(place, clock):
    store = place.store(clock)
    await store.reserve(asking("a", owner="one"), LEASE)
    assert not await store.settle(asking("a", owner="two"), {"tokens": 9}, "reported", ANSWERED)
    assert place.requests() == []


async def test_many_at_once_are_a_row_each(place, clock):
    store = place.store(clock)
    await asyncio.gather(*(chat(store, f"{n:03}", replace(ANSWERED, run=f"{n}")) for n in range(300)))
    assert [row[1:3] for row in place.requests()] == [(f"{n:03}", f"{n}") for n in range(300)]


async def test_of_racing_settlements_one_is_the_row(place, clock):
    store = place.store(clock)
    one = asking("a")
    await store.reserve(one, LEASE)
    words = [replace(ANSWERED, run=f"{n}") for n in range(12)]
    answers = await asyncio.gather(
        *(store.settle(one, {"tokens": n}, "reported", word) for n, word in enumerate(words))
    )
    assert answers.count(True) == 1
    assert place.requests() == [request_row("a", words[answers.index(True)])]


async def test_a_name_may_hold_any_text_but_what_can_not_be_kept(place, clock):
    store = place.store(clock)
    odd = replace(ANSWERED, group="Ärzte & 'Söhne' \"\\\n\t🐣", model="no colon", profile="%s {} ?")
    await chat(store, "a", odd)
    assert place.requests() == [request_row("a", odd)]
    assert (await store.reserve(asking("a"), LEASE)).record == odd
    for field, value in [
        ("group", "a\0b"), ("group", "\ud800"), ("run", "x" * 1_025), ("cost", 2**50 + 1), ("cost", -1),
        ("usage", Usage(output_tokens=2**64)), ("started_at", float("nan")), ("seconds", float("inf")),
    ]:  # fmt: skip
        await store.reserve(asking(field), LEASE)
        with pytest.raises(ValueError, match=rf"record.*{field}"):
            await store.settle(asking(field), {"tokens": 9}, "reported", replace(ANSWERED, **{field: value}))
        with pytest.raises(ValueError, match=rf"record.*{field}"):
            await store.reserve(asking("b", record=replace(ASKED, **{field: value})), LEASE)


requests = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "settle", "settle bare", "release", "sweep", "wait"]),
        st.sampled_from("abcd"),
        st.sampled_from(["", "", "other"]),
        st.booleans(),
    ),
    min_size=10,
    max_size=60,
)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@settings(max_examples=examples(40))
@given(requests)
def test_the_rows_are_those_of_the_memory_store(kind, steps):
    async def run():
        clock = Clock()
        async with place_of(kind) as place:
            memory, store = MemoryStore(clock, retention=1e9), place.store(clock)
            for number, (what, id, owner, paid) in enumerate(steps):
                money = [window(10**9, fixed=5, key="money", unit="nanousd", resets_at=START + 10**7)] if paid else []
                line = window(10**9, resets_at=START + 10**7)
                one = asking(id, line, *money, record=replace(ASKED, started_at=clock.now), owner=owner)
                word = replace(ANSWERED, started_at=clock.now, seconds=float(number), ending="length")
                calls = {
                    "reserve": lambda store: store.reserve(one, 10.0),
                    "settle": lambda store: store.settle(one, {"tokens": 3}, "reported", word),
                    "settle bare": lambda store: store.settle(one, None, "assumed"),
                    "release": lambda store: store.release(one),
                    "sweep": lambda store: store.sweep(),
                    "wait": lambda store: store.peek([line]),
                }
                assert await calls[what](memory) == await calls[what](store)
                clock.advance(6 if what == "wait" else 0.25)
            await store.sweep()
            told = []
            for id in "abcd":
                answer = await memory.reserve(asking(id), 10.0)
                if isinstance(answer, Duplicate) and answer.record is not None:
                    told.append(request_row(id, answer.record))
            assert place.requests() == told

    asyncio.run(run())


# how long


async def test_records_are_kept_for_their_days_and_reservations_for_theirs(place, clock):
    store = place.store(clock, retention=100.0, records_days=2.0)
    for n in range(3):
        await chat(store, f"{n}", replace(ANSWERED, started_at=clock.now))
        clock.advance(DAY / 2)
    await store.sweep()
    assert place.look("SELECT count(*) FROM reservations") == [(0,)]
    assert [row[1] for row in place.requests()] == ["0", "1", "2"]
    clock.advance(DAY / 2 - 1)  # two days less a second
    await store.sweep()
    assert [row[1] for row in place.requests()] == ["0", "1", "2"]
    clock.advance(1)
    await store.sweep()
    assert [row[1] for row in place.requests()] == ["1", "2"]
    clock.advance(DAY)
    await store.sweep()
    assert place.requests() == []


async def test_old_records_are_deleted_in_steps_while_requests_come(clock):
    async with place_of("sqlite") as place:
        store = place.store(clock, retention=100.0, records_days=1.0)
        await store.ping()
        with contextlib.closing(sqlite3.connect(place.path)) as connection, connection:
            old = request_row("old", ANSWERED)
            connection.executemany(
                f"INSERT INTO requests VALUES ({','.join('?' * len(old))})",
                [(old[0] + n, *old[1:]) for n in range(20_000)],
            )
        clock.advance(2 * DAY)
        left = []
        for n in range(600):
            await chat(
                store, f"{n}", replace(ANSWERED, started_at=clock.now), window(10**9, resets_at=START + 10 * DAY)
            )
            [[count]] = place.look("SELECT count(*) FROM requests WHERE id = 'old'")
            if not left or count != left[-1]:
                left.append(count)
        assert left[0] == 20_000
        assert len(left) >= 4
        assert max(before - after for before, after in zip(left, left[1:])) <= 2_000
        assert place.look("SELECT count(*) FROM requests WHERE id <> 'old'") == [(600,)]


async def test_a_sweep_deletes_a_bounded_number_of_records(clock, monkeypatch):
    monkeypatch.setattr("chat_nest.stores.postgres.store._MOST_PURGED", 4)
    async with place_of("postgres") as place:
        store = place.store(clock, records_days=1.0)
        for n in range(10):
            await chat(store, f"{n}", replace(ANSWERED, started_at=clock.now + n))
        clock.advance(2 * DAY)
        left = []
        for _ in range(3):
            await store.sweep()
            left.append([row[1] for row in place.requests()])
        assert left == [["4", "5", "6", "7", "8", "9"], ["8", "9"], []]


async def test_with_no_days_no_record_is_kept_but_a_repeated_request_gets_its_ending(place, clock):
    before, store = place.store(clock), place.store(clock, records_days=0)
    await chat(before, "before")
    await chat(store, "a")
    assert [row[1] for row in place.requests()] == ["before"]
    assert (await store.reserve(asking("a"), LEASE)).record == ANSWERED
    await store.reserve(asking("lost"), LEASE)
    clock.advance(LEASE)
    await store.sweep()
    assert place.requests() == []
    assert await store.settle(asking("lost"), {"tokens": 1}, "reported", ANSWERED)
    assert place.requests() == []


async def test_an_id_that_comes_again_after_its_reservation_was_purged_is_another_request(place, clock):
    store = place.store(clock, retention=100.0)
    await chat(store, "a")
    clock.advance(101)
    await store.sweep()
    again = replace(ANSWERED, started_at=clock.now, ending="length")
    await chat(store, "a", again)
    assert place.requests() == [request_row("a", ANSWERED), request_row("a", again)]


@pytest.mark.parametrize("days", [-1.0, float("nan"), 1e6])
def test_days_must_be_possible(tmp_path, days):
    for open_it in (
        lambda: SQLiteStore(tmp_path / "store.db", records_days=days),
        lambda: PostgresStore("postgresql://localhost/x", records_days=days),
    ):
        with pytest.raises(ValueError, match="records_days must be from 0 to 36500"):
            open_it()


# the report


def used(by, requests=1, *, errors=0, assumed=0, tokens=(7, 5, 3, 1, 2), cost=0, unpriced=0):
    names = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")
    return UsageRow(
        by=by,
        requests=requests,
        errors=errors,
        assumed=assumed,
        cost=cost,
        unpriced=unpriced,
        **dict(zip(names, tokens)),
    )


SMALL = replace(ANSWERED, usage=replace(ANSWERED.usage, output_tokens=5), cost=10)
HISTORY = [
    replace(SMALL, ending="stop"),
    replace(SMALL, caller="d" * 16, ending="stopped", cost=None),
    replace(SMALL, group="", model="local:llama", ending="upstream_error", cost=None, source="estimated"),
    replace(SMALL, profile="expanded", ending="client_gone", source="assumed", cost=2**40),
    replace(SMALL, model="p:other", ending="shutdown"),
]


async def told(store, *by, since=START, until=START + DAY, zone=UTC, caller=None):
    return await store.usage(since, until, by, zone, caller)


async def test_the_report_adds_up_a_history(place, clock):
    store = place.store(clock)
    for n, record in enumerate(HISTORY):
        await chat(store, f"{n}", record)
    await store.reserve(asking("lost"), LEASE)
    clock.advance(LEASE)
    await store.sweep()
    assert await told(store) == [
        used((), 6, errors=3, assumed=2, tokens=(42, 125, 15, 5, 10), cost=20 + 2**40, unpriced=3)
    ]
    assert await told(store, "caller") == [
        used(("c" * 16,), 5, errors=3, assumed=2, tokens=(35, 120, 12, 4, 8), cost=20 + 2**40, unpriced=2),
        used(("d" * 16,), 1, unpriced=1),
    ]
    assert await told(store, "model", "group") == [
        used(("p:m:7b", "acme"), 4, errors=1, assumed=2, tokens=(28, 115, 9, 3, 6), cost=10 + 2**40, unpriced=2),
        used(("p:other", "acme"), 1, errors=1, cost=10),
        used(("local:llama", ""), 1, errors=1, unpriced=1),
    ]
    assert await told(store, "profile", caller="c" * 16) == [
        used(("expanded",), 1, assumed=1, cost=2**40),
        used(("balanced",), 4, errors=3, assumed=1, tokens=(28, 115, 9, 3, 6), cost=20, unpriced=2),
    ]
    assert await told(store, "group", until=START + 1, caller="d" * 16) == [used(("acme",), 1, unpriced=1)]
    assert await told(store, "caller", caller="nobody") == []
    assert sum(row.requests for row in await told(store, "day", "caller", "group", "profile", "model")) == 6


async def test_times_are_from_and_up_to(place, clock):
    store = place.store(clock)
    for n in (-1, 0, 1, 2):
        await chat(store, f"{n}", replace(SMALL, started_at=START + n))
    assert [row.requests for row in await told(store, since=START, until=START + 2)] == [2]
    assert [row.requests for row in await told(store, "day", since=START, until=START + 2)] == [2]
    assert await told(store, since=START + 3) == []
    assert await told(store, "day", since=START - 9 * DAY, until=START - DAY) == []


async def test_days_are_the_zones_also_where_one_has_25_hours(place, clock):
    paris = ZoneInfo("Europe/Paris")
    store = place.store(clock)
    at = {
        "24 late": datetime(2026, 10, 24, 23, 59, 59, tzinfo=paris),
        "25 first": datetime(2026, 10, 25, 0, 0, tzinfo=paris),
        "25 twice": datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=paris),
        "25 last": datetime(2026, 10, 25, 23, 59, 59, 999_000, tzinfo=paris),
        "26": datetime(2026, 10, 26, 0, 0, tzinfo=paris),
    }
    for name, moment in at.items():
        await chat(store, name, replace(SMALL, started_at=moment.timestamp()))
    since, until = at["24 late"].timestamp(), at["26"].timestamp() + 1
    found = await told(store, "day", since=since, until=until, zone=paris)
    assert [(*row.by, row.requests) for row in found] == [("2026-10-24", 1), ("2026-10-25", 3), ("2026-10-26", 1)]
    found = await told(store, "profile", "day", since=since, until=until)
    assert [(*row.by, row.requests) for row in found] == [("balanced", "2026-10-24", 2), ("balanced", "2026-10-25", 3)]


async def test_the_most_expensive_requests_come_first_within_a_day(place, clock):
    store = place.store(clock)
    for n, (day, model, cost) in enumerate(
        [(1, "p:a", 5), (0, "p:b", 1), (1, "p:c", 9), (1, "p:d", None), (0, "p:a", 2)]
    ):
        await chat(store, f"{n}", replace(SMALL, started_at=START + DAY * day, model=model, cost=cost))
    found = await told(store, "day", "model", until=START + 2 * DAY)
    assert [row.by[1] for row in found] == ["p:a", "p:b", "p:c", "p:a", "p:d"]
    assert [row.by[0] for row in await told(store, "model", until=START + 2 * DAY)] == ["p:c", "p:a", "p:b", "p:d"]


async def test_at_most_so_many_rows_are_those_that_cost_the_most(place, clock):
    store = place.store(clock)
    for n, (caller, cost) in enumerate([("a", 5), ("b", None), ("c", 9), ("d", 2), ("a", 6)]):
        await chat(store, f"{n}", replace(SMALL, caller=caller * 16, cost=cost))
    rows = await store.usage(START, START + DAY, ("caller",), UTC, None, 2)
    assert [(row.by[0][0], row.cost) for row in rows] == [("a", 11), ("c", 9)]
    with pytest.raises(ValueError, match="most"):
        await store.usage(START, START + DAY, ("caller",), UTC, None, 0)


@pytest.mark.parametrize(
    ("since", "until", "by", "field"),
    [(START, START, (), "since"), (-1, START, (), "since"), (START, float("nan"), (), "until"), (START, 1e12, (), "until"),
     (START, START + 1, ("day", "day"), "by"), (START, START + 1, ("run",), "by")],
)  # fmt: skip
async def test_a_report_that_can_not_be_is_refused(place, clock, since, until, by, field):
    with pytest.raises(ValueError, match=field):
        await place.store(clock).usage(since, until, by, UTC)


async def test_a_report_is_read_while_the_file_is_locked_for_writing_and_makes_no_file(clock):
    async with place_of("sqlite") as place:
        store = place.store(clock)
        with pytest.raises(LimiterUnavailable) as failure:
            await told(store)
        assert isinstance(failure.value.__cause__, FileNotFoundError)
        assert not place.path.exists()
        await chat(store, "a", SMALL)
        with contextlib.closing(sqlite3.connect(place.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await told(store) == [used((), cost=10)]


def test_which_stores_keep_records(tmp_path):
    for url in ("memory://", f"sqlite:///{tmp_path}/store.db", "postgresql://localhost/x", "redis://localhost/0"):
        assert hasattr(open_store(url), "usage") is keeps_records(url)


# the documents


@pytest.mark.parametrize("page", ["records.md", "postgres.md"])
async def test_every_example_of_sql_runs(place, clock, page):
    store = place.store(clock)
    for n, record in enumerate(HISTORY):
        await chat(store, f"{n}", record)
    examples = re.findall(r"```sql\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    queries = [
        query for example in examples for query in example.split(";") if "SELECT" in query and "GRANT" not in query
    ]
    for_postgres = [query for query in queries if "chat_nest." in query]
    ours = for_postgres if place.kind == "postgres" else [query for query in queries if query not in for_postgres]
    assert ours or (page, place.kind) == ("postgres.md", "sqlite")
    for query in ours:
        found = rows(shared_url(), query) if place.kind == "postgres" else place.look(query)
        assert Counter(map(len, found)), query
