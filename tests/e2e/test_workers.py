"""A fleet whose workers die, or can't start: the others go on, and the dead are replaced."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import processes
import pytest
from ports import free_port
from processes import state
from raw_client import HELLO, connect
from redis_servers import RedisServer
from scripted_provider import DONE, ScriptedProvider, answer, chunk, finish, stream, usage
from serve_command import Command, command


@pytest.fixture
def redis():
    server = RedisServer()
    yield server
    server.stop()


def workers(served: Command) -> set[int]:
    return processes.workers(served.process.pid)


def worker_with(served: Command, port: int, provider: int) -> int:
    """The worker that has the connection from this local port to the provider's: others may have the same local one."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    [inode] = [row[9] for row in rows if [int(end.partition(":")[2], 16) for end in row[1:3]] == [port, provider]]
    [found] = [
        pid for pid in workers(served)
        if any(os.readlink(file) == f"socket:[{inode}]" for file in Path(f"/proc/{pid}/fd").iterdir())
    ]  # fmt: skip
    return found


def peer_port(provider: ScriptedProvider) -> int:
    """The client's port of the connection with the last chat."""
    return provider.requests[-1].connection._transport.get_extra_info("peername")[1]


async def test_a_worker_that_can_not_be_replaced_while_the_store_is_away_ends_no_other(tmp_path, redis) -> None:
    release = asyncio.Event()
    slow = stream(chunk("Hel"), release, chunk("lo"), finish(), usage(5, 3), DONE)
    store = {"CHAT_NEST_STORE_URL": redis.url}
    async with (
        ScriptedProvider(slow, answer("x")) as provider,
        command(tmp_path, provider.url, "sk-x", "--workers", "2", **store) as served,
        connect(served.port) as client,
    ):
        while len(provider.checks) < 2:  # each worker looks for its provider when it serves
            await asyncio.sleep(0.01)
        reply = await client.post(HELLO)
        await reply.until("token")
        streaming = worker_with(served, peer_port(provider), provider.port)
        [other] = workers(served) - {streaming}
        redis.signal(signal.SIGSTOP)
        os.kill(other, signal.SIGKILL)
        await served.until(rb"worker \d+ could not start; another try in (\d+) s", times=2)
        assert streaming in workers(served)
        release.set()
        assert (await reply.events())[-1].name == "done"
        redis.signal(signal.SIGCONT)
        while len(provider.checks) < 3:
            await asyncio.sleep(0.01)
        async with connect(served.port) as again:
            assert (await (await again.post(HELLO)).events())[-1].name == "done"
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0
    assert re.findall(rb"another try in (\d+) s", served.said)[:2] == [b"2", b"4"], "the pauses grow"


async def test_a_fleet_of_which_no_worker_ever_served_ends_with_an_error(tmp_path) -> None:
    store = {"CHAT_NEST_STORE_URL": f"redis://127.0.0.1:{free_port()}"}
    async with (
        ScriptedProvider() as provider,
        command(tmp_path, provider.url, "sk-x", "--workers", "2", **store) as served,
    ):
        assert await served.ended() == 1
    assert b"the store can't be used" in served.said


def figure(pid: int, name: str) -> int:
    """Kilobytes of /proc/PID/smaps_rollup."""
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().split(f"\n{name}:")[1].split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only there a worker is a copy of its parent")
async def test_workers_share_the_tables_and_end_with_their_parent(tmp_path) -> None:
    async with ScriptedProvider(answer("x")) as provider, fleet(tmp_path, provider) as served:
        mine = workers(served)
        assert len(mine) == 2
        assert all(figure(pid, "Private_Dirty") < 40_000 for pid in mine), "the tables alone are 60 MB"
        served.process.kill()
        while any(state(pid) not in ("", "Z") for pid in mine):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def fleet(tmp_path: Path, provider: ScriptedProvider) -> AsyncGenerator[Command, None]:
    """Two workers, both serving."""
    async with command(tmp_path, provider.url, "sk-x", "--workers", "2") as served:
        while len(provider.checks) < 2:
            await asyncio.sleep(0.01)
        yield served
