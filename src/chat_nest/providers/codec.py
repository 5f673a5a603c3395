"""What every codec shares: bytes of one answer's body in, deltas out. No input and output, no clock.

A vendor's own file has a `Reader`, which knows what one event means; `Codec` deals with bytes that are cut anywhere,
and with what goes wrong in the middle of a read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from chat_nest.deltas import Delta, FinishReason
from chat_nest.errors import UpstreamError, UpstreamProtocol, UpstreamTruncated
from chat_nest.limits import MAX_AMOUNT
from chat_nest.sse import EventTooLong

MAX_CALLS = 128
"""Tool calls of one answer; more is not understood."""


class Splitter(Protocol):
    """Bytes in, whole events out; raises EventTooLong."""

    def feed(self, chunk: bytes) -> list[bytes]: ...


class Reader(Protocol):
    """Takes events one read at a time, and keeps what has to be known of those before.

    `over`: nothing that follows matters. `finished`: the provider's completion signal came.
    """

    over: bool
    finished: bool

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        """Append what the events mean. Raises UpstreamError, after which what was appended still counts."""
        ...


class Codec:
    """The body of one answer in, deltas out.

    Bytes may be cut anywhere. What came before a failure is returned first; the failure is raised after it. `over` is
    True once nothing that follows matters: after the provider's last event, or a failure.
    """

    def __init__(self, reader: Reader, splitter: Splitter) -> None:
        self.over = False
        self._reader = reader
        self._splitter = splitter
        self._failure: UpstreamError | None = None

    def feed(self, data: bytes) -> list[Delta]:
        """Raises UpstreamProtocol for what is not understood, UpstreamError for an error that the provider sent."""
        deltas: list[Delta] = []
        if not self.over:
            failure: UpstreamError | None = None
            try:
                events = self._splitter.feed(data)
            except EventTooLong as error:
                events = error.events
                failure = UpstreamProtocol()
            try:
                self._reader.read(events, deltas)
            except UpstreamError as error:
                failure = error
            self.over = self._reader.over
            if failure is not None and not self.over:
                self.over = True
                failure.__context__ = failure.__traceback__ = None  # they hold the provider's text
                self._failure = failure
        if self._failure is not None and not deltas:
            raise self._failure
        return deltas

    def end(self) -> None:
        """The body ended cleanly, or is over. Raises UpstreamTruncated if the answer was never finished."""
        self.over = True
        if self._failure is not None:
            raise self._failure
        if not self._reader.finished:
            raise UpstreamTruncated


# What readers need to look at values that may be anything.


def count(counts: object, name: str) -> int | None:
    """A number of tokens; None where it is missing or can't be true."""
    value = field(counts, name)
    return value if type(value) is int and 0 <= value <= MAX_AMOUNT else None


def field(value: object, name: str) -> object:
    """A field of a JSON object, else None."""
    return cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None


def with_calls(reason: FinishReason, calls: int) -> FinishReason:
    """Several servers say that they just stopped, although they called tools."""
    return "tool_calls" if calls and reason == "stop" else reason
