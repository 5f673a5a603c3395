"""Whether this server can answer chats now: its store, its providers and its callers' keys, not asked too often."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from chat_nest.errors import UpstreamAuth, UpstreamNotStarted, UpstreamRateLimited, UpstreamTimeout, UpstreamUnreachable
from chat_nest.protocols import Identify, Provider, Store
from chat_nest.providers.model_list import unlisted

log = logging.getLogger("chat_nest.server")

FRESH_SECONDS = 5.0
"""An answer is given again for this long, so that nobody can use /readyz to hammer a provider."""
PROVIDER_SECONDS = 5.0
DEGRADED = "degraded"
"""The store is down, and what is admitted draws on an allowance that was held in it before."""

_json = msgspec.json.Encoder().encode


class Part(Struct, frozen=True, omit_defaults=True):
    """The store, one provider, or what tells who asks: `status` is `ok`, DEGRADED or an error's code.

    `advice` is for the operator.
    """

    status: str
    advice: str = ""


class Readiness(Struct, frozen=True):
    ready: bool
    store: Part
    providers: Mapping[str, Part]
    identity: Part | None = None
    """None where telling who asks needs nothing that could be missing."""

    def body(self) -> bytes:
        status = ("ready" if self.store.status == "ok" else DEGRADED) if self.ready else "unavailable"
        identity = {} if self.identity is None else {"identity": self.identity}
        return _json({"status": status, "store": self.store, "providers": self.providers, **identity})


class Health:
    """Ready means: the store answers, so does every provider, and it can be told who asks.

    `models` are the configured ones, by provider. One that the provider does not list is advice only: some lists are
    incomplete. `key_from` says where a provider's key is set. A provider without a `check` of its own counts as
    reachable, and so does what `identify` reads. `clock` is in seconds.
    """

    def __init__(
        self,
        store: Store,
        providers: Mapping[str, Provider],
        key_from: Mapping[str, str],
        *,
        models: Mapping[str, Sequence[str]] | None = None,
        identify: Identify | None = None,
        store_seconds: float = 1.0,
        provider_seconds: float = PROVIDER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._providers = providers
        self._key_from = key_from
        self._models = models or {}
        self._identify = identify
        self._store_seconds = store_seconds
        self._provider_seconds = provider_seconds
        self._clock = clock
        self._asking: asyncio.Task[Readiness] | None = None
        self._asked_at = -FRESH_SECONDS

    async def readiness(self) -> Readiness:
        """The state, at most FRESH_SECONDS old. Callers who come while it is found out wait for the same answer."""
        asking = self._asking
        if asking is None or (asking.done() and self._clock() - self._asked_at >= FRESH_SECONDS):
            asking = self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(asking)  # whoever asked first may leave

    async def report(self) -> None:
        """Log what is not ready, what may be wrong, and what to do."""
        found = await self.readiness()
        for name, part in (("store", found.store), *found.providers.items(), ("identity", found.identity)):
            if part is not None and part.status != "ok":
                log.error("%s: %s: %s", name, part.status, part.advice)
            elif part is not None and part.advice:
                log.warning("%s: %s", name, part.advice)

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> Readiness:
        checks: dict[str, Any] = {name: getattr(provider, "check", None) for name, provider in self._providers.items()}
        asked = [self._provider(name, check) for name, check in checks.items() if check is not None]
        store, identity, found = await asyncio.gather(self._store_part(), self._identity_part(), asyncio.gather(*asked))
        self._asked_at = self._clock()
        parts = dict(zip((name for name, check in checks.items() if check is not None), found, strict=True))
        providers = {name: parts.get(name, Part("ok")) for name in checks}
        ready = all(part is None or part.status in ("ok", DEGRADED) for part in (store, identity, *found))
        return Readiness(ready, store, providers, identity)

    async def _store_part(self) -> Part:
        try:
            async with asyncio.timeout(self._store_seconds):
                await self._store.ping()
        except Exception as error:
            log.debug("the store does not answer: %s", type(error).__name__)
            if getattr(self._store, "can_admit", False):
                return Part(DEGRADED, "The store does not answer, and requests draw on the allowance of [degraded]")
            return Part("limiter_unavailable", "The store does not answer: check [store] url, the disk and its rights")
        return Part("ok")

    async def _identity_part(self) -> Part | None:
        check: Callable[[], Awaitable[None]] | None = getattr(self._identify, "check", None)
        if check is None:
            return None
        try:
            async with asyncio.timeout(self._store_seconds):
                await check()
        except Exception:
            return Part("limiter_unavailable", "The file of keys can't be used, so nobody is let in: the log says why")
        return Part("ok")

    async def _provider(self, name: str, check: Callable[[], Awaitable[frozenset[str] | None]]) -> Part:
        try:
            async with asyncio.timeout(self._provider_seconds):
                listed = await check()
        except Exception as error:
            return self._failed(name, error)
        return Part("ok", unlisted(self._models.get(name, ()), listed or frozenset()))

    def _failed(self, name: str, error: Exception) -> Part:
        match error:
            case UpstreamAuth():
                advice = f"The provider refused the key: correct it in {self._key_from.get(name, 'its configuration')}"
            case UpstreamNotStarted():
                advice = f"{error.advice}: the log has the remedy"
            case UpstreamUnreachable():
                advice = f"{error.message}: check base_url of [providers.{name}], and the network"
            case TimeoutError() | UpstreamTimeout():
                return Part(
                    "upstream_timeout", "The provider did not answer in time: check its base_url and the network"
                )
            case UpstreamRateLimited():
                advice = "The provider refuses requests for now: check the account's quota"
            case _:
                advice = "The provider failed: check its base_url, and whether its kind is the API that is there"
        return Part(getattr(error, "code", "upstream_error"), advice)
