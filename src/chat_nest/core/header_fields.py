"""The header fields of a request, read from bytes to text in one way.

A field's value is bytes (RFC 9110, section 5.5). Only spaces and tabs around it are not part of it. `bytes.strip` and
`str.strip` would remove more: decoded as latin-1, the last byte of a UTF-8 letter can be a "blank" (0x85, 0xA0).
"""

from __future__ import annotations

from chat_nest.core.protocols import Scope

BLANKS = b" \t"


def trim(value: bytes) -> bytes:
    """Return the value without the spaces and tabs around it."""
    return bytes(value).strip(BLANKS)


def values(scope: Scope, name: bytes) -> list[bytes]:
    """Return each value of the header with this lower-case name, trimmed, in order."""
    return [trim(value) for key, value in scope.get("headers", ()) if key.lower() == name]


def value(scope: Scope, name: bytes) -> bytes | None:
    """Return the first value of the header with this lower-case name, trimmed; None if it is missing."""
    for key, found in scope.get("headers", ()):
        if key.lower() == name:
            return trim(found)
    return None


def text(value: bytes) -> str:
    """Return a character for each byte, so that two values are the same text only if they are the same bytes."""
    return value.decode("latin-1")


def word(value: bytes) -> bytes:
    """Return a trimmed value in lower case, for words whose case has no meaning (ASCII only)."""
    return trim(value).lower()
