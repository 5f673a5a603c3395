"""The gate for pages of other origins: CORS headers for every response, errors too, and a check of each request.

A browser sends some requests without a preflight (a form, a fetch of text/plain), and only hides the response. A
request that changes or costs something must therefore be refused here, before the caller is identified. See the Fetch
standard, "CORS protocol" and "Sec-Fetch-Site".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from chat_nest.core import header_fields
from chat_nest.core.errors import OriginNotAllowed
from chat_nest.core.origins import is_same_host, normal_origin
from chat_nest.core.protocols import Scope

HeaderList = list[tuple[bytes, bytes]]

EXPOSED = (
    b"x-request-id, retry-after, ratelimit, ratelimit-policy, idempotency-replayed, x-should-retry, x-ladder-below, "
    b"chat-nest-challenge"
)
ALLOWED = b"content-type, authorization, idempotency-key, last-event-id, *"
"""The star is for the official clients in a browser, each of which has a dozen headers of its own.

It never covers `authorization` (Fetch standard, "CORS-preflight fetch").
"""


PROGRAM = "A request that no page sends needs a key or a session here: see origins in the server's configuration"
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9_-]+(, ?[A-Za-z0-9_-]+){0,99}")


class Cors:
    """Checks origins. `origins` are exact origins such as `https://example.com`, or `*` for all.

    Programs, which send neither Origin nor Sec-Fetch-Site, need a credential if `origins` names sites and has no `*`,
    unless `lets_programs`: on a server that only this machine reaches. Raises ValueError for anything but an origin.
    """

    def __init__(self, origins: Sequence[str], *, lets_programs: bool = False) -> None:
        self._any = "*" in origins
        self._lets_programs = lets_programs or self._any or not origins
        self._origins = frozenset(_named(origin) for origin in origins if origin != "*")

    def check(self, scope: Scope) -> None:
        """Raise OriginNotAllowed for a browser's request from a page of another origin that is not allowed.

        `*` allows every page, but not with a cookie, which its user did not send on purpose. Clients that are no
        browser send no Origin.
        """
        origins = header_fields.values(scope, b"origin")
        site = header_fields.value(scope, b"sec-fetch-site")
        if site == b"same-origin" or (not origins and site in (None, b"none")):
            return
        if self._any and header_fields.value(scope, b"cookie") is None:
            return
        hosts = header_fields.values(scope, b"host")
        if not origins or not all(
            origin.lower() in self._origins or (len(hosts) == 1 and is_same_host(origin, hosts[0]))
            for origin in origins
        ):
            raise OriginNotAllowed

    def needs_credential(self, scope: Scope) -> bool:
        """Return whether the request is that of a program, and programs need a key or a session."""
        if self._lets_programs or header_fields.value(scope, b"sec-fetch-site") is not None:
            return False
        return header_fields.value(scope, b"origin") is None

    def headers(self, scope: Scope) -> HeaderList:
        """Return the headers that let the page read the response; none for an origin that is not allowed.

        Only a named origin may send cookies.
        """
        origin = header_fields.value(scope, b"origin") if self._origins else None
        varies = [(b"vary", b"origin")] if self._origins else []
        exposed = (b"access-control-expose-headers", EXPOSED)
        if origin is not None and origin.lower() in self._origins:
            named = [(b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true")]
            return [*named, exposed, *varies]
        return [(b"access-control-allow-origin", b"*"), exposed, *varies] if self._any else varies

    def preflight(self, scope: Scope, methods: bytes) -> HeaderList:
        """Return the headers of the 204 response to an OPTIONS request."""
        return [
            *self.headers(scope),
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", self._allowed(scope)),
            (b"access-control-max-age", b"600"),
        ]

    def _allowed(self, scope: Scope) -> bytes:
        """Return the headers that a page may send. For a request with cookies the star is no wildcard."""
        origin = header_fields.value(scope, b"origin")
        asked = header_fields.value(scope, b"access-control-request-headers")
        if origin is None or asked is None or origin.lower() not in self._origins or not _HEADER_NAMES.fullmatch(asked):
            return ALLOWED
        return asked


def _named(origin: str) -> bytes:
    try:
        return normal_origin(origin)
    except ValueError as error:
        rule = str(error).replace("must be an origin", "must be `*` or an origin")
        raise ValueError(f"origins: {origin!r} {rule}") from None
