"""The credential of a request: an API key or a token."""

from __future__ import annotations

from chat_nest.core import header_fields
from chat_nest.core.errors import Unauthorized
from chat_nest.core.protocols import Scope

HEADERS = frozenset((b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key"))
"""Clients send a key in one of these: Anthropic's in the second, Google's in the third, Azure's in the last."""

FOLLOWS = "chat_nest.follows"
"""The name of a scope's key: the request only follows a run, which a session's read token may do, too."""


def has_credential(scope: Scope) -> bool:
    """Return whether the request presents a credential, of any form."""
    return any(name.lower() in HEADERS for name, _ in scope["headers"])


def credential(scope: Scope, longest: int) -> str:
    """Return the credential in `Authorization: Bearer` (RFC 6750) or in a header that holds nothing else: see HEADERS.

    Raises Unauthorized unless there is exactly one, of 1 to `longest` printable ASCII characters without a space: two
    could come from two different sources.
    """
    found = [(name.lower(), bytes(value)) for name, value in scope["headers"] if name.lower() in HEADERS]
    if len(found) != 1:
        raise refused()
    name, value = found[0]
    if name == b"authorization":
        scheme, _, value = header_fields.trim(value).partition(b" ")
        if scheme.lower() != b"bearer":
            raise refused()
    value = header_fields.trim(value)
    if not 1 <= len(value) <= longest or b" " in value or not value.isascii():
        raise refused()
    text = value.decode("ascii")
    if not text.isprintable():
        raise refused()
    return text


def refused() -> Unauthorized:
    """Return the one refusal for every fault: it must not distinguish a nearly correct guess from another."""
    return Unauthorized(challenge="Bearer")
