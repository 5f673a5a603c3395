"""Open a provider's stream, with retries and fallbacks until the first output.

All attempts of a request together never cost more than its one reservation. An attempt that certainly cost nothing may
be repeated. An attempt whose prompt may have been billed has used that part of the hold: it is repeated once, and the
new answer is shorter by as much. If its output may have been billed, too, nothing is repeated. docs/providers.md lists
the retries.
The file is long because the attempts of a request share one account of what they may have cost.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from types import TracebackType

from msgspec.structs import replace

from chat_nest.core.claims import Granted
from chat_nest.core.errors import (
    LimiterUnavailable,
    UpstreamAuth,
    UpstreamError,
    UpstreamPaused,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTruncated,
)
from chat_nest.core.parts import PartMisused, kind_of, offers, part_name
from chat_nest.core.protocols import BillsAborts, Choosy, Prompt, Provider, TakesImages
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Usage
from chat_nest.counting.meter import OutputMeter
from chat_nest.counting.tokens import TokenCounters, is_reasoning_model
from chat_nest.ledger.reservation import Reservation
from chat_nest.pipeline.breaker import RETRY_COST, UNCERTAIN_RETRY_COST, Breaker, RetryBudget, Verdict
from chat_nest.pipeline.fair_queue import Place
from chat_nest.pipeline.opened_stream import OpenedStream

log = logging.getLogger("chat_nest.pipeline")

LONGEST_WAIT = 5.0
"""Seconds. The longest Retry-After of a provider that a request waits for."""


@lru_cache(256)  # a request needs that of its model eight times
def split_model(model: str) -> tuple[str, str]:
    """Split PROVIDER:MODEL into two names; the model's name may contain more colons."""
    provider, _, name = model.partition(":")
    return provider, name


class Upstream:
    """The providers by name. Each model in turn gets up to `attempts` attempts.

    `breakers` and `retry_budgets` are by provider, and belong to this process. Those of a provider that is also in
    `before` are kept. `counters` count the output.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        timeouts: Timeouts,
        *,
        attempts: int = 3,
        counters: TokenCounters | None = None,
        before: Upstream | None = None,
    ) -> None:
        self.providers = providers
        self.counters = counters or TokenCounters()
        self.breakers = {name: Breaker() for name in providers}
        self.retry_budgets = {name: RetryBudget() for name in providers}
        for name in _same(providers, {} if before is None else before.providers):
            assert before is not None
            self.breakers[name], self.retry_budgets[name] = before.breakers[name], before.retry_budgets[name]
        self._timeouts = timeouts
        self._attempts = attempts

    def lacks(self, prompt: Prompt, model: str) -> str | None:
        """Return what `prompt` asks that the provider of `model` can't do: the name of a field of Options or Prompt."""
        provider_name, model_name = split_model(model)
        asked = replace(prompt, model=model_name)
        provider = self.providers.get(provider_name)
        lacking = provider.lacks(asked) if offers(provider, Choosy) else _asked_strictly(asked)
        return next(iter(lacking), None)

    def takes(self, model: str) -> frozenset[str]:
        """Return what the provider of `model` can take besides text: see Provider."""
        provider_name, model_name = split_model(model)
        provider = self.providers.get(provider_name)
        return frozenset(provider.takes(model_name)) if offers(provider, TakesImages) else frozenset()

    def open(
        self,
        prompt: Prompt,
        models: Sequence[str],
        held: Reservation,
        place: Place | None = None,
        pauses: Callable[[str], bool] = lambda _: False,
    ) -> AbstractAsyncContextManager[OpenedStream]:
        """Return a context of the first stream with a delta; leaving the context closes its connection at once.

        `prompt.model` is replaced by each of `models` (PROVIDER:MODEL) in turn; those of whose provider `place` gets no
        stream are left out, and those for which `pauses` returns True. Raises the last UpstreamError.
        """
        opening = _Opening(self, prompt, held, self._timeouts, self._attempts, place, pauses)
        return _Streaming(opening, models, held, place)


def _same(providers: Mapping[str, Provider], before: Mapping[str, Provider]) -> Sequence[str]:
    return [name for name, provider in providers.items() if before.get(name) is provider]


class _Streaming:
    """The context of `Upstream.open`: a class, since a generator costs more steps, and 500 bytes while it streams."""

    __slots__ = ("_held", "_opened", "_opening", "_place")

    def __init__(self, opening: _Opening, models: Sequence[str], held: Reservation, place: Place | None) -> None:
        self._opening: Coroutine[object, object, OpenedStream] | None = opening.first_of(models)
        self._held = held
        self._place = place

    async def __aenter__(self) -> OpenedStream:
        opening, self._opening = self._opening, None  # which has the prompt
        assert opening is not None
        try:
            self._opened = opened = await opening
        except BaseException:
            self._free()
            raise
        return opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            if isinstance(error, UpstreamError):
                log_failure(self._held, self._held.model, error)
            return await self._opened.leave(kind, error, trace)
        finally:
            self._free()

    def _free(self) -> None:
        if self._place is not None:
            self._place.close()  # once the provider's connection is closed


