"""Session tokens: the app's own backend mints one for a user, and the user's browser chats with it."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from secrets import token_hex
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from chat_nest.controls.gate import KEY_REVOKED
from chat_nest.controls.live import LiveControls
from chat_nest.core import header_fields
from chat_nest.core.controls import Act, Control
from chat_nest.core.errors import InvalidSession, OriginNotAllowed, SessionExpired, SessionRevoked
from chat_nest.core.limits import Limits, Share, Totals
from chat_nest.core.messages import Caller, hashed
from chat_nest.core.origins import is_same_host
from chat_nest.core.protocols import Identify, Now, Scope
from chat_nest.identity.api_key import as_limits
from chat_nest.identity.bearer import FOLLOWS, credential
from chat_nest.identity.session_fields import MAX_SECONDS, BadField, checked
from chat_nest.identity.session_token import CHAT, LONGEST, READ, Grant, Signer

EXPIRES_IN = 600
"""Seconds."""
KNOWN_TOKENS = 1_024
"""The number of verified tokens that are remembered: at most 10 MB."""

REVOKED = "session"
"""The kind of the controls that revoke sessions."""
_ID = re.compile(r"s_[0-9a-f]{24}", re.ASCII)

ELSEWHERE = "This session may not be used from here: it was made for other pages"
ONLY_READS = "This token may only follow answers: send the session's own token in a header"


class Session(Struct, frozen=True, kw_only=True):
    """A minted session. `read_token` may only follow its caller's runs, so it may stand in a URL."""

    token: str
    read_token: str
    expires_at: int
    """Unix seconds."""
    id: str

    def __repr__(self) -> str:
        """Return its id, never its tokens."""
        return f"Session(id={self.id!r}, expires_at={self.expires_at})"


