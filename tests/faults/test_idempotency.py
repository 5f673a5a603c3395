"""Row 27: the same Idempotency-Key twice is one call and one charge; with another body it is a conflict."""

from __future__ import annotations

import asyncio
import json

import pytest
from msgspec.structs import replace

from chat_nest import create_chat_handler
from ledger_file import recorded

from chat_nest.core.errors import UpstreamAuth, UpstreamTruncated, UpstreamUnreachable
from chat_nest.limits.spec import BALANCED
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore
from chat_nest.testing import FakeClock, ScriptedProvider, answer, collect

BODY = {"messages": [{"role": "user", "content": "one two three"}]}
JSON = (b"content-type", b"application/json")


class SlowStore(MemoryStore):
    """Holds calls to reserve until it is told to go on, after they were done."""

    def __init__(self, clock):
        super().__init__(clock)
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def reserve(self, claim, lease):
        found = await super().reserve(claim, lease)
        await self.go_on.wait()
        return found


class Setup:
    def __init__(self, script=None, **options):
        self.clock = FakeClock()
        self.store = SlowStore(self.clock)
        self.provider = ScriptedProvider(answer("one ", "two ", "three") if script is None else script)
        self.handler = create_chat_handler(
            providers={"scripted": self.provider},
            profiles={"balanced": replace(BALANCED, model="scripted:m", concurrent_streams=3)},
            store=self.store,
            now=self.clock,
            **options,
        )

    async def ask(self, key=b"k1", body=BODY, **more):
        headers = [JSON, *([(b"idempotency-key", key)] if key is not None else [])]
        return await collect(self.handler, body, headers=headers, **more)

    async def used(self):
        """(used, held) of the caller's day."""
        [found] = [each for line, each in await self.standing() if line.name == "tokens_per_day"]
        return found.used, found.held

    async def standing(self):
        return await self.handler._callers.standing({"type": "http", "client": ("203.0.113.7", 1), "headers": []})


def code(reply):
    return json.loads(reply.body)["code"]


async def test_row27_after_the_end_the_recorded_ending_is_sent_and_no_provider_is_called():
    setup = Setup()
    first = await setup.ask()
    again = await setup.ask()
    assert (again.status, again.headers["idempotency-replayed"]) == (200, "true")
    assert "idempotency-replayed" not in first.headers
    assert [name for name, _ in again.events] == ["start", "done"]
    done, recorded = (json.loads(reply.events[-1][1]) for reply in (first, again))
    assert recorded["usage"] == done["usage"]
    assert (recorded["finish_reason"], recorded["source"]) == ("stop", "reported")
    assert setup.provider.opened == 1
    assert await setup.used() == (8, 0)


async def test_row27_a_repeat_of_a_running_request_is_refused_with_a_wait():
    go_on = asyncio.Event()
    setup = Setup([*answer("one "), go_on.wait][:1] + [go_on.wait] + answer("two "))
    first = asyncio.create_task(setup.ask())
    while not setup.provider.opened:
        await asyncio.sleep(0)
    second = await setup.ask()
    assert (second.status, code(second), second.headers["retry-after"]) == (409, "request_in_progress", "1")
    go_on.set()
    assert (await first).events[-1][0] == "done"
    assert setup.provider.opened == 1


async def test_row27_another_body_is_a_conflict():
    setup = Setup()
    await setup.ask()
    other = await setup.ask(body={"messages": [{"role": "user", "content": "something else"}]})
    assert (other.status, code(other)) == (409, "idempotency_key_reused")
    assert setup.provider.opened == 1


async def test_row27_the_same_body_in_another_format_is_a_conflict():
    setup = Setup(dialects=("openai", "anthropic"))
    body = {**BODY, "model": "balanced", "stream": True, "max_tokens": 9}
    first = await setup.ask(body=body, path="/v1/chat/completions")
    assert first.body.rstrip().endswith(b"data: [DONE]")
    other = await setup.ask(body=body, path="/v1/messages")
    assert (other.status, b"was used for another request" in other.body) == (409, True)
    assert setup.provider.opened == 1


async def test_row27_of_twenty_at_once_one_is_answered():
    setup = Setup()
    replies = await asyncio.gather(*(setup.ask() for _ in range(20)))
    assert setup.provider.opened == 1
    assert sorted(reply.status for reply in replies) == [200, *[409] * 19]
    assert await setup.used() == (8, 0)


async def test_a_key_belongs_to_its_caller():
    setup = Setup()
    await setup.ask()
    other = await setup.ask(client=("203.0.113.8", 1))
    assert other.events[-1][0] == "done"
    assert setup.provider.opened == 2


async def test_without_a_key_the_same_body_is_a_new_chat():
    setup = Setup()
    await setup.ask(key=None)
    await setup.ask(key=None)
    assert setup.provider.opened == 2


async def test_a_key_with_and_without_quotes_is_the_same():
    setup = Setup()
    await setup.ask(b'"k1"')
    assert (await setup.ask(b"k1")).headers["idempotency-replayed"] == "true"


