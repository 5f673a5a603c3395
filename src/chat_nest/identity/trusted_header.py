"""Callers identified by headers of a proxy that has authenticated the user."""

from __future__ import annotations

from collections.abc import Sequence

from chat_nest.core import header_fields
from chat_nest.core.errors import Unauthorized
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Scope
from chat_nest.identity.peer import PeerAddress

_LONGEST = 256


class TrustedHeader:
    """Identifies the caller by `caller_header`, and its group by `group_header`, from trusted proxies only.

    The proxy must set both headers itself and drop a client's headers of these names. A request from any other peer, or
    without the header, raises Unauthorized. `trusted_proxies` are as for PeerAddress. Raises ValueError without any, or
    for an invalid header name.
    """

    def __init__(self, trusted_proxies: Sequence[str], caller_header: str, group_header: str = "") -> None:
        if not trusted_proxies:
            raise ValueError("caller_header needs trusted_proxies: else every client could name itself")
        self._peer = PeerAddress(trusted_proxies)
        self._caller = _header_name(caller_header)
        self._group = _header_name(group_header) if group_header else b""

    def presented(self, scope: Scope) -> bool:
        """Return whether the request has the caller's header, from any peer."""
        return header_fields.value(scope, self._caller) is not None

    def __call__(self, scope: Scope) -> Caller:
        if not self._peer.trusts(scope):
            raise Unauthorized
        name = _only(scope, self._caller)
        if not name:
            raise Unauthorized
        return Caller(id=f"user:{name}", group=(_only(scope, self._group) if self._group else "") or None)


def _header_name(name: str) -> bytes:
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError("caller_header and group_header must be names of headers, such as x-user")
    return name.lower().encode()


def _only(scope: Scope, name: bytes) -> str:
    """Return the header's one value, or "" without one.

    Raises Unauthorized for two of them, which could come from two different sources, and for one that is too long.
    """
    values = header_fields.values(scope, name)
    if len(values) > 1 or any(len(value) > _LONGEST for value in values):
        raise Unauthorized
    return header_fields.text(values[0]) if values else ""
