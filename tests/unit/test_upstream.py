"""Retries, then fallbacks, and never after something may have been produced."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from chat_nest.deltas import FinishDelta
from chat_nest.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from chat_nest.ledger import Reservation
from chat_nest.limits import Claim, Granted, Timeouts
from chat_nest.messages import Message
from chat_nest.protocols import Prompt
from chat_nest.upstream import Upstream

PROMPT = Prompt(model="", messages=(Message(role="user", content="hi"),), max_output_tokens=4_000)


class Flaky:
    abort_bills = "stops"

    def __init__(self, *failures) -> None:
        self.failures = list(failures)
        self.prompts = []
        self.closed = 0

    @asynccontextmanager
    async def open(self, prompt, timeouts):
        self.prompts.append(prompt)
        if self.failures:
            raise self.failures.pop(0)

        async def batches():
            yield [FinishDelta("stop")]

        try:
            yield batches()
        finally:
            self.closed += 1


def unavailable(**how):
    return UpstreamUnavailable(spent_nothing=True, **how)


def held() -> Reservation:
    claim = Claim(id="a", fingerprint="f", lines=(), max_output_tokens=50)
    return Reservation(claim, Granted(output_tokens=50, room=()), 10)


async def ask(providers, models, reservation=None):
    reservation = reservation or held()
    async with Upstream(providers, Timeouts()).open(PROMPT, models, reservation) as batches:
        assert [batch async for batch in batches] == [[FinishDelta("stop")]]
    return reservation


async def test_the_provider_is_asked_for_what_was_granted() -> None:
    provider = Flaky()
    reservation = await ask({"p": provider}, ["p:family:model"])
    (prompt,) = provider.prompts
    assert (prompt.model, prompt.max_output_tokens) == ("family:model", 50)
    assert (reservation.model, reservation.asked, reservation.abort_bills) == ("p:family:model", True, "stops")
    assert provider.closed == 1


@pytest.mark.looptime(start=0)
async def test_two_failures_are_retried() -> None:
    provider = Flaky(unavailable(), unavailable())
    reservation = await ask({"p": provider}, ["p:m"])
    assert len(provider.prompts) == 3
    assert not reservation.spent_nothing


@pytest.mark.looptime(start=0)
async def test_three_failures_are_not() -> None:
    provider = Flaky(unavailable(), unavailable(), unavailable())
    reservation = held()
    with pytest.raises(UpstreamUnavailable):
        await ask({"p": provider}, ["p:m"], reservation)
    assert len(provider.prompts) == 3
    assert reservation.spent_nothing


@pytest.mark.looptime(start=0)
async def test_the_next_model_answers_when_the_first_is_down() -> None:
    down, up = Flaky(*[unavailable() for _ in range(9)]), Flaky()
    reservation = await ask({"down": down, "up": up}, ["down:a", "up:b"])
    assert (len(down.prompts), len(up.prompts)) == (3, 1)
    assert reservation.model == "up:b"


async def test_a_refused_key_is_not_tried_again_but_the_fallback_is() -> None:
    wrong, up = Flaky(UpstreamAuth(spent_nothing=True)), Flaky()
    await ask({"wrong": wrong, "up": up}, ["wrong:a", "up:b"])
    assert (len(wrong.prompts), len(up.prompts)) == (1, 1)


@pytest.mark.parametrize("error", [UpstreamTimeout(), UpstreamError()])
async def test_nothing_is_repeated_when_the_first_attempt_may_have_cost_something(error) -> None:
    provider, up = Flaky(error), Flaky()
    reservation = held()
    with pytest.raises(type(error)):
        await ask({"p": provider, "up": up}, ["p:m", "up:m"], reservation)
    assert (len(provider.prompts), len(up.prompts)) == (1, 0)
    assert not reservation.spent_nothing


@pytest.mark.looptime(start=0)
async def test_row38_retry_after_is_waited_for_within_bounds() -> None:
    loop = asyncio.get_running_loop()
    provider = Flaky(UpstreamRateLimited(spent_nothing=True, retry_after=3))
    await ask({"p": provider}, ["p:m"])
    assert 3 <= loop.time() < 3.1
    provider = Flaky(UpstreamRateLimited(spent_nothing=True, retry_after=30))
    with pytest.raises(UpstreamRateLimited) as refused:
        await ask({"p": provider}, ["p:m"])
    assert refused.value.retry_after == 30
    assert loop.time() < 3.2


async def test_a_rejected_request_is_not_repeated() -> None:
    provider = Flaky(UpstreamRejected(spent_nothing=True))
    with pytest.raises(UpstreamRejected):
        await ask({"p": provider}, ["p:m"])
    assert len(provider.prompts) == 1


async def test_an_unknown_provider_is_an_error_that_costs_nothing() -> None:
    reservation = held()
    with pytest.raises(UpstreamError) as failed:
        await ask({}, ["nobody:m"], reservation)
    assert failed.value.spent_nothing and not reservation.asked
