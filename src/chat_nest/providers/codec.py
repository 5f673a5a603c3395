"""The shared part of all codecs: bytes of one answer's body in, deltas out. No input and output, no clock.

Each vendor's file has a `Reader`, which interprets one event. `Codec` handles bytes that are cut anywhere, failures in
the middle of a read, and the end of the body, which decides whether the answer is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from chat_nest.core.deltas import Delta
from chat_nest.core.errors import UpstreamError, UpstreamProtocol, UpstreamTruncated
from chat_nest.core.sse import Decoder, EventTooLong
from chat_nest.providers.bodies import Finish, Splitter, WholeBody
from chat_nest.providers.halves import Halves
from chat_nest.providers.loose import MAX_DIGITS, loosely

MAX_PART_DEPTH: Final = 16
"""How deep parts of a content may be nested. Real ones are one or two levels deep."""

T = TypeVar("T", bound=msgspec.Struct)


class Reader(Protocol):
    """Interprets the events of one read at a time, and keeps the state between reads.

    `over` means that no later event matters. `loose` means that an event needed `loosely`.
    """

    over: bool
    loose: bool
    finish: Finish

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        """Append the deltas of the events. Raises UpstreamError; deltas that were appended before still count."""
        ...


class Codec:
    """Decodes the body of one answer into deltas.

    Bytes may be cut anywhere. Deltas before a failure are returned first, and the next call raises the failure. `over`
    is True once nothing that follows matters: after the provider's last event, or a failure.
    """

    def __init__(self, reader: Reader, splitter: Splitter) -> None:
        self.over = False
        self._reader = reader
        self._splitter = splitter
        self._is_whole = isinstance(splitter, WholeBody)
        self._begun = self._is_whole
        self._halves: Halves | None = None
        self._failure: UpstreamError | None = None

    def feed(self, data: bytes) -> list[Delta]:
        """Return the deltas of some bytes.

        Raises UpstreamProtocol for invalid data, UpstreamError for a provider's error.
        """
        deltas: list[Delta] = []
        if not self.over:
            failure: UpstreamError | None = None
            reader = self._reader
            if not self._begun:
                self._begin(data)
            try:
                events = self._splitter.feed(data)
            except EventTooLong as error:
                events = error.events
                failure = UpstreamProtocol()
            try:
                reader.read(events, deltas)
                if reader.over:
                    failure = None
                    reader.finish.end(deltas)
            except UpstreamError as error:
                failure = error
            except RecursionError:  # the value is nested too deeply
                failure = UpstreamProtocol()
            if failure is not None or reader.over or reader.loose:
                deltas = self._settle(deltas, failure, last=reader.over or failure is not None)
        if self._failure is not None and not deltas:
            raise copy(self._failure)  # the traceback of the original would hold this object in a cycle
        return deltas

    def _begin(self, data: bytes) -> None:
        """Look at the beginning: some servers send JSON, such as an error, with the media type of a stream."""
        start = data.lstrip()[:1]
        self._begun = bool(start)
        if start in (b"{", b"[") and isinstance(self._splitter, Decoder):
            self._splitter = WholeBody()
            self._is_whole = True

    def end(self, *, whole: bool = True) -> list[Delta]:
        """Handle the end of the body, and return its deltas, if any. `whole` is whether its framing is complete.

        Raises UpstreamTruncated if the answer has no end, UpstreamError if it ended with a failure.
        """
        deltas: list[Delta] = []
        if not self.over:
            failure: UpstreamError | None = None
            finish = self._reader.finish
            try:
                if whole:
                    self._read_rest(deltas)
                    finish.say(finish.pending, deltas)
                if deltas and not finish.said and self._is_whole:
                    finish.said = "stop"
                finish.end(deltas)
            except UpstreamTruncated as error:
                failure = UpstreamProtocol() if self._is_whole else error
            except UpstreamError as error:
                failure = error
            deltas = self._settle(deltas, failure, last=True)
        if self._failure is not None and not deltas:
            raise copy(self._failure)  # the traceback of the original would hold this object in a cycle
        return deltas

    def _read_rest(self, deltas: list[Delta]) -> None:
        """Read the last event if only its end is missing. Half an event is dropped, as the standard requires."""
        rest = self._splitter.end()
        try:
            self._reader.read(rest, deltas)
        except (UpstreamProtocol, RecursionError):
            return

    def _settle(self, deltas: list[Delta], failure: UpstreamError | None, *, last: bool) -> list[Delta]:
        if last:
            self.over = True
        if failure is not None:
            failure.__context__ = failure.__traceback__ = None  # they hold the provider's text
            self._failure = failure
        if self._reader.loose and self._halves is None:
            self._halves = Halves()
        return deltas if self._halves is None else self._halves.join(deltas, last=last)


# Functions with which readers look at values of any type.


def parsed(event: bytes, decode: Callable[[bytes], T], kind: type[T], reader: Reader) -> T | None:
    """Return the event from `decode`, else read it `loosely`, which the reader notes.

    Returns None if it is not one event; the reader then reads `lines_of` it. Raises UpstreamProtocol.
    """
    try:
        return decode(event)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: invalid UTF-8
        pass
    if _is_no_event(event):
        return None
    if event.startswith(b"data:"):
        return None
    try:
        value = loosely(event, kind)
    except UpstreamProtocol:
        if b"\n" in event:
            return None
        raise
    reader.loose = True
    return value


def lines_of(data: bytes) -> list[bytes]:
    """Return the events in data that is not one.

    Some servers leave out the blank lines between events, and some write `data:` twice.
    """
    if data.startswith(b"data:"):
        return [data.removeprefix(b"data:").lstrip()]
    return [] if _is_no_event(data) else data.split(b"\n")


def _is_no_event(data: bytes) -> bool:
    """Return whether the data only marks the end, or keeps the connection alive: blanks, or a comment as data."""
    word = data.strip()
    return word in (b"", b"[DONE]") or (word.startswith(b":") and b"\n" not in word)


def number(value: object, name: str) -> object:
    """Return a field of a JSON object. An integer in a string, or with a fraction of zero, becomes an integer."""
    fields: Any = value
    # As `field` does it: a report has a dozen of them.
    found: object = fields.get(name) if isinstance(value, dict) else None
    if found is None or type(found) is int:
        return found
    if isinstance(found, str):
        return int(found) if found.isdecimal() and len(found) <= MAX_DIGITS else found
    return int(found) if isinstance(found, float) and found.is_integer() else found


def texts(value: object, depth: int = 0) -> list[tuple[bool, str]]:
    """Return the texts of a content that is a string, a part or a list of parts, each with whether it is reasoning.

    Mistral's reasoning models write lists of `thinking` and `text` parts. Parts without a text add none. Raises
    UpstreamProtocol for parts that are nested more than MAX_PART_DEPTH deep.
    """
    if depth > MAX_PART_DEPTH:
        raise UpstreamProtocol
    if isinstance(value, str):
        return [(False, value)] if value else []
    if isinstance(value, list):
        return [said for part in cast("list[object]", value) for said in texts(part, depth + 1)]
    if not isinstance(value, dict):
        return [(False, str(value))] if type(value) in (int, float) else []
    part = cast("dict[str, object]", value)
    thought = next((part[name] for name in ("thinking", "reasoning", "reasoning_content") if part.get(name)), None)
    if thought is not None:
        return [(True, text) for _, text in texts(thought, depth + 1)]
    text = next((part[name] for name in ("text", "refusal", "content", "summary") if part.get(name)), None)
    said = texts(text, depth + 1)
    thinks = str(part.get("type")).startswith(("thinking", "reasoning"))
    return [(True, text) for _, text in said] if thinks else said
