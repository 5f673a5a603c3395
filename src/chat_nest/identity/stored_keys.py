"""API keys in the store, for all its servers. They are rows of the controls, which each worker has in memory.

A key that may be valid is a row of the kind `api_key`. To revoke it removes that row and adds one of the kind
`api_key_revoked`, which wins: a change at the same time, such as a rotation, can't bring a revoked key back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Struct

from chat_nest.controls.gate import KEY_REVOKED
from chat_nest.controls.live import LiveControls
from chat_nest.core.controls import Control
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.identity.api_key import ApiKey, Hash, checked_secret, secret_hash
from chat_nest.identity.key_holders import Holder, Holders, by_hash, holder_of

IN_FORCE, REVOKED = "api_key", KEY_REVOKED
"""Kinds of rows. The name is the key's id."""
KEPT = timedelta(days=30)
"""For how long a key that has expired is listed."""
KEPT_REVOKED = timedelta(days=90)
"""The same, of a revoked one: longer than the row of any change that can have met the revocation."""
MOST_KEYS = 10_000
"""Each worker reads all of them after a change."""

_LAST_YEAR = 2200
"""Rows of keys that expire later stay."""

_log = logging.getLogger("chat_nest.identity")


class _Stored(Struct, frozen=True):
    """The value of a row, as JSON. `secret` shows which secret made the key."""

    secret: Hash
    key: ApiKey


_decode = msgspec.json.Decoder(_Stored).decode


class KeptKey(Struct, frozen=True):
    """A key of the store, and whether this server's secret made it."""

    key: ApiKey
    ours: bool = True


def row_of(key: ApiKey, secret: bytes, reason: str = "") -> Control:
    """Return the row of a key. The store forgets it some time after the key has ended."""
    kind = IN_FORCE if key.revoked is None else REVOKED
    value = msgspec.json.encode(_Stored(secret_hash(secret), key)).decode()
    if key.revoked is not None:
        return Control(kind=kind, name=key.id, value=value, reason=reason, expires=_unix(key.revoked + KEPT_REVOKED))
    until = None if key.expires is None or key.expires.year > _LAST_YEAR else _unix(key.expires + KEPT)
    return Control(kind=kind, name=key.id, value=value, reason=reason, expires=until)


def revocation_row(key: ApiKey, reason: str) -> Control:
    """Return the row that ends the answers and sessions of a key in a file; `keys_of` does not list it."""
    assert key.revoked is not None
    return Control(kind=REVOKED, name=key.id, reason=reason, expires=_unix(key.revoked + KEPT_REVOKED))


def keys_of(rows: Iterable[Control], secret: bytes) -> list[KeptKey]:
    """Return the keys among the rows, the oldest first, without those that can't be read: no key is valid by one."""
    found: dict[str, KeptKey] = {}
    own = secret_hash(secret)
    for row in sorted((row for row in rows if row.kind in (IN_FORCE, REVOKED)), key=lambda row: row.kind):
        try:
            stored = _decode(row.value)
        except (msgspec.DecodeError, msgspec.ValidationError):
            found.pop(row.name, None)
            continue
        found[row.name] = KeptKey(stored.key, stored.secret == own)
    return sorted(found.values(), key=lambda each: (each.key.created, each.key.id))


class StoredKeys:
    """The holders of the store's keys, from this process's copy of the controls. `secret` made the keys.

    A key is accepted only while that copy is at most a second old: without the store no key is valid. To be bound to a
    chat's controls before the first request.
    """

    def __init__(self, secret: str | bytes) -> None:
        self._own = secret_hash(checked_secret(secret))
        self._live: LiveControls | None = None
        self._version: int | None = None
        self._read: Mapping[str, tuple[Control, Holder | None]] = {}
        self._holders: Holders = {}

    def bind(self, live: LiveControls) -> None:
        """Use a chat's copy of the controls."""
        self._live = live

    def recent(self) -> Holders | None:
        """Return the holders if the copy is recent, else None: then call `current`."""
        live = self._live
        if live is None or not live.recent:
            return None
        if live.version != self._version:
            self._update(live)
        return self._holders

    async def current(self) -> Holders:
        """Return the holders. Raises LimiterUnavailable if the store does not answer."""
        if self._live is not None:
            await self._live.current()
        found = self.recent()
        if found is None:
            raise LimiterUnavailable
        return found

    def _update(self, live: LiveControls) -> None:
        """Read the rows that have changed."""
        # Also ended ones: they are read once a change, by a clock that may be wrong. A holder's end is checked later.
        read = {row.name: self._known(row) for row in live.kept(IN_FORCE)}
        self._read, self._version = read, live.version
        revoked = {row.name for row in live.kept(REVOKED)}
        self._holders = by_hash(
            holder for name, (_, holder) in read.items() if holder is not None and name not in revoked
        )

    def _known(self, row: Control) -> tuple[Control, Holder | None]:
        known = self._read.get(row.name)
        return known if known is not None and known[0] == row else (row, self._holder(row))

    def _holder(self, row: Control) -> Holder | None:
        """Return the holder of a row; None if this server can't honour it."""
        try:
            stored = _decode(row.value)
        except (msgspec.DecodeError, msgspec.ValidationError):
            _log.error("the API key %s in the store can't be read, and is refused: another version made it", row.name)
            return None
        if stored.secret != self._own:
            _log.error("the API key %s in the store was made with another secret, and is refused", row.name)
            return None
        return holder_of(stored.key)


def _unix(at: datetime) -> float:
    return at.astimezone(UTC).timestamp()
