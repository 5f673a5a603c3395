"""Endings land, or are in the journal: whatever the store, the disk and the process do."""

from __future__ import annotations

import asyncio

import pytest
from journal_entries import entry, files

from chat_nest.journal import Entry, Journal
from chat_nest.landing import Landing
from chat_nest.limits import Granted
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import FakeClock


class Switched(MemoryStore):
    """Answers while it is `on`, or from the `after`th settlement on; `settled` counts those it took."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
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
    landing = Landing(store, journal=Journal(tmp_path / "journal"))
    await landing.land(entry())
    await landing.aclose(1)
    assert files(tmp_path) == []
    assert await store.used() == (12, 0)


async def test_a_failed_ending_is_in_the_journal_until_it_lands(tmp_path, caplog) -> None:
    store = Switched()
    await held(store)
    store.on = False
    landing = Landing(store, journal=Journal(tmp_path))
    ending = landing.land(entry())
    await until(lambda: files(tmp_path))
    assert await store.used() == (0, 60)
    store.on = True
    await ending
    assert files(tmp_path) == []
    assert await store.used() == (12, 0)
    assert "secret-dsn" not in caplog.text
    await landing.aclose(1)


async def test_closing_leaves_what_is_open_to_the_next_process_and_says_where(tmp_path, caplog) -> None:
    store = Switched()
    await held(store)
    store.on = False
    landing = Landing(store, journal=Journal(tmp_path))
    landing.land(entry())
    await landing.aclose(0.05)
    assert str(tmp_path) in caplog.text and "did not land" in caplog.text
    store.on = True
    later = Landing(store, journal=Journal(tmp_path))
    await later.adopt()
    await until(lambda: not files(tmp_path))
    assert await store.used() == (12, 0)
    await later.aclose(1)


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_an_ending_whose_first_try_has_no_answer_yet_is_kept_too(tmp_path, how) -> None:
    store = Switched()
    await held(store)
    store.hangs = True
    landing = Landing(store, journal=Journal(tmp_path), patience=60)
    ending = landing.land(entry())
    await store.came.wait()
    assert files(tmp_path) == []
    if how == "closed":
        await landing.aclose(0)
    else:  # as a loop that ends does with all of its tasks
        ending.cancel()
        await asyncio.wait([ending])
        await landing.aclose(0)
    assert list(Journal(tmp_path).adopt()) == [entry()]


async def test_a_journal_that_cant_be_written_is_told_and_the_ending_is_tried_on(tmp_path, caplog) -> None:
    store = Switched()
    await held(store)
    store.on = False
    journal = Journal(tmp_path / "journal")
    (tmp_path / "journal").touch()
    landing = Landing(store, journal=journal)
    ending = landing.land(entry())
    await until(lambda: store.tried == 2)
    assert "can't be written" in caplog.text
    store.on = True
    await ending
    assert await store.used() == (12, 0)
    await landing.aclose(1)


async def test_without_a_journal_what_does_not_land_is_told(caplog) -> None:
    store = Switched()
    await held(store)
    store.on = False
    landing = Landing(store)
    landing.land(entry())
    await landing.aclose(0.05)
    assert "whole hold is charged" in caplog.text


async def test_an_entry_that_can_never_land_leaves_the_journal(tmp_path, caplog) -> None:
    class Strict(Switched):
        async def settle(self, claim, actual, source, record=None):
            await super().settle(claim, actual, source, record)
            raise ValueError("lines[0]: secret")

    store = Strict()
    store.on = False
    landing = Landing(store, journal=Journal(tmp_path))
    ending = landing.land(entry())
    await until(lambda: files(tmp_path))
    store.on = True
    await ending
    assert files(tmp_path) == []
    assert "refused a settlement" in caplog.text and "secret" not in caplog.text
    await landing.aclose(1)


async def test_a_posting_has_one_effect_however_often_it_lands(tmp_path) -> None:
    store = Switched()
    claim = entry().claim
    post = Entry(ending="post", claim=claim, actual={"tokens": 30}, source="reported")
    landing = Landing(store, journal=Journal(tmp_path))
    store.on = False  # it is reserved, and then not settled
    ending = landing.land(post)
    await until(lambda: store.tried == 1)
    store.on = True
    await ending
    await landing.land(post)
    assert await store.used() == (30, 0)
    await landing.aclose(1)


async def test_in_a_long_outage_releases_do_not_pile_up_and_settlements_are_all_kept(monkeypatch) -> None:
    monkeypatch.setattr("chat_nest.landing.MOST_RELEASES", 3)
    store = Switched()
    store.on = False

    async def release(claim):
        raise ConnectionError

    store.release = release
    landing = Landing(store)
    for number in range(10):
        landing.land(Entry(ending="release", claim=entry(str(number)).claim))
    for number in range(10, 15):
        landing.land(entry(str(number)))
    await asyncio.sleep(0)
    assert len(landing._tasks) == 3 + 5
    await landing.aclose(0)
