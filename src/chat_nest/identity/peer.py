"""Callers identified by the IP address of the request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from chat_nest.core import header_fields
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Scope

KNOWN_ADDRESSES = 4_096
"""The number of parsed IP addresses that are remembered."""

FORWARDING = (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")
"""Headers that proxies add."""
_LONGEST_HOP = 64
_Seen = tuple[str, bool, IPv4Address | IPv6Address | None]
_MAPPED = IPv6Network("::ffff:0:0/96")


class PeerAddress:
    """Identifies callers by IP address: an IPv4 address, or an IPv6 /64, which is what one customer gets.

    `X-Forwarded-For` is trusted only as far as trusted proxies wrote it: from the right, over trusted hops, to the
    first untrusted IP address. `trusted_proxies` are IP addresses, networks in CIDR notation, or `unix` for a peer
    without an IP address. Raises ValueError naming an invalid entry.
    """

    def __init__(self, trusted_proxies: Sequence[str] = ()) -> None:
        self._trusts_unix = "unix" in trusted_proxies
        self._trusted = tuple(_network(entry) for entry in trusted_proxies if entry != "unix")
        self._read = lru_cache(KNOWN_ADDRESSES)(self._parse)

    def __call__(self, scope: Scope) -> Caller:
        client = scope.get("client")
        host: str = client[0] if client else ""
        seen = self._seen(scope, host)
        return Caller(id=host if seen is None else seen[0])  # None: a name that the server gave its peer

    def address(self, scope: Scope) -> IPv4Address | IPv6Address | None:
        """Return the whole IP address of the request, with the same trust; None if it has none."""
        client = scope.get("client")
        seen = self._seen(scope, client[0] if client else "")
        return None if seen is None else seen[2]

    def _seen(self, scope: Scope, host: str) -> _Seen | None:
        seen: _Seen | None = self._read(host) if host else ("unix", self._trusts_unix, None)
        if seen is not None and seen[1]:
            for hop in reversed(_forwarded_for(scope).split(",")):
                further = self._read(hop) if len(hop) <= _LONGEST_HOP else None
                if further is None:
                    break
                seen = further
                if not seen[1]:
                    break
        return seen

    def is_stranger(self, scope: Scope) -> bool:  # noqa: ARG002 - see AcceptsStrangers
        """Return True: an IP address is no credential."""
        return True

    def trusts(self, scope: Scope) -> bool:
        """Return whether the request came directly from a trusted proxy."""
        client = scope.get("client")
        seen = self._read(client[0]) if client and client[0] else ("unix", self._trusts_unix, None)
        return seen is not None and seen[1]

    def _parse(self, hop: str) -> _Seen | None:
        """Return the caller's id, whether it is a trusted proxy, and the address; None if this is not an IP address."""
        address = _address(hop.strip(" \t"))
        if address is None:
            return None
        trusted = any(address.version == network.version and address in network for network in self._trusted)
        if isinstance(address, IPv6Address):
            return str(IPv6Network((int(address) >> 64 << 64, 64))), trusted, address
        return str(address), trusted, address


def is_local(scope: Scope) -> bool:
    """Return whether the request came from a program on this machine, without a visible proxy on it."""
    client = scope.get("client")
    seen = _address(client[0]) if client and client[0] else None
    if client and client[0] and (seen is None or not seen.is_loopback):
        return False
    return not any(header_fields.value(scope, name) is not None for name in FORWARDING)


def _forwarded_for(scope: Scope) -> str:
    return header_fields.text(b",".join(header_fields.values(scope, b"x-forwarded-for")))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an IP address as proxies write it: bare, `v4:port`, `[v6]` or `[v6]:port`, with or without a zone."""
    port = ""
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or (port and not port.startswith(":")):
            return None
        port = port[1:] if port else "0"
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
    else:
        port = "0"
    if not (port.isascii() and port.isdigit()):
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _network(entry: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(entry)
    except ValueError as problem:
        raise ValueError(f"trusted proxy {entry!r} is not an address, a network or the word unix: {problem}") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network
