"""One connection to a provider: an asyncio protocol on llhttp (httptools), read without a task or a queue.

What is not HTTP/1.1 as RFC 9112 has it is refused, and what is kept of it is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from chat_nest.errors import UpstreamError, UpstreamProtocol, UpstreamTruncated, UpstreamUnavailable

READ_BUFFER: Final = 1 << 15
"""A stream that nobody reads stops its socket once this many bytes wait; the last read from it comes on top."""
MOST_READ: Final = 1 << 16
"""One read becomes one write to the reader, and there are servers that hold so many writes, whatever their size."""
HEAD_BYTES: Final = 1 << 16
"""The most that a head may have, and that may come without a byte of a body."""
FIELD_BYTES: Final = 1 << 14
FIELDS: Final = 128
ONE_READER: Final = "an answer has one reader at a time"


class Fields(Mapping[str, str]):
    """Header fields, looked up in any case; the values of a repeated one are joined by commas (RFC 9110, 5.3)."""

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


class Connection(asyncio.Protocol):
    """Sends one request at a time; `answered` waits for its answer's head, `read` or `pass_on` for its body.

    What breaks an answer is raised where it is waited for, after the
    bytes that came before it. The methods that begin with `on_` are for the parser.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[bool] | None = None
        """Done with True when something has changed, with False when `_take` wants no more."""
        self._take: Callable[[bytes], bool] | None = None
        self._failure: type[UpstreamError] | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # called by the parser for each piece, without a step of ours
        self._parser: Any = HttpResponseParser(self)
        self.closed = False
        """Nothing more can be sent."""
        self.whole = True
        """No answer is being waited for or read."""
        self.reason = ""
        """What broke the answer, in a word for the log."""
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

    # For the one who asks.

    def send(self, parts: Sequence[bytes]) -> None:
        """Begin a request. It is buffered as far as the socket does not take it at once."""
        self._prepare()
        self.whole = False
        if self.transport is None or self.closed:
            self._fail("closed")
        else:
            self.transport.writelines(parts)

    async def answered(self) -> None:
        """Wait for the head. Raises UpstreamUnavailable where the connection was lost before, UpstreamProtocol."""
        while not self._headed:
            await self._change()

    async def read(self) -> bytes:
        """What has come since the last read, at most 64 KiB, as soon as there is any; b"" at the body's clean end.

        Raises UpstreamTruncated where the body was cut, UpstreamProtocol where its framing is broken.
        """
        while not self._pieces:
            if self.whole:
                return b""
            await self._change()
        return self._next()

    async def pass_on(self, take: Callable[[bytes], bool]) -> bool:
        """Give `take` what comes, as `read` would, but straight from the socket's read: no task is woken for it.

        Return True once it says False, and False at the body's clean end. Raises what `read` raises, and what `take`
        does.
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
        """The answer is whole, and all of it was read."""
        return self.whole and not self._pieces

    def release(self) -> bool:
        """Stop caring for the answer. True if another request may be sent; otherwise the socket is closed at once."""
        reusable = self.whole and self._reusable and not self.closed
        self._pieces.clear()
        # What is still to be written: the answer came before the whole request was sent.
        if not reusable or self.transport is None or self.transport.get_write_buffer_size():
            self.abort()
            return False
        if self._paused:
            self._resume()
        return True

    def abort(self) -> None:
        """Close the socket at once; whoever waits is told that the connection was lost."""
        self._fail("aborted")

    # For the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol. Also called when TLS has been put on top."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.whole:
            self._fail("nothing was asked for")
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
        """See asyncio.Protocol. The end of a body that has no other."""
        if self._headed and self._until_closed and self._failure is None:
            self.whole = True
        self._fail("closed")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._fail(type(exc).__name__ if exc else "closed")
        self.transport = None
        self._parser = None  # it refers to us, and the collector comes seldom

    # For the parser.

    def on_message_begin(self) -> None:
        """See httptools. What comes after the answer was not asked for: it stops the parser."""
        if self._headed:
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Of trailers nothing is kept."""
        self._field_count += 1
        self._field_bytes += len(name) + len(value)
        too_long = len(name) + len(value) > FIELD_BYTES or self._field_bytes > HEAD_BYTES
        if too_long or self._field_count > FIELDS:
            self._fail("too many or too long headers", UpstreamProtocol)
        elif not self._headed:
            self.fields.add(name.decode("latin-1"), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """See httptools. A body may be chunked, have its length told, or go on until the connection is closed."""
        self.status = self._parser.get_status_code()
        coding = self.fields.get("transfer-encoding")
        if self.status < 100 or (coding is not None and coding.strip().lower() != "chunked"):
            self._fail("a status or transfer coding that was not asked for", UpstreamProtocol)
        elif self.status >= 200 and self._failure is None:
            self._headed = True
            self._until_closed = coding is None and "content-length" not in self.fields

    def on_message_complete(self) -> None:
        """See httptools."""
        if not self._headed:  # 1xx: the answer itself is still to come
            self.fields = Fields()
        elif not self.whole:
            self.whole = self._failure is None
            self._reusable = self._parser.should_keep_alive()

    # Inside.

    async def _change(self) -> bool:
        """Wait until something comes, or the answer breaks: raises why."""
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
        """The pieces that wait, as one, and at most 64 KiB of them."""
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
        """Break the answer, unless it is whole or broken already, and close the connection."""
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
