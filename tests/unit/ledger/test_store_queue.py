"""Turns at the store: in order, few at once, and refused only by a store that answers nobody."""

from __future__ import annotations

import asyncio
import time

import pytest

from chat_nest.core.errors import LimiterUnavailable
from chat_nest.ledger.store_queue import FEWEST, LONGEST_WAIT, MOST, Turn, Turns


class Line:
    """Requests that each take a turn of `seconds`; when and how they came out of it."""

    def __init__(self, turns: Turns, seconds: float, *, well: bool = True) -> None:
        self.turns = turns
        self.seconds = seconds
        self.well = well
        self.order: list[int] = []
        self.at_once = 0
        self.most = 0

    async def one(self, number: int) -> float | None:
        """The time that it was refused after, None where it had its turn."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with Turn(self.turns) as turn, asyncio.timeout_at(turn.deadline):
                self.order.append(number)
                self.at_once += 1
                self.most = max(self.most, self.at_once)
                try:
                    await asyncio.sleep(self.seconds)
                finally:
                    self.at_once -= 1
                turn.answered() if self.well else turn.failed()
        except (LimiterUnavailable, TimeoutError):
            return loop.time() - began
        return None

    async def all(self, count: int) -> list[float | None]:
        return await asyncio.gather(*map(self.one, range(count)))


@pytest.mark.looptime
async def test_calls_run_in_order_while_the_store_answers():
    line = Line(Turns(1.0), 0.05)
    assert await line.all(1_000) == [None] * 1_000
    assert line.order == list(range(1_000))
    assert line.most == MOST, "more at once with each round of answers"


@pytest.mark.looptime
async def test_a_store_that_batches_calls_gets_more_at_once():
    line = Line(Turns(1.0, 40), 0.05)
    assert await line.all(4_000) == [None] * 4_000
    assert line.most == 40


@pytest.mark.looptime
async def test_late_answers_reduce_the_calls_at_once():
    line = Line(Turns(1.0), 0.05)
    await line.all(200)
    line.seconds, line.most = 0.3, 0
    await line.all(100)
    line.most = 0
    assert await line.all(20) == [None] * 20
    assert line.most == FEWEST


@pytest.mark.looptime
async def test_they_begin_few_at_once():
    line = Line(Turns(1.0), 0.05)
    await line.all(FEWEST + 1)
    assert line.most == FEWEST


@pytest.mark.looptime
async def test_calls_to_a_silent_store_are_refused_within_its_patience():
    refused = await Line(Turns(1.0), 60).all(200)
    assert all(took == pytest.approx(1.0) for took in refused)


@pytest.mark.looptime
async def test_a_store_that_stops_answering_refuses_those_in_line_a_second_later():
    turns = Turns(1.0)
    line = Line(turns, 0.4)
    first = asyncio.create_task(line.all(100))
    await asyncio.sleep(3.1)
    line.seconds = 60
    answers = await first
    refused = [took for took in answers if took is not None]
    assert 0 < len(refused) < 100
    assert all(3.1 < took <= 4.3 for took in refused), "a second after the last answer"


@pytest.mark.looptime
async def test_no_call_waits_for_ever_for_a_slow_store():
    refused = await Line(Turns(1.0), 0.9).all(1_000)
    assert refused[0] is None
    assert refused[-1] == pytest.approx(LONGEST_WAIT, abs=1)


@pytest.mark.looptime
async def test_fewer_at_once_after_failures():
    turns = Turns(1.0)
    line = Line(turns, 0.01)
    await line.all(500)
    line.well = False
    await line.all(50)
    line.most, line.well = 0, True
    await line.all(4)
    assert line.most == FEWEST


@pytest.mark.looptime
@pytest.mark.parametrize("when", ["in line", "when called"])
async def test_a_call_that_leaves_the_queue_takes_no_turn(when):
    turns = Turns(1.0)
    line = Line(turns, 0.1)
    holders = [Turn(turns) for _ in range(FEWEST)]
    for holder in holders:
        await holder.__aenter__()
    leaver = asyncio.create_task(line.one(10))
    last = asyncio.create_task(line.one(11))
    await asyncio.sleep(0.1)
    if when == "when called":
        await holders[0].__aexit__(None, None, None)  # the turn is given to the leaver, who has not run yet
    leaver.cancel()
    for holder in holders:
        await holder.__aexit__(None, None, None)
    assert await last is None
    assert await line.all(FEWEST) == [None] * FEWEST
    assert turns._running == 0


@pytest.mark.looptime
async def test_a_turn_is_entered_again_while_it_lasts():
    turns = Turns(1.0)
    async with Turn(turns) as turn:
        async with turn as again:
            assert again is turn
        assert turns._running == 0, "the inner one ended it"
    assert turns._running == 0


async def test_a_process_that_was_kept_from_running_does_not_blame_the_store():
    turns = Turns(0.2)
    go = asyncio.Event()

    async def answered_late() -> None:
        async with Turn(turns) as turn:
            await go.wait()
            turn.answered()

    holders = [asyncio.create_task(answered_late()) for _ in range(FEWEST)]
    waiting = asyncio.create_task(Line(turns, 0).one(0))
    await asyncio.sleep(0.05)
    time.sleep(0.5)  # the whole process stands still; the answers come in the meantime
    asyncio.get_running_loop().call_later(0.01, go.set)
    assert await waiting is None
    await asyncio.gather(*holders)
