"""The relay: batches from the provider to bytes for the client. This is the hot path.

One read from the provider is one batch is one write. A token needs no task, timer or queue; each batch stores two
times, for the deadlines and the heartbeat. If both sides support it, a batch goes from the provider's read to the
client's socket in one call, and no task wakes for it. Backpressure is `await sink.write`: while the client does not
read, the provider is not read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from chat_nest.core.deltas import Batch, FinishDelta, FinishReason, UsageDelta
from chat_nest.core.errors import UpstreamTruncated
from chat_nest.core.parts import offers
from chat_nest.core.protocols import BatchEncoder, PushSource, RunLog, Sink
from chat_nest.ledger.reservation import Reservation
from chat_nest.pipeline.lifecycle import Pulse


async def relay(
    batches: AsyncIterator[Batch],
    encoder: BatchEncoder,
    sink: Sink,
    held: Reservation,
    pulse: Pulse,
    now: Callable[[], float],
    log: RunLog | None = None,
) -> FinishReason:
    """Relay until the provider's completion signal, or cut the stream when it passes its cap (`length`).

    Raises UpstreamTruncated if the provider ends without a completion signal, and all that `batches` raises.
    """
    push = sink.push
    passing = _Passing(encoder, push, held, pulse, now, log)
    pass_on = batches.pass_on if push is not None and offers(batches, PushSource) else partial(_pull, batches)
    while await pass_on(passing.take):
        if passing.unsent:
            await sink.write(passing.unsent)
            passing.unsent = b""
        if passing.cut:
            return "length"
        pulse.read_at = now()
    if passing.finish is None:
        raise UpstreamTruncated
    held.finished = True
    return passing.finish


class _Passing:
    """Passes on one batch after the other: counts, encodes and sends it."""

    __slots__ = ("cut", "encoder", "finish", "held", "log", "meter", "now", "pulse", "push", "unsent")

    def __init__(
        self,
        encoder: BatchEncoder,
        push: Callable[[bytes], bool] | None,
        held: Reservation,
        pulse: Pulse,
        now: Callable[[], float],
        log: RunLog | None,
    ) -> None:
        assert held.meter is not None
        self.meter = held.meter
        self.encoder, self.push, self.held, self.pulse, self.now, self.log = encoder, push, held, pulse, now, log
        self.finish: FinishReason | None = None
        self.cut = False
        """The answer has passed its cap: nothing more of it is sent."""
        self.unsent = b""
        """The bytes that `push` did not take."""

    def take(self, batch: Batch) -> bool:
        """Pass one batch on without waiting. Returns False if `unsent` must be waited for, or after a cut."""
        pulse = self.pulse
        at = pulse.read_at = self.now()
        if pulse.first_at is None:
            pulse.first_at = at
        for number, delta in enumerate(batch, 1):
            if type(delta) is UsageDelta:
                self.held.report(delta.usage, last=self.finish is not None)
            elif type(delta) is FinishDelta:
                self.finish, self.held.stopped = delta.reason, True
            elif self.meter.add(delta.text) and not self.cut:
                self.cut = True
                batch = batch[:number]  # the rest of this read is counted, but not sent
        data = self.encoder.encode(batch)
        if self.log is not None:
            data = self.encoder.number(data, self.log.append(batch))
        if data:
            pulse.written_at = at
            if self.push is None or not self.push(data):
                self.unsent = data
                return False
        return not self.cut


async def _pull(batches: AsyncIterator[Batch], take: Callable[[Batch], bool]) -> bool:
    """See PushSource."""
    async for batch in batches:
        if not take(batch):
            return True
    return False
