"""Read a request's body within bounds, before anything else is done with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from chat_nest.errors import BadRequest, BodyTooLarge, ClientGone, UnsupportedMediaType
from chat_nest.protocols import Scope

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ABORT = "chat_nest.abort"
"""The name of a scope extension: a function that resets the connection at once."""
GONE = "chat_nest.gone"
"""The name of a scope extension: a function that takes what to call when the client has left, or None to forget it. It
is for when the body has been read: then nobody need wait for `http.disconnect`."""
PUSH = "chat_nest.push"
"""The name of a scope extension: a function that sends a piece of the body at once, or returns False."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of the first header with this lower-case name."""
    for key, value in scope["headers"]:
        if key.lower() == name:
            return bytes(value)
    return None


def idempotency_key(scope: Scope) -> str | None:
    """The request's Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07), with or without its quotes.

    Raises BadRequest unless it is one value of 1 to 255 printable ASCII characters.
    """
    values = [bytes(value) for key, value in scope["headers"] if key.lower() == b"idempotency-key"]
    if not values:
        return None
    key = values[0].strip()
    if len(key) > 1 and key.startswith(b'"') and key.endswith(b'"'):
        key = key[1:-1]
    if len(values) > 1 or not 1 <= len(key) <= 255 or not all(0x20 <= byte < 0x7F for byte in key):
        raise BadRequest("must be one value of 1 to 255 printable ASCII characters", field="Idempotency-Key")
    return key.decode("ascii")


async def read_json_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body of a JSON request of at most `max_bytes` bytes, unparsed.

    Raises UnsupportedMediaType, BodyTooLarge (from the declared length where there is one), ClientGone.
    """
    encoding = header(scope, b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise UnsupportedMediaType
    media_type = (header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json" and not (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    ):
        raise UnsupportedMediaType
    declared = header(scope, b"content-length")
    if declared is not None:
        if not declared.isdigit():
            raise BadRequest("Content-Length must be a number of bytes", field="Content-Length")
        if len(declared) > 18 or int(declared) > max_bytes:
            raise BodyTooLarge(f"The body may have at most {max_bytes} bytes")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise BodyTooLarge(f"The body may have at most {max_bytes} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
