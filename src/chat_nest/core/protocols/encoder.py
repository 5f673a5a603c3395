"""The Protocols of an encoder: the bytes of one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from chat_nest.core.deltas import Batch
from chat_nest.core.errors import ChatError
from chat_nest.core.protocols.ending import Ending


class BatchEncoder(Protocol):
    """The part of an Encoder that a relay needs."""

    def encode(self, batch: Batch) -> bytes: ...
    def number(self, data: bytes, number: int) -> bytes: ...


class Encoder(Protocol):
    """One answer's bytes. Each batch gives one write; b"" writes nothing.

    If `streams` is False, `finish` returns the whole body; nothing is sent before it, so a failure is a status.
    """

    @property
    def streams(self) -> bool: ...
    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    def start(self, model: str) -> bytes: ...
    def encode(self, batch: Batch) -> bytes: ...
    def number(self, data: bytes, number: int) -> bytes:
        """Return the output of `encode` with the number from which a reader can resume, in formats that have one."""
        ...

    def heartbeat(self) -> bytes: ...
    def fail(self, error: ChatError) -> bytes: ...
    def finish(self, ending: Ending) -> bytes: ...


@runtime_checkable
class TellsInput(Protocol):
    """An Encoder that states the number of input tokens in its first event."""

    def expect_input(self, tokens: int) -> None:
        """Take the input count before `start`: the provider's own, else our bound."""
        ...


@runtime_checkable
class TellsPosition(Protocol):
    """An Encoder with an event for a request that waits. Others send a comment of Server-Sent Events."""

    def queued(self, position: int, estimate: int | None) -> bytes:
        """Encode the position in the queue, from 1, and the estimated seconds until its turn; None if unknown."""
        ...


@runtime_checkable
class Recallable(Protocol):
    """An Encoder of answers to which later requests may refer."""

    def asked(self) -> str:
        """Return what is kept with the answer, once; nothing if it must not be kept."""
        ...


class Sink(Protocol):
    """The relay's output. `write` returns when the reader's side has room: that is the backpressure."""

    @property
    def push(self) -> Callable[[bytes], bool] | None:
        """Write at once, or return False if the write must wait; None if the server offers no such way."""
        ...

    async def write(self, data: bytes) -> None: ...
