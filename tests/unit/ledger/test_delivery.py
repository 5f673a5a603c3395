"""Endings land, or are in the journal: whatever the store, the disk and the process do."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest
from journal_entries import entry, files
from msgspec.structs import replace
from stores_under_test import LEASE, START, STORES, Clock, claim, gauge, rate, standing, window

from chat_nest.ledger.journal import Entry, Journal
from chat_nest.ledger.delivery import Delivery
from chat_nest.core.claims import Granted
from chat_nest.core.records import Record
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import FakeClock
from chat_nest.core.usage import Usage


class Switched(MemoryStore):
    """Answers while it is `on`, or from the `after`th settlement on; `settled` counts those it took."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.took = []
        self.on = True
        self.hangs = False
        self.tried = 0
        self.came = asyncio.Event()

    async def settle(self, claim, actual, source, record=None):
        self.tried += 1
        self.came.set()
        if self.hangs:
            await asyncio.Event().wait()
        if not self.on:
            raise ConnectionError("secret-dsn")
        self.took.append((claim, actual, source, record))
        return await super().settle(claim, actual, source, record)

    async def used(self):
        [standing] = await self.peek(entry().claim.lines)
        return standing.used, standing.held


async def held(store, id="a"):
    assert isinstance(await store.reserve(entry(id).claim, 60), Granted)


async def until(true):
    while not true():
        await asyncio.sleep(0.01)


async def test_a_happy_ending_touches_no_file(tmp_path) -> None:
    store = Switched()
    await held(store)
    journal, marked = Journal(tmp_path / "journal"), []
    journal.land = marked.append  # type: ignore[assignment]
    delivery = Delivery(store, journal=journal)
    await delivery.deliver(entry())
    await delivery.aclose(1)
    assert (files(tmp_path), marked) == ([], [])
    assert await store.used() == (12, 0)


async def test_the_store_gets_every_field_of_the_entry() -> None:
    store = Switched()
    delivery = Delivery(store)
    record = Record(run="r", caller="c", profile="p", model="m", started_at=1e9, usage=Usage())
    for ending in ("settle", "post"):
        await delivery.deliver(replace(entry(ending), ending=ending, record=record))
    assert store.took == [(entry(id).claim, entry().actual, entry().source, record) for id in ("settle", "post")]


@pytest.mark.looptime(start=0)
async def test_a_store_that_is_away_is_tried_ever_more_seldom_but_each_five_seconds() -> None:
    loop, tries = asyncio.get_running_loop(), []

    class Gone(MemoryStore):
        async def settle(self, claim, actual, source, record=None):
            tries.append(loop.time())
            raise ConnectionError

    delivery = Delivery(Gone(FakeClock()))
    delivery.deliver(entry())
    await asyncio.sleep(20)
    pauses = [later - earlier for earlier, later in zip(tries, tries[1:])]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5], rel=1e-3)
    await delivery.aclose(0)


@pytest.mark.looptime(start=0)
async def test_closing_does_not_wait_for_a_store_that_can_not_be_cancelled() -> None:
    go_on = asyncio.Event()

    class Deaf(Switched):
        async def settle(self, claim, actual, source, record=None):
            self.tried += 1
            while not go_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go_on.wait()

    delivery = Delivery(store := Deaf())
    ending = delivery.deliver(entry())
    await until(lambda: store.tried)
    try:
        async with asyncio.timeout(240):
            await delivery.aclose(0)
    finally:
        go_on.set()
        await asyncio.wait([ending])


async def test_a_failed_ending_is_in_the_journal_until_it_lands(tmp_path, caplog) -> None:
    store = Switched()
    await held(store)
    store.on = False
    delivery = Delivery(store, journal=Journal(tmp_path))
    ending = delivery.deliver(entry())
    await until(lambda: files(tmp_path))
    assert await store.used() == (0, 60)
    store.on = True
    await ending
    assert files(tmp_path) == []
    assert await store.used() == (12, 0)
    assert "secret-dsn" not in caplog.text
    await delivery.aclose(1)


async def test_closing_leaves_open_endings_to_the_next_process_and_logs_the_file(tmp_path, caplog) -> None:
    store = Switched()
    await held(store)
    store.on = False
    delivery = Delivery(store, journal=Journal(tmp_path))
    delivery.deliver(entry())
    await delivery.aclose(0.05)
    assert str(tmp_path) in caplog.text and "did not land" in caplog.text
    assert "whole hold is charged" not in caplog.text
    [name] = files(tmp_path)
    assert (tmp_path / name).read_bytes().count(b'"settle"') == 1, "it is there once"
    store.on = True
    later = Delivery(store, journal=Journal(tmp_path))
    await later.adopt()
    await until(lambda: not files(tmp_path))
    assert await store.used() == (12, 0)
    await later.aclose(1)


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_an_ending_is_kept_while_its_first_attempt_is_unanswered(tmp_path, how) -> None:
    store = Switched()
    await held(store)
    store.hangs = True
    delivery = Delivery(store, journal=Journal(tmp_path), patience=60)
    ending = delivery.deliver(entry())
    await store.came.wait()
    assert files(tmp_path) == []
    if how == "closed":
        await delivery.aclose(0)
    else:  # as a loop that ends does with all of its tasks
        ending.cancel()
        await asyncio.wait([ending])
        await delivery.aclose(0)
    assert list(Journal(tmp_path).adopt()) == [entry()]


async def test_an_unwritable_journal_is_logged_and_the_ending_is_retried(tmp_path, caplog) -> None:
    store = Switched()
    await held(store)
    store.on = False
    journal = Journal(tmp_path / "journal")
    (tmp_path / "journal").touch()
    delivery = Delivery(store, journal=journal)
    ending = delivery.deliver(entry())
    await until(lambda: store.tried == 2)
    assert re.search("can't be written: (File exists|Not a directory)", caplog.text)
    store.on = True
    await ending
    assert await store.used() == (12, 0)
    await delivery.aclose(1)


