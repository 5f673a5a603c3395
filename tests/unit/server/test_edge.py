"""One sweep for all deadlines, on the loop's clock."""

from __future__ import annotations

import asyncio

import pytest

from chat_nest.server.edge import SPARE_FILES, Deadlines, Edge


class Waiting:
    def __init__(self) -> None:
        self.deadline = 0.0
        self.expired_at: float | None = None

    def expire(self) -> None:
        self.expired_at = asyncio.get_running_loop().time()


@pytest.mark.looptime(start=0)
async def test_what_is_watched_expires_once_and_what_is_forgotten_never() -> None:
    edge, first, second, third = Edge(Deadlines()), Waiting(), Waiting(), Waiting()
    edge.watch(first, 3)
    edge.watch(second, 3)
    edge.watch(second, 20)  # instead
    edge.watch(third, 3)
    edge.forget(third)
    await asyncio.sleep(100)
    assert 3 <= first.expired_at <= 4.1
    assert 20 <= second.expired_at <= 21.1
    assert third.expired_at is None
    assert edge._timer is None, "with nobody to look at there is no timer"
    edge.watch(third, 1)
    await asyncio.sleep(3)
    assert third.expired_at is not None


async def test_room_for_connections_and_for_files(caplog: pytest.LogCaptureFixture) -> None:
    edge = Edge(Deadlines(), max_connections=2, max_files=100)
    assert not edge.admit(100 - SPARE_FILES + 1)
    assert edge.admit(100 - SPARE_FILES)
    assert edge.admit(5)
    assert not edge.admit(6)
    assert not edge.admit(6)
    edge.connections -= 1
    assert edge.admit(6)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "file descriptors run out",
        "max_connections is reached",
    ]
