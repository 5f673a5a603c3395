"""Who is asking: the user whom a proxy in front has authenticated, by the headers that it sets."""

from __future__ import annotations

from collections.abc import Sequence

from chat_nest.errors import Unauthorized
from chat_nest.identity.peer import PeerAddress
from chat_nest.messages import Caller
from chat_nest.protocols import Scope

_LONGEST = 256


class TrustedHeader:
    """The caller is the value of `caller_header`, and its group that of `group_header`, from trusted proxies only.

    The proxy must set both headers itself and drop what a client sends under their names. A request from anywhere else,
    or without the header, raises Unauthorized. `trusted_proxies` are as for PeerAddress. Raises ValueError where there
    are none, or for a name that no header can have.
    """

    def __init__(self, trusted_proxies: Sequence[str], caller_header: str, group_header: str = "") -> None:
        if not trusted_proxies:
            raise ValueError("caller_header needs trusted_proxies: else every client could name itself")
        self._peer = PeerAddress(trusted_proxies)
        self._caller = _header_name(caller_header)
        self._group = _header_name(group_header) if group_header else b""

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
    """The header's one value, or nothing where there is none.

    Raises Unauthorized for two of them, which could come from two different places, and for one that is too long.
    """
    values = [bytes(value) for key, value in scope["headers"] if key.lower() == name]
    if len(values) > 1 or any(len(value) > _LONGEST for value in values):
        raise Unauthorized
    return values[0].decode("latin-1").strip() if values else ""
