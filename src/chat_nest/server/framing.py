"""What a request's head must be before anything believes it (RFC 9112), where the parser, llhttp, is more lenient.

llhttp itself refuses Content-Length beside Transfer-Encoding, two of either, numbers that are not digits, bare CR and
LF, folded lines and control characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from chat_nest.errors import BadRequest, HeadersTooLarge

MOST_FIELDS = 100
MOST_HEAD_BYTES = 16_384
"""Of the target and all header fields."""

# RFC 9110 section 7.2: uri-host [ ":" port ], and a host is needed for http.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?")


def check_head(version: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise HeadersTooLarge, or BadRequest that names the field. The headers' names are in lower case."""
    if version not in ("1.1", "1.0"):
        raise BadRequest("must be HTTP/1.1 or HTTP/1.0", field="version")
    if len(headers) > MOST_FIELDS:
        raise HeadersTooLarge
    size = len(target)
    hosts: list[bytes] = []
    codings: list[bytes] = []
    names = set[bytes]()
    for name, value in headers:
        size += len(name) + len(value) + 4  # ": " and CRLF
        names.add(name)
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    if size > MOST_HEAD_BYTES:
        raise HeadersTooLarge
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise BadRequest("must be there once", field="Host")
    if hosts and not _HOST.fullmatch(hosts[0].strip()):
        raise BadRequest("must be a host name or an address, with a port or without", field="Host")
    if codings and (version == "1.0" or len(codings) > 1 or codings[0].strip().lower() != b"chunked"):
        raise BadRequest("must be chunked, once, in HTTP/1.1", field="Transfer-Encoding")
    if b"upgrade" in names and not names.isdisjoint((b"content-length", b"transfer-encoding")):
        raise BadRequest("must not come with a body", field="Upgrade")  # which llhttp takes for the other protocol's
