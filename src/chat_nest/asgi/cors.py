"""Cross-origin headers for every answer, errors too (Fetch standard, "CORS protocol").

Credentials are never allowed, so `*` is only ever an offer to pages that send no cookies.
"""

from __future__ import annotations

from collections.abc import Sequence

from chat_nest.asgi.request import header
from chat_nest.protocols import Scope

Headers = list[tuple[bytes, bytes]]

EXPOSED = b"x-request-id, retry-after, ratelimit, ratelimit-policy, idempotency-replayed, x-should-retry"
ALLOWED = b"content-type, authorization, idempotency-key, last-event-id, *"
"""The star is for the official clients in a browser, each of which has a dozen headers of its own; it never covers
`authorization` (Fetch standard, "CORS-preflight fetch")."""


class Cors:
    """`origins` are exact origins such as `https://example.com`, or `*` for all."""

    def __init__(self, origins: Sequence[str]) -> None:
        for origin in origins:
            if origin != "*" and ("://" not in origin or origin.endswith("/")):
                msg = f"cors_origins: {origin!r} must be `*` or an origin such as https://example.com, without a path"
                raise ValueError(msg)
        self._any = "*" in origins
        self._origins = frozenset(origin.lower().encode("latin-1") for origin in origins)

    def headers(self, scope: Scope) -> Headers:
        """What lets the asking page read the answer; nothing for an origin that is not allowed."""
        if self._any:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED)]
        if not self._origins:
            return []
        origin = header(scope, b"origin")
        if origin is None or origin.lower() not in self._origins:
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED),
            (b"vary", b"origin"),
        ]

    def preflight(self, scope: Scope, methods: bytes) -> Headers:
        """The headers of the 204 that answers an OPTIONS request."""
        return [
            *self.headers(scope),
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", ALLOWED),
            (b"access-control-max-age", b"600"),
        ]
