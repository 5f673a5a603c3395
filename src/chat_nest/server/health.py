"""The readiness of this server: its store, its providers and its callers' keys, checked at most every few seconds."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import ceil

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chat_nest.core.errors import (
    StoreEmptied,
    UpstreamAuth,
    UpstreamNotStarted,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from chat_nest.core.protocols import Checkable, CheckableIdentity, HasControls, Identify, PoolsKeys, Store
from chat_nest.providers.model_list import unlisted
from chat_nest.stores.places import place_of, remedy_of, sentence

log = logging.getLogger("chat_nest.server")

FRESH_SECONDS = 5.0
"""An answer is reused for this long, so that clients can't use /readyz to flood a provider."""
PROBE_SECONDS = 1.0
"""How long the row is kept that each check writes."""
UNWRITABLE = "check that its disk or its memory has room, and that it is no replica"
PROVIDER_SECONDS = 5.0
MOST_RESTS = 20
"""The most resting keys that are listed for a provider."""
DEGRADED = "degraded"
"""The store is down, and requests draw on an allowance that was held in it before."""

_json = msgspec.json.Encoder().encode


class Rest(Struct, frozen=True, omit_defaults=True):
    """A key that is not used until then, for `model` or for every model. `reason` is an error's code."""

    until: datetime
    reason: str
    model: str = ""


class Keys(Struct, frozen=True):
    """How many keys a provider has, and how many of them rest in this process. Nothing of a key is shown."""

    count: int
    resting: int
    rests: Sequence[Rest]
    """The first MOST_RESTS to end."""


class HealthPart(Struct, frozen=True, omit_defaults=True):
    """The store, a provider, or the identification of callers. `status` is `ok`, DEGRADED or an error's code.

    `advice` is for the operator.
    """

    status: str
    advice: str = ""
    keys: Keys | None = None
    """Of a provider with several keys."""


class Readiness(Struct, frozen=True):
    ready: bool
    store: HealthPart
    providers: Mapping[str, HealthPart]
    identity: HealthPart | None = None
    """None if identification needs nothing that could be missing."""

    @property
    def status(self) -> str:
        """`ready`, DEGRADED or `unavailable`."""
        return ("ready" if self.store.status == "ok" else DEGRADED) if self.ready else "unavailable"

    def public_body(self) -> bytes:
        """Return what every client may know: whether chats can be answered, and if not, what kind of part fails."""
        missing = {} if self.ready else {"message": self._missing()}
        return _json({"ready": self.ready, "status": self.status, **missing})

    def _missing(self) -> str:
        if self.store.status not in ("ok", DEGRADED):
            return "The budgets can't be reached"
        if self.identity is not None and self.identity.status != "ok":
            return "No caller can be identified"
        return "The model can't be reached"

    def body(self) -> bytes:
        """Return what the operator may know, with names and advice."""
        status = self.status
        identity = {} if self.identity is None else {"identity": self.identity}
        return _json({"status": status, "store": self.store, "providers": self.providers, **identity})


