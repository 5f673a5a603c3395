"""Who is asking: whoever holds an API key of this server."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from pathlib import Path

from msgspec import Struct

from chat_nest.identity.bearer import credential, refused
from chat_nest.identity.key_file import KEY, check_secret, checked_secret, key_hash, parse
from chat_nest.identity.watched_file import WatchedFile
from chat_nest.messages import Caller
from chat_nest.protocols import Now, Scope

_LONGEST = 64
_FOUND_BY = 8
"""Bytes of a hash by which its key is looked up; the whole is compared in constant time."""


class _Holder(Struct, frozen=True):
    caller: Caller
    hash: bytes
    until: float
    """Unix seconds."""


_Holders = Mapping[bytes, _Holder]
_NOBODY = _Holder(Caller(id=""), bytes(32), -inf)


class ApiKeys:
    """The caller is the holder of the key that comes as `Authorization: Bearer KEY` or `x-api-key: KEY`.

    `file` is made and changed by `chat-nest keys`, with the same `secret` (at least 32 bytes). Keys of one caller share
    its limits. A key that is wrong, expired, revoked or malformed, or comes with another one, raises the same
    Unauthorized. A change of the file counts within a second; while it can't be read, LimiterUnavailable is raised.
    Raises ValueError where the file can't be read, or was made with another secret.
    """

    def __init__(
        self,
        file: str | Path,
        secret: str | bytes,
        *,
        now: Now = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secret = checked_secret(secret)
        self._now = now
        self._file: WatchedFile[_Holders] = WatchedFile(file, self._read, clock)

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]:
        key = credential(scope, _LONGEST)
        if not KEY.fullmatch(key):
            raise refused()
        hash = key_hash(self._secret, key)
        holders = self._file.recent()
        return self._late(hash) if holders is None else self._holder(holders, hash)

    async def check(self) -> None:
        """Raises LimiterUnavailable while the file can't be read."""
        await self._file.current()

    async def _late(self, hash: bytes) -> Caller:
        return self._holder(await self._file.current(), hash)

    def _holder(self, holders: _Holders, hash: bytes) -> Caller:
        found = holders.get(hash[:_FOUND_BY], _NOBODY)
        if not hmac.compare_digest(found.hash, hash) or self._now() >= found.until:
            raise refused()
        return found.caller

    def _read(self, data: bytes) -> _Holders:
        """Raises ValueError."""
        file = parse(data)
        check_secret(file, self._secret)
        holders: dict[bytes, _Holder] = {}
        for key in file.keys:
            until = -inf if key.revoked is not None else key.expires.timestamp() if key.expires is not None else inf
            hash = bytes.fromhex(key.hash)
            holders[hash[:_FOUND_BY]] = _Holder(Caller(id=key.caller_id, group=key.group), hash, until)
        return holders
