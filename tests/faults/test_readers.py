"""What happens to an answer whose reader leaves is its profile's policy; the budget holds all the same."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from chat_nest import create_chat_handler
from chat_nest.core.errors import UpstreamTruncated
from chat_nest.limits.spec import BALANCED
from chat_nest.runs.memory import MemoryRuns
from chat_nest.testing import ScriptedProvider, answer, collect

BODY = {"messages": [{"role": "user", "content": "one two three"}]}


class Setup:
    def __init__(self, script, **policy):
        self.provider = ScriptedProvider(script)
        self.logs = MemoryRuns()
        self.handler = create_chat_handler(
            providers={"scripted": self.provider},
            profiles={"balanced": replace(BALANCED, model="scripted:m", concurrent_streams=1, **policy)},
            logs=self.logs,
        )

    async def leave_after(self, text):
        """Chat until this text came, and leave; return what was read."""
        leave, came = asyncio.Event(), asyncio.Event()

        async def sent(data):
            if text in data:
                came.set()

        chat = asyncio.create_task(collect(self.handler, BODY, leave=leave, sent=sent))
        await came.wait()
        leave.set()
        return await chat

    async def used(self):
        standing = await self.handler._callers.standing({"type": "http", "client": ("203.0.113.7", 1), "headers": []})
        return {line.name: (each.used, each.held) for line, each in standing}

    async def settled(self):
        while self.handler._runs:
            await asyncio.sleep(0)
        return await self.used()


async def words(run):
    return "".join([delta.text async for _, batch in run.read(0) for delta in batch if hasattr(delta, "text")])


async def test_finish_continues_without_a_reader_and_is_charged_its_usage():
    go_on = asyncio.Event()
    setup = Setup([*answer("one ")[:1], go_on.wait, *answer("two ", "three")], on_disconnect="finish")
    read = await setup.leave_after(b"one ")
    assert not read.complete
    assert (await setup.used())["concurrent_streams"] == (0, 1)
    assert setup.provider.closed == 0
    go_on.set()
    used = await setup.settled()
    assert used["tokens_per_day"] == (5 + 2, 0)
    assert used["concurrent_streams"] == (0, 0)
    [run] = setup.logs._runs.values()
    assert await words(run) == "one two three"
    assert run.finale.ending.reason == "stop"
    await setup.handler.aclose()


async def test_cancel_is_the_default_and_keeps_nothing():
    go_on = asyncio.Event()
    setup = Setup([*answer("one ")[:1], go_on.wait, *answer("two ")])
    await setup.leave_after(b"one ")
    assert setup.provider.closed == 1
    assert setup.logs._runs == {}
    assert (await setup.settled())["concurrent_streams"] == (0, 0)
    await setup.handler.aclose()


@pytest.mark.looptime(start=0)
async def test_grace_ends_the_answer_if_no_reader_returns():
    setup = Setup([*answer("one ")[:1], asyncio.Event().wait], on_disconnect="grace", grace_seconds=30)
    await setup.leave_after(b"one ")
    await asyncio.sleep(29.9)
    assert setup.provider.closed == 0
    await asyncio.sleep(0.2)
    assert setup.provider.closed == 1
    used = await setup.settled()
    assert used["concurrent_streams"] == (0, 0)
    assert used["tokens_per_day"][1] == 0 < used["tokens_per_day"][0]
    [run] = setup.logs._runs.values()
    assert run.finale.code == "client_gone"
    await setup.handler.aclose()


@pytest.mark.looptime(start=0)
async def test_grace_does_not_end_it_while_somebody_reads():
    setup = Setup([*answer("one ")[:1], asyncio.Event().wait], on_disconnect="grace", grace_seconds=10)
    await setup.leave_after(b"one ")
    [run] = setup.logs._runs.values()
    reading = asyncio.create_task(words(run))
    await asyncio.sleep(19)
    assert setup.provider.closed == 0
    reading.cancel()  # from now on the whole grace, whenever it was last looked
    await asyncio.sleep(9.9)
    assert setup.provider.closed == 0
    await asyncio.sleep(0.2)
    assert setup.provider.closed == 1
    await setup.handler.aclose()


@pytest.mark.looptime(start=0)
async def test_time_outs_apply_to_an_answer_without_a_reader():
    setup = Setup([*answer("one ")[:1], asyncio.Event().wait], on_disconnect="finish")
    await setup.leave_after(b"one ")
    await asyncio.sleep(61)
    [run] = setup.logs._runs.values()
    assert run.finale.code == "upstream_idle"
    assert setup.provider.closed == 1
    await setup.handler.aclose()


async def test_a_failure_without_a_reader_is_kept_for_a_returning_reader():
    go_on = asyncio.Event()
    setup = Setup([*answer("one ")[:1], go_on.wait, UpstreamTruncated()], on_disconnect="finish")
    await setup.leave_after(b"one ")
    go_on.set()
    await setup.settled()
    [run] = setup.logs._runs.values()
    assert run.finale.code == "upstream_truncated"
    await setup.handler.aclose()


async def test_closing_ends_answers_without_a_reader():
    setup = Setup([*answer("one ")[:1], asyncio.Event().wait], on_disconnect="finish")
    await setup.leave_after(b"one ")
    [run] = setup.logs._runs.values()
    await setup.handler.aclose()
    assert run.finale.code == "shutdown"
    assert setup.provider.closed == 1
    assert (await setup.used())["concurrent_streams"] == (0, 0)


async def test_leaving_before_the_provider_answers_is_no_reason_to_stop_it():
    opened = asyncio.Event()
    setup = Setup([opened.wait, *answer("late")], on_disconnect="finish")
    leave = asyncio.Event()
    chat = asyncio.create_task(collect(setup.handler, BODY, leave=leave))
    while not setup.provider.opened:
        await asyncio.sleep(0)
    leave.set()
    await chat
    opened.set()
    await setup.settled()
    [run] = setup.logs._runs.values()
    assert await words(run) == "late"
    await setup.handler.aclose()