class Health:
    """Checks the readiness: the store can be written to, every provider answers, and callers can be identified.

    `models` are the configured ones, by provider. A model that the provider does not list only gives advice: some lists
    are incomplete. `key_from` is where a provider's key is set. A provider without a `check` counts as reachable, and
    so does what `identify` reads. `draws_on_allowance` returns whether chats can be answered without the store. `clock`
    is in seconds.
    """

    def __init__(
        self,
        store: Store,
        providers: Mapping[str, object],
        key_from: Mapping[str, str],
        *,
        models: Mapping[str, Sequence[str]] | None = None,
        identify: Identify | None = None,
        draws_on_allowance: Callable[[], bool] = lambda: False,
        store_seconds: float = 1.0,
        provider_seconds: float = PROVIDER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._providers = providers
        self._key_from = key_from
        self._models = models or {}
        self._identify = identify
        self._draws_on_allowance = draws_on_allowance
        self._store_seconds = store_seconds
        self._provider_seconds = provider_seconds
        self._clock = clock
        self._asking: asyncio.Task[Readiness] | None = None
        self._known: Readiness | None = None
        self._asked_at = -FRESH_SECONDS
        self._logged: set[str] = set()
        """The providers that log by themselves why they do not start."""

    async def readiness(self) -> Readiness:
        """Return the state, at most FRESH_SECONDS old. Concurrent callers wait for the same check."""
        asking = self._asking
        if asking is None or (asking.done() and self._clock() - self._asked_at >= FRESH_SECONDS):
            asking = self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(asking)  # the first caller may leave

    async def recent(self, seconds: float) -> Readiness:
        """Return the last state; if it is older than this, check again meanwhile. Only the first call waits."""
        if self._known is None:
            return await self.readiness()
        if self._clock() - self._asked_at >= seconds and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask())
        return self._known

    async def report(self) -> None:
        """Log what is not ready, what may be wrong, and what to do."""
        found = await self.readiness()
        for name, part in (("store", found.store), *found.providers.items(), ("identity", found.identity)):
            if name in self._logged:
                continue
            if part is not None and part.status != "ok":
                log.error("%s: %s: %s", name, part.status, part.advice)
            elif part is not None and part.advice:
                log.warning("%s: %s", name, part.advice)

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> Readiness:
        checks = {name: each.check for name, each in self._providers.items() if isinstance(each, Checkable)}
        asked = [self._provider(name, check) for name, check in checks.items()]
        store, identity, found = await asyncio.gather(self._store_part(), self._identity_part(), asyncio.gather(*asked))
        self._asked_at = self._clock()
        parts = {**dict.fromkeys(self._providers, HealthPart("ok")), **dict(zip(checks, found, strict=True))}
        providers = {name: replace(part, keys=_keys(self._providers[name])) for name, part in parts.items()}
        ready = all(part is None or part.status in ("ok", DEGRADED) for part in (store, identity, *found))
        self._known = Readiness(ready, store, providers, identity)
        return self._known

    async def _store_part(self) -> HealthPart:
        fails, remedy = "does not answer", remedy_of(self._store)
        try:
            async with asyncio.timeout(self._store_seconds):
                await self._store.ping()
                if isinstance(self._store, HasControls):  # a ping writes nothing: a full disk and a replica pass it
                    fails, remedy = "answers, but can't be written to", UNWRITABLE
                    await self._store.controls.first(f"readyz:{secrets.token_hex(8)}", PROBE_SECONDS)
        except StoreEmptied as error:
            return HealthPart(error.code, f"{sentence(place_of(self._store))}: {error.advice}")
        except Exception as error:
            log.debug("the store does not answer: %s", type(error).__name__)
            if self._draws_on_allowance():
                said = f"{fails}, and requests draw on the allowance of [degraded]"
                return HealthPart(DEGRADED, f"{sentence(place_of(self._store))} {said}: {remedy}")
            advice = f"{sentence(place_of(self._store))} {fails}: {remedy}"
            return HealthPart("limiter_unavailable", advice)
        return HealthPart("ok")

    async def _identity_part(self) -> HealthPart | None:
        if not isinstance(self._identify, CheckableIdentity):
            return None
        try:
            async with asyncio.timeout(self._store_seconds):
                await self._identify.check()
        except Exception:
            return HealthPart(
                "limiter_unavailable", "The file of keys can't be used, so all requests are refused: see the log"
            )
        return HealthPart("ok")

    async def _provider(self, name: str, check: Callable[[], Awaitable[frozenset[str] | None]]) -> HealthPart:
        self._logged.discard(name)
        try:
            async with asyncio.timeout(self._provider_seconds):
                listed = await check()
        except Exception as error:
            return self._failed(name, error)
        return HealthPart("ok", unlisted(self._models.get(name, ()), listed or frozenset()))

    def _failed(self, name: str, error: Exception) -> HealthPart:
        match error:
            case UpstreamAuth():
                advice = f"The provider refused the key: correct it in {self._key_from.get(name, 'its configuration')}"
            case UpstreamNotStarted():
                self._logged.add(name)
                advice = f"{error.advice}: the log has the remedy"
            case UpstreamUnreachable():
                advice = f"{error.message}: check base_url of [providers.{name}], and the network"
            case TimeoutError() | UpstreamTimeout():
                return HealthPart(
                    "upstream_timeout", "The provider did not answer in time: check its base_url and the network"
                )
            case UpstreamRateLimited():
                advice = "The provider refuses requests for now: check the account's quota"
            case _:
                advice = "The provider failed: check its base_url, and whether its kind is the API that is there"
        return HealthPart(getattr(error, "code", "upstream_error"), advice)


def _keys(provider: object) -> Keys | None:
    """Return the keys of a provider that has several."""
    count, rests = provider.key_rests() if isinstance(provider, PoolsKeys) else (0, ())
    if count < 2:
        return None
    now = datetime.now(UTC).replace(microsecond=0)
    shown = [Rest(now + timedelta(seconds=ceil(each.seconds)), each.reason, each.model) for each in rests[:MOST_RESTS]]
    return Keys(count, len(rests), shown)
