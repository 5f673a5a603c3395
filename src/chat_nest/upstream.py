"""Open a provider's stream: retries, then fallbacks, and only before anything was produced.

The attempts of one request never cost more than its one reservation. An attempt that has certainly cost nothing may be
repeated. One whose prompt may have been billed uses up that part of the hold, and is repeated once, for an answer that
is shorter by as much; where its output may have been billed, too, nothing is repeated. docs/providers.md says what is
tried when.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

from msgspec.structs import replace

from chat_nest.breaker import RETRY_COST, UNCERTAIN_RETRY_COST, Breaker, Outcome, RetryBudget
from chat_nest.deltas import Batch, Delta, UsageDelta
from chat_nest.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamPaused,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTruncated,
)
from chat_nest.ledger import Reservation
from chat_nest.limits import Granted, Timeouts
from chat_nest.parts import PartMisused, kind_of, part_name
from chat_nest.protocols import PassOn, Prompt, Provider
from chat_nest.tokens import OutputMeter, counter_for, is_reasoning_model
from chat_nest.usage import Usage

log = logging.getLogger("chat_nest.upstream")

LONGEST_WAIT = 5.0
"""Seconds. A provider that asks us to wait longer before a retry is not waited for."""


def split_model(model: str) -> tuple[str, str]:
    """PROVIDER:MODEL as two names; the model's own name may hold more colons."""
    provider, _, name = model.partition(":")
    return provider, name


class Upstream:
    """The providers by name. `attempts` are made of each model in turn.

    `breakers` and `retry_budgets` are by provider, and belong to this process.
    """

    def __init__(self, providers: Mapping[str, Provider], timeouts: Timeouts, *, attempts: int = 3) -> None:
        self.providers = providers
        self.breakers = {name: Breaker() for name in providers}
        self.retry_budgets = {name: RetryBudget() for name in providers}
        self._timeouts = timeouts
        self._attempts = attempts

    @asynccontextmanager
    async def open(
        self, prompt: Prompt, models: Sequence[str], held: Reservation
    ) -> AsyncGenerator[AsyncIterator[Batch], None]:
        """Yield the first stream that brings a delta; leaving closes its connection at once.

        `prompt.model` is replaced by each of `models` (PROVIDER:MODEL) in turn. Raises the last UpstreamError.
        """
        async with AsyncExitStack() as stack:
            opening = _Opening(self, prompt, held, self._timeouts, self._attempts)
            del prompt
            batches = await opening.first_of(models, stack)
            del opening
            yield batches


