"""An API key of this server: its holder and rights, and how one is made, replaced and revoked.

A key is 160 random bits, so its hash needs no slow function: those protect passwords that can be guessed. The hash is
keyed (HMAC-SHA-256, RFC 2104) with a secret that is not kept with the hashes: write access to them is not enough to
make a key.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from secrets import token_bytes, token_hex
from typing import Annotated, Any, Final, cast

from msgspec import Meta, Struct
from msgspec.structs import replace

from chat_nest.core.limits import NO_LIMIT, Limits, Share
from chat_nest.core.messages import Caller
from chat_nest.limits.counters import RANGES

PREFIX = "cn_"
KEY = re.compile(r"cn_[a-z2-7]{32}", re.ASCII)
ID = re.compile(r"[0-9a-z_-]{1,64}", re.ASCII)
MIN_SECRET = 32
"""Bytes."""

CHAT, SESSIONS, ADMIN = "chat", "sessions", "admin"
SCOPES = (CHAT, SESSIONS, ADMIN)
"""What a key may do: chat, make session tokens for others, or operate the server. The last one stands alone."""
MAX_PROFILES: Final = 50
MAX_OVERLAP = timedelta(days=30)
"""The longest time for which a replaced key stays valid."""

_Moment = Annotated[datetime, Meta(tz=True)]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Id = Annotated[str, Meta(pattern="^[0-9a-z_-]{1,64}$")]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class WrongKey(ValueError):
    """A field of a key breaks its rule: `rule` completes "FIELD ..."."""

    def __init__(self, field: str, rule: str) -> None:
        self.field, self.rule = field, rule
        super().__init__(f"{field} {rule}")


class UnknownKey(Exception):
    """There is no key with this id."""


class NotRotatable(Exception):
    """The key can't be replaced: the message is the reason."""


class Rights(Struct, frozen=True, kw_only=True):
    """What a new key is for. Nothing but `caller` is required. `name` describes its purpose for people.

    `profiles` are those that it may choose, also closed ones; the first is its default. Without any it may choose the
    open ones. `limits` are of the key alone, by the names of `Limits`.
    """

    caller: str
    group: str | None = None
    name: str = ""
    scopes: Sequence[str] = (CHAT,)
    profiles: Sequence[str] = ()
    limits: Mapping[str, float] = {}
    expires: datetime | None = None


