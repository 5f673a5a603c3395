"""The bytes of a response's head (RFC 9112, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus

SentHeaders = Sequence[tuple[bytes, bytes]]

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode("ascii")) for status in HTTPStatus}


def response_head(status: int, fields: Iterable[bytes]) -> bytes:
    """Return a head of `fields`, each of which is "name: value" and the line end.

    Raises ValueError for a field with a line end or NUL in it.
    """
    lines = [*fields]
    head = b"".join([_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, *lines, b"\r\n"])
    ends = len(lines) + 2
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        msg = "a header of the answer holds a line end or NUL"
        raise ValueError(msg)
    return head


def fields(headers: SentHeaders) -> list[bytes]:
    """Return each header as a line."""
    return [b"%b: %b\r\n" % header for header in headers]
