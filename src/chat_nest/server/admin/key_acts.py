"""The API keys of callers, for operators: list, create, rotate and revoke them. A key itself is shown once."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TypeVar

from chat_nest.core.errors import ChatError, Forbidden, NotFound
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import HasControls
from chat_nest.identity.api_key import CHAT, ApiKey, NotRotatable, Rights, UnknownKey, WrongKey, present_second
from chat_nest.identity.key_issuers import Issued, KeyIssuer
from chat_nest.limits.counters import MONEY
from chat_nest.server.admin.routes import AdminRequest, Field, Reply, json
from chat_nest.server.issuing import check_rights, described, issuer_of, moment_of, overlap_of
from chat_nest.server.operator import Rejected

Result = TypeVar("Result")

EXPIRES = Field(
    "expires", "when it ends: 90d, 24h, a date (its last second counts) or a date and time; without it never"
)
FIELDS = (
    Field("caller", "the name of its holder; all keys of a caller share the caller's limits"),
    Field("group", "the caller's group, which shares limits"),
    Field("name", "a note to tell the caller's keys apart"),
    Field("scopes", "what it may do: chat, sessions or admin; without it chat", "array"),
    Field("profiles", "the profiles that it may choose, also closed ones; without it the open ones", "array"),
    Field("limits", "the key's own limits, such as tokens_per_day or usd_per_month", "object"),
    EXPIRES,
)
OVERLAP = Field("overlap", "for how long the old key stays valid: 0h, 30m, 24h, 7d; without it 24h")
DEFAULT_OVERLAP = "24h"
NO_KEYS = 'The server has no API keys: set keys = "store", or keys_file, in [identity]'
NO_KEY = "There is no key with this id"


class KeysUnavailable(ChatError):
    """The file of keys can't be read or written, or its keys have another secret."""

    code, status, text = "keys_unavailable", 503, "The keys can't be changed here"


class KeyConflict(ChatError):
    """The key can't be replaced in its state."""

    code, status, text = "not_rotatable", 409, "The key can't be rotated"


async def keys(asked: AdminRequest) -> Reply:
    """Return every key, the oldest first, without the keys themselves."""
    issuer = _issuer(asked)
    found = () if issuer is None else await _tried(_all(issuer))
    now = present_second()
    section = asked.app.config.identity.section
    kept_in = section.keys or ("file" if section.keys_file else None)
    return Reply(json({"kept_in": kept_in, "keys": [described(key, now) for key in found]}))


async def create(asked: AdminRequest) -> Reply:
    """Make a key. The answer shows it, this once."""
    issuer = _needed(asked)
    rights = Rights(
        caller=asked.text("caller"),
        group=asked.fields.get("group"),
        name=asked.text("name"),
        scopes=asked.fields.get("scopes", (CHAT,)),
        profiles=asked.fields.get("profiles", ()),
        limits=asked.fields.get("limits", {}),
        expires=moment_of(asked.text("expires"), present_second()) if "expires" in asked.fields else None,
    )
    if not rights.caller:
        raise Rejected("caller", "is missing: name the holder of the key")
    _check(asked, rights)
    return _issued(await _tried(issuer.create(rights, asked.text("reason"))))


async def rotate(asked: AdminRequest) -> Reply:
    """Replace a key by one with the same rights and counters. The answer shows it, this once."""
    issuer = _needed(asked)
    overlap = overlap_of(asked.text("overlap") or DEFAULT_OVERLAP)
    expires = moment_of(asked.text("expires"), present_second()) if "expires" in asked.fields else None
    return _issued(await _tried(issuer.rotate(asked.id, overlap, expires, asked.text("reason"))))


async def revoke(asked: AdminRequest) -> Reply:
    """Revoke a key. Running answers go on to their end."""
    [key] = await _tried(_needed(asked).revoke([asked.id], asked.text("reason")))
    return Reply(json(described(key, present_second())))


def _issued(issued: Issued) -> Reply:
    now = present_second()
    old = {} if issued.replaces is None else {"replaces": described(issued.replaces, now)}
    return Reply(json({**described(issued.key, now), **old, "key": issued.text}), 201)


def _issuer(asked: AdminRequest) -> KeyIssuer | None:
    store = asked.app.handler.store
    controls = store.controls if isinstance(store, HasControls) else None
    return issuer_of(asked.app.config.identity, controls, by=asked.by)


def _needed(asked: AdminRequest) -> KeyIssuer:
    issuer = _issuer(asked)
    if issuer is None:
        raise NotFound(NO_KEYS)
    return issuer


def _check(asked: AdminRequest, rights: Rights) -> None:
    """Raise Rejected for profiles, groups and limits that this configuration can't honour."""
    config = asked.app.config
    check_rights(rights, config.profiles, config.groups)
    money = [name for name in MONEY if rights.limits.get(name) is not None]
    rules = config.rules()
    try:
        offered = rules.offered(Caller(id="", profiles=tuple(rights.profiles) or None))
    except Forbidden:  # no profile is open: a key for sessions needs none
        return
    if money and (unpriced := rules.unpriced(offered)):
        raise Rejected(f"limits.{money[0]}", f"needs the price of each model: that of {unpriced[0]} is not known")


async def _all(issuer: KeyIssuer) -> Sequence[ApiKey]:
    try:
        return await issuer.keys()
    except FileNotFoundError:  # the first key makes the file
        return ()


async def _tried(work: Awaitable[Result]) -> Result:
    """Return what the issuer returns, and raise its errors as an answer."""
    try:
        return await work
    except UnknownKey:
        raise NotFound(NO_KEY) from None
    except NotRotatable as error:
        raise KeyConflict(f"The key can't be rotated: {error}") from None
    except WrongKey as error:
        raise Rejected(error.field, error.rule) from None
    except OSError as error:
        said = f"The file of keys can't be used: {error.strerror}: `chat-nest keys`, as its owner, can change it"
        raise KeysUnavailable(said) from None
    except ValueError as error:
        raise KeysUnavailable(f"The keys can't be used: {error}") from None
