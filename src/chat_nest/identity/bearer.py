"""The credential that a request brings: a key or a token."""

from __future__ import annotations

from chat_nest.errors import Unauthorized
from chat_nest.protocols import Scope

_HEADERS = (b"authorization", b"x-api-key")


def credential(scope: Scope, longest: int) -> str:
    """What follows `Authorization: Bearer` (RFC 6750), or stands in `x-api-key`, where Anthropic's clients put it.

    Raises Unauthorized unless there is exactly one, of 1 to `longest` printable ASCII characters without a space: two
    could come from two different places.
    """
    found = [(name.lower(), bytes(value)) for name, value in scope["headers"] if name.lower() in _HEADERS]
    if len(found) != 1:
        raise refused()
    name, value = found[0]
    if name == b"authorization":
        scheme, _, value = value.partition(b" ")
        if scheme.lower() != b"bearer":
            raise refused()
    value = value.strip(b" ")
    if not 1 <= len(value) <= longest or b" " in value or not value.isascii():
        raise refused()
    text = value.decode("ascii")
    if not text.isprintable():
        raise refused()
    return text


def refused() -> Unauthorized:
    """The one refusal, whatever is wrong: it must not tell a guess that is nearly right from one that is not."""
    return Unauthorized(challenge="Bearer")
