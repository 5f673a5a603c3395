"""A rate limit for refused credentials, by IP address: above it, requests are refused without a check."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_network

from chat_nest.core.errors import Unauthorized
from chat_nest.core.messages import Caller
from chat_nest.core.parts import offers
from chat_nest.core.protocols import AcceptsStrangers, Identify, Scope
from chat_nest.identity.peer import PeerAddress
from chat_nest.limits.caller_rates import CallerRates

REFUSED_PER_MINUTE = 300
"""For one IP address: enough for a client with an expired token, and for an office full of them."""


class Guarded:
    """Wraps `identify` with a rate limit for its refusals (401), by the IP address that `peers` finds.

    An IP address above the rate is RateLimited, even with good credentials, until the rate has drained a little. That
    saves a look-up or the check of a signature, which nothing else counts. A private IP address is not counted: it may
    be a proxy missing from trusted_proxies, with all callers behind it. The rates are of this process only, for as many
    addresses as CallerRates remembers.
    """

    def __init__(self, identify: Identify, peers: PeerAddress, clock: Callable[[], float] = time.monotonic) -> None:
        self._identify = identify
        self._peers = peers
        self._rates = CallerRates(clock)

    def is_stranger(self, scope: Scope) -> bool:
        """Return what `identify` returns; False if it accepts no strangers."""
        return offers(self._identify, AcceptsStrangers) and self._identify.is_stranger(scope)

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]:
        address = self._peers(scope).id
        self._rates.check(address)
        try:
            found = self._identify(scope)
        except Unauthorized:
            self._count(address)
            raise
        return self._awaited(found, address) if isinstance(found, Awaitable) else found

    async def _awaited(self, found: Awaitable[Caller], address: str) -> Caller:
        try:
            return await found
        except Unauthorized:
            self._count(address)
            raise

    def _count(self, address: str) -> None:
        if is_public(address):
            self._rates.count(address, REFUSED_PER_MINUTE)


def is_public(address: str) -> bool:
    """Return whether it is a public IP address: an IPv4 address, or an IPv6 network in PeerAddress's form."""
    try:
        return ip_network(address).is_global
    except ValueError:  # a name, or no IP address at all
        return False
