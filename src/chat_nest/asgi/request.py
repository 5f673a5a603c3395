"""Read the body of a request within limits, before anything else is done with it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from chat_nest.core import header_fields
from chat_nest.core.errors import BadRequest, BodyTooLarge, ClientGone, UnsupportedMediaType
from chat_nest.core.held_text import WINDOW, Lifter, Uploads, scan
from chat_nest.core.protocols import Scope

ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]

TURN = 1 << 18
"""Bytes of a body that are processed before other requests get a turn."""

GZIP = (b"gzip", b"x-gzip")
"""The two names of the gzip content coding (RFC 9110, section 8.4.1.3)."""

ABORT = "chat_nest.abort"
"""The name of a scope extension: a function that resets the connection at once."""
GONE = "chat_nest.gone"
"""The name of a scope extension: a function that takes a callback for the client's disconnect, or None to remove it.

The callback gets True if the server drops a client that reads nothing. It is for the time after the body has been read:
no task then has to wait for `http.disconnect`.
"""
PUSH = "chat_nest.push"
"""The name of a scope extension: a function that sends a piece of the body at once, or returns False."""


def idempotency_key(scope: Scope) -> str | None:
    """Return the request's Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07), with or without its quotes.

    Raises BadRequest unless it is one value of 1 to 255 printable ASCII characters.
    """
    values = header_fields.values(scope, b"idempotency-key")
    if not values:
        return None
    key = values[0]
    if len(key) > 1 and key.startswith(b'"') and key.endswith(b'"'):
        key = key[1:-1]
    if len(values) > 1 or not 1 <= len(key) <= 255 or not all(0x20 <= byte < 0x7F for byte in key):
        raise BadRequest("must be one value of 1 to 255 printable ASCII characters", field="Idempotency-Key")
    return key.decode("ascii")


def query_fields(scope: Scope) -> dict[str, str]:
    """Return the fields of the query. Raises BadRequest if there are more than 20."""
    text = bytes(scope.get("query_string", b"")).decode("latin-1")
    try:
        return dict(parse_qsl(text, max_num_fields=20))
    except ValueError:
        raise BadRequest("must not have so many fields", field="query") from None


async def read_json_body(scope: Scope, receive: Receive, max_bytes: int, uploads: Uploads | None = None) -> bytes:
    """Return the complete, unparsed body of a JSON request; gzip is unpacked as it arrives. At most `max_bytes` bytes.

    With `uploads`, `max_bytes` is for the bytes without images; images are held apart from the returned body.

    Raises UnsupportedMediaType; BodyTooLarge, by the declared length if there is one, and by what is unpacked;
    BadRequest for broken gzip; and ClientGone.
    """
    encoding = header_fields.word(header_fields.value(scope, b"content-encoding") or b"identity")
    if encoding != b"identity" and encoding not in GZIP:
        raise UnsupportedMediaType
    most = max_bytes if uploads is None else max(max_bytes, uploads.most)
    gzip = Gzip(most) if encoding in GZIP else None
    media_type = header_fields.word((header_fields.value(scope, b"content-type") or b"").partition(b";")[0])
    if media_type != b"application/json" and not (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    ):
        raise UnsupportedMediaType
    declared = header_fields.value(scope, b"content-length")
    if declared is not None:
        if not declared.isdigit():
            raise BadRequest("Content-Length must be a number of bytes", field="Content-Length")
        if len(declared) > 18 or int(declared) > most:
            raise BodyTooLarge(f"The body may have at most {most} bytes", size=int(declared[:18]), most=most)
    message = await receive()
    if gzip is None and not message.get("more_body", False):  # it came at once, as most bodies do
        whole: bytes = message.get("body", b"")
        if uploads is None or len(whole) <= WINDOW:
            _check_piece(message, len(whole), most)
            return whole
    pieces = _pieces(message, receive, most)
    if gzip is not None:
        pieces = gzip.unpacked(pieces)
    if uploads is None or (declared is not None and gzip is None and int(declared) <= WINDOW):
        parts = [part async for part in pieces]
        return parts[0] if len(parts) == 1 else b"".join(parts)
    lifter = Lifter(uploads, max_bytes)
    async for part in pieces:
        for at in range(0, len(part), TURN):
            lifter.feed(part[at : at + TURN])
            if at + TURN < len(part):
                await asyncio.sleep(0)
    body = lifter.end()
    for held in body.held:
        for _ in scan(held):
            await asyncio.sleep(0)
    return body


async def _pieces(message: ASGIMessage, receive: Receive, most: int) -> AsyncGenerator[bytes]:
    """Yield the pieces of the body, from the one in the first `message` on."""
    size = 0
    while True:
        part: bytes = message.get("body", b"")
        size += len(part)
        _check_piece(message, size, most)
        yield part
        if not message.get("more_body", False):
            return
        message = await receive()


def _check_piece(message: ASGIMessage, size: int, most: int) -> None:
    """Raise ClientGone, or BodyTooLarge if the body has `size` bytes so far, and that is more than `most`."""
    if message["type"] == "http.disconnect":
        raise ClientGone
    if size > most:
        raise BodyTooLarge(f"The body may have at most {most} bytes", size=size, most=most)


class Gzip:
    """Decodes one gzip member (RFC 1952) in pieces. Never holds more than `max_bytes` + 1 bytes of its output."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._room = max_bytes
        self._stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    async def unpacked(self, pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """Yield the unpacked bytes, a little at a time. Raises BodyTooLarge and BadRequest."""
        async for piece in pieces:
            data = piece
            while data:
                yield self._unpack(data)
                data = self._stream.unconsumed_tail
                if data:
                    await asyncio.sleep(0)
        while rest := self._unpack(b""):
            yield rest
        if not self._stream.eof:
            raise BadRequest("must be a whole gzip stream; its end is missing", field="body")

    def _unpack(self, data: bytes) -> bytes:
        try:
            found = self._stream.decompress(data, min(self._room + 1, TURN))
        except zlib.error:
            raise BadRequest("must be gzip, as in content-encoding", field="body") from None
        self._room -= len(found)
        if self._room < 0:
            rule = f"The body may have at most {self._max_bytes} bytes when it is unpacked"
            raise BodyTooLarge(rule, size=self._max_bytes + 1, most=self._max_bytes)
        if self._stream.unused_data:
            raise BadRequest("must be one gzip stream, with nothing behind it", field="body")
        return found
