"""Retries, then fallbacks, all before the first token, and never for more than the one reservation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chat_nest.core.claims import Claim, Granted, Line
from chat_nest.core.deltas import FinishDelta, TextDelta, UsageDelta
from chat_nest.core.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamPaused,
    UpstreamProtocol,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from chat_nest.core.messages import Message
from chat_nest.core.protocols import Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Price, Rates, Usage
from chat_nest.ledger.reservation import Reservation
from chat_nest.limits.prices import Prices, price
from chat_nest.pipeline.breaker import CAPACITY, RETRY_COST, STORM, Breaker
from chat_nest.pipeline.outcome import cost_of
from chat_nest.pipeline.upstream import Upstream

PROMPT = Prompt(model="", messages=(Message(role="user", content="hi"),), max_output_tokens=4_000)


class Flaky:
    abort_bills = "stops"

    def __init__(self, *failures, answer=([FinishDelta("stop")],)) -> None:
        self.failures = list(failures)
        self.answer = answer
        self.before: Callable[[], Awaitable[object]] | None = None
        self.prompts = []
        self.closed = 0

    @asynccontextmanager
    async def open(self, prompt, timeouts):
        self.prompts.append(prompt)
        if self.before is not None:
            await self.before()
        if self.failures:
            raise self.failures.pop(0)

        async def batches():
            for step in self.answer:
                if isinstance(step, Exception):
                    raise step
                yield step

        try:
            yield batches()
        finally:
            self.closed += 1


def unavailable(**how):
    return UpstreamUnavailable(spent_nothing=True, **how)


def held(*, lines=(), least=1) -> Reservation:
    claim = Claim(id="a", fingerprint="f", lines=lines, max_output_tokens=50, min_output_tokens=least)
    return Reservation(claim, Granted(output_tokens=50, room=(0,) * len(lines)), 10)


async def read(providers, models, reservation=None):
    async with Upstream(providers, Timeouts()).open(PROMPT, models, reservation or held()) as batches:
        return [delta async for batch in batches for delta in batch]


async def ask(providers, models, reservation=None):
    reservation = reservation or held()
    async with Upstream(providers, Timeouts()).open(PROMPT, models, reservation) as batches:
        assert [batch async for batch in batches] == [[FinishDelta("stop")]]
    return reservation


async def test_the_provider_gets_the_granted_limit() -> None:
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


@pytest.mark.parametrize("error", [UpstreamProtocol(), UpstreamError()])
async def test_a_billed_attempt_that_will_fail_again_is_not_repeated(error) -> None:
    provider, up = Flaky(error), Flaky()
    reservation = held()
    with pytest.raises(type(error)):
        await ask({"p": provider, "up": up}, ["p:m", "up:m"], reservation)
    assert (len(provider.prompts), len(up.prompts)) == (1, 0)
    assert not reservation.spent_nothing


# What came and was not taken.


class Ahead:
    """Batches of which the first is given out, and the rest came as well."""

    def __init__(self, *rest, unseen=False) -> None:
        self.batches = [[TextDelta("one ")]]
        self.left = ([*rest], unseen)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.batches:
            await asyncio.Event().wait()
        return self.batches.pop()

    def drop(self, count):
        rest, unseen = self.left
        for delta in rest:
            count([delta])
        return unseen


class Slow:
    """A provider whose connection takes a while to be closed."""

    abort_bills = "stops"

    def __init__(self, batches) -> None:
        self.batches = batches
        self.closing, self.closed = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def open(self, prompt, timeouts):
        try:
            yield self.batches
        finally:
            self.closing.set()
            await self.closed.wait()


async def leave(batches, *, read: bool, times: int) -> Reservation:
    """Ask, take the first batch or nothing, and be cancelled: where nothing more comes, then while it is closed."""
    provider, reservation, asked = Slow(batches), held(), asyncio.Event()

    async def story() -> None:
        async with Upstream({"p": provider}, Timeouts()).open(PROMPT, ["p:gpt-4o"], reservation) as opened:
            if read:
                reservation.count(await anext(opened))
            asked.set()
            await (anext(opened) if read else asyncio.Event().wait())

    task = asyncio.create_task(story())
    await asked.wait()
    task.cancel()
    await provider.closing.wait()
    if times == 2:
        task.cancel()
    else:
        provider.closed.set()
    with suppress(asyncio.CancelledError):
        await task
    return reservation


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("read", [True, False])
async def test_received_but_unread_output_is_counted_once(read, times) -> None:
    reservation = await leave(Ahead(TextDelta("two "), TextDelta("three")), read=read, times=times)
    assert reservation.spent() == (used(10, 3), "estimated")


async def test_a_report_that_was_not_taken_counts() -> None:
    rest = [TextDelta("two "), FinishDelta("stop"), UsageDelta(used(7, 9))]
    reservation = await leave(Ahead(*rest, unseen=True), read=True, times=1)
    assert reservation.spent() == (used(7, 9), "reported")
    assert not reservation.finished


async def test_a_report_behind_a_finish_that_was_taken_is_the_last_word() -> None:
    batches = Ahead(UsageDelta(used(7, 9)))
    batches.batches = [[TextDelta("one "), FinishDelta("stop")]]  # type: ignore[list-item]
    reservation = await leave(batches, read=True, times=1)
    assert reservation.spent() == (used(7, 9), "reported")


@pytest.mark.parametrize("left", [([], True), None])
async def test_uncountable_output_is_charged_the_whole_hold(left, caplog) -> None:
    batches = Ahead()
    batches.left = left  # without one, asking for it fails
    reservation = await leave(batches, read=True, times=1)
    assert reservation.spent() == (used(10, 50), "assumed")
    assert ("request" in caplog.text) == (left is None)


@pytest.mark.looptime(start=0)
async def test_what_the_first_attempt_left_unseen_is_not_the_next_one_s() -> None:
    reservation = held()
    reservation.unseen = reservation.stopped = True
    await ask({"p": Flaky()}, ["p:m"], reservation)
    assert (reservation.unseen, reservation.stopped) == (False, False)


# An attempt that may have been billed.

UNCERTAIN = [UpstreamTimeout, UpstreamUnavailable, UpstreamTruncated]


def used(input_tokens: int, output_tokens: int) -> Usage:
    return Usage(input_tokens=input_tokens, output_tokens=output_tokens)


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize("lost", UNCERTAIN)
async def test_an_attempt_that_may_have_been_billed_is_repeated_once_for_what_is_left(lost) -> None:
    provider = Flaky(lost())
    reservation = await ask({"p": provider}, ["p:m"])
    assert [prompt.max_output_tokens for prompt in provider.prompts] == [50, 40], "the first one's input is spent"
    reservation.finished = True  # without a word on its usage
    assert reservation.spent() == (used(20, 0), "estimated")


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize("lost", UNCERTAIN)
async def test_it_is_repeated_no_more_than_once(lost) -> None:
    provider, up = Flaky(lost(), lost()), Flaky()
    reservation = held()
    with pytest.raises(lost):
        await ask({"p": provider, "up": up}, ["p:m", "up:m"], reservation)
    assert (len(provider.prompts), len(up.prompts)) == (2, 0)
    assert reservation.spent() == (used(20, 0), "estimated")


async def test_an_attempt_that_may_have_spent_the_whole_hold_is_not_repeated() -> None:
    for bills, model in (("unknown", "m"), ("full", "m"), ("stops", "o3-mini")):
        provider, up = Flaky(UpstreamTimeout()), Flaky()
        provider.abort_bills = bills
        reservation = held()
        with pytest.raises(UpstreamTimeout):
            await ask({"p": provider, "up": up}, [f"p:{model}", "up:m"], reservation)
        assert (len(provider.prompts), len(up.prompts)) == (1, 0)
        assert reservation.spent() == (used(10, 50), "assumed")


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize("least", [40, 41])
async def test_it_is_not_repeated_for_an_answer_below_the_least(least) -> None:
    provider = Flaky(UpstreamTimeout())
    if least == 40:
        await ask({"p": provider}, ["p:m"], held(least=least))
    else:
        with pytest.raises(UpstreamTimeout):
            await ask({"p": provider}, ["p:m"], held(least=least))
    assert len(provider.prompts) == (2 if least == 40 else 1)


MONEY = Line(
    name="usd_per_day",
    scope="caller",
    key="caller:a",
    unit="nanousd",
    kind="window",
    limit=9_999,
    fixed=300,
    per_million=10_000_000,
)
TOKENS = Line(
    name="tokens_per_day",
    scope="caller",
    key="caller:a",
    unit="tokens",
    kind="window",
    limit=9_999,
    fixed=10,
    per_million=1_000_000,
)
REQUESTS = Line(
    name="requests_per_day", scope="caller", key="caller:a", unit="requests", kind="window", limit=9, fixed=1
)


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize(
    ("lines", "second"),
    [((REQUESTS,), 40), ((TOKENS, REQUESTS), 40), ((TOKENS, MONEY), 20), ((replace(MONEY, fixed=500),), None)],
)
async def test_every_budget_has_to_pay_for_both(lines, second) -> None:
    provider = Flaky(UpstreamTimeout())
    reservation = held(lines=lines)
    if second is None:
        with pytest.raises(UpstreamTimeout):
            await ask({"p": provider}, ["p:m"], reservation)
    else:
        await ask({"p": provider}, ["p:m"], reservation)
        for line in lines:
            if line.unit != "requests":
                assert line.amount(second) + line.fixed <= line.amount(50)
    assert [prompt.max_output_tokens for prompt in provider.prompts] == ([50] if second is None else [50, second])


@given(
    st.integers(0, 200),
    st.integers(1, 200),
    st.integers(0, 3_000),
    st.integers(0, 50_000_000),
    st.sampled_from(["stops", "unknown"]),
)
def test_two_attempts_never_cost_more_than_the_one_hold(tokens, granted, fixed, per_million, bills) -> None:
    async def story() -> None:
        provider = Flaky(UpstreamTruncated())
        provider.abort_bills = bills
        lines = (replace(TOKENS, fixed=tokens), replace(MONEY, fixed=fixed, per_million=per_million))
        claim = Claim(id="a", fingerprint="f", lines=lines, max_output_tokens=granted)
        reservation = Reservation(claim, Granted(output_tokens=granted, room=(0, 0)), tokens)
        with suppress(UpstreamTruncated):
            await ask({"p": provider}, ["p:m"], reservation)
        lost = 0 if bills == "stops" else granted
        for line in lines:
            first = line.amount(lost)
            rest = sum(line.amount(prompt.max_output_tokens) for prompt in provider.prompts[1:])
            assert len(provider.prompts) == 1 or first + rest <= line.amount(granted)

    with patched_pause():
        asyncio.run(story())


@contextmanager
def patched_pause():
    """No waiting between attempts: Hypothesis makes hundreds of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chat_nest.pipeline.upstream.random.uniform", lambda *_: 0.0)
        yield


