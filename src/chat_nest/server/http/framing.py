"""Strict checks of a request's head (RFC 9112), for cases in which the parser, llhttp, is more lenient.

llhttp itself refuses Content-Length beside Transfer-Encoding, two of either, numbers that are not digits, bare CR and
LF, folded lines and control characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

import httptools
from msgspec import Struct

from chat_nest.core.errors import BadRequest, ChatError, MethodNotAllowed
from chat_nest.core.header_fields import trim, word

MOST_FIELDS = 100
MOST_HEAD_BYTES = 16_384
"""From the request line to the empty line."""
METHODS = "GET, HEAD, POST, OPTIONS"

# RFC 9110 section 7.2: uri-host [ ":" port ], and a host is needed for http.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?]+)([^?]*)\??(.*)", re.IGNORECASE)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ")


class Target(Struct, frozen=True):
    """The target of a request, in ASGI's terms."""

    path: str
    raw_path: bytes
    query: bytes


class Head(Struct, frozen=True):
    """What the header fields define for the body and the connection."""

    length: int | None
    """The length of the body in bytes; None if it is chunked."""
    host: bytes | None
    expects_continue: bool


def check_line(method: bytes, target: bytes, version: str, head: bytes) -> None:
    """Raise BadRequest unless `head` begins with the parsed request line, written as in RFC 9112, section 3.

    llhttp also accepts several spaces, and RTSP/1.0 for HTTP/1.0.
    """
    if version not in ("1.1", "1.0"):
        raise BadRequest("must be HTTP/1.1 or HTTP/1.0", field="version")
    if not head.startswith(b"%b %b HTTP/%b\r\n" % (method, target, version.encode("ascii"))):
        raise BadRequest("must be METHOD TARGET HTTP/1.1, with one space between them", field="request line")


def read_target(method: bytes, target: bytes, host: bytes | None) -> Target:
    """Return the parts of a request's target. Raises BadRequest unless it is one for this server (section 3.2).

    If a URL and a Host differ, a proxy and this server could use different ones.
    """
    if b"#" in target:
        raise BadRequest("must not have a fragment", field="target")
    if target.startswith(b"/"):
        raw_path, _, query = target.partition(b"?")
    elif found := _ABSOLUTE.fullmatch(target):
        authority, raw_path, query = found.groups()
        if not _HOST.fullmatch(authority) or (host is not None and authority.lower() != host.lower()):
            raise BadRequest("must have the host of the Host field", field="target")
        raw_path = raw_path or b"/"
    elif target == b"*" and method == b"OPTIONS":
        raw_path, query = target, b""
    else:
        raise BadRequest("must be a path", field="target")
    if not target.isascii():
        raise BadRequest("must be ASCII", field="target")
    path = raw_path.decode("ascii")
    return Target(unquote(path) if "%" in path else path, raw_path, query)


def read_head(version: str, headers: Sequence[tuple[bytes, bytes]]) -> Head:
    """Return the meaning of the headers, whose names are in lower case. Raises BadRequest, which names the field."""
    hosts: list[bytes] = []
    codings: list[bytes] = []
    length = 0
    upgrades = expects_continue = has_length = False
    for name, value in headers:
        match name:
            case b"host":
                hosts.append(trim(value))
            case b"content-length":
                has_length = True
                length = int(value)  # llhttp has accepted it as one number
            case b"transfer-encoding":
                codings.append(value)
            case b"upgrade":
                upgrades = True
            case b"expect":
                expects_continue = version == "1.1" and word(value) == b"100-continue"
            case _:
                pass
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise BadRequest("must be there once", field="Host")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise BadRequest("must be a host name or an address, with a port or without", field="Host")
    if codings and (version == "1.0" or len(codings) > 1 or word(codings[0]) != b"chunked"):
        raise BadRequest("must be chunked, once, in HTTP/1.1", field="Transfer-Encoding")
    if upgrades and (has_length or codings):
        raise BadRequest("must not come with a body", field="Upgrade")  # llhttp takes it for the other protocol's data
    return Head(None if codings else length, hosts[0] if hosts else None, expects_continue)


def unreadable(error: Exception, head: bytes) -> ChatError:
    """Return the refusal of what the parser could not read. The parser's own message may repeat its input."""
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _TOKEN.match(head):
        return MethodNotAllowed(METHODS)
    return BadRequest("must be HTTP/1.1 as in RFC 9112", field="request")
