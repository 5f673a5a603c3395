"""Callers identified in one of several ways, whichever the request uses."""

from __future__ import annotations

from collections.abc import Awaitable

from chat_nest.core.messages import Caller
from chat_nest.core.parts import offers, part_name
from chat_nest.core.protocols import (
    AcceptsStrangers,
    CheckableIdentity,
    Identify,
    Scope,
    TakesCredentials,
    TakesHeader,
)
from chat_nest.identity.bearer import credential, has_credential, refused

LONGEST = 8_192
"""Characters of a credential; each way may have a lower limit."""


class FirstOf:
    """Identifies the caller by the first of `ways` that applies to the request, from the strongest to the weakest.

    A request that presents a key or a token is identified by the way whose form it has. It is refused (Unauthorized) if
    no way has that form or the credential is wrong: it never falls through to a weaker way. The same holds for a
    TrustedHeader's header. A function of your own gets every request that the ways before it do not claim. Raises
    ValueError without a way, and for a way behind one that accepts every request.
    """

    def __init__(self, *ways: Identify) -> None:
        if not ways:
            raise ValueError("FirstOf needs at least one way to identify a caller")
        self._ways = ways
        self._bearers: list[TakesCredentials] = []
        self._headers: list[TakesHeader] = []
        self._last: Identify | None = None
        for way in ways:
            if offers(way, TakesCredentials):
                self._bearers.append(way)
            elif offers(way, TakesHeader):
                self._headers.append(way)
            elif self._last is None:
                self._last = way
            else:
                raise ValueError(f"{part_name(way)} would never be used: the way before it accepts every request")

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]:
        way = self._way(scope)
        if way is None:
            raise refused()
        return way(scope)

    def is_stranger(self, scope: Scope) -> bool:
        """Return whether the request presents no credential, and is accepted all the same."""
        if self._bearers and has_credential(scope):
            return False
        return _is_stranger(self._header(scope) or self._last, scope)

    async def check(self) -> None:
        """Raise any exception if one of the ways can't identify a caller now."""
        for way in self._ways:
            if isinstance(way, CheckableIdentity):
                await way.check()

    def _way(self, scope: Scope) -> Identify | None:
        if self._bearers and has_credential(scope):
            text = credential(scope, LONGEST)
            for way in self._bearers:
                if way.claims(text):
                    return way
            return None if _is_stranger(self._last, scope) else self._last
        return self._header(scope) or self._last

    def _header(self, scope: Scope) -> Identify | None:
        for way in self._headers:
            if way.presented(scope):
                return way
        return None


def _is_stranger(way: Identify | None, scope: Scope) -> bool:
    return offers(way, AcceptsStrangers) and way.is_stranger(scope)
