"""Callers identified by an API key of this server."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from pathlib import Path

from msgspec import Struct

from chat_nest.core.errors import Forbidden
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Now, Scope
from chat_nest.core.watched_file import WatchedFile
from chat_nest.identity.bearer import credential, refused
from chat_nest.identity.key_file import KEY, PREFIX, check_secret, checked_secret, key_hash, parse

_LONGEST = 64
_FOUND_BY = 8
"""The bytes of a hash by which its key is looked up; the whole hash is compared in constant time."""


class _Holder(Struct, frozen=True):
    caller: Caller
    hash: bytes
    until: float
    """Unix seconds."""
    scopes: frozenset[str] = frozenset()


_Holders = Mapping[bytes, _Holder]
_NOBODY = _Holder(Caller(id=""), bytes(32), -inf)


class ApiKeys:
    """Identifies the caller by the key in `Authorization: Bearer KEY`, or in another header that clients use for keys.

    `chat-nest keys` makes and changes `file`, with the same `secret` (at least 32 bytes). Keys of one caller share its
    limits. A key that is wrong, expired, revoked or malformed, or comes with another one, raises the same Unauthorized.
    One that lacks `scope` raises Forbidden: "chat", or "sessions" for making session tokens. A change of the file takes
    effect within a second; while it can't be read, LimiterUnavailable is raised. Raises ValueError if the file can't be
    read, or was made with another secret.
    """

    def __init__(
        self,
        file: str | Path,
        secret: str | bytes,
        *,
        scope: str = "chat",
        now: Now = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secret = checked_secret(secret)
        self._scope = scope
        self._now = now
        self._file: WatchedFile[_Holders] = WatchedFile(file, self._read, clock)

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]:
        key = credential(scope, _LONGEST)
        if not KEY.fullmatch(key):
            raise refused()
        hash = key_hash(self._secret, key)
        holders = self._file.recent()
        return self._late(hash) if holders is None else self._holder(holders, hash)

    def claims(self, credential: str) -> bool:
        """Return whether a credential begins like a key of this server."""
        return credential.startswith(PREFIX)

    async def check(self) -> None:
        """Raise LimiterUnavailable while the file can't be read."""
        await self._file.current()

    async def _late(self, hash: bytes) -> Caller:
        return self._holder(await self._file.current(), hash)

    def _holder(self, holders: _Holders, hash: bytes) -> Caller:
        found = holders.get(hash[:_FOUND_BY], _NOBODY)
        if not hmac.compare_digest(found.hash, hash) or self._now() >= found.until:
            raise refused()
        if self._scope not in found.scopes:
            raise Forbidden(f"This key may not do this: it lacks the scope {self._scope}")
        return found.caller

    def _read(self, data: bytes) -> _Holders:
        """Parse the file. Raises ValueError."""
        file = parse(data)
        check_secret(file, self._secret)
        holders: dict[bytes, _Holder] = {}
        for key in file.keys:
            until = -inf if key.revoked is not None else key.expires.timestamp() if key.expires is not None else inf
            hash = bytes.fromhex(key.hash)
            holders[hash[:_FOUND_BY]] = _Holder(
                Caller(id=key.caller_id, group=key.group), hash, until, frozenset(key.scopes)
            )
        return holders
