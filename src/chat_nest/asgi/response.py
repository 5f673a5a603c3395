"""A complete response that is not a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from chat_nest.asgi.request import Send
from chat_nest.core.errors import ChallengeRequired, ChatError, MethodNotAllowed, Unauthorized
from chat_nest.core.parts import offers
from chat_nest.core.protocols import Answer, Dialect, LimitsRetryAfter

Headers = Sequence[tuple[bytes, bytes]]

_json = msgspec.json.Encoder().encode


async def respond(send: Send, answer: Answer, headers: Headers = ()) -> None:
    """Send a response, without content type and length if it has no body. Ignores a client that has disconnected."""
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


def error_headers(error: ChatError, longest_wait: float = math.inf) -> list[tuple[bytes, bytes]]:
    """Return the headers of an error: Retry-After in whole seconds, Allow, WWW-Authenticate, and what a page needs for
    a challenge, for formats whose refusals are no JSON.

    A Retry-After of more than `longest_wait` seconds is left out.
    """
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after is not None and math.isfinite(error.retry_after) and error.retry_after <= longest_wait:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode("ascii")))
    if isinstance(error, ChallengeRequired):
        headers.append((b"chat-nest-challenge", _json(error.challenge)))
    if isinstance(error, Unauthorized) and error.challenge:
        headers.append((b"www-authenticate", error.challenge.encode("ascii")))
    return headers


def longest_wait(dialect: Dialect) -> float:
    """Return the longest Retry-After of the dialect, in seconds."""
    return dialect.longest_wait if offers(dialect, LimitsRetryAfter) else math.inf