class _Opening:
    """The attempts of one request to open a stream, and what they may have cost."""

    def __init__(
        self,
        upstream: Upstream,
        prompt: Prompt,
        held: Reservation,
        timeouts: Timeouts,
        attempts: int,
        place: Place | None,
        pauses: Callable[[str], bool],
    ) -> None:
        self._place = place
        self._pauses = pauses
        self._upstream = upstream
        self._prompt = prompt
        self._held = held
        self._timeouts = timeouts
        self._attempts = attempts
        self._now = asyncio.get_running_loop().time
        self._began_at = self._now()
        self._input_tokens, self._granted = held.input_tokens, held.granted
        self._lost: int | None = None
        """The input tokens of an attempt with an unknown end; None if there was no such attempt."""
        self._lost_at: tuple[str, Usage] | None = None
        """The model of that attempt, and its usage so far: they are charged at its price."""

    async def first_of(self, models: Sequence[str]) -> OpenedStream:
        error: UpstreamError | None = None
        for model in models:
            name = split_model(model)[0]
            paid = 0
            for attempt in range(self._attempts):
                try:
                    batches = await self._ask(model)
                except UpstreamPaused as paused:
                    error = error or paused
                    break
                except UpstreamError as failed:
                    error = failed
                else:
                    self._upstream.retry_budgets[name].succeeded(paid)
                    if self._place is not None:
                        self._place.opened()
                    return batches
                if self._place is not None and isinstance(error, UpstreamRateLimited) and error.retry_after:
                    self._place.limited(error.retry_after)
                log_failure(self._held, model, error)
                if not error.spent_nothing and not self._may_repeat(error):
                    raise error
                pause = max(error.retry_after or 0.0, random.uniform(0.0, 0.25 * 2**attempt))  # noqa: S311 - jitter
                price = RETRY_COST if error.spent_nothing else UNCERTAIN_RETRY_COST
                if attempt + 1 == self._attempts or not self._worth_waiting(error, pause, name, price):
                    break
                paid = price
                await asyncio.sleep(pause)
        raise error or UpstreamError("No model is configured", spent_nothing=True)

    def _worth_waiting(self, error: UpstreamError, pause: float, name: str, price: int) -> bool:
        """Return whether to try the same model again; if so, the retry budget has paid for it."""
        left = self._timeouts.first_token - (self._now() - self._began_at)
        passing = error.retryable or isinstance(error, UpstreamTruncated)
        budget = self._upstream.retry_budgets.get(name)
        longest = LONGEST_WAIT if self._place is None else max(LONGEST_WAIT, self._place.patience)
        return passing and pause <= longest and pause < left and budget is not None and budget.spend(price)

    def _may_repeat(self, error: UpstreamError) -> bool:
        """Return whether the hold can pay for another attempt after this one, whose prompt may have been billed."""
        if self._lost is not None or not (error.retryable or isinstance(error, UpstreamTruncated)):
            return False
        spent, _ = self._held.spent()
        self._lost = spent.input_tokens
        self._lost_at = (self._held.model, replace(spent, output_tokens=0, reasoning_tokens=0))
        return not spent.output_tokens and self._affordable() >= max(self._held.claim.min_output_tokens, 1)

    def _affordable(self) -> int:
        """Return the output tokens that the hold still pays for, after the prompt."""
        output = self._granted.output_tokens
        if self._lost is None:
            return output
        room = output - self._lost
        for line in self._held.claim.lines:
            if line.unit in ("tokens", "nanousd"):
                # The fixed part is the prompt's: the lost attempt used one, and the next attempt uses another.
                rest = line.affordable(line.amount(output) - line.fixed)
                room = room if rest is None else min(room, rest)
        return room

    def _split(self, output: int) -> Granted:
        """Return the hold with fewer output tokens: the tokens of a lost prompt must not count as output as well."""
        granted, lines = self._granted, self._held.claim.lines
        if output == granted.output_tokens:
            return granted
        less = (line.amount(granted.output_tokens) - line.amount(output) for line in lines)
        room = tuple(room + amount for room, amount in zip(granted.room, less, strict=True))
        return Granted(output_tokens=output, room=room)

    async def _ask(self, model: str) -> OpenedStream:
        provider_name, model_name = split_model(model)
        provider = self._upstream.providers.get(provider_name)
        if provider is None:
            raise UpstreamError("The model's provider is not configured", spent_nothing=True)
        if self._pauses(model):  # since the request was admitted
            raise UpstreamPaused(spent_nothing=True)
        if not await self._has_stream(provider_name):
            raise UpstreamPaused(spent_nothing=True, retry_after=1.0)
        breaker = self._upstream.breakers[provider_name]
        began_at = self._now()
        if wait := breaker.admit(began_at):
            raise UpstreamPaused(spent_nothing=True, retry_after=max(wait, 1.0))
        era, retry_after = breaker.era, None
        outcome: Verdict = "unknown"
        try:
            batches = await self._open(provider, model, model_name)
            outcome = "well"
        except UpstreamError as error:
            outcome, retry_after = _told_by(error), error.retry_after
            raise
        except asyncio.CancelledError:
            # A time-out cancels a request that waits too long. A client that leaves early says nothing of the provider.
            if self._now() - began_at >= self._timeouts.first_token / 2:
                outcome = "ill"
            raise
        finally:
            breaker.ended(era, outcome, self._now(), retry_after)
        return batches

    async def _has_stream(self, provider: str) -> bool:
        try:
            return self._place is None or await self._place.take((provider,))
        except LimiterUnavailable:  # the other workers can't be asked for one
            return False

    async def _open(self, provider: Provider, model: str, model_name: str) -> OpenedStream:
        held, lost = self._held, self._lost or 0
        output = self._affordable()
        held.model, held.lost = model, self._lost_at
        is_text = not any(message.attachments for message in self._prompt.messages)
        held.meter = OutputMeter(self._upstream.counters.of(model), output, teaches=is_text)
        held.countable = not is_reasoning_model(model_name)
        held.abort_bills = _abort_bills(provider)
        held.asked, held.spent_nothing = True, False
        held.input_tokens, held.granted = self._input_tokens + lost, self._split(output)
        held.reported, held.reported_last = None, True
        held.stopped = held.unseen = False
        asked = replace(self._prompt, model=model_name, max_output_tokens=output)
        try:
            opening = provider.open(asked, self._timeouts)
            del asked
            _check_opening(opening, provider)
            opened = OpenedStream(held, lost, opening)
            batches = await opening.__aenter__()
            try:
                _check_batches(batches, provider)
                await opened.begin(aiter(batches))
            except BaseException as error:
                await opened.leave(type(error), error, error.__traceback__)
                raise
            return opened
        except UpstreamError as error:
            held.spent_nothing = error.spent_nothing and not lost
            if error.spent_nothing and lost:  # then that is all
                held.input_tokens, held.countable, held.abort_bills = lost, True, "stops"
            raise


