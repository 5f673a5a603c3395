"""What a hostile reviewer found: each was red before it was mended."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress

import pytest
from msgspec.structs import replace

from chat_nest import BALANCED, Limits, Timeouts, create_chat_handler
from chat_nest.core.deltas import FinishDelta, TextDelta, UsageDelta
from chat_nest.core.errors import RateLimited, UpstreamTruncated
from chat_nest.ledger.ledger import Ledger
from chat_nest.core.messages import Caller, ChatRequest, Message
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import FakeClock, ScriptedProvider, answer, collect
from chat_nest.counting.tokens import is_reasoning_model
from chat_nest.core.usage import Usage

BODY = {"messages": [{"role": "user", "content": "hello"}]}


def make(script, *, store=None, provider=None, **how):
    provider = provider or ScriptedProvider(script)
    profile = replace(BALANCED, model="p:m", max_output_tokens=how.pop("most", 400))
    clock = FakeClock()
    handler = create_chat_handler(
        providers={"p": provider},
        profiles={"balanced": profile},
        store=MemoryStore(clock) if store is None else store,
        now=clock,
        **how,
    )
    return handler, provider


async def used(handler) -> int:
    scope = {"type": "http", "client": ("203.0.113.7", 1), "headers": []}
    return {line.name: standing.used for line, standing in await handler._callers.standing(scope)}["tokens_per_day"]


def usage(output: int) -> UsageDelta:
    return UsageDelta(Usage(input_tokens=5, output_tokens=output))


async def test_usage_that_comes_early_is_not_the_last_word() -> None:
    never, came = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        came.set()
        await never.wait()

    handler, _ = make([[usage(0)], *[[TextDelta("ab ")] for _ in range(100)], wait])
    leave = asyncio.Event()
    request = asyncio.create_task(collect(handler, BODY, leave=leave))
    await came.wait()
    leave.set()
    await request
    assert 5 + 100 <= await used(handler) <= 5 + 200, "a bound of the 100 words, on top of what was reported"
    await handler.aclose()


@pytest.mark.parametrize("again", [[], [[usage(2)]]], ids=["once", "repeated"])
async def test_output_behind_the_finish_and_its_usage_is_charged_too(again) -> None:
    late = [[TextDelta("ab ")] for _ in range(80)]
    handler, _ = make([[TextDelta("ab ")] * 2, [FinishDelta("stop"), usage(2)], *late, *again])
    got = await collect(handler, BODY)
    assert [name for name, _ in got.events].count("token") == 82, "the reader got them"
    assert 5 + 2 + 80 <= await used(handler) <= 5 + 2 + 160
    await handler.aclose()


async def test_usage_behind_the_cap_in_the_same_read_is_charged() -> None:
    batch = [TextDelta("a ")] * 900 + [FinishDelta("stop"), usage(2_000)]
    handler, provider = make([batch], most=100)
    got = await collect(handler, BODY)
    assert 100 < [name for name, _ in got.events].count("token") < 600
    assert await used(handler) == 2_005
    assert provider.closed == 1
    await handler.aclose()


@pytest.mark.parametrize("name", ["maxTokensPerRequest", "dailyTokenLimit"])
async def test_a_client_limit_above_the_range_of_a_store_limits_nothing(name, caplog) -> None:
    provider = ScriptedProvider(answer("hello"))
    profile = replace(BALANCED, model="p:m", tokens_per_request=None, tokens_per_day=None)
    async with create_chat_handler(providers={"p": provider}, profiles={"balanced": profile}) as handler:
        for number in (2**50, 2**50 + 1, 1e30):
            got = await collect(handler, {**BODY, name: number})
            assert (got.status, got.events[-1][0]) == (200, "done")
    assert not caplog.records, "nor does it look like a store that failed"


async def test_more_than_was_held_is_an_alarm(caplog) -> None:
    handler, _ = make([[TextDelta("a")], [FinishDelta("stop"), usage(5_000)]])
    with caplog.at_level(logging.WARNING):
        await collect(handler, BODY)
    assert "more than it had reserved" in caplog.text
    await handler.aclose()


async def test_an_absurd_usage_is_settled() -> None:
    absurd = UsageDelta(Usage(input_tokens=2**50, output_tokens=2**50))
    handler, _ = make([[TextDelta("a")], [FinishDelta("stop"), absurd]])
    await collect(handler, BODY)
    assert await used(handler) == 2**50
    await handler.aclose()


@pytest.mark.parametrize(
    "model", ["azure/o3-mini", "openrouter/openai/o3", "O3-mini", "gpt-6", "o5-mini", "ft:o4-mini:org", "gpt-5-nano"]
)
def test_models_that_reason_out_of_sight_are_known(model) -> None:
    assert is_reasoning_model(model)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-35-turbo", "gpt-5-chat-latest", "olmo", "llama-3", "ollama/o-model"])
def test_models_that_do_not_are_too(model) -> None:
    assert not is_reasoning_model(model)


async def test_a_count_in_bytes_never_charges_more_output_than_was_granted() -> None:
    never, came = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        came.set()
        await never.wait()

    handler, provider = make([*[[TextDelta("abcdefghi ")] for _ in range(399)], wait])
    leave = asyncio.Event()
    request = asyncio.create_task(collect(handler, BODY, leave=leave))
    await came.wait()
    leave.set()
    await request
    assert await used(handler) <= 400 + 60
    await handler.aclose()


class Swallows:
    """A provider whose context hides what went wrong."""

    abort_bills = "stops"

    @asynccontextmanager
    async def open(self, prompt, timeouts):
        async def batches():
            yield [TextDelta("half an ans")]
            raise UpstreamTruncated

        with suppress(Exception):
            yield batches()


async def test_a_swallowed_failure_is_not_done() -> None:
    handler, _ = make([], provider=Swallows())
    got = await collect(handler, BODY)
    assert [name for name, _ in got.events] == ["start", "token", "error"]
    await handler.aclose()


class Clings:
    """A provider that does not let go of its stream."""

    abort_bills = "stops"

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    @asynccontextmanager
    async def open(self, prompt, timeouts):
        async def batches():
            yield [TextDelta("a")]
            self.opened.set()
            await asyncio.Event().wait()

        try:
            yield batches()
        finally:
            await asyncio.Event().wait()


@pytest.mark.looptime(start=0)
async def test_a_provider_that_does_not_close_is_abandoned(caplog) -> None:
    provider = Clings()
    handler, _ = make([], provider=provider)
    leave = asyncio.Event()
    request = asyncio.create_task(collect(handler, BODY, leave=leave))
    await provider.opened.wait()
    leave.set()
    await request
    assert asyncio.get_running_loop().time() <= 35
    assert "does not let go" in caplog.text
    assert await used(handler) > 0
    await handler.aclose()


@pytest.mark.looptime(start=0)
async def test_an_identify_that_never_answers() -> None:
    async def identify(scope):
        await asyncio.Event().wait()

    handler, provider = make(answer("a"), identify=identify)
    got = await collect(handler, BODY)
    assert got.status == 503 and provider.opened == 0
    assert asyncio.get_running_loop().time() <= 11
    await handler.aclose()


@pytest.mark.looptime(start=0)
async def test_a_store_call_that_hangs_does_not_end_the_renewal_of_leases() -> None:
    class Hangs(MemoryStore):
        sweeps = 0

        async def sweep(self):
            self.sweeps += 1
            if self.sweeps == 1:
                await asyncio.Event().wait()
            return 0

    store = Hangs(FakeClock())
    ledger = Ledger(store, lambda line, refused: RateLimited(), lease=60)
    ledger._keep_leases()
    await asyncio.sleep(200)
    assert store.sweeps >= 3
    await ledger.aclose()


@pytest.mark.parametrize(
    ("field", "value"),
    [("requests_per_minute", -1), ("max_output_tokens", -5), ("max_output_tokens", 0), ("tokens_per_day", -1)],
)
def test_a_profile_that_could_never_admit_is_refused(field, value) -> None:
    profile = replace(BALANCED, model="p:m", **{field: value})
    with pytest.raises(ValueError, match=field):
        create_chat_handler(providers={"p": ScriptedProvider([])}, profiles={"balanced": profile})
    if field in Limits.__struct_fields__:
        with pytest.raises(ValueError, match=field):
            create_chat_handler(providers={"p": ScriptedProvider([])}, model="m", limits=Limits(**{field: value}))


async def test_a_handler_that_was_closed_can_be_opened_again() -> None:
    handler, _ = make(answer("a"))
    async with handler:
        assert (await collect(handler, BODY)).status == 200
    assert (await collect(handler, BODY)).status == 503
    async with handler:
        assert (await collect(handler, BODY)).status == 200


@pytest.mark.parametrize("how", ["raises", "hangs"])
@pytest.mark.looptime(start=0)
async def test_a_provider_that_does_not_close_leaves_no_store_open(how) -> None:
    closed = []

    class Store(MemoryStore):
        async def aclose(self):
            closed.append(True)

    class Bad(ScriptedProvider):
        async def aclose(self):
            if how == "raises":
                raise OSError("secret")
            await asyncio.Event().wait()

    handler, _ = make([], provider=Bad(answer("a")), store=Store(FakeClock()))
    await handler.aclose()
    assert closed == [True]


async def test_an_endless_retry_after_is_left_out() -> None:
    def identify(scope):
        raise RateLimited(retry_after=float("inf"))

    handler, _ = make(answer("a"), identify=identify)
    got = await collect(handler, BODY)
    assert got.status == 429 and "retry-after" not in got.headers
    await handler.aclose()


def test_no_repr_shows_message_text_or_the_caller() -> None:
    message = Message(role="user", content="canary")
    request = ChatRequest(messages=(message,), system_prompt="canary")
    assert "canary" not in repr([message, request, Caller(id="canary")])


@pytest.mark.parametrize(("url", "calls"), [("http://127.0.0.1:1/v1", True), ("https://models.example/v1", False)])
async def test_only_a_local_model_is_called_again_after_a_lost_connection(url, calls, monkeypatch) -> None:
    from chat_nest.core.errors import UpstreamUnavailable
    from chat_nest.core.messages import Message
    from chat_nest.core.protocols import Prompt
    from chat_nest.providers.openai import OpenAIProvider

    provider = OpenAIProvider("k", url)

    @asynccontextmanager
    async def lost(*args, **how):
        raise UpstreamUnavailable
        yield

    monkeypatch.setattr(provider._session, "request", lost)
    prompt = Prompt(model="m", messages=(Message(role="user", content="x"),), max_output_tokens=5)
    with pytest.raises(UpstreamUnavailable) as failed:
        async with provider.open(prompt, Timeouts()):
            pass
    assert failed.value.spent_nothing is calls