@pytest.mark.looptime(start=0)
async def test_what_the_lost_attempt_cost_is_part_of_the_answers_usage() -> None:
    provider = Flaky(UpstreamTimeout(), answer=[[TextDelta("a")], [UsageDelta(used(9, 3)), FinishDelta("stop")]])
    reservation = held()
    deltas = await read({"p": provider}, ["p:m"], reservation)
    assert deltas == [TextDelta("a"), UsageDelta(used(19, 3)), FinishDelta("stop")]


@pytest.mark.looptime(start=0)
async def test_an_abandoned_second_attempt_is_assumed_to_cost_the_rest_of_the_hold_and_no_more() -> None:
    provider, second = Flaky(*[UpstreamUnavailable(), unavailable(), unavailable()]), Flaky(answer=[[TextDelta("a")]])
    second.abort_bills = "unknown"
    reservation = held(lines=(TOKENS,))
    async with Upstream({"p": provider, "s": second}, Timeouts()).open(PROMPT, ["p:m", "s:m"], reservation) as batches:
        assert await anext(batches) == [TextDelta("a")]
    assert reservation.spent() == (used(20, 40), "assumed")
    assert reservation.remaining(used(20, 40), None) == {"tokens_per_day": 0}
    assert reservation.remaining(used(20, 10), None) == {"tokens_per_day": 30}


