"""A timer that looks at everything at once, and does not die of what it sees."""

from __future__ import annotations

import asyncio

import pytest

from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.deadlines import ConnectionDeadlines, Sweep
from chat_nest.server.http.server import HttpServer


@pytest.mark.looptime(start=0)
async def test_a_sweep_goes_on_until_it_is_stopped() -> None:
    seen: list[float] = []
    sweep = Sweep(2, lambda: seen.append(asyncio.get_running_loop().time()))
    sweep.start()
    sweep.start()
    await asyncio.sleep(7)
    sweep.stop()
    await asyncio.sleep(7)
    assert seen == pytest.approx([2, 4, 6], abs=0.1)


class Expiring:
    """An open connection, as the server sees it."""

    def __init__(self, deadline: float, *, broken: bool = False) -> None:
        self.deadline = deadline
        self.expired: list[float] = []
        self._broken = broken

    def expire(self) -> None:
        self.expired.append(asyncio.get_running_loop().time())
        if self._broken:
            raise ZeroDivisionError
        self.deadline = float("inf")

    def drain(self) -> None:
        """Stay open."""


async def app(scope: object, receive: object, send: object) -> None:
    pass


@pytest.mark.looptime(start=0)
async def test_a_connection_expires_once_and_a_broken_one_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    context = ServerContext(app, ConnectionDeadlines(linger=5))
    server = HttpServer(context)
    await server.start()
    broken, first, second, never = Expiring(3, broken=True), Expiring(3), Expiring(20), Expiring(float("inf"))
    context.connections |= {broken, first, second, never}  # type: ignore[arg-type]
    await asyncio.sleep(30)
    await server.stop()
    assert [len(each.expired) for each in (first, second, never)] == [1, 1, 0]
    assert 3 <= first.expired[0] <= 5.1
    assert 20 <= second.expired[0] <= 22.1
    assert "a sweep over the connections failed" in caplog.text
