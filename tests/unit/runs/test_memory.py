"""What a run said is there for who comes back, once and in order, and for nobody for ever."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.core.deltas import FinishDelta, TextDelta
from chat_nest.core.protocols import Finale
from chat_nest.runs.memory import MAX_ENDED, MAX_TEXT, MemoryRuns
from chat_nest.testing import FakeClock

END = Finale(code="stopped")


async def read(run, after=0):
    return [(number, batch[0].text) async for number, batch in run.read(after)]


def say(run, *texts):
    return [run.append([TextDelta(text)]) for text in texts]


async def test_a_run_is_read_from_anywhere():
    run = MemoryRuns().begin("r", "ada", "m")
    assert say(run, "a", "b", "c") == [1, 2, 3]
    run.end(END)
    assert await read(run) == [(1, "a"), (2, "b"), (3, "c")]
    assert await read(run, 2) == [(3, "c")]
    assert await read(run, 3) == await read(run, 9) == []
    assert run.finale == END


async def test_a_reader_waits_for_the_next_batch():
    run = MemoryRuns().begin("r", "ada", "m")
    say(run, "a")
    reading = asyncio.create_task(read(run))
    for text in "bc":
        await asyncio.sleep(0)
        assert run.readers == 1
        say(run, text)
    await asyncio.sleep(0)
    assert not reading.done()
    run.end(END)
    assert await reading == [(1, "a"), (2, "b"), (3, "c")]
    assert run.readers == 0


async def test_a_reader_that_left_is_not_counted_or_woken():
    run = MemoryRuns().begin("r", "ada", "m")
    reading = asyncio.create_task(read(run))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    assert (run.readers, run._waiting) == (0, set())


@given(st.lists(st.integers(1, 400_000), max_size=12), st.integers(0, 12))
async def test_the_oldest_is_forgotten_and_never_in_the_middle(sizes, after):
    run = MemoryRuns().begin("r", "ada", "m")
    for size in sizes:
        run.append([TextDelta("x" * size), FinishDelta("stop")])
    run.end(END)
    kept = len(sizes) - run._forgotten
    assert run.size <= MAX_TEXT or kept == 1
    if after < run._forgotten:
        with pytest.raises(LookupError):
            await read(run, after)
    else:
        assert [number for number, _ in await read(run, after)] == list(range(after + 1, len(sizes) + 1))


async def test_the_newest_run_of_a_name_is_found_and_its_owner_known():
    runs = MemoryRuns()
    runs.begin("r1", "ada", "m", ["chat"])
    second = runs.begin("r2", "ada", "m", ["chat", "key"])
    assert await runs.find("chat") is await runs.find("key") is await runs.find("r2") is second
    assert (await runs.find("r1")).id == "r1"
    assert await runs.find("other") is None
    assert second.owner == "ada"


async def test_an_ended_run_is_forgotten_after_a_while_and_its_names_if_they_are_still_its():
    clock = FakeClock()
    runs = MemoryRuns(keep=300, clock=clock)
    runs.begin("r1", "ada", "m", ["chat"]).end(END)
    runs.ended("r1", ["chat"])
    runs.begin("r2", "ada", "m", ["chat"])
    clock.advance(299)
    assert await runs.find("r1")
    clock.advance(1)
    assert await runs.find("r1") is None
    assert (await runs.find("chat")).id == "r2"
    assert runs._runs.keys() == {"r2"}


async def test_many_runs_that_ended_weigh_no_more_than_they_may():
    runs = MemoryRuns(clock=FakeClock())
    live = runs.begin("live", "ada", "m")
    for number in range(300):
        run = runs.begin(f"r{number}", "ada", "m", [f"chat{number}"])
        run.append([TextDelta("x" * 900_000)])
        run.end(END)
        runs.ended(f"r{number}", [f"chat{number}"])
        assert sum(each.size for each in runs._runs.values()) == runs._size + live.size <= MAX_ENDED + MAX_TEXT
    assert await runs.find("r299") and await runs.find("live")
    assert await runs.find("r0") is None
    assert len(runs._named) == len(runs._ended) < 100
    for _ in range(100_000):  # of tiny batches, too
        live.append([TextDelta("x")])
    assert len(live._batches) < 8_000


async def test_a_readers_leaving_is_remembered():
    run = MemoryRuns().begin("r", "ada", "m")
    assert run.left_at == 0
    run.join()
    run.leave()
    assert run.left_at == pytest.approx(asyncio.get_running_loop().time(), abs=1)
