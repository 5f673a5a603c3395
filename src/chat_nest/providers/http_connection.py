"""One connection to a provider: an asyncio protocol on llhttp (httptools), read without a task or a queue.

It refuses everything but HTTP/1.1 as in RFC 9112, and limits what it keeps.
The file is long because a connection is one state machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from chat_nest.core.errors import UpstreamError, UpstreamProtocol, UpstreamTruncated, UpstreamUnavailable

SLICE: Final = 1 << 18
"""Bytes of a body that are written in one call: encrypting them takes about a quarter of a millisecond."""
READ_BUFFER: Final = 1 << 15
"""With more waiting bytes than this, an unread stream stops its socket; the last read may exceed it."""
MOST_READ: Final = 1 << 16
"""One read becomes one write to the reader, and some servers hold this many writes, whatever their size."""
HEAD_BYTES: Final = 1 << 16
"""The most bytes of a head, and of input without a byte of a body."""
FIELD_BYTES: Final = 1 << 14
FIELDS: Final = 128
ONE_READER: Final = "an answer has one reader at a time"


class Fields(Mapping[str, str]):
    """Header fields, looked up in any case; the values of a repeated field are joined by commas (RFC 9110, 5.3)."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def add(self, name: str, value: str) -> None:
        name = name.lower()
        self._values[name] = f"{self._values[name]}, {value}" if name in self._values else value

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class ClientConnection(asyncio.Protocol):
    """Sends one request at a time; `answered` waits for the head of its response, `read` or `pass_on` for its body.

    An invalid or lost response raises in the call that waits for it, after the bytes that came before. The methods that
    begin with `on_` are for the parser.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[bool] | None = None
        """Done with True when something has changed, with False when `_take` accepts no more."""
        self._take: Callable[[bytes], bool] | None = None
        self._failure: type[UpstreamError] | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # called by the parser for each piece, without code of this class
        self._parser: Any = HttpResponseParser(self)
        self.closed = False
        """Nothing more can be sent."""
        self.whole = True
        """No response is expected or being read."""
        self.reason = ""
        """Why the response failed, in a word for the log."""
        self._prepare()

    def _prepare(self) -> None:
        self.status = 0
        self.fields = Fields()
        self._field_count = self._field_bytes = 0
        self._headed = False
        self._reusable = False
        self._until_closed = False
        self._without_body = self._unread = 0
        self._paused = False
        self._unsent = False

    # For the session.

    def send(self, parts: Sequence[bytes]) -> None:
        """Begin a request. Bytes that the socket does not accept at once are buffered.

        A long body is to follow with `send_more`, so that encrypting it does not block the event loop.
        """
        self._prepare()
        self.whole = False
        if self.transport is None or self.closed:
            self._fail("closed")
        else:
            self.transport.writelines(parts)

    async def send_more(self, body: memoryview) -> None:
        """Send the rest of a request, a slice in each turn of the event loop.

        Stops if the response comes before its end.
        """
        self._unsent = True
        for at in range(0, len(body), SLICE):
            await asyncio.sleep(0)
            if self.transport is None or self.closed or self._headed:
                return
            self.transport.write(body[at : at + SLICE])
        self._unsent = False

    async def answered(self) -> None:
        """Wait for the head. Raises UpstreamUnavailable if the connection was lost before, and UpstreamProtocol."""
        while not self._headed:
            await self._change()

    async def read(self) -> bytes:
        """Return the bytes since the last read, at most 64 KiB, as soon as there are any; b"" at the body's clean end.

        Raises UpstreamTruncated if the body was cut, UpstreamProtocol if its framing is invalid.
        """
        while not self._pieces:
            if self.whole:
                return b""
            await self._change()
        return self._next()

    async def pass_on(self, take: Callable[[bytes], bool]) -> bool:
        """Call `take` with the bytes that `read` would return, straight from the socket's read: no task wakes for it.

        Returns True once `take` returns False, and False at the body's clean end. Raises what `read` raises, and what
        `take` raises.
        """
        while True:
            while self._pieces:
                if not take(self._next()):
                    return True
            if self.whole:
                return False
            self._take = take
            try:
                if not await self._change():
                    return True
            finally:
                self._take = None

    @property
    def drained(self) -> bool:
        """Whether the response is complete, and all of it was read."""
        return self.whole and not self._pieces

    @property
    def framed(self) -> bool:
        """Whether the response's own framing marks the end of its body."""
        return not self._until_closed

    def take_unread(self) -> tuple[list[bytes], bool]:
        """Return the pieces of the body that came and were not read; True if more may follow, as reading is paused."""
        pieces = self._pieces.copy()
        self._pieces.clear()  # the parser appends to this list
        return pieces, self._paused and not self.whole

    def release(self) -> bool:
        """Give up the response. Returns True if another request may be sent; otherwise the socket is closed at once."""
        reusable = self.whole and self._reusable and not self.closed and not self._unsent
        self._pieces.clear()
        # Unsent bytes: the response came before the whole request was sent.
        if not reusable or self.transport is None or self.transport.get_write_buffer_size():
            self.abort()
            return False
        if self._paused:
            self._resume()
        return True

    def abort(self) -> None:
        """Close the socket at once; waiting calls raise that the connection was lost."""
        self._fail("aborted")

    # For the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol. Called again when TLS has been started on top."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.whole:
            self._fail("there was no request")
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._fail(type(error).__name__, UpstreamProtocol)
        if not self._pieces:
            self._without_body += len(data)
            if self._without_body > HEAD_BYTES:
                self._fail("too long", UpstreamProtocol)
        waiter = self._waiter
        if waiter is None:
            self._unread += len(data)
            if self._unread > READ_BUFFER and not self._paused:
                self._pause()
        elif not waiter.done():
            if self._take is None or not self._pieces or self.whole:
                waiter.set_result(True)
                return
            try:
                while self._pieces:
                    if not self._take(self._next()):
                        waiter.set_result(False)
                        return
            except Exception as error:
                waiter.set_exception(error)

    def eof_received(self) -> None:
        """See asyncio.Protocol. This ends a body that has no other end."""
        if self._headed and self._until_closed and self._failure is None:
            self.whole = True
        self._fail("closed")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._fail(type(exc).__name__ if exc else "closed")
        self.transport = None
        self._parser = None  # it refers to this object, and the garbage collector rarely runs

    # For the parser.

    def on_message_begin(self) -> None:
        """See httptools. Bytes after the response are unexpected: they stop the parser."""
        if self._headed:
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Trailers are dropped."""
        self._field_count += 1
        self._field_bytes += len(name) + len(value)
        too_long = len(name) + len(value) > FIELD_BYTES or self._field_bytes > HEAD_BYTES
        if too_long or self._field_count > FIELDS:
            self._fail("too many or too long headers", UpstreamProtocol)
        elif not self._headed:
            self.fields.add(name.decode("latin-1"), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """See httptools. A body may be chunked, have a declared length, or end with the connection."""
        self.status = self._parser.get_status_code()
        coding = self.fields.get("transfer-encoding")
        if self.status < 100 or (coding is not None and coding.strip().lower() != "chunked"):
            self._fail("a status or transfer coding that was not requested", UpstreamProtocol)
        elif self.status >= 200 and self._failure is None:
            self._headed = True
            self._until_closed = coding is None and "content-length" not in self.fields

    def on_message_complete(self) -> None:
        """See httptools."""
        if not self._headed:  # 1xx: the response itself is still to come
            self.fields = Fields()
        elif not self.whole:
            self.whole = self._failure is None
            self._reusable = self._parser.should_keep_alive()

    # Inside.

    async def _change(self) -> bool:
        """Wait until bytes come. Raises if the response fails."""
        if self._failure is not None:
            raise self._failure
        if self._waiter is not None:
            raise RuntimeError(ONE_READER)
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _next(self) -> bytes:
        """Return the waiting pieces, joined, and at most 64 KiB of them."""
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._without_body = self._unread = 0
        if len(data) > MOST_READ:
            pieces.append(data[MOST_READ:])
            data = data[:MOST_READ]
        elif self._paused:
            self._resume()
        return data

    def _fail(self, reason: str, failure: type[UpstreamError] | None = None) -> None:
        """Fail the response, unless it is complete or has failed already, and close the connection."""
        if not self.whole and self._failure is None:
            self.reason = reason
            self._failure = failure or (UpstreamTruncated if self._headed else UpstreamUnavailable)
        self.closed = True
        if self.transport is not None:
            self.transport.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def _pause(self) -> None:
        if self.transport is not None and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        self._paused = False
        if self.transport is not None and not self.closed:
            self.transport.resume_reading()
