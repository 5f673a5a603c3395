"""Open a provider's stream: retries, then fallbacks, and only before anything was produced.

An attempt is repeated only where the error says that it has cost nothing, so the attempts of one request never cost
more than its one reservation.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from msgspec.structs import replace

from chat_nest.deltas import Batch
from chat_nest.errors import UpstreamError
from chat_nest.ledger import Reservation
from chat_nest.limits import Timeouts
from chat_nest.protocols import Prompt, Provider
from chat_nest.tokens import OutputMeter, counter_for, is_reasoning_model

log = logging.getLogger("chat_nest.upstream")

LONGEST_WAIT = 5.0
"""Seconds. A provider that asks us to wait longer before a retry is not waited for."""


def split_model(model: str) -> tuple[str, str]:
    """PROVIDER:MODEL as two names; the model's own name may hold more colons."""
    provider, _, name = model.partition(":")
    return provider, name


class Upstream:
    """The providers by name. `attempts` are made of each model in turn."""

    def __init__(self, providers: Mapping[str, Provider], timeouts: Timeouts, *, attempts: int = 3) -> None:
        self.providers = providers
        self._timeouts = timeouts
        self._attempts = attempts

    @asynccontextmanager
    async def open(
        self, prompt: Prompt, models: Sequence[str], held: Reservation
    ) -> AsyncGenerator[AsyncIterator[Batch], None]:
        """Yield the first stream that opens; leaving closes its connection at once.

        `prompt.model` is replaced by each of `models` (PROVIDER:MODEL) in turn. Raises the last UpstreamError.
        """
        async with AsyncExitStack() as stack:
            batches = await self._first_to_open(stack, prompt, models, held)
            del prompt
            yield batches

    async def _first_to_open(
        self, stack: AsyncExitStack, prompt: Prompt, models: Sequence[str], held: Reservation
    ) -> AsyncIterator[Batch]:
        error = UpstreamError("No model is configured", spent_nothing=True)
        for model in models:
            for attempt in range(self._attempts):
                try:
                    return await self._ask(stack, prompt, model, held)
                except UpstreamError as failed:
                    error = failed
                log.warning("provider %s: %s", model.partition(":")[0], error.code)
                if not error.spent_nothing:
                    raise error
                pause = max(error.retry_after or 0.0, random.uniform(0.0, 0.25 * 2**attempt))  # noqa: S311 - jitter
                if not error.retryable or pause > LONGEST_WAIT or attempt == self._attempts - 1:
                    break
                await asyncio.sleep(pause)
        raise error

    async def _ask(self, stack: AsyncExitStack, prompt: Prompt, model: str, held: Reservation) -> AsyncIterator[Batch]:
        provider_name, model_name = split_model(model)
        provider = self.providers.get(provider_name)
        if provider is None:
            raise UpstreamError("The model's provider is not configured", spent_nothing=True)
        held.model = model
        held.meter = OutputMeter(counter_for(model_name), held.granted.output_tokens)
        held.countable = not is_reasoning_model(model_name)
        held.abort_bills = getattr(provider, "abort_bills", "unknown")
        held.asked, held.spent_nothing = True, False
        asked = replace(prompt, model=model_name, max_output_tokens=held.granted.output_tokens)
        try:
            return await stack.enter_async_context(provider.open(asked, self._timeouts))
        except UpstreamError as error:
            held.spent_nothing = error.spent_nothing
            raise