async def test_a_request_that_cost_nothing_may_be_repeated_under_its_key():
    setup = Setup([UpstreamUnreachable(spent_nothing=True)] * 3)
    failing = ScriptedProvider([])

    def refuse(*_):
        raise UpstreamUnreachable(spent_nothing=True)

    failing.open = refuse
    setup.handler.providers["scripted"] = failing
    setup.handler._chat.upstream.providers = {"scripted": failing}
    setup.handler._chat.upstream._attempts = 1
    first = await setup.ask()
    assert (first.status, code(first)) == (502, "upstream_unreachable")
    setup.handler._chat.upstream.providers = {"scripted": ScriptedProvider(answer("now "))}
    again = await setup.ask()
    assert [name for name, _ in again.events] == ["start", "token", "done"]
    assert "idempotency-replayed" in (await setup.ask()).headers


async def test_a_broken_answer_is_not_requested_again_under_its_key():
    setup = Setup([*answer("one ")[:1], UpstreamTruncated()])
    first = await setup.ask()
    assert json.loads(first.events[-1][1])["code"] == "upstream_truncated"
    again = await setup.ask()
    name, data = again.events[-1]
    told = json.loads(data)
    assert (name, told["code"], told["retryable"]) == ("error", "upstream_truncated", False)
    assert "use a new key" in told["message"]
    assert setup.provider.opened == 1


async def test_a_request_with_an_expired_lease_is_reported_as_lost_until_it_is_settled():
    go_on = asyncio.Event()
    setup = Setup([*answer("one ")[:1], go_on.wait, *answer("two ")])
    first = asyncio.create_task(setup.ask())
    while not setup.provider.opened:
        await asyncio.sleep(0)
    _, held = await setup.used()
    setup.clock.advance(61)
    lost = await setup.ask()
    assert json.loads(lost.events[-1][1])["code"] == "lost"
    assert await setup.used() == (held, 0)
    go_on.set()
    assert (await first).events[-1][0] == "done"
    assert (await setup.ask()).events[-1][0] == "done"
    assert (await setup.used())[0] < held
    assert setup.provider.opened == 1


async def test_leaving_while_reserving_does_not_end_the_request_of_another():
    """The second request's release, which undoes whatever it may have reserved, must not touch the first's hold."""
    go_on = asyncio.Event()
    setup = Setup([*answer("one ")[:1], go_on.wait, *answer("two ")])
    first = asyncio.create_task(setup.ask())
    while not setup.provider.opened:
        await asyncio.sleep(0)
    held = await setup.used()
    setup.store.go_on.clear()
    leave = asyncio.Event()
    second = asyncio.create_task(setup.ask(leave=leave))
    for _ in range(5):
        await asyncio.sleep(0)
    leave.set()
    await second
    setup.store.go_on.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert await setup.used() == held
    assert held[1] > 0
    go_on.set()
    assert (await first).events[-1][0] == "done"
    assert (await setup.used())[1] == 0


async def test_leaving_during_the_first_reservation_frees_the_key():
    setup = Setup()
    setup.store.go_on.clear()
    leave = asyncio.Event()
    gone = asyncio.create_task(setup.ask(leave=leave))
    for _ in range(5):
        await asyncio.sleep(0)
    leave.set()
    await gone
    setup.store.go_on.set()
    assert (await setup.ask()).events[-1][0] == "done"
    assert await setup.used() == (8, 0)


@pytest.mark.parametrize("key", [b"", b"  ", b"a" * 256, b"caf\xc3\xa9", b"a\tb"])
async def test_a_key_that_breaks_the_rule_is_named_and_never_repeated(key):
    setup = Setup()
    reply = await setup.ask(key)
    told = json.loads(reply.body)
    assert (reply.status, told["field"]) == (400, "Idempotency-Key")
    assert setup.provider.opened == 0


async def test_two_keys_are_refused():
    setup = Setup()
    headers = [JSON, (b"idempotency-key", b"a"), (b"idempotency-key", b"b")]
    reply = await collect(setup.handler, BODY, headers=headers)
    assert (reply.status, json.loads(reply.body)["field"]) == (400, "Idempotency-Key")


async def test_each_attempt_that_called_a_provider_has_a_row_and_a_refused_one_has_none(tmp_path):
    """Twelve attempts under one key: the first eleven are refused by the provider and cost nothing; all are admitted."""
    clock, requests = FakeClock(), 12
    provider = ScriptedProvider([UpstreamAuth(spent_nothing=True)])
    handler = create_chat_handler(
        providers={"scripted": provider},
        profiles={"balanced": replace(BALANCED, model="scripted:m", requests_per_minute=requests)},
        store=SQLiteStore(tmp_path / "chat-nest.db", clock),
        now=clock,
    )
    headers = [JSON, (b"idempotency-key", b"k1")]

    async def ask(headers=headers):
        clock.advance(0.001)
        return await collect(handler, BODY, headers=headers)

    assert {(await ask()).status for _ in range(requests - 1)} == {502}
    provider.script = answer("one ", "two ", "three")
    assert (await ask()).events[-1][0] == "done"
    assert (await ask()).headers["idempotency-replayed"] == "true"
    refused = await ask([JSON])
    assert (refused.status, code(refused)) == (429, "rate_limited")
    await handler.aclose()
    assert recorded(tmp_path) == [(0, "reported", "upstream_auth")] * (requests - 1) + [(8, "reported", "stop")]
