"""Provider's batches in, client's bytes out: the hot path.

One read from the provider is one batch is one write. No task, timer or queue a token; two floats are stored, which the
client's watch reads. Where both sides can, a batch goes from the provider's read to the client's socket in one go, and
no task wakes for it. Backpressure is `await sink.write`: while the client does not read, the provider is not read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from chat_nest.deltas import Batch, FinishDelta, FinishReason, UsageDelta
from chat_nest.errors import UpstreamTruncated
from chat_nest.ledger import Reservation
from chat_nest.protocols import Encoder, PassOn, RunLog, Sink


class Pulse:
    """When something last moved, in the event loop's seconds: the relay writes it, the client's watch reads it."""

    __slots__ = ("first_at", "read_at", "writing", "written_at")

    def __init__(self, now: float) -> None:
        self.read_at = now
        """Since when we wait for the provider."""
        self.written_at = now
        """When the last write began."""
        self.writing = False
        """A write has not returned: the client is not reading."""
        self.first_at: float | None = None
        """When the first delta came."""


async def relay(
    batches: AsyncIterator[Batch],
    encoder: Encoder,
    sink: Sink,
    held: Reservation,
    pulse: Pulse,
    now: Callable[[], float],
    log: RunLog | None = None,
) -> FinishReason:
    """Relay until the provider's completion signal, or cut the stream when it passes its cap (`length`).

    Raises UpstreamTruncated if the provider ends without a completion signal, and what `batches` raises.
    """
    passing = _Passing(encoder, sink.push, held, pulse, now, log)
    straight: PassOn | None = getattr(batches, "pass_on", None)
    pass_on = partial(_pull, batches) if straight is None or sink.push is None else straight
    while await pass_on(passing.take):
        if passing.unsent:
            pulse.writing = True
            await sink.write(passing.unsent)
            pulse.writing = False
            passing.unsent = b""
        if passing.cut:
            return "length"
        pulse.read_at = now()
    if passing.finish is None:
        raise UpstreamTruncated
    # A usage that more output followed was not the last word: it is topped up with what was counted since.
    held.finished = held.counted_at_report in (None, passing.meter.produced())
    return passing.finish


class _Passing:
    """One batch after the other: counted, encoded, sent."""

    __slots__ = ("cut", "encoder", "finish", "held", "log", "meter", "now", "pulse", "push", "unsent")

    def __init__(
        self,
        encoder: Encoder,
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
        """The answer has passed its cap: nothing more of it is relayed."""
        self.unsent = b""
        """What `push` did not take."""

    def take(self, batch: Batch) -> bool:
        """Pass one batch on, without waiting for anything. False where `unsent` must be waited for, or after a cut."""
        pulse = self.pulse
        at = pulse.read_at = self.now()
        if pulse.first_at is None:
            pulse.first_at = at
        for number, delta in enumerate(batch, 1):
            if type(delta) is UsageDelta:
                self.held.report(delta.usage, last=self.finish is not None)
            elif type(delta) is FinishDelta:
                self.finish = delta.reason
            elif self.meter.add(delta.text) and not self.cut:
                self.cut = True
                batch = batch[:number]  # the rest of this read is counted, but not relayed
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
    """See PassOn."""
    async for batch in batches:
        if not take(batch):
            return True
    return False