def log_failure(held: Reservation, model: str, error: UpstreamError) -> None:
    """Log a failed attempt with the provider's own status and code, which clients do not get."""
    provider, name = split_model(model)
    detail = f" ({error.detail})" if error.detail else ""
    log.warning("request %s: provider %s: %s for model %s%s", held.claim.owner, provider, error.code, name, detail)


def _abort_bills(provider: Provider) -> str:
    return provider.abort_bills if offers(provider, BillsAborts) else "unknown"


def _asked_strictly(prompt: Prompt) -> Sequence[str]:
    """Return the options of a prompt that a provider without `lacks` could ignore."""
    options = prompt.options
    asked = {"format": options.format, "stop": options.stop, "parallel_calls": options.parallel_calls is False}
    return [name for name, value in asked.items() if value]


def _check_opening(opening: object, provider: Provider) -> None:
    if hasattr(opening, "__aenter__"):
        return
    came = kind_of(opening)
    if inspect.iscoroutine(opening):
        opening.close()  # else Python warns that it was never awaited
    raise PartMisused(
        f"provider {part_name(provider)}: open returned {came}; decorate it with contextlib.asynccontextmanager, and "
        "yield an async iterator of batches"
    )


def _check_batches(batches: object, provider: Provider) -> None:
    if not hasattr(batches, "__aiter__"):
        raise PartMisused(
            f"provider {part_name(provider)}: open yielded {kind_of(batches)}; yield an async iterator of batches"
        )


def _told_by(error: UpstreamError) -> Verdict:
    """Return what a failure shows about the provider.

    An error event may be the request's own fault, so it shows nothing.
    """
    if error.of_key:
        return "unknown"
    if isinstance(error, UpstreamAuth | UpstreamRejected):
        return "well"
    if isinstance(error, UpstreamRateLimited):
        return "limited"
    return "unknown" if type(error) is UpstreamError else "ill"
