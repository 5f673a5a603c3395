"""Runs of several processes of one machine: here several LocalRuns on one loop, each with its own socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.core.deltas import FinishDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import RunsUnavailable
from chat_nest.runs.local import LocalRuns
from chat_nest.core.protocols import Ending, Finale
from chat_nest.runs.codec import Ended, Said, reader, write
from chat_nest.core.usage import Usage

END = Finale(code="stopped", message="The answer was stopped")
GOOD = Finale(
    ending=Ending(
        id="r", caller="c", profile="p", model="o:m", reason="stop", error=None, usage=Usage(output_tokens=3), cost=7,
        source="reported", seconds=1.5, first_token_seconds=None, remaining={"tokens_per_day": 5},
    )
)  # fmt: skip


@contextlib.asynccontextmanager
async def workers(folder, count=2, **options):
    found = [LocalRuns(folder, **options) for _ in range(count)]
    for one in found:
        one.listen(lambda _name, _owner: False)
        one.attend()
        one.attend()
        await one._opening  # type: ignore[misc]
    try:
        yield found
    finally:
        for one in found:
            await one.aclose()
        assert list(folder.iterdir()) == []


async def texts(run, after=0):
    return [(number, batch[0].text) async for number, batch in run.read(after)]


async def until(true):
    while not true():
        await asyncio.sleep(0.001)


async def test_a_run_of_another_process_is_followed_as_it_is_written(tmp_path):
    async with workers(tmp_path, 3) as (one, two, three):
        run = one.begin("r", "ada", "m", ["name"])
        run.append([TextDelta("a")])
        found = await two.find("name")
        assert (found.id, found.owner, found.model, found.finale) == ("r", "ada", "m", None)
        reading = asyncio.create_task(texts(found))
        also = asyncio.create_task(texts(await three.find("r"), 1))
        await until(lambda: run.readers == 2)
        run.append([TextDelta("b\ud83d\u2028")])
        run.end(GOOD)
        assert await reading == [(1, "a"), (2, "b\ud83d\u2028")]
        assert await also == [(2, "b\ud83d\u2028")]
        assert found.finale == GOOD
        assert run.readers == 0
        ended = await two.find("r")
        assert ended.finale == GOOD
        assert await texts(ended, 2) == []
        assert await two.find("nosuch") is None


async def test_a_reader_that_left_is_not_counted(tmp_path):
    async with workers(tmp_path) as (one, two):
        run = one.begin("r", "ada", "m")
        reading = asyncio.create_task(texts(await two.find("r")))
        await until(lambda: run.readers == 1)
        reading.cancel()
        await until(lambda: run.readers == 0)
        assert not run._waiting
        assert run.left_at > 0


async def test_batches_that_the_process_of_a_run_has_forgotten_are_a_lookup_error(tmp_path):
    async with workers(tmp_path) as (one, two):
        run = one.begin("r", "ada", "m")
        for _ in range(4):
            run.append([TextDelta("x" * 500_000)])
        run.end(END)
        with pytest.raises(LookupError):
            await texts(await two.find("r"))
        assert [number for number, _ in await texts(await two.find("r"), run.forgotten)] == [3, 4]


async def test_a_reader_that_does_not_read_delays_nothing_and_holds_little_memory(tmp_path):
    async with workers(tmp_path) as (one, two):
        run = one.begin("r", "ada", "m")
        slow = (await two.find("r")).read(0)
        run.append([TextDelta("0")])
        await anext(slow)
        before = len(asyncio.all_tasks())
        for number in range(1, 200):
            run.append([TextDelta(str(number) * 20_000)])
            await asyncio.sleep(0)
        run.end(END)
        assert len(asyncio.all_tasks()) <= before
        read = 1
        with pytest.raises(LookupError):  # the ring has gone on
            async for _ in slow:
                read += 1
        assert read < 100


async def test_stop_reaches_the_process_of_the_run(tmp_path):
    async with workers(tmp_path, 3) as (one, two, three):
        asked = []
        three.listen(lambda name, owner: asked.append((name, owner)) or owner == "ada")
        assert await one.stop("r", "ada")
        assert not await two.stop("r", "eve")
        assert asked == [("r", "ada"), ("r", "eve")]


async def test_a_process_that_died_is_skipped_and_its_socket_removed(tmp_path):
    async with workers(tmp_path) as (one, two):
        one.begin("r", "ada", "m")
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(tmp_path / "1-dead.sock"))
        dead.listen()
        dead.close()
        assert (await two.find("r")).id == "r"
        assert await two.find("nosuch") is None
        assert not (tmp_path / "1-dead.sock").exists()


async def test_a_frozen_process_hides_no_other_run_and_makes_an_unknown_one_unavailable(tmp_path):
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(tmp_path / "1-frozen.sock"))
        frozen.listen()
        async with workers(tmp_path, patience=1.5) as (one, two):
            one.begin("r", "ada", "m")
            assert (await two.find("r")).id == "r"
            for asked in (two.find("nosuch"), two.stop("nosuch", "ada")):
                with pytest.raises(RunsUnavailable):
                    await asked
            (tmp_path / "1-frozen.sock").unlink()


@pytest.mark.parametrize("said", [b"", b"\0\0\0\x04\x92\xa5st", b"\0\0\0\x01\xc1", b"\xff\xff\xff\xff"])
async def test_nonsense_on_a_socket_is_answered_by_its_end(tmp_path, said):
    async with workers(tmp_path) as (one, _):
        stream, writer = await asyncio.open_unix_connection(one._socket)
        writer.write(said)
        writer.write_eof()
        assert await stream.read() == b""
        writer.close()


async def test_a_process_that_dies_while_it_is_followed(tmp_path):
    """The kernel closes its socket: the reader has no finale, which is an error to whoever follows."""
    script = (
        "import asyncio, sys\n"
        "from chat_nest.runs.local import LocalRuns\n"
        "from chat_nest.core.deltas import TextDelta\n"
        "async def main():\n"
        f"    runs = LocalRuns({str(tmp_path)!r})\n"
        "    runs.attend()\n"
        "    await runs._opening\n"
        "    runs.begin('r', 'ada', 'm').append([TextDelta('a')])\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    import sys

    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert await process.stdout.readline() == b"ready\n"
    async with workers(tmp_path, 1) as (one,):
        found = await one.find("r")
        reading = found.read(0)
        assert (await anext(reading))[0] == 1
        frozen = asyncio.create_task(anext(reading, "end"))
        os.kill(process.pid, signal.SIGKILL)
        assert await frozen == "end"
        assert found.finale is None
        await process.communicate()
        assert await one.find("r") is None


deltas = st.one_of(
    st.text(st.characters(), min_size=1).map(TextDelta),
    st.builds(ToolCallDelta, index=st.integers(0, 9), arguments=st.text(st.characters()), name=st.text()),
    st.builds(UsageDelta, st.builds(Usage, output_tokens=st.integers(0, 10**9))),
    st.sampled_from(["stop", "length", "other"]).map(FinishDelta),  # type: ignore[arg-type]
)


@given(st.lists(st.lists(deltas, min_size=1), max_size=4), st.integers(1, 10**9))
def test_what_is_written_is_read_again(batches, first):
    said = Said(first, batches)
    assert reader(Said | Ended)(write(said)) == said
    for finale in (GOOD, END):
        assert reader(Said | Ended)(write(Ended(finale))) == Ended(finale)


async def test_the_caller_deletes_an_ended_run_from_any_process(tmp_path):
    async with workers(tmp_path) as (one, two):
        run = one.begin("r", "ada", "m", ["name"])
        run.append([TextDelta("a")])
        assert not await two.forget("r", "ada"), "it goes on"
        run.end(GOOD)
        one.ended("r", ["name"])
        assert not await two.forget("r", "eve")
        assert not await two.forget("other", "ada")
        assert await two.forget("r", "ada")
        assert await one.find("r") is await two.find("name") is None
        assert not await one.forget("r", "ada")
