"""The response to a reader, as the pipeline needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from chat_nest.core.claims import Line, Quota
from chat_nest.core.errors import ChatError
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Encoder, FollowedRun, Sink


class Quotas(Struct, frozen=True):
    """The limits that a request draws on, and the known state of each."""

    lines: Sequence[Line] = ()
    known: Sequence[Quota] = ()
    ladder_below: float | None = None
    """The rung of the profile's ladder that the request is answered on."""


NO_QUOTAS = Quotas()


class Attached(Struct, frozen=True):
    """The kept run that a request repeats by its Idempotency-Key. The request follows that run instead."""

    caller: Caller
    followed: FollowedRun


class Client(Sink, Protocol):
    """The response to the reader, as the pipeline needs it. Nothing is sent after the request has lost its reader."""

    def expect(self, encoder: Encoder, model: str, quotas: Quotas = NO_QUOTAS, *, replayed: bool = False) -> None:
        """Start the clocks: the provider is being called. The stream may open before the provider answers."""
        ...

    async def queued(self, encoder: Encoder, model: str, position: int, estimate: int | None) -> None:
        """Tell the reader of a stream that its request waits; the stream opens for it."""
        ...

    async def start(self, model: str) -> None:
        """Send the headers and the first event, unless they were already sent."""
        ...

    async def fail(self, error: ChatError, quotas: Quotas | None = None, number: int = 0) -> None:
        """End with an error: a status if nothing was sent yet, else an event with this number in its log."""
        ...

    async def finish(self, data: bytes) -> None:
        """Send the last bytes and end the response."""
        ...
