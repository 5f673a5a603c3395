"""Cancellation in every phase: nothing stays reserved, nothing stays open, and what was spent is charged once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from chat_nest import create_chat_handler
from chat_nest.core.limits import Limits
from chat_nest.limits.spec import BALANCED
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import Answer, FakeClock, ScriptedProvider, answer, collect
from msgspec.structs import replace

BODY = {"messages": [{"role": "user", "content": "one two three"}]}


class YieldingStore(MemoryStore):
    """Gives the event loop a turn before and after every call, and counts the calls that ended."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.landed: Counter[str] = Counter()

    async def reserve(self, claim, lease):
        await asyncio.sleep(0)
        answer = await super().reserve(claim, lease)
        self.landed["reserve"] += 1
        await asyncio.sleep(0)
        return answer

    async def settle(self, claim, actual, source, record=None):
        await asyncio.sleep(0)
        settled = await super().settle(claim, actual, source, record)
        self.landed["settle"] += settled
        await asyncio.sleep(0)
        return settled

    async def release(self, claim):
        await asyncio.sleep(0)
        released = await super().release(claim)
        self.landed["release"] += released
        await asyncio.sleep(0)
        return released


def make(script=None):
    clock = FakeClock()
    store = YieldingStore(clock)
    provider = ScriptedProvider(answer("one ", "two ", "three") if script is None else script)
    profile = replace(BALANCED, model="scripted:m", concurrent_streams=2)
    handler = create_chat_handler(
        providers={"scripted": provider},
        profiles={"balanced": profile},
        limits=Limits(tokens_per_day=1_000_000, concurrent_streams=3),
        store=store,
        now=clock,
    )
    return handler, store, provider


async def standing(handler):
    """What every line of the test's caller holds and has used, by name and scope."""
    rules = handler.parts.callers
    caller = rules.identify({"type": "http", "client": ("203.0.113.7", 1), "headers": []})
    lines = rules.profiles.lines(caller, rules.profiles.named("balanced"), 0, handler.parts.settings.now())
    stateful = [line for line in lines if line.kind != "request"]
    return {(line.scope, line.name): at for line, at in zip(stateful, await handler.store.peek(stateful), strict=True)}


async def interrupt_after(turns: int, times: int, how: str) -> bool:
    """Serve one request, interrupt it after so many turns of the event loop, check the ledger. True if it was over."""
    handler, store, provider = make()
    leave = asyncio.Event()
    request = asyncio.create_task(collect(handler, BODY, leave=leave))
    for _ in range(turns):
        await asyncio.sleep(0)
    over = request.done()
    for _ in range(times):
        if how == "leave":
            leave.set()
        else:
            request.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([request])
    await handler.aclose()
    lines = await standing(handler)
    assert provider.opened == provider.closed
    assert all(line.held == 0 for line in lines.values()), (turns, lines)
    ended = store.landed["settle"] + store.landed["release"]
    assert ended == store.landed["reserve"] or (ended, store.landed["reserve"]) == (0, 0), (turns, store.landed)
    used = lines["caller", "tokens_per_day"].used
    assert used == lines["all", "tokens_per_day"].used
    assert used > 0 if provider.opened else used == 0, (turns, used)
    if over:
        assert used == 8
    return over


@pytest.mark.parametrize("how", ["cancel", "leave"])
@pytest.mark.parametrize("times", [1, 3])
async def test_row41_interrupted_after_every_turn_leaves_nothing_reserved(times: int, how: str) -> None:
    for turns in range(500):
        if await interrupt_after(turns, times, how):
            assert turns > 10
            return
    pytest.fail("the request never got to its end")


async def test_the_whole_answer_is_sent_and_settled_before_done_is_sent() -> None:
    handler, store, _ = make()
    seen: list[int] = []

    async def sent(data: bytes) -> None:
        if b"event: done" in data:
            seen.append(store.landed["settle"])

    got = await collect(handler, BODY, sent=sent)
    assert [name for name, _ in got.events] == ["start", "token", "token", "token", "done"]
    assert got.status == 200 and got.complete
    assert seen == [1]
    await handler.aclose()


async def test_row41_leaving_while_blocked_on_an_unread_socket() -> None:
    """A client that stops reading stops the provider; when it leaves, the provider is closed and what came is charged."""
    handler, store, provider = make()
    blocked, leave, never = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def sent(data: bytes) -> None:
        if b"two" in data:
            blocked.set()
            await never.wait()

    request = asyncio.create_task(collect(handler, BODY, leave=leave, sent=sent))
    await blocked.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert provider.closed == 0
    leave.set()
    got: Answer = await request
    assert provider.closed == 1
    assert b"three" not in got.body and not got.complete
    used = (await standing(handler))["caller", "tokens_per_day"].used
    assert 0 < used < 100
    await handler.aclose()


async def test_row40_client_gone_while_uploading_costs_nothing() -> None:
    handler, store, provider = make()
    messages = [{"type": "http.request", "body": b'{"mess', "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/chat",
        "headers": [(b"content-type", b"application/json")],
        "client": ("203.0.113.7", 1),
    }
    await handler(scope, receive, send)
    assert sent == [] and store.landed == {} and provider.opened == 0
    await handler.aclose()


async def test_row42_client_gone_during_the_final_event_is_charged_once() -> None:
    handler, store, _ = make()
    leave, never = asyncio.Event(), asyncio.Event()

    async def sent(data: bytes) -> None:
        if b"event: done" in data:
            leave.set()
            await never.wait()

    await collect(handler, BODY, leave=leave, sent=sent)
    await handler.aclose()
    assert store.landed["settle"] == 1
    assert (await standing(handler))["caller", "tokens_per_day"].used == 8
