"""Who is asking: the address that the request came from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from chat_nest.messages import Caller
from chat_nest.protocols import Scope

KNOWN_ADDRESSES = 4_096
"""Parsed addresses that are remembered."""

_LONGEST_HOP = 64
_MAPPED = IPv6Network("::ffff:0:0/96")


class PeerAddress:
    """Callers are told apart by network address: an IPv4 address, or an IPv6 /64, which is what one customer gets.

    `X-Forwarded-For` is believed only as far as trusted proxies wrote it: from the right, over trusted hops, to the
    first address that is not trusted. `trusted_proxies` are addresses, networks in CIDR notation, or `unix` for a peer
    that has no address. Raises ValueError naming an entry that is none of these.
    """

    def __init__(self, trusted_proxies: Sequence[str] = ()) -> None:
        self._trusts_unix = "unix" in trusted_proxies
        self._trusted = tuple(_network(entry) for entry in trusted_proxies if entry != "unix")
        self._read = lru_cache(KNOWN_ADDRESSES)(self._parse)

    def __call__(self, scope: Scope) -> Caller:
        client = scope.get("client")
        host: str = client[0] if client else ""
        seen = self._read(host) if host else ("unix", self._trusts_unix)
        if seen is None:  # a name that the server gave its peer
            return Caller(id=host)
        id, trusted = seen
        if trusted:
            for hop in reversed(_forwarded_for(scope).split(",")):
                seen = self._read(hop) if len(hop) <= _LONGEST_HOP else None
                if seen is None:
                    break
                id, trusted = seen
                if not trusted:
                    break
        return Caller(id=id)

    def trusts(self, scope: Scope) -> bool:
        """Whether the request came straight from a trusted proxy."""
        client = scope.get("client")
        seen = self._read(client[0]) if client and client[0] else ("unix", self._trusts_unix)
        return seen is not None and seen[1]

    def _parse(self, hop: str) -> tuple[str, bool] | None:
        """The caller's id and whether it is a trusted proxy; None if this is not an address."""
        address = _address(hop.strip(" \t"))
        if address is None:
            return None
        trusted = any(address.version == network.version and address in network for network in self._trusted)
        if isinstance(address, IPv6Address):
            return str(IPv6Network((int(address) >> 64 << 64, 64))), trusted
        return str(address), trusted


def _forwarded_for(scope: Scope) -> str:
    values: list[bytes] = [value for name, value in scope.get("headers", ()) if name == b"x-forwarded-for"]
    return b",".join(values).decode("latin-1")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: bare, `v4:port`, `[v6]` or `[v6]:port`, with or without a zone."""
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
