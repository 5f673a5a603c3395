"""Parse bytes into requests, one at a time: the bytes after the end of a request wait for their turn.

llhttp parses all of its input. With a flood of requests in one read it would parse to the end, even after the
connection was reset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import httptools
from msgspec import Struct

from chat_nest.core.errors import BodyTooLarge, ChatError, HeadersTooLarge
from chat_nest.server.http.framing import (
    MOST_FIELDS,
    MOST_HEAD_BYTES,
    Target,
    check_line,
    read_head,
    read_target,
    unreadable,
)

MOST_FRAMING_BYTES = 65_536
"""The most bytes of a chunked body besides its content. A chunk of one byte brings five of them."""
SLICE_BYTES = 8_192
"""The most bytes of a chunked body that the parser gets at a time."""


class Request(Struct, frozen=True):
    """The head of a request."""

    method: str
    version: str
    target: Target
    fields: list[tuple[bytes, bytes]]
    """Names are in lower case."""
    expects_continue: bool
    keep_alive: bool
    """Whether the client allows another request on the connection."""


class RequestParser:
    """Calls `on_request` with each head, and the function that it returns with each piece of the body.

    An exception in these ends the parsing, as does every exception of `feed`. The callbacks are httptools'.
    """

    def __init__(self, on_request: Callable[[Request], Callable[[bytes], None]]) -> None:
        self.part: Literal["none", "head", "body", "end"] = "none"
        """The current part of the request: "end" until `next` is called."""
        self.is_last = False
        """Whether no other request can be read after this one."""
        self._on_request = on_request
        self._on_content: Callable[[bytes], None] | None = None
        self._urls: list[bytes] = []
        self._pieces: list[bytes] = []
        """The body as the parser has cut it: a flood of small chunks calls no code of this class."""
        self.on_url = self._urls.append
        self.on_body = self._pieces.append
        self._parser: Any = httptools.HttpRequestParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._head = b""
        """The bytes of the head so far."""
        self._left: int | None = 0
        """Remaining bytes of the body; None if it is chunked."""
        self._content = self._received = 0
        """Bytes of a chunked body without its framing, and with it."""

    def feed(self, data: bytes) -> bytes:
        """Parse up to the end of the request; return the bytes after it.

        Raises BadRequest, MethodNotAllowed, HeadersTooLarge and BodyTooLarge.
        """
        if self.part == "none":
            data = data.lstrip(b"\r\n")  # RFC 9112, section 2.2
            if data:
                self.part = "head"
        if self.part == "head":
            data = self._feed_head(data)
        if data and self.part == "body":
            data = self._feed_body(data) if self._left is None else self._feed_sized(data, self._left)
        return data

    def next(self) -> None:
        """Begin the next request with the next bytes."""
        self.part = "none"
        self._on_content = None

    def close(self) -> None:
        """Stop parsing. The parser and the callbacks refer to this object, and the garbage collector rarely runs."""
        self._parser = self._on_content = None

    def _feed_head(self, data: bytes) -> bytes:
        before, self._head = len(self._head), self._head + data
        end = self._head.find(b"\r\n\r\n", max(0, before - 3)) + 4
        is_whole = end >= 4
        if (end if is_whole else len(self._head)) > MOST_HEAD_BYTES:
            raise HeadersTooLarge
        rest = b""
        if is_whole:
            rest, self._head = self._head[end:], self._head[:end]
            data = self._head[before:]
        self._parse(data)
        if is_whole == (self.part == "head"):  # the parser and this class disagree on the end
            raise unreadable(ValueError(), self._head)
        if is_whole:
            self._head = b""
        return rest

    def _feed_sized(self, data: bytes, left: int) -> bytes:
        self._left = left - len(data)
        if self._left >= 0:
            self._parse(data)
            return b""
        self._parse(data[:left])
        return data[left:]

    def _feed_body(self, data: bytes) -> bytes:
        for at in range(0, len(data), SLICE_BYTES):
            piece = data[at : at + SLICE_BYTES]
            self._received += len(piece)
            self._parse(piece)
            if self._received - self._content > MOST_FRAMING_BYTES:
                raise BodyTooLarge("The body comes in too many small chunks")
            if self.part == "end":
                return data[at + SLICE_BYTES :]
        return b""

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # to another protocol: what follows is no HTTP
            self.is_last = True
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, ChatError):
                raise cause from None
            if not isinstance(cause, _Behind):
                raise unreadable(error, self._head) from None
            self.is_last = True
        if self._pieces and self._on_content is not None:
            content = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._content += len(content)
            self._on_content(content)

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        if self.part != "head":
            raise _Behind
        self._urls.clear()
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.part == "head":  # else a trailer, which must not count as a header
            if len(self._fields) == MOST_FIELDS:
                raise HeadersTooLarge
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        version: str = self._parser.get_http_version()
        method: bytes = self._parser.get_method()
        url = b"".join(self._urls)
        check_line(method, url, version, self._head)
        head = read_head(version, self._fields)
        target = read_target(method, url, head.host)
        self._left = head.length
        self._content = self._received = 0
        self.part = "body"
        self._on_content = self._on_request(
            Request(
                method.decode("ascii"),
                version,
                target,
                self._fields,
                head.expects_continue,
                version == "1.1" and self._parser.should_keep_alive(),
            )
        )

    def on_message_complete(self) -> None:
        self.part = "end"


class _Behind(Exception):
    """Stops the parser: bytes follow a chunked body. Their start is unknown, so they are never read."""