class _Opening:
    """One request's way to a stream: what was tried, and what that may have cost."""

    def __init__(
        self, upstream: Upstream, prompt: Prompt, held: Reservation, timeouts: Timeouts, attempts: int
    ) -> None:
        self._upstream = upstream
        self._prompt = prompt
        self._held = held
        self._timeouts = timeouts
        self._attempts = attempts
        self._now = asyncio.get_running_loop().time
        self._began_at = self._now()
        self._input_tokens, self._granted = held.input_tokens, held.granted
        self._lost: int | None = None
        """The input tokens of an attempt of which nobody knows how it ended; None where there was no such attempt."""
        self._lost_at: tuple[str, Usage] | None = None
        """The model that was asked for them, and what it says of them: they are charged at its price."""

    async def first_of(self, models: Sequence[str], stack: AsyncExitStack) -> AsyncIterator[Batch]:
        error: UpstreamError | None = None
        for model in models:
            name = split_model(model)[0]
            paid = 0
            for attempt in range(self._attempts):
                try:
                    batches = await self._ask(model, stack)
                except UpstreamPaused as paused:
                    error = error or paused
                    break
                except UpstreamError as failed:
                    error = failed
                else:
                    self._upstream.retry_budgets[name].succeeded(paid)
                    return batches
                self._log(model, error)
                if not error.spent_nothing and not self._may_repeat(error):
                    raise error
                pause = max(error.retry_after or 0.0, random.uniform(0.0, 0.25 * 2**attempt))  # noqa: S311 - jitter
                price = RETRY_COST if error.spent_nothing else UNCERTAIN_RETRY_COST
                if attempt + 1 == self._attempts or not self._worth_waiting(error, pause, name, price):
                    break
                paid = price
                await asyncio.sleep(pause)
        raise error or UpstreamError("No model is configured", spent_nothing=True)

    def _log(self, model: str, error: UpstreamError) -> None:
        provider, name = split_model(model)
        detail = f" ({error.detail})" if error.detail else ""
        log.warning(
            "request %s: provider %s: %s for model %s%s", self._held.claim.owner, provider, error.code, name, detail
        )

    def _worth_waiting(self, error: UpstreamError, pause: float, name: str, price: int) -> bool:
        """Whether the same model is asked again; if so, that is paid for."""
        left = self._timeouts.first_token - (self._now() - self._began_at)
        passing = error.retryable or isinstance(error, UpstreamTruncated)
        budget = self._upstream.retry_budgets.get(name)
        return passing and pause <= LONGEST_WAIT and pause < left and budget is not None and budget.spend(price)

    def _may_repeat(self, error: UpstreamError) -> bool:
        """Whether another attempt can be paid for besides this one, whose prompt may have been billed."""
        if self._lost is not None or not (error.retryable or isinstance(error, UpstreamTruncated)):
            return False
        spent, _ = self._held.spent()
        self._lost = spent.input_tokens
        self._lost_at = (self._held.model, replace(spent, output_tokens=0, reasoning_tokens=0))
        return not spent.output_tokens and self._affordable() >= max(self._held.claim.min_output_tokens, 1)

    def _affordable(self) -> int:
        """The output tokens that the hold still pays for, besides the prompt."""
        output = self._granted.output_tokens
        if self._lost is None:
            return output
        room = output - self._lost
        for line in self._held.claim.lines:
            if line.unit in ("tokens", "nanousd"):
                # The fixed part is the prompt's: the lost attempt has used one, and the next one uses another.
                rest = line.affordable(line.amount(output) - line.fixed)
                room = room if rest is None else min(room, rest)
        return room

    def _split(self, output: int) -> Granted:
        """The same hold with less of it for the output: what a lost prompt took is not assumed to be output as well."""
        granted, lines = self._granted, self._held.claim.lines
        less = (line.amount(granted.output_tokens) - line.amount(output) for line in lines)
        room = tuple(room + amount for room, amount in zip(granted.room, less, strict=True))
        return Granted(output_tokens=output, room=room)

    async def _ask(self, model: str, stack: AsyncExitStack) -> AsyncIterator[Batch]:
        provider_name, model_name = split_model(model)
        provider = self._upstream.providers.get(provider_name)
        if provider is None:
            raise UpstreamError("The model's provider is not configured", spent_nothing=True)
        breaker = self._upstream.breakers[provider_name]
        began_at = self._now()
        if wait := breaker.admit(began_at):
            raise UpstreamPaused(spent_nothing=True, retry_after=max(wait, 1.0))
        era, retry_after = breaker.era, None
        outcome: Outcome = "unknown"
        try:
            batches = await self._open(provider, model, model_name, stack)
            outcome = "well"
        except UpstreamError as error:
            outcome, retry_after = _told_by(error), error.retry_after
            raise
        except asyncio.CancelledError:
            # Who waits in vain is cancelled at the time-out; who leaves early enough says nothing about the provider.
            if self._now() - began_at >= self._timeouts.first_token / 2:
                outcome = "ill"
            raise
        finally:
            breaker.ended(era, outcome, self._now(), retry_after)
        return batches

    async def _open(
        self, provider: Provider, model: str, model_name: str, stack: AsyncExitStack
    ) -> AsyncIterator[Batch]:
        held, lost = self._held, self._lost or 0
        output = self._affordable()
        held.model, held.lost = model, self._lost_at
        held.meter = OutputMeter(counter_for(model_name), output)
        held.countable = not is_reasoning_model(model_name)
        held.abort_bills = getattr(provider, "abort_bills", "unknown")
        held.asked, held.spent_nothing = True, False
        held.input_tokens, held.granted = self._input_tokens + lost, self._split(output)
        held.reported = held.counted_at_report = None
        asked = replace(self._prompt, model=model_name, max_output_tokens=output)
        try:
            async with AsyncExitStack() as attempt:
                opening = provider.open(asked, self._timeouts)
                _check_opening(opening, provider)
                batches = await attempt.enter_async_context(opening)
                del asked, opening
                _check_batches(batches, provider)
                opened = _Opened(aiter(batches), lost)
                await opened.begin(held)
                stack.push_async_exit(attempt.pop_all())
                return opened
        except UpstreamError as error:
            held.spent_nothing = error.spent_nothing and not lost
            if error.spent_nothing and lost:  # then that is all
                held.input_tokens, held.countable, held.abort_bills = lost, True, "stops"
            raise