async def test_a_journal_that_can_be_written_again_has_the_ending_after_all(tmp_path) -> None:
    store = Switched()
    await held(store)
    store.on = False
    journal = Journal(tmp_path / "journal")
    (tmp_path / "journal").touch()
    delivery = Delivery(store, journal=journal)
    delivery.deliver(entry())
    await until(lambda: store.tried == 2)
    (tmp_path / "journal").unlink()
    await delivery.aclose(0)
    assert list(Journal(tmp_path / "journal").adopt()) == [entry()]


async def test_without_a_journal_an_undelivered_ending_is_logged(caplog) -> None:
    store = Switched()
    await held(store)
    store.on = False
    delivery = Delivery(store)
    delivery.deliver(entry())
    await delivery.aclose(0.05)
    assert "whole hold is charged" in caplog.text


async def test_an_entry_that_can_never_land_leaves_the_journal(tmp_path, caplog) -> None:
    class Strict(Switched):
        async def settle(self, claim, actual, source, record=None):
            await super().settle(claim, actual, source, record)
            raise ValueError("lines[0]: secret")

    store = Strict()
    store.on = False
    delivery = Delivery(store, journal=Journal(tmp_path))
    ending = delivery.deliver(entry())
    await until(lambda: files(tmp_path))
    store.on = True
    await ending
    assert files(tmp_path) == []
    assert "refused a settlement" in caplog.text and "secret" not in caplog.text
    await delivery.aclose(1)


async def test_a_posting_has_one_effect_however_often_it_lands(tmp_path) -> None:
    store = Switched()
    claim = entry().claim
    post = Entry(ending="post", claim=claim, actual={"tokens": 30}, source="reported")
    delivery = Delivery(store, journal=Journal(tmp_path))
    store.on = False  # it is reserved, and then not settled
    ending = delivery.deliver(post)
    await until(lambda: store.tried == 1)
    store.on = True
    await ending
    await delivery.deliver(post)
    assert await store.used() == (30, 0)
    await delivery.aclose(1)


@pytest.mark.parametrize("kind", STORES)
async def test_a_release_that_comes_after_the_lease_gives_back_what_its_end_charged(kind) -> None:
    clock = Clock()
    lines = (window(100), rate(60), gauge(5))
    asked = Record(run="r", caller="c", usage=Usage(input_tokens=1, output_tokens=50), started_at=START)
    first = replace(claim("a", *lines, most=50), owner="first", record=asked)
    async with STORES[kind](clock) as store:
        assert isinstance(await store.reserve(first, LEASE), Granted)
        clock.advance(LEASE)
        await store.sweep()
        assert await standing(store, lines[0]) == (50, 0)
        delivery = Delivery(store)
        for _ in range(2):
            await delivery.deliver(Entry(ending="release", claim=first, record=replace(asked, ending="client_gone")))
            assert await standing(store, lines[0]) == (0, 0)
        again = replace(first, owner="second")
        assert isinstance(await store.reserve(again, LEASE), Granted), "the same key may ask again"
        await delivery.deliver(Entry(ending="release", claim=first))
        assert await standing(store, lines[0]) == (0, 50), "another owner's claim is left alone"
        await delivery.aclose(1)


@pytest.mark.parametrize("record", [None, Record(run="r", caller="c", usage=Usage(input_tokens=3), ending="stopped")])
async def test_what_is_kept_of_a_request_that_was_released_too_late_has_no_tokens(record) -> None:
    store = Switched()
    late = entry().claim
    await Delivery(store).deliver(Entry(ending="release", claim=late, record=record))
    [(settled, actual, source, kept)] = store.took
    assert (settled, actual, source) == (late, {"tokens": 0}, "reported")
    assert (kept.usage, kept.cost, kept.source, kept.spent_nothing) == (Usage(), 0, "reported", True)
    assert kept.ending == ("limiter_unavailable" if record is None else "stopped")


async def test_a_release_in_time_is_all_there_is() -> None:
    store = Switched()
    await held(store)
    await Delivery(store).deliver(Entry(ending="release", claim=entry().claim))
    assert await store.used() == (0, 0)
    assert store.took == []


async def test_in_a_long_outage_releases_do_not_pile_up_and_settlements_are_all_kept(monkeypatch) -> None:
    monkeypatch.setattr("chat_nest.ledger.delivery.MOST_RELEASES", 3)
    store = Switched()
    store.on = False

    async def release(claim):
        raise ConnectionError

    store.release = release
    delivery = Delivery(store)
    released = [delivery.deliver(Entry(ending="release", claim=entry(str(number)).claim)) for number in range(10)]
    for number in range(10, 15):
        delivery.deliver(entry(str(number)))
    await asyncio.sleep(0)
    assert len(delivery._tasks) == 3 + 5
    await asyncio.sleep(0)
    assert [task.done() for task in released] == [False] * 3 + [True] * 7, "nobody waits for what is dropped"
    assert [task.exception() for task in released[3:]] == [None] * 7
    await delivery.aclose(0)


async def test_what_has_landed_does_not_count_among_what_is_on_its_way(monkeypatch) -> None:
    monkeypatch.setattr("chat_nest.ledger.delivery.MOST_RELEASES", 1)
    store, released = Switched(), []

    async def release(claim):
        released.append(claim.id)

    store.release = release
    delivery = Delivery(store)
    for number in range(3):
        await delivery.deliver(Entry(ending="release", claim=entry(str(number)).claim))
    assert released == ["0", "1", "2"]
    await delivery.aclose(0)