class Sessions:
    """Mints session tokens, and identifies the callers that present one.

    `secrets` have at least 32 random bytes each. The first signs, all are accepted, so that one can replace another
    without a refused token. A token lives for `expires_in` seconds unless `create` gets another time. `operators`
    identifies who may mint over HTTP, at `POST /api/sessions`; without it only `create` mints. The caller's id is
    `prefix` and the name of `create`: with `prefix=""` a session shares the limits of a Caller with the same id. Raises
    ValueError for a secret that is missing or could be guessed, and for a lifetime of more than a day.
    """

    def __init__(
        self,
        secrets: Sequence[str | bytes],
        *,
        operators: Identify | None = None,
        expires_in: int = EXPIRES_IN,
        prefix: str = "session:",
        now: Now = time.time,
    ) -> None:
        if isinstance(secrets, str | bytes):
            secrets = (secrets,)
        self._signer = Signer(secrets)
        if not 1 <= expires_in <= MAX_SECONDS:
            raise ValueError(f"expires_in must be a number of seconds from 1 to {MAX_SECONDS}")
        self.operators = operators
        self._expires_in = expires_in
        self._prefix = prefix
        self._now = now
        self._read = lru_cache(KNOWN_TOKENS)(self._verify)
        self._check: Callable[[Grant], None] | None = None
        self._controls: LiveControls | None = None

    def bind(self, check: Callable[[Grant], None], controls: LiveControls) -> None:
        """Connect it to a chat. `check` raises BadField for a grant that the chat can't honour."""
        self._check, self._controls = check, controls

    def create(
        self,
        *,
        caller: str,
        group: str | None = None,
        profile: str | None = None,
        profiles: Sequence[str] | None = None,
        expires_in: int | None = None,
        origins: Sequence[str] = (),
        limits: Mapping[str, float] | None = None,
        conversation: str | None = None,
    ) -> Session:
        """Mint a session for a user of yours. Everything but `caller` is optional, and can only lower what it may do.

        `profile` is its ceiling, or `profiles` are those that it may choose. `limits` hold until the session ends:
        `usd`, `tokens`, `requests` and `concurrent_streams`. Pages of `origins` only may use it. `conversation` is the
        one that it belongs to. `expires_in` is in seconds, at most a day. Raises ValueError, which names the field.
        """
        asked = {
            "caller": caller,
            "group": group,
            "profile": profile,
            "profiles": profiles,
            "expires_in": expires_in,
            "origins": list(origins),
            "limits": limits,
            "conversation": conversation,
        }
        return self.mint(asked)

    def mint(self, asked: Mapping[str, Any], operator: Caller | None = None) -> Session:
        """Mint a session from the fields of `create`, as they are in JSON. Raises BadField.

        `operator` asks for it with an API key: the session draws on the key's limits, too, and ends if it is revoked.
        """
        fields = checked(asked, self._expires_in)
        if operator is not None and operator.api_key is not None:
            fields["made_by"] = operator.api_key
        for share in () if operator is None else operator.shares:
            if share.scope == "key":
                limits = {name: each for name, each in asdict(share.limits).items() if each is not None}
                fields |= {"key": share.id, "key_limits": limits}
        created = int(self._now())
        expires = created + fields.pop("expires_in")
        grant = Grant(id=f"s_{token_hex(12)}", created=created, expires=expires, **fields)
        if self._check is not None:
            self._check(grant)
        token = self._signer.sign(CHAT, grant)
        if len(token) > LONGEST:
            raise BadField("body", f"must be shorter: its token would have more than {LONGEST} characters")
        return Session(token=token, read_token=self._signer.sign(READ, grant), expires_at=expires, id=grant.id)

    async def revoke(self, id: str, *, by: str = "", reason: str = "") -> None:
        """Refuse a session from now on, and end its running answers, in every worker within a second.

        `by` and `reason` go into the trail of operators' acts. Raises ValueError for what can't be the id of a session,
        RuntimeError before it is part of a chat, and LimiterUnavailable if the store does not answer.
        """
        if self._controls is None:
            raise RuntimeError("these sessions belong to no chat: pass them to create_chat_handler first")
        put, act = revocation(id, self._now(), by, reason)
        await self._controls.change(put=[put], act=act)

    def is_revoked(self, id: str, made_by: str | None = None) -> bool:
        """Return whether a session, or the API key that made it, was revoked, as far as this process knows."""
        controls = self._controls
        if controls is None:
            return False
        if controls.get(REVOKED, id) is not None:
            return True
        return made_by is not None and controls.get(KEY_REVOKED, made_by) is not None

    def claims(self, credential: str) -> bool:
        """Return whether a credential begins like a session token."""
        return credential.startswith((CHAT, READ))

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]:
        if self._controls is None or self._controls.known:
            return self._identified(scope)
        return self._late(scope, self._controls)

    async def check(self) -> None:
        """Raise LimiterUnavailable while it is not known which sessions are revoked."""
        if self._controls is not None:
            await self._controls.ready()

    async def _late(self, scope: Scope, controls: LiveControls) -> Caller:
        await controls.ready()
        return self._identified(scope)

    def _identified(self, scope: Scope) -> Caller:
        token = credential(scope, LONGEST)
        if token.startswith(READ):
            if not scope.get(FOLLOWS):
                raise InvalidSession(ONLY_READS)
        elif not token.startswith(CHAT):
            raise InvalidSession
        grant, caller = self._read(token)
        if self._now() >= grant.expires:
            raise SessionExpired
        if self.is_revoked(grant.id, grant.made_by):
            raise SessionRevoked
        if grant.origins:
            _check_origin(scope, grant.origins)
        return caller

    def _verify(self, token: str) -> tuple[Grant, Caller]:
        """Return what a token grants, expired or not. Raises InvalidSession."""
        grant = self._signer.grant(token)
        id = f"{self._prefix}{grant.caller}"
        limits = _streams(grant.concurrent_streams)
        totals = Totals(requests=grant.requests, tokens=grant.tokens, usd=grant.usd)
        shares = [Share(scope="session", id=grant.id, limits=limits, totals=totals, ends_at=grant.expires)]
        if grant.key is not None:
            shares.append(Share(scope="key", id=grant.key, limits=as_limits(grant.key_limits)))
        if grant.conversation is not None:
            shares.append(Share(scope="conversation", id=f"{hashed(id)} {grant.conversation}"))
        return grant, Caller(
            id=id,
            profile=grant.profile,
            group=grant.group,
            profiles=grant.profiles,
            shares=tuple(shares),
            api_key=grant.made_by,
        )


@lru_cache(KNOWN_TOKENS)
def _streams(most: int | None) -> Limits:
    """Return the limits of a session, the same ones for many of them."""
    return Limits(concurrent_streams=most)


def revocation(id: str, now: float, by: str, reason: str) -> tuple[Control, Act]:
    """Return the row that revokes a session, until its token has certainly expired, and the operator's act.

    `now` is Unix time. Raises ValueError for what can't be the id of a session.
    """
    if not _ID.fullmatch(id):
        raise ValueError("the id of a session is s_ and 24 hex digits, as in the answer that made it")
    row = Control(kind=REVOKED, name=id, reason=reason, expires=now + MAX_SECONDS)
    return row, Act(by=by, act="revoke_session", target=id, reason=reason)


def _check_origin(scope: Scope, allowed: Sequence[str]) -> None:
    """Raise OriginNotAllowed unless a page of one of these origins sent the request.

    A GET from a page of this server has no Origin; then Host and Sec-Fetch-Site show that it is one of them.
    """
    origins = header_fields.values(scope, b"origin")
    if origins:
        if all(origin.lower().decode("latin-1") in allowed for origin in origins):
            return
    elif header_fields.value(scope, b"sec-fetch-site") == b"same-origin":
        host = header_fields.value(scope, b"host") or b""
        if any(is_same_host(each.encode(), host) for each in allowed):
            return
    raise OriginNotAllowed(ELSEWHERE)


def session_of(caller: Caller) -> str:
    """Return the id of the caller's session; an empty string if it has none."""
    return next((share.id for share in caller.shares if share.scope == "session"), "")
