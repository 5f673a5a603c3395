"""The allowed Host names: a page elsewhere can point its own name at this server (DNS rebinding)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address

from chat_nest.core import header_fields
from chat_nest.core.errors import HostNotAllowed
from chat_nest.core.protocols import Scope

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
ANY_HOST = ("*",)

_ENTRY = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")


class Hosts:
    """Checks Host. `allowed` are names or addresses without a port, `*.example.com` for subdomains, or `*` for any.

    Raises ValueError for any other entry.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        for entry in allowed:
            if not _ENTRY.fullmatch(entry.lower()):
                raise ValueError(f"allowed_hosts: {entry!r} must be a host name without a port, *.NAME, [IPv6] or *")
        names = [entry.lower().encode("ascii") for entry in allowed]
        self._any = b"*" in names
        self._names = frozenset(name for name in names if not name.startswith(b"*"))
        self._below = tuple(name[1:] for name in names if name.startswith(b"*."))

    def check(self, scope: Scope) -> None:
        """Raise HostNotAllowed unless the Host is allowed, or missing, as in HTTP/1.0."""
        if self._any:
            return
        for value in header_fields.values(scope, b"host"):
            name = host_name(value)
            if name not in self._names and not name.endswith(self._below):
                raise HostNotAllowed


def names_a_host(scope: Scope) -> bool:
    """Return whether Host is a name and not an IP address."""
    values = header_fields.values(scope, b"host")
    return not all(is_address(header_fields.text(host_name(value)).strip("[]")) for value in values)


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def host_name(authority: bytes) -> bytes:
    """Return the host of `HOST[:PORT]` in lower case, without a trailing dot. An IPv6 address keeps its brackets."""
    lowered = header_fields.word(authority)
    if lowered.startswith(b"["):
        return lowered[: lowered.find(b"]") + 1]
    return lowered.partition(b":")[0].removesuffix(b".")
