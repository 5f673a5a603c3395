"""The holders of API keys, as a request's key is looked up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from math import inf
from pathlib import Path

from msgspec import Struct

from chat_nest.core.messages import Caller
from chat_nest.core.watched_file import WatchedFile
from chat_nest.identity.api_key import ApiKey
from chat_nest.identity.key_file import check_secret, parse

_FOUND_BY = 8
"""The bytes of a hash by which its key is looked up; the whole hash is compared in constant time."""


class Holder(Struct, frozen=True):
    """The caller that holds a key, and what the key may do."""

    id: str
    """The key's."""
    caller: Caller
    hash: bytes
    until: float
    """Unix seconds."""
    scopes: frozenset[str] = frozenset()


Holders = Mapping[bytes, Holder]
_NOBODY = Holder("", Caller(id=""), bytes(32), -inf)


def holder_of(key: ApiKey) -> Holder:
    """Return the holder of a key."""
    until = -inf if key.revoked is not None else key.expires.timestamp() if key.expires is not None else inf
    return Holder(key.id, key.holder, bytes.fromhex(key.hash), until, frozenset(key.scopes))


def by_hash(holders: Iterable[Holder]) -> Holders:
    """Return the holders as `find` expects them."""
    return {holder.hash[:_FOUND_BY]: holder for holder in holders}


def find(holders: Holders, hash: bytes) -> Holder:
    """Return the holder whose hash begins as this one; one that has never been valid if there is none."""
    return holders.get(hash[:_FOUND_BY], _NOBODY)


def watch_keys(file: str | Path, secret: bytes, clock: Callable[[], float] = time.monotonic) -> WatchedFile[Holders]:
    """Return the holders of a file, which is read again after a change. Raises ValueError if it can't be used."""

    def read(data: bytes) -> Holders:
        found = parse(data)
        check_secret(found, secret)
        return by_hash(map(holder_of, found.keys))

    return WatchedFile(file, read, clock)
