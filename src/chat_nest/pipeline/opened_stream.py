"""A provider's stream that has begun: its first batches were read, and its usage has that of earlier attempts."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import cast

from msgspec.structs import replace

from chat_nest.core.deltas import Batch, Delta, UsageDelta
from chat_nest.core.errors import UpstreamTruncated
from chat_nest.core.parts import PartMisused, failure_text, kind_of, offers
from chat_nest.core.protocols import PushSource, ReadsAhead
from chat_nest.core.usage import Usage
from chat_nest.ledger.reservation import Reservation

log = logging.getLogger("chat_nest.pipeline")


class OpenedStream:
    """A stream from its beginning, read up to its first delta. `lost` input tokens are part of its usage.

    `opening` is the provider's context, which was entered: `leave` leaves it, and counts what was not taken.
    `__anext__` is no coroutine of its own: it returns the provider's.
    """

    def __init__(self, held: Reservation, lost: int, opening: AbstractAsyncContextManager[object]) -> None:
        self._held = held
        self._opening = opening
        self._lost = lost
        self._waiting: list[Batch] = []
        self._drop: Callable[[Callable[[Batch], None]], bool] | None = None

    async def begin(self, batches: AsyncIterator[Batch]) -> None:
        """Wait for the first delta that is not a count. Raises what the stream raises, after its counts are noted."""
        self._next = batches.__anext__
        self._straight = batches.pass_on if offers(batches, PushSource) and not self._lost else None
        self._drop = batches.drop if offers(batches, ReadsAhead) else None
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
                self._held.report(delta.usage, last=False)
        raise UpstreamTruncated

    async def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._opening.__aexit__(kind, error, trace)
        finally:
            self._count_rest()  # the provider is closed, which waits for nothing

    def _count_rest(self) -> None:
        """Count what came and was not taken, unless the answer was complete, and keep nothing of it."""
        held, drop, waiting = self._held, self._drop, self._waiting
        self._drop, self._waiting = None, []
        try:
            count: Callable[[Batch], None] = _ignore if held.finished else self._count
            for batch in waiting:
                count(batch)
            if drop is not None:
                held.unseen = drop(count)
        except Exception as bug:
            held.unseen = True
            log.error("request %s: %s", held.claim.owner, failure_text(bug))  # noqa: TRY400 - no values in logs

    def _count(self, batch: Batch) -> None:
        self._held.count(self._with_lost(batch))

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    def __anext__(self) -> Awaitable[Batch]:
        return self._again() if self._waiting or self._lost else self._next()

    async def pass_on(self, take: Callable[[Batch], bool]) -> bool:
        """See protocols.PushSource."""
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


def _ignore(_batch: Batch) -> None:
    """Count nothing: the answer was complete."""


def _check_batch(batch: object) -> None:
    """Check the first batch only: the path of a token has no checks."""
    came = kind_of(batch)
    if not isinstance(batch, list | tuple):
        raise PartMisused(f"the provider's iterator yielded {came}; yield a list of deltas")
    for delta in cast("Sequence[object]", batch):
        if not isinstance(delta, Delta):
            raise PartMisused(f"the provider's iterator yielded {came} with {kind_of(delta)}; yield a list of deltas")
