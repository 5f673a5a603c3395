"""The decision on a request before anything is reserved for it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.core.claims import Claim, Line
from chat_nest.core.messages import Caller, ChatRequest
from chat_nest.core.protocols import Dialect, Encoder, Scope
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.limits.spec import Profile


class Arrival(Struct, frozen=True, kw_only=True):
    """An incoming request without its body. `key` is its Idempotency-Key, `name` its dialect's name."""

    id: str
    dialect: Dialect
    name: str = ""
    scope: Scope
    key: str | None = None


class Dropped(Struct, frozen=True, kw_only=True):
    """The number of oldest messages that are left out, and of images and files that are replaced by a short text."""

    messages: int = 0
    images: int = 0


class Admission(Struct, frozen=True, kw_only=True):
    """The caller, its profile, and what to reserve."""

    run: str
    caller: Caller
    profile: Profile
    claim: Claim
    """The limits that the request draws on, and the record that is kept if its process dies."""
    encoder: Encoder
    started_at: float
    """Unix time."""
    names: tuple[str, ...] = ()
    """Other names of the request's log."""
    keep: bool = True
    """Whether its answer may be kept for readers that reconnect."""
    dropped: Dropped = Dropped()


def admission_of(
    arrival: Arrival,
    body: bytes,
    caller: Caller,
    request: ChatRequest,
    profile: Profile,
    lines: Sequence[Line],
    input_tokens: int,
    dropped: Dropped,
    now: float,
) -> Admission:
    """Return what to reserve for a request that may be answered. `now` is Unix time."""
    id, key, dialect = arrival.id, arrival.key, arrival.dialect
    claim = Claim(
        id=id if key is None else _keyed_id(caller, key),
        fingerprint=id if key is None else _fingerprint(dialect, body),  # only with a key can another body have this id
        owner=id,
        lines=tuple(lines),
        max_output_tokens=profile.max_output_tokens,
        min_output_tokens=min(profile.min_output_tokens, profile.max_output_tokens),
        record=_record_if_lost(id, caller, profile, input_tokens, now),
    )
    by_key = () if key is None else (claim.id,)
    by_chat = (chat_name(caller, request.chat_id),) if request.chat_id else ()
    return Admission(
        run=id,
        caller=caller,
        profile=profile,
        claim=claim,
        encoder=dialect.encoder(_granted(request, profile), id),
        started_at=now,
        names=by_key + by_chat,
        keep=request.keep,
        dropped=dropped,
    )


def _record_if_lost(id: str, caller: Caller, profile: Profile, input_tokens: int, now: float) -> Record:
    """Return the record that is kept if the process dies: the whole hold was spent."""
    return Record(
        run=id,
        caller=caller.key,
        group=caller.group or "",
        profile=profile.name,
        model=profile.model,
        started_at=now,
        usage=Usage(input_tokens=input_tokens, output_tokens=profile.max_output_tokens),
    )


def chat_name(caller: Caller, chat_id: str) -> str:
    """Return the name of the newest run of a caller's chat, for the client's own id of the chat."""
    return "chat:" + blake2b(f"{caller.key} {chat_id}".encode(), digest_size=16).hexdigest()


def _keyed_id(caller: Caller, key: str) -> str:
    """Return the id of a request with an Idempotency-Key. Equal keys of two callers give two ids.

    For a visitor's first request it is the IP address that counts: it may come again with its new cookie or without.
    """
    return "key:" + blake2b(f"{caller.repeat_key} {key}".encode(), digest_size=16).hexdigest()


def _fingerprint(dialect: Dialect, body: bytes) -> str:
    """Hash the dialect and the body: the same body at the path of another dialect is another request."""
    path = blake2b(dialect.routes[0].path.encode(), digest_size=16).digest()
    return blake2b(body, digest_size=16, person=path).hexdigest()


def _granted(request: ChatRequest, profile: Profile) -> ChatRequest:
    """Return the request with the settings that its caller was granted, for formats that report them."""
    return replace(request, temperature=profile.temperature, max_output_tokens=profile.max_output_tokens)
