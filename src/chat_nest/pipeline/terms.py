"""The rules and providers under which requests are admitted. A request keeps those that it began with to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from msgspec import Struct

from chat_nest.core.protocols import Closable, Provider
from chat_nest.limits.prices import Prices
from chat_nest.limits.profiles import Profiles
from chat_nest.pipeline.signatures import Signatures
from chat_nest.pipeline.upstream import Upstream

CLOSE_SECONDS = 10.0

log = logging.getLogger("chat_nest.pipeline")


class Terms(Struct, frozen=True, eq=False):
    profiles: Profiles
    prices: Prices
    upstream: Upstream
    signatures: Signatures | None = None
    """What signs answers, and checks those in a history."""


class CurrentTerms:
    """The terms in force, and replaced ones that running requests still use.

    A provider is closed when no terms in use have it any more: a reload ends no stream and leaves no connection behind.
    """

    def __init__(self, terms: Terms) -> None:
        self.now = terms
        self._users: dict[Terms, int] = {terms: 0}
        """The running requests of each terms."""
        self._closing: set[asyncio.Task[None]] = set()

    def take(self) -> Terms:
        """Return the terms in force, which stay usable until they are left."""
        self._users[self.now] += 1
        return self.now

    def leave(self, terms: Terms) -> None:
        """Note that a request that took these terms is over."""
        self._users[terms] -= 1
        self._drop_if_unused(terms)

    def replace(self, terms: Terms) -> None:
        """Put other terms in force, from the next request on. Needs a running loop if a provider is to be closed."""
        before, self.now = self.now, terms
        self._users.setdefault(terms, 0)
        self._drop_if_unused(before)

    @property
    def providers(self) -> Sequence[Provider]:
        """The providers of all terms in use."""
        found = {id(each): each for terms in self._users for each in terms.upstream.providers.values()}
        return tuple(found.values())

    async def aclose(self) -> None:
        """Close all providers."""
        for provider in self.providers:
            await close(provider)
        if self._closing:
            await asyncio.wait(self._closing)

    def _drop_if_unused(self, terms: Terms) -> None:
        if terms is self.now or self._users.get(terms, 1):
            return
        del self._users[terms]
        kept = {id(provider) for provider in self.providers}
        for provider in {id(each): each for each in terms.upstream.providers.values()}.values():
            if id(provider) not in kept:
                task = asyncio.create_task(close(provider))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)


async def close(part: object) -> None:
    """Close a part that can be closed, within CLOSE_SECONDS. A failure is logged."""
    if isinstance(part, Closable):
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await part.aclose()
        except Exception as failure:
            log.error("%s did not close: %s", type(part).__name__, type(failure).__name__)  # noqa: TRY400 - no values in logs
