"""Provider's batches in, client's bytes out: the hot path.

One read from the provider is one batch is one write. No task, timer or queue a token; two floats are stored, which the
client's watch reads. Backpressure is `await sink.write`: while the client does not read, the provider is not read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from chat_nest.deltas import Batch, FinishDelta, FinishReason, UsageDelta
from chat_nest.errors import UpstreamTruncated
from chat_nest.ledger import Reservation
from chat_nest.protocols import Encoder, RunLog, Sink


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
    meter = held.meter
    assert meter is not None
    finish: FinishReason | None = None
    within = -1
    async for batch in batches:
        if pulse.first_at is None:
            pulse.first_at = now()
        for at, delta in enumerate(batch):
            if isinstance(delta, UsageDelta):
                held.report(delta.usage, last=finish is not None)
            elif isinstance(delta, FinishDelta):
                finish = delta.reason
            elif meter.add(delta.text) and within < 0:
                within = at + 1  # the rest of this read is counted, but not relayed
        said = batch if within < 0 else batch[:within]
        data = encoder.encode(said)
        if log is not None:
            data = encoder.number(data, log.append(said))
        if data:
            pulse.writing = True
            pulse.written_at = now()
            await sink.write(data)
            pulse.writing = False
        if within >= 0:
            return "length"
        pulse.read_at = now()
    if finish is None:
        raise UpstreamTruncated
    # A usage that more output followed was not the last word: it is topped up with what was counted since.
    held.finished = held.counted_at_report in (None, meter.produced())
    return finish