class ApiKey(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key, as it is kept: see Rights. `hash` is of the key, in hex."""

    id: _Id
    caller: _Name
    group: _Name | None = None
    name: Annotated[str, Meta(max_length=256)] = ""
    scopes: tuple[Annotated[str, Meta(pattern="^[a-z_]{1,32}$")], ...] = (CHAT,)
    """Some of SCOPES."""
    profiles: Annotated[tuple[_Name, ...], Meta(max_length=MAX_PROFILES)] = ()
    limits: dict[str, int | float] = {}
    hash: Hash
    created: _Moment
    expires: _Moment | None = None
    revoked: _Moment | None = None
    counts_as: _Id | None = None
    """The id of the key whose counters this one goes on with; its own if None."""
    rotated_to: _Id | None = None
    """The id of the key that replaces this one. Then `expires` is the end of the overlap."""

    def __repr__(self) -> str:
        """Return its id, without its caller or hash."""
        return f"ApiKey(id={self.id!r})"

    @property
    def caller_id(self) -> str:
        """The id as in `Caller.id`: never equal to that of a proxy's user or of an IP address."""
        return f"key:{self.caller}"

    @property
    def share(self) -> Share | None:
        """The key's own limits, under the id of its counters; None without any."""
        if not self.limits:
            return None
        return Share(scope="key", id=self.counts_as or self.id, limits=as_limits(self.limits))

    @property
    def holder(self) -> Caller:
        """Return the caller that the key identifies."""
        share = self.share
        return Caller(
            id=self.caller_id,
            group=self.group,
            profiles=self.profiles or None,
            shares=() if share is None else (share,),
            api_key=self.id,
        )

    def state(self, now: datetime) -> str:
        """`valid`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


def make_key(secret: bytes, rights: Rights, now: datetime) -> tuple[ApiKey, str]:
    """Return a new key as it is kept, and the key itself, which nothing else holds. Raises WrongKey."""
    text = PREFIX + b32encode(token_bytes(20)).decode("ascii").lower()
    made = ApiKey(
        id=token_hex(6),
        caller=rights.caller,
        group=rights.group,
        name=rights.name,
        scopes=tuple(dict.fromkeys(rights.scopes)),
        profiles=tuple(dict.fromkeys(rights.profiles)),
        limits=checked_limits(rights.limits),
        hash=key_hash(secret, text).hex(),
        created=now,
        expires=rights.expires,
    )
    check_key(made)
    return made, text


def rotate_key(
    secret: bytes, old: ApiKey, overlap: timedelta, now: datetime, expires: datetime | None = None
) -> tuple[ApiKey, ApiKey, str]:
    """Return the old key, which ends after the overlap, and a new one with the same rights and counters, and its text.

    The new one ends when the old one would have, or at `expires`. Raises NotRotatable for a key that is not valid, or
    has a successor.
    """
    if old.rotated_to is not None:
        raise NotRotatable(f"it was replaced by {old.rotated_to}: rotate that one")
    if (state := old.state(now)) != "valid":
        raise NotRotatable(f"it is {state}: create another one")
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise WrongKey("overlap", f"must be at most {MAX_OVERLAP.days} days")
    rights = Rights(
        caller=old.caller,
        group=old.group,
        name=old.name,
        scopes=old.scopes,
        profiles=old.profiles,
        limits=old.limits,
        expires=old.expires if expires is None else expires,
    )
    made, text = make_key(secret, rights, now)
    made = replace(made, counts_as=old.counts_as or old.id)
    end = now + overlap
    ending = replace(old, expires=end if old.expires is None else min(end, old.expires), rotated_to=made.id)
    return ending, made, text


def revoked_key(key: ApiKey, now: datetime) -> ApiKey:
    """Return the key, revoked now unless it was before."""
    return replace(key, revoked=key.revoked or now)


def check_key(key: ApiKey) -> None:
    """Raise WrongKey for what the types of ApiKey don't rule out."""
    names = [("caller", key.caller), ("group", "-" if key.group is None else key.group), ("name", key.name or "-")]
    names += [(f"profiles[{index}]", name) for index, name in enumerate(key.profiles)]
    for field, name in names:
        if not is_name(name):
            raise WrongKey(field, "must be 1 to 256 printable characters")
    if not key.scopes or not set(key.scopes) <= set(SCOPES):
        raise WrongKey("scopes", f"must be some of {', '.join(SCOPES)}")
    if ADMIN in key.scopes and key.scopes != (ADMIN,):
        raise WrongKey("scopes", "must not have admin beside another one: make two keys")
    if len(key.profiles) > MAX_PROFILES:
        raise WrongKey("profiles", f"must be at most {MAX_PROFILES} names")
    if key.scopes == (ADMIN,) and (key.profiles or key.limits or key.group is not None):
        raise WrongKey("scopes", "is admin: such a key can't chat, and has no group, profiles or limits")
    checked_limits(key.limits)


def checked_limits(limits: object) -> dict[str, int | float]:
    """Return the limits of a key or a token that are not "none". Raises WrongKey, which names the limit and the rule.

    They have the names and numbers of `Limits`: tokens_per_day, usd_per_month, concurrent_streams and so on.
    """
    ranges = RANGES[Limits]
    if not isinstance(limits, Mapping):
        raise WrongKey("limits", 'must be an object, such as {"tokens_per_day": 50000}')
    found: dict[str, int | float] = {}
    for name, value in cast("Mapping[object, Any]", limits).items():
        known = ranges.get(name) if isinstance(name, str) else None
        if known is None:
            raise WrongKey("limits", f"must have no other names than {', '.join(ranges)}")
        if value is None or value == NO_LIMIT:
            continue
        if not known.holds(value):
            raise WrongKey(f"limits.{name}", f"must be {known.rule}")
        found[str(name)] = value
    return found


def as_limits(checked: Mapping[str, float]) -> Limits:
    """Return what `checked_limits` returned as Limits."""
    return Limits(**cast("dict[str, Any]", checked))


def checked_secret(secret: str | bytes) -> bytes:
    """Return the secret as bytes. Raises ValueError for one that could be guessed."""
    secret = secret.encode() if isinstance(secret, str) else secret
    if len(secret) < MIN_SECRET:
        raise ValueError(f"the secret must have at least {MIN_SECRET} bytes, and be random")
    return secret


def key_hash(secret: bytes, key: str) -> bytes:
    """32 bytes."""
    return hmac.digest(secret, key.encode("ascii"), "sha256")


def secret_hash(secret: bytes) -> str:
    """Return the mark of a secret that is kept with the keys it made."""
    return key_hash(secret, "chat-nest api keys").hex()  # not a key: those begin otherwise


def is_name(text: str) -> bool:
    """Return whether it can be the name of a caller or a group, in every store."""
    return 0 < len(text) <= 256 and text.isprintable()


def present_second() -> datetime:
    """Return the time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