@pytest.mark.looptime(start=0)
async def test_a_refusal_after_a_lost_attempt_costs_what_was_lost() -> None:
    unknown = Flaky(UpstreamAuth(spent_nothing=True))
    unknown.abort_bills = "unknown"
    provider = Flaky(UpstreamTimeout(), *[unavailable() for _ in range(3)])
    reservation = held()
    with pytest.raises(UpstreamAuth):
        await ask({"p": provider, "unknown": unknown}, ["p:m", "unknown:m"], reservation)
    assert not reservation.spent_nothing
    assert reservation.spent() == (used(10, 0), "estimated")


DEAR = price(input=100, output=100)
CHEAP = price(input=1, output=1)
TIERED = Price(
    rates=(
        Rates(input=1_000_000, output=0, cached_input=1_000_000, cache_write=1_000_000),
        Rates(input=9_000_000, output=0, cached_input=9_000_000, cache_write=9_000_000, above=15),
    ),
    version="own",
)


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize(
    ("prices", "cost"),
    [
        ({"p:m": DEAR, "s:m": CHEAP}, 10 * 100_000 + (9 + 3) * 1_000),
        ({"p:m": CHEAP, "s:m": DEAR}, 10 * 1_000 + (9 + 3) * 100_000),
        ({"p:m": TIERED, "s:m": TIERED}, 19),
        ({"s:m": CHEAP}, None),  # not what the answer cost alone: the whole hold is charged
        ({"p:m": CHEAP}, None),
    ],
)
async def test_each_attempt_is_charged_at_the_price_of_the_called_model(prices, cost) -> None:
    first = Flaky(*[UpstreamTimeout(), unavailable(), unavailable()])
    second = Flaky(answer=[[TextDelta("a")], [UsageDelta(used(9, 3)), FinishDelta("stop")]])
    reservation = held()
    async with Upstream({"p": first, "s": second}, Timeouts()).open(PROMPT, ["p:m", "s:m"], reservation) as batches:
        for delta in [delta async for batch in batches for delta in batch]:
            if isinstance(delta, UsageDelta):
                reservation.report(delta.usage, last=True)
    usage, _ = reservation.spent()
    assert usage == used(19, 3)
    assert cost_of(usage, reservation, Prices(prices)) == cost


