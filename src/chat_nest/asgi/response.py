"""A whole answer that is not a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence

from chat_nest.asgi.request import Send
from chat_nest.errors import ChatError, MethodNotAllowed, Unauthorized
from chat_nest.protocols import Answer

Headers = Sequence[tuple[bytes, bytes]]


async def respond(send: Send, answer: Answer, headers: Headers = ()) -> None:
    """Send an answer, without content type and length where it has no body. A client that has left is not an error."""
    start: list[tuple[bytes, bytes]] = [
        *headers,
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if answer.body:
        start += [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": start})
        await send({"type": "http.response.body", "body": answer.body, "more_body": False})
    except OSError:
        return


def error_headers(error: ChatError) -> list[tuple[bytes, bytes]]:
    """The headers that go with an error: Retry-After in whole seconds, Allow, WWW-Authenticate."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after is not None and math.isfinite(error.retry_after):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode("ascii")))
    if isinstance(error, Unauthorized) and error.challenge:
        headers.append((b"www-authenticate", error.challenge.encode("ascii")))
    return headers
