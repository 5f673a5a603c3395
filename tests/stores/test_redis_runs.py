"""Runs in a real Redis, one server or a Cluster: two RedisRuns on one loop stand for two processes of a fleet."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sys

import pytest
from redis_servers import RedisServer, shared_cluster, shared_server

from chat_nest.core.deltas import TextDelta
from chat_nest.core.errors import RunsUnavailable
from chat_nest.core.protocols import Finale
from chat_nest.runs import redis as redis_runs
from chat_nest.runs.redis import RedisRuns

END = Finale(code="stopped", message="The answer was stopped")


@pytest.fixture(params=["one", "cluster"])
def url(request):
    return (shared_server() if request.param == "one" else shared_cluster()).url


@contextlib.asynccontextmanager
async def fleet(url, count=2, prefix=None, **options):
    prefix = prefix or "test-" + secrets.token_hex(4)
    found = [RedisRuns(url, prefix=prefix, **options) for _ in range(count)]
    for one in found:
        one.listen(lambda _name, _owner: False)
        one.attend()
    try:
        yield found
    finally:
        for one in found:
            await one.aclose()


async def find(runs, name):
    """A run is there as soon as Redis knows it."""
    while (found := await runs.find(name)) is None:
        await asyncio.sleep(0.005)
    return found


async def texts(run, after=0):
    return [(number, batch[0].text) async for number, batch in run.read(after)]


async def written(runs):
    while runs._writing:
        await asyncio.sleep(0.005)


async def test_a_run_of_another_process_is_followed_as_it_is_written(url):
    async with fleet(url) as (one, two):
        run = one.begin("r", "ada", "m", ["name"])
        run.append([TextDelta("a")])
        found = await find(two, "name")
        assert (found.id, found.owner, found.model, found.finale) == ("r", "ada", "m", None)
        reading = found.read(0)
        assert await anext(reading) == (1, [TextDelta("a")])
        run.append([TextDelta("b\ud83d\u2028")])
        run.append([TextDelta("c")])
        assert [await anext(reading), await anext(reading)] == [
            (2, [TextDelta("b\ud83d\u2028")]),
            (3, [TextDelta("c")]),
        ]
        run.end(END)
        one.ended("r", ["name"])
        assert await anext(reading, None) is None
        assert found.finale == END
        await written(one)
        assert await texts(await one.find("r"), 1) == [(2, "b\ud83d\u2028"), (3, "c")]
        ended = await two.find("name")
        assert ended.finale == END
        assert await texts(ended, 3) == await texts(ended, 9) == []
        assert ended.finale == END
        assert await two.find("nosuch") is None
        assert one._live == one._here._runs == {}


async def test_stop_reaches_the_process_of_the_run(url):
    async with fleet(url, 3) as (one, two, three):
        asked = []
        three.listen(lambda name, owner: asked.append((name, owner)) or owner == "ada")
        while not await one.stop("r", "ada"):  # it has begun to listen
            pass
        assert not await two.stop("r", "eve")
        assert asked[-2:] == [("r", "ada"), ("r", "eve")]


async def test_the_oldest_is_forgotten_in_redis_as_in_memory(url):
    async with fleet(url) as (one, two):
        run = one.begin("r", "ada", "m")
        for number in range(4):
            run.append([TextDelta(str(number) * 500_000)])
            await asyncio.sleep(0.1)
        run.end(END)
        one.ended("r")
        await written(one)
        found = await find(two, "r")
        with pytest.raises(LookupError):
            await texts(found)
        assert [number for number, _ in await texts(found, run.forgotten)] == [3, 4]
        assert found.finale == END


async def test_an_ended_run_expires_with_its_names(url):
    async with fleet(url, keep=0.2) as (one, two):
        run = one.begin("r", "ada", "m", ["name"])
        await find(two, "name")
        run.append([TextDelta("a")])
        run.end(END)
        one.ended("r", ["name"])
        await written(one)
        while await two.find("r") or await two.find("name"):
            await asyncio.sleep(0.02)


async def test_a_newer_run_of_a_name_keeps_it(url):
    async with fleet(url, keep=0.2) as (one, two):
        first = one.begin("r1", "ada", "m", ["name"])
        await find(two, "r1")
        one.begin("r2", "ada", "m", ["name"])
        while (await find(two, "name")).id != "r2":
            pass
        first.end(END)
        one.ended("r1", ["name"])
        await written_but(one, 1)
        while await two.find("r1"):
            await asyncio.sleep(0.02)
        assert (await two.find("name")).id == "r2"


async def test_the_keys_of_a_run_are_renewed_while_it_runs(url, monkeypatch):
    monkeypatch.setattr(redis_runs, "RENEW_SECONDS", 0.0)
    async with fleet(url) as (one, two):
        run = one.begin("r", "ada", "m", ["name"])
        run.append([TextDelta("a")])
        await find(two, "name")
        for kind, id, key in (("run", "r", "about"), ("run", "r", "log"), ("name", "name", "run")):
            while not await two._link.call(kind, id, "PEXPIRE", key, 60_000):
                await asyncio.sleep(0.01)
            while await two._link.call(kind, id, "PTTL", key) <= 60_000:
                await asyncio.sleep(0.01)


async def test_a_run_that_ends_shortens_no_expiry_of_a_newer_one_with_its_name(url, monkeypatch):
    async with fleet(url, keep=5.0) as (one, two):
        first = one.begin("r1", "ada", "m", ["name"])
        await find(two, "name")
        call = one._link.call

        async def overtaken(kind, id, command, key, *words):
            found = await call(kind, id, command, key, *words)
            if (kind, command) == ("name", "GET"):
                await call("name", "name", "SET", "run", "r2", "PX", 3_600_000)
            return found

        monkeypatch.setattr(one._link, "call", overtaken)
        first.end(END)
        one.ended("r1", ["name"])
        await written(one)
        newer = await call("name", "name", "GET", "run") == b"r2"
        assert not newer or await call("name", "name", "PTTL", "run") > 5_000


async def test_a_log_never_stays_for_ever(url):
    """Its process may be killed at any time."""
    async with fleet(url) as (one, two):
        call = one._link.call

        async def killed(kind, id, command, key, *words):
            if command == "PEXPIRE":
                await asyncio.Event().wait()
            return await call(kind, id, command, key, *words)

        one._link.call = killed
        run = one.begin("r", "ada", "m", [])
        run.append([TextDelta("a")])
        while await two._link.call("run", "r", "EXISTS", "log") == 0:
            await asyncio.sleep(0.01)
        assert await two._link.call("run", "r", "PTTL", "log") > 0


async def written_but(runs, left):
    while len(runs._writing) > left:
        await asyncio.sleep(0.005)


async def test_a_reader_on_another_process_is_noticed_until_it_leaves(url):
    async with fleet(url) as (one, two):
        run = one.begin("r", "ada", "m")
        assert run.readers == 0
        reading = asyncio.create_task(texts(await find(two, "r")))
        while not run.readers:
            await asyncio.sleep(0.02)
        reading.cancel()
        while run.readers:
            await asyncio.sleep(0.02)
        assert run.left_at > 0
        assert two._link._followed == 0


async def test_tokens_that_come_fast_are_written_together():
    server = shared_server()
    async with fleet(server.url) as (one, two):
        run = one.begin("r", "ada", "m")
        found = await find(two, "r")
        for number in range(300):
            run.append([TextDelta(str(number))])
            await asyncio.sleep(0.001)
        run.end(END)
        assert await texts(found) == [(number + 1, str(number)) for number in range(300)]
        entries = server.ask("XLEN", one._link.key("run", "r", "log"))
        assert entries < 60


async def test_a_process_that_dies_is_an_end_without_a_finale():
    server = shared_server()
    prefix = "test-" + secrets.token_hex(4)
    script = (
        "import asyncio\n"
        "from chat_nest.runs.redis import RedisRuns\n"
        "from chat_nest.core.deltas import TextDelta\n"
        "async def main():\n"
        f"    runs = RedisRuns({server.url!r}, prefix={prefix!r})\n"
        "    runs.attend()\n"
        "    runs.begin('r', 'ada', 'm').append([TextDelta('a')])\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    async with fleet(server.url, 1, prefix) as (one,):
        found = await find(one, "r")
        reading = found.read(0)
        assert (await anext(reading))[0] == 1
        process.kill()
        await process.wait()
        assert await anext(reading, "end") == "end"
        assert found.finale is None


async def test_a_redis_that_is_down_stops_no_run_and_delays_no_reader():
    server = RedisServer()
    try:
        async with fleet(server.url) as (one, two):
            run = one.begin("r", "ada", "m")
            run.append([TextDelta("a")])
            reading = (await find(two, "r")).read(0)
            await anext(reading)
            server.signal(signal.SIGSTOP)
            async with asyncio.timeout(240):
                with pytest.raises(RunsUnavailable):
                    await anext(reading)
            for asked in (two.find("r"), two.stop("r", "ada")):
                async with asyncio.timeout(240):
                    with pytest.raises(RunsUnavailable):
                        await asked
            run.append([TextDelta("b")])
            assert await one.find("r") is run
            server.signal(signal.SIGCONT)
            run.append([TextDelta("c")])
            run.end(END)
            assert await texts(await find(two, "r"), 1) == [(2, "b"), (3, "c")]
            server.kill()
            with pytest.raises(RunsUnavailable):
                await two.find("r")
            two.begin("r2", "ada", "m").append([TextDelta("d")])
            server.start()
            assert await anext((await find(one, "r2")).read(0)) == (1, [TextDelta("d")])
    finally:
        server.stop()


async def test_followers_above_the_limit_are_refused_with_retry_after(monkeypatch):
    monkeypatch.setattr("chat_nest.runs.redis_connection.MAX_FOLLOWED", 1)
    async with fleet(shared_server().url) as (one, two):
        one.begin("r", "ada", "m").append([TextDelta("a")])
        found = await find(two, "r")
        first = found.read(0)
        await anext(first)
        with pytest.raises(RunsUnavailable):
            await anext(found.read(0))
        await first.aclose()
        await anext(found.read(0))


def test_a_url_that_can_not_be_used():
    with pytest.raises(ValueError, match="must begin with"):
        RedisRuns("http://x")


async def test_the_caller_deletes_an_ended_run_from_any_process(url):
    async with fleet(url) as (one, two):
        run = one.begin("r", "ada", "m", ["name"])
        run.append([TextDelta("a")])
        await find(two, "r")
        assert not await two.forget("r", "ada"), "it goes on"
        run.end(END)
        one.ended("r", ["name"])
        await written(one)
        assert not await two.forget("r", "eve")
        assert not await two.forget("other", "ada")
        assert await two.forget("r", "ada")
        assert await one.find("r") is await two.find("r") is None