@pytest.mark.looptime(start=0)
async def test_a_lost_prompt_is_charged_at_the_price_of_its_model_when_no_model_answers() -> None:
    provider = Flaky(UpstreamTimeout(), *[unavailable() for _ in range(3)])
    reservation = held()
    with pytest.raises(UpstreamAuth):
        await ask({"p": provider, "s": Flaky(UpstreamAuth(spent_nothing=True))}, ["p:m", "s:m"], reservation)
    usage, _ = reservation.spent()
    assert cost_of(usage, reservation, Prices({"p:m": DEAR, "s:m": CHEAP})) == 10 * 100_000


# Up to the first delta.


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize("lost", [UpstreamTruncated, UpstreamUnavailable])
async def test_a_stream_that_ends_before_its_first_delta_is_retried(lost) -> None:
    provider = Flaky(answer=[[UsageDelta(used(7, 0))], lost()])
    reservation = held()
    with pytest.raises(lost):
        await read({"p": provider}, ["p:m"], reservation)
    assert [prompt.max_output_tokens for prompt in provider.prompts] == [50, 43], "its own count is taken"
    assert provider.closed == 2
    assert reservation.spent() == (used(14, 0), "estimated")


async def test_a_stream_that_reports_output_is_not_retried() -> None:
    provider = Flaky(answer=[[UsageDelta(used(7, 1))], UpstreamTruncated()])
    reservation = held()
    with pytest.raises(UpstreamTruncated):
        await read({"p": provider}, ["p:m"], reservation)
    assert len(provider.prompts) == 1
    assert reservation.spent() == (used(7, 1), "estimated")


@pytest.mark.looptime(start=0)
async def test_a_stream_without_anything_is_truncated() -> None:
    with pytest.raises(UpstreamTruncated):
        await read({"p": Flaky(answer=[])}, ["p:m"])


async def test_after_the_first_delta_nothing_is_repeated() -> None:
    provider = Flaky(answer=[[UsageDelta(used(7, 0))], [TextDelta("a")], UpstreamUnavailable()])
    got = []
    with pytest.raises(UpstreamUnavailable):
        async with Upstream({"p": provider}, Timeouts()).open(PROMPT, ["p:m"], held()) as batches:
            async for batch in batches:
                got.append(batch)
    assert got == [[UsageDelta(used(7, 0))], [TextDelta("a")]]
    assert (len(provider.prompts), provider.closed) == (1, 1)


# The breaker and the budget of retries.


