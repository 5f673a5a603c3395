"""Callers identified by an API key of this server."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from chat_nest.core.errors import Forbidden
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Now, Scope
from chat_nest.core.watched_file import WatchedFile
from chat_nest.identity.api_key import ADMIN, CHAT, KEY, PREFIX, checked_secret, key_hash
from chat_nest.identity.bearer import credential, refused
from chat_nest.identity.key_holders import Holder, Holders, find, watch_keys
from chat_nest.identity.stored_keys import StoredKeys

_LONGEST = 64

KeyTable = WatchedFile[Holders] | StoredKeys
"""The keys of a file or of a store, which several ApiKeys can share."""


class ApiKeys:
    """Identifies the caller by the key in `Authorization: Bearer KEY`, or in another header that clients use for keys.

    `chat-nest keys` makes and changes the file `keys`, with the same `secret` (at least 32 bytes). Keys of one caller
    share its limits. A key that is wrong, expired, revoked or malformed, or comes with another one, raises the same
    Unauthorized. One that lacks `scope` raises Forbidden: "chat", or "sessions" for making session tokens; one of the
    scope "admin" is unknown to the others. A change of the keys takes effect within a second; while they can't be read,
    LimiterUnavailable is raised. Raises ValueError if the file can't be read, or was made with another secret.
    """

    def __init__(
        self,
        keys: str | Path | KeyTable,
        secret: str | bytes,
        *,
        scope: str = CHAT,
        now: Now = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secret = checked_secret(secret)
        self._scope = scope
        self._now = now
        self._keys: KeyTable = watch_keys(keys, self._secret, clock) if isinstance(keys, str | Path) else keys

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]:
        hash = self._hash(scope)
        holders = self._keys.recent()
        return self._late(hash) if holders is None else self._holder(holders, hash).caller

    async def holder(self, scope: Scope) -> Holder:
        """Return the holder of the request's key. Raises the same as a call."""
        hash = self._hash(scope)
        return self._holder(await self._keys.current(), hash)

    def claims(self, credential: str) -> bool:
        """Return whether a credential begins like a key of this server."""
        return credential.startswith(PREFIX)

    async def check(self) -> None:
        """Raise LimiterUnavailable while the keys can't be read."""
        await self._keys.current()

    def _hash(self, scope: Scope) -> bytes:
        key = credential(scope, _LONGEST)
        if not KEY.fullmatch(key):
            raise refused()
        return key_hash(self._secret, key)

    async def _late(self, hash: bytes) -> Caller:
        return self._holder(await self._keys.current(), hash).caller

    def _holder(self, holders: Holders, hash: bytes) -> Holder:
        found = find(holders, hash)
        if not hmac.compare_digest(found.hash, hash) or self._now() >= found.until:
            raise refused()
        if self._scope not in found.scopes:
            if ADMIN in found.scopes or self._scope == ADMIN:  # one listener does not know the other's keys
                raise refused()
            raise Forbidden(f"This key may not do this: it lacks the scope {self._scope}")
        return found
