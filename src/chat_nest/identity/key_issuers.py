"""Issue API keys: make, list, replace and revoke them, in the file of one machine or in the store of all servers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from msgspec import Struct

from chat_nest.core.controls import LONGEST_VALUE, Act, Control, check_change
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.messages import hashed
from chat_nest.core.protocols import Controls
from chat_nest.identity.api_key import (
    ApiKey,
    Rights,
    UnknownKey,
    WrongKey,
    make_key,
    present_second,
    revoked_key,
    rotate_key,
)
from chat_nest.identity.key_file import create_key, read_keys, revoke_keys, rotate_in_file
from chat_nest.identity.stored_keys import IN_FORCE, MOST_KEYS, KeptKey, keys_of, revocation_row, row_of

OTHER_SECRET = "its keys were made with another secret"  # noqa: S105 - a reason
_log = logging.getLogger("chat_nest.identity")


class Issued(Struct, frozen=True):
    """A new key, and its text, which is kept nowhere. `replaces` is the key that it was rotated from."""

    key: ApiKey
    text: str
    replaces: ApiKey | None = None

    def __repr__(self) -> str:
        """Return it without the text."""
        return f"Issued({self.key!r})"


class FileIssuer:
    """Issues the keys of a file. `controls` keeps the trail of acts, if it is given; `by` is the operator.

    A change is in force once it is in the file. A revocation is also a row of the controls: by it every process ends
    the running answers and the sessions of the key. Every method raises OSError if the file can't be read or written,
    and ValueError if it is broken, its keys were made with another secret, or `reason` can't be kept.
    """

    def __init__(self, path: Path, secret: bytes, *, by: str = "", controls: Controls | None = None) -> None:
        self._path = path
        self._secret = secret
        self._by = by
        self._controls = controls
        self.missed: LimiterUnavailable | None = None
        """Why the controls did not take a change, if they did not, or there are none."""

    async def keys(self) -> Sequence[ApiKey]:
        """Return all keys, the oldest first. Raises FileNotFoundError if there is no file yet."""
        return (await asyncio.to_thread(read_keys, self._path)).keys

    async def create(self, rights: Rights, reason: str = "") -> Issued:
        """Make a key. Raises WrongKey."""
        self._check(reason)
        made, text = await asyncio.to_thread(create_key, self._path, self._secret, rights)
        await self._note(created_act(self._by, made, reason))
        return Issued(made, text)

    async def rotate(self, id: str, overlap: timedelta, expires: datetime | None = None, reason: str = "") -> Issued:
        """Replace a key by a new one: see `rotate_key`. Raises UnknownKey and NotRotatable."""
        self._check(reason)
        old, made, text = await asyncio.to_thread(rotate_in_file, self._path, self._secret, id, overlap, expires)
        await self._note(rotated_act(self._by, old, made, reason))
        return Issued(made, text, old)

    async def revoke(self, ids: Sequence[str], reason: str = "") -> Sequence[ApiKey]:
        """Revoke keys, all or none. Raises UnknownKey."""
        self._check(reason)
        revoked = await asyncio.to_thread(revoke_keys, self._path, ids)
        for key in revoked:
            await self._note(revoked_act(self._by, key, reason), [revocation_row(key, reason)])
        return revoked

    def _check(self, reason: str) -> None:
        """Raise ValueError for a reason that the trail can't keep, before anything is changed."""
        check_change((), (), Act(by=self._by, act="", target="", reason=reason))

    async def _note(self, act: Act, put: Sequence[Control] = ()) -> None:
        """Keep an act in the trail. The key has changed already, so a store that is down stops nothing."""
        if self._controls is None:
            self.missed = LimiterUnavailable()
            return
        try:
            await self._controls.change(put, act=act)
        except LimiterUnavailable as error:
            self.missed = error
            _log.error("%s of %s by %s is not in the trail of acts: the store does not answer", *_words(act))