@pytest.mark.looptime(start=0)
async def test_row_38_a_storm_opens_the_breaker_and_one_probe_closes_it(monkeypatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda least, _: least)  # what lies seconds back counts less for a storm
    provider = Flaky(*[unavailable() for _ in range(STORM)])
    upstream = Upstream({"p": provider}, Timeouts())
    errors = [await failure(upstream) for _ in range(8)]
    assert len(provider.prompts) == STORM
    assert {error.status for error in errors} == {502, 503}
    refused = errors[-1]
    assert (type(refused), refused.code, refused.status) == (UpstreamPaused, "upstream_unavailable", 503)
    assert refused.spent_nothing and refused.retryable
    assert 1 <= refused.retry_after <= 5
    await asyncio.sleep(5)
    waiting = asyncio.Event()
    provider.before = waiting.wait
    probe = asyncio.create_task(asked(upstream))
    await asyncio.sleep(0.01)
    assert (await failure(upstream)).retry_after == 1
    assert len(provider.prompts) == STORM + 1
    waiting.set()
    await probe
    await asked(upstream)
    assert upstream.breakers["p"].state == "closed"


@pytest.mark.looptime(start=0)
async def test_the_next_model_answers_at_once_while_the_breaker_is_open() -> None:
    down, up = Flaky(), Flaky()
    upstream = Upstream({"down": down, "up": up}, Timeouts())
    for _ in range(STORM):
        upstream.breakers["down"].ended(0, "ill", 0)
    reservation = held()
    async with upstream.open(PROMPT, ["down:m", "up:m"], reservation):
        pass
    assert (len(down.prompts), len(up.prompts)) == (0, 1)
    assert asyncio.get_running_loop().time() == 0


@pytest.mark.looptime(start=0)
async def test_a_refused_breaker_has_spent_nothing() -> None:
    upstream = Upstream({"p": Flaky()}, Timeouts())
    for _ in range(STORM):
        upstream.breakers["p"].ended(0, "ill", 0)
    reservation = held()
    with pytest.raises(UpstreamPaused):
        async with upstream.open(PROMPT, ["p:m"], reservation):
            pass
    assert not reservation.asked


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize(
    "error",
    [
        UpstreamRejected(spent_nothing=True),
        UpstreamAuth(spent_nothing=True),
        UpstreamRateLimited(spent_nothing=True, retry_after=60),
        UpstreamError(),
    ],
)
async def test_refusals_and_error_events_do_not_open_it(error) -> None:
    provider = Flaky(*[error] * 19)
    upstream = Upstream({"p": provider}, Timeouts())
    for _ in range(19):
        await failure(upstream)
    assert upstream.breakers["p"].state == "closed"


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize(("seconds", "state"), [(1, "closed"), (30, "open")])
async def test_only_long_waits_count_as_a_silent_provider(seconds, state) -> None:
    provider = Flaky(answer=[])
    provider.before = asyncio.Event().wait
    upstream = Upstream({"p": provider}, Timeouts())
    tasks = [asyncio.create_task(asked(upstream)) for _ in range(STORM)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert upstream.breakers["p"].state == state


@pytest.mark.looptime(start=0)
async def test_a_probe_does_not_block_the_next_after_its_client_leaves() -> None:
    provider = Flaky()
    upstream = Upstream({"p": provider}, Timeouts())
    for _ in range(STORM):
        upstream.breakers["p"].ended(0, "ill", 0)
    await asyncio.sleep(5)
    provider.before = asyncio.Event().wait
    probe = asyncio.create_task(asked(upstream))
    await asyncio.sleep(0.01)
    probe.cancel()
    await asyncio.wait([probe])
    provider.before = None
    await asked(upstream)
    assert upstream.breakers["p"].state == "closed"


@pytest.mark.looptime(start=0)
async def test_retries_are_not_made_when_most_requests_fail() -> None:
    """Failures of a kind that opens no breaker, so that only the budget is in force."""
    provider = Flaky(*[UpstreamRateLimited(spent_nothing=True) for _ in range(500)])
    upstream = Upstream({"p": provider}, Timeouts())
    for _ in range(100):
        upstream.breakers["p"] = Breaker()
        await failure(upstream)
    assert len(provider.prompts) == 100 + CAPACITY // RETRY_COST


@pytest.mark.looptime(start=0)
async def test_no_pause_goes_past_the_time_for_the_first_token() -> None:
    provider = Flaky(UpstreamRateLimited(spent_nothing=True, retry_after=3))
    with pytest.raises(UpstreamRateLimited):
        async with Upstream({"p": provider}, Timeouts(first_token=2)).open(PROMPT, ["p:m"], held()):
            pass
    assert asyncio.get_running_loop().time() == 0


async def asked(upstream) -> None:
    async with upstream.open(PROMPT, ["p:m"], held()):
        pass


async def failure(upstream) -> UpstreamError:
    with pytest.raises(UpstreamError) as failed:
        await asked(upstream)
    return failed.value


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
