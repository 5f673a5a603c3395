"""Make and revoke sessions over HTTP, for the app's own backend: POST /api/sessions, DELETE /api/sessions/ID."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from msgspec import Struct

from chat_nest.asgi.request import Receive, query_fields, read_json_body
from chat_nest.core.errors import BadRequest, Forbidden, InvalidSession, NotFound
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Answer, Scope
from chat_nest.dialects.strict_json import parse_object
from chat_nest.identity.bearer import FOLLOWS, has_credential
from chat_nest.identity.session_fields import BadField
from chat_nest.identity.session_token import READ, Grant
from chat_nest.identity.sessions import Sessions
from chat_nest.limits.profiles import Profiles
from chat_nest.pipeline.callers import Callers

SESSION_PATHS = ("/api/sessions", "/sessions")
MAX_BYTES = 16_384
QUERY = "session"
"""The query's field for a read token: an EventSource sends no headers."""

_json = msgspec.json.Encoder().encode


class AskedSession(Struct, frozen=True):
    """The sessions, or the one with this id."""

    id: str = ""

    @property
    def methods(self) -> str:
        return "DELETE, OPTIONS" if self.id else "POST, OPTIONS"


def asked_session(path: str) -> AskedSession | None:
    """Return what a path names; `path` is as `relative_path` returns it."""
    if path in SESSION_PATHS:
        return AskedSession()
    above, _, id = path.rpartition("/")
    return AskedSession(id) if above in SESSION_PATHS and id else None


class SessionRoutes:
    """Serves the routes of sessions. `operators` of the Sessions identifies who may use them."""

    def __init__(self, sessions: Sessions, callers: Callers, rules: Profiles) -> None:
        self._sessions = sessions
        self._callers = callers
        self._rules = rules

    async def serve(self, asked: AskedSession, scope: Scope, receive: Receive) -> Answer:
        """Make or revoke a session. Raises NotFound if nobody may do it here, or there can't be such a session.

        Raises BadRequest for a field, Forbidden for another group, and LimiterUnavailable if the store does not answer.
        """
        operator = await self._operator(scope)
        if not asked.id:
            return await self._mint(operator, scope, receive)
        try:
            await self._sessions.revoke(asked.id, by=operator.id)
        except ValueError:
            raise NotFound("There is no session with this id") from None
        return Answer(status=204, body=b"")

    async def _mint(self, operator: Caller, scope: Scope, receive: Receive) -> Answer:
        asked = parse_object(await read_json_body(scope, receive, MAX_BYTES))
        try:
            granted = _of_profiles(_of_group(asked, operator), operator, self._rules)
            session = self._sessions.mint(granted, operator)
        except BadField as error:
            raise BadRequest(error.rule, field=error.field) from None
        body = {
            "token": session.token,
            "read_token": session.read_token,
            "expires_at": session.expires_at,
            "session": session.id,
        }
        return Answer(status=201, body=_json(body))

    async def _operator(self, scope: Scope) -> Caller:
        if self._sessions.operators is None:
            raise NotFound("Sessions can't be made here: the server has no keys of the scope sessions")
        return await self._callers.identify(scope, self._sessions.operators)


def _of_group(asked: Mapping[str, Any], operator: Caller) -> Mapping[str, Any]:
    """Return the fields, in the operator's group if it has one: its key is for that tenant only."""
    if operator.group is None:
        return asked
    if asked.get("group") not in (None, operator.group):
        raise Forbidden("This key may only make sessions of its group")
    return {**asked, "group": operator.group}


def _of_profiles(asked: Mapping[str, Any], operator: Caller, rules: Profiles) -> Mapping[str, Any]:
    """Return the fields, with the operator's profiles if it has some: its key can't give more than it has.

    `rules` tell what a name stands for, as they will for the session: an old name may be another profile's here.
    """
    if operator.profiles is None:
        return asked
    listed = asked.get("profiles")
    named = [asked.get("profile"), *(cast("list[object]", listed) if isinstance(listed, list) else ())]
    given = [name for name in named if isinstance(name, str)]
    own = rules.offered(operator)
    try:
        permitted = all(rules.named(name) in own for name in given)
    except ValueError:
        permitted = False
    if not permitted:
        raise Forbidden("This key may only make sessions with its profiles")
    return asked if given else {**asked, "profiles": operator.profiles}


def check_grant(grant: Grant, rules: Profiles) -> None:
    """Raise BadField if no request of such a session could be admitted."""
    names = ", ".join(profile.name for profile in rules.all)
    own = Caller(id="", profile=grant.profile, profiles=grant.profiles)
    try:
        offered = rules.offered(own)
    except Forbidden:
        field = "profiles" if grant.profiles is not None else "profile"
        raise BadField(field, f"must name profiles of this server: {names}") from None
    try:
        rules.group_of(Caller(id="", group=grant.group))
    except Forbidden:
        raise BadField("group", "must have limits here: see [groups.NAME] and [groups.default]") from None
    if grant.usd is not None and (unpriced := rules.unpriced(offered)):
        raise BadField("limits.usd", f"needs the price of each model: that of {unpriced[0]} is not known")


def follows(scope: Scope) -> Scope:
    """Return the scope of a request that only follows a run, with the read token of its query as its credential.

    Raises InvalidSession for another token in the query: URLs end up in logs.
    """
    token = query_fields(scope).get(QUERY, "")
    marked: Scope = {**scope, FOLLOWS: True}
    if not token or has_credential(scope):
        return marked
    if not token.startswith(READ):
        raise InvalidSession("Only a session's read_token may be in a URL: send its token in a header")
    marked["headers"] = [*scope["headers"], (b"authorization", b"Bearer " + token.encode("latin-1", "replace"))]
    return marked