class StoreIssuer:
    """Issues the keys of a store. Each change and its act in the trail are one transaction; `by` is the operator.

    Every method raises LimiterUnavailable if the store does not answer.
    """

    def __init__(self, controls: Controls, secret: bytes, *, by: str) -> None:
        self._controls = controls
        self._secret = secret
        self._by = by

    async def keys(self) -> Sequence[ApiKey]:
        """Return all keys, the oldest first."""
        return [each.key for each in await self._kept()]

    async def create(self, rights: Rights, reason: str = "") -> Issued:
        """Make a key. Raises WrongKey, and ValueError if there are too many, or others have another secret."""
        kept = await self._kept()
        if len(kept) >= MOST_KEYS:
            raise ValueError(f"may have at most {MOST_KEYS} keys: give users session tokens or JSON Web Tokens instead")
        if kept and not any(each.ours for each in kept):
            raise ValueError(OTHER_SECRET)
        made, text = make_key(self._secret, rights, present_second())
        await self._change([self._row(made, reason)], act=created_act(self._by, made, reason))
        return Issued(made, text)

    async def rotate(self, id: str, overlap: timedelta, expires: datetime | None = None, reason: str = "") -> Issued:
        """Replace a key by a new one: see `rotate_key`. Raises UnknownKey, NotRotatable and ValueError."""
        [found] = await self._found([id])
        if not found.ours:
            raise ValueError(OTHER_SECRET)
        old, made, text = rotate_key(self._secret, found.key, overlap, present_second(), expires)
        rows = [self._row(old, reason), self._row(made, reason)]
        await self._change(rows, act=rotated_act(self._by, old, made, reason))
        return Issued(made, text, old)

    async def revoke(self, ids: Sequence[str], reason: str = "") -> Sequence[ApiKey]:
        """Revoke keys; none if one does not exist. Raises UnknownKey."""
        revoked: list[ApiKey] = []
        for found in await self._found(ids):
            key = revoked_key(found.key, present_second())
            if found.key.revoked is None:
                act = revoked_act(self._by, key, reason)
                await self._change([self._row(key, reason)], [(IN_FORCE, key.id)], act)
            revoked.append(key)
        return revoked

    def _row(self, key: ApiKey, reason: str) -> Control:
        return row_of(key, self._secret, reason)

    async def _change(
        self, put: Sequence[Control], remove: Sequence[tuple[str, str]] = (), act: Act | None = None
    ) -> None:
        for row in put:
            if len(row.value) > LONGEST_VALUE:
                raise WrongKey(
                    "profiles", f"must be shorter: a key of the store may have {LONGEST_VALUE} characters in all"
                )
        await self._controls.change(put, remove, act)

    async def _kept(self) -> list[KeptKey]:
        found = await self._controls.watch(-1)
        return [] if found is None else keys_of(found.rows, self._secret)

    async def _found(self, ids: Sequence[str]) -> list[KeptKey]:
        kept = {each.key.id: each for each in await self._kept()}
        for id in ids:
            if id not in kept:
                raise UnknownKey(id)
        return [kept[id] for id in dict.fromkeys(ids)]


KeyIssuer = FileIssuer | StoreIssuer


def created_act(by: str, key: ApiKey, reason: str) -> Act:
    """Return the act of making a key. It names the caller as `chat-nest usage` does."""
    details = [f"caller {hashed(key.caller_id)}", f"scopes {' '.join(key.scopes)}"]
    details += [f"profiles {' '.join(key.profiles)}"] if key.profiles else []
    details += [f"{name} {value}" for name, value in key.limits.items()]
    details += [f"expires {key.expires:%Y-%m-%dT%H:%MZ}"] if key.expires else []
    return Act(by=by, act="create_key", target=key.id, reason=reason, detail=", ".join(details)[:500])


def rotated_act(by: str, old: ApiKey, new: ApiKey, reason: str) -> Act:
    """Return the act of replacing a key."""
    detail = f"to {new.id}" if old.expires is None else f"to {new.id}, ends {old.expires:%Y-%m-%dT%H:%MZ}"
    return Act(by=by, act="rotate_key", target=old.id, reason=reason, detail=detail)


def revoked_act(by: str, key: ApiKey, reason: str) -> Act:
    """Return the act of revoking a key."""
    return Act(by=by, act="revoke_key", target=key.id, reason=reason, detail=f"caller {hashed(key.caller_id)}")


def _words(act: Act) -> tuple[str, str, str]:
    return act.act, act.target, act.by