class _Opened:
    """A stream that has been read up to its first delta, from its beginning; `lost` input tokens are part of its usage.

    `__anext__` is no coroutine of its own: it hands out the provider's.
    """

    def __init__(self, batches: AsyncIterator[Batch], lost: int) -> None:
        self._next = batches.__anext__
        self._lost = lost
        self._waiting: list[Batch] = []
        self._straight: PassOn | None = None if lost else getattr(batches, "pass_on", None)

    async def begin(self, held: Reservation) -> None:
        """Wait for the first delta that is not a count. Raises what the stream raises, after its counts are noted."""
        while True:
            try:
                batch = await self._next()
            except StopAsyncIteration:
                break
            _check_batch(batch)
            self._waiting.append(batch)
            for delta in self._with_lost(batch):
                if not isinstance(delta, UsageDelta):
                    return
                held.report(delta.usage, last=False)
        raise UpstreamTruncated

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    def __anext__(self) -> Awaitable[Batch]:
        return self._again() if self._waiting or self._lost else self._next()

    async def pass_on(self, take: Callable[[Batch], bool]) -> bool:
        """See protocols.PassOn."""
        while self._waiting:
            if not take(self._with_lost(self._waiting.pop(0))):
                return True
        if self._straight is not None:
            return await self._straight(take)
        async for batch in self:
            if not take(batch):
                return True
        return False

    async def _again(self) -> Batch:
        return self._with_lost(self._waiting.pop(0) if self._waiting else await self._next())

    def _with_lost(self, batch: Batch) -> Batch:
        if not self._lost:
            return batch
        return [UsageDelta(self._sum(delta.usage)) if isinstance(delta, UsageDelta) else delta for delta in batch]

    def _sum(self, usage: Usage) -> Usage:
        return replace(usage, input_tokens=usage.input_tokens + self._lost)


def _check_opening(opening: object, provider: Provider) -> None:
    if hasattr(opening, "__aenter__"):
        return
    came = kind_of(opening)
    if inspect.iscoroutine(opening):
        opening.close()  # else Python warns that nothing awaited it
    raise PartMisused(
        f"provider {part_name(provider)}: open returned {came}; decorate it with contextlib.asynccontextmanager, and "
        "yield an async iterator of batches"
    )


def _check_batches(batches: object, provider: Provider) -> None:
    if not hasattr(batches, "__aiter__"):
        raise PartMisused(
            f"provider {part_name(provider)}: open yielded {kind_of(batches)}; yield an async iterator of batches"
        )


def _check_batch(batch: object) -> None:
    """The first one only: the path of a token has no checks."""
    came = kind_of(batch)
    if not isinstance(batch, list | tuple):
        raise PartMisused(f"the provider's iterator yielded {came}; yield a list of deltas")
    for delta in cast("Sequence[object]", batch):
        if not isinstance(delta, Delta):
            raise PartMisused(f"the provider's iterator yielded {came} with {kind_of(delta)}; yield a list of deltas")


def _told_by(error: UpstreamError) -> Outcome:
    """What a failure says about the provider. An error event may be the request's own fault, so it says nothing."""
    if isinstance(error, UpstreamAuth | UpstreamRejected):
        return "well"
    if isinstance(error, UpstreamRateLimited):
        return "limited"
    return "unknown" if type(error) is UpstreamError else "ill"
