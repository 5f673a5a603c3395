"""Limits of one conversation: `tokens_per_conversation` and `turns_per_conversation` of a profile.

The caller's session identifies a conversation, or else the id in the request (the format's own, or the header
X-Conversation-Id). Ids are separate for each caller: a client that sends another caller's id starts a new conversation.
All requests of a caller without an id are one conversation, so a client gains nothing by leaving the id out.

A conversation's counters are kept until KEEP_SECONDS after its last admitted request.
"""

from __future__ import annotations

import re

from msgspec.structs import replace

from chat_nest.core import header_fields
from chat_nest.core.errors import BadRequest, RateLimited
from chat_nest.core.limits import Share, Totals
from chat_nest.core.messages import Caller, ChatRequest
from chat_nest.core.protocols import Scope
from chat_nest.limits.spec import Profile

KEEP_SECONDS = 30 * 86_400.0
HEADER = "X-Conversation-Id"
_ID = re.compile(rb"[!-~]{1,256}")
TOO_MANY_TURNS = "This conversation has as many questions as it may have. Begin a new chat."


def in_conversation(caller: Caller, request: ChatRequest, profile: Profile, scope: Scope, now: float) -> Caller:
    """Return the caller with a share of its conversation's limits, if the profile has such limits.

    `now` is Unix time. Raises BadRequest for a header that is no id, and RateLimited for a history with more questions
    than `turns_per_conversation`, under whichever id it comes.
    """
    tokens, turns = profile.tokens_per_conversation, profile.turns_per_conversation
    if tokens is None and turns is None:
        return caller
    if turns is not None and sum(message.role == "user" for message in request.messages) > turns:
        error = RateLimited(TOO_MANY_TURNS, limit="turns_per_conversation")
        error.scope, error.unit = "conversation", "requests"
        raise error
    given = next((share for share in caller.shares if share.scope == "conversation"), None)
    if given is None:
        chat = request.chat_id or _of_header(scope)
        given = Share(scope="conversation", id=f"{caller.counter_key} {chat}")
    totals = given.totals
    own = replace(
        given,
        totals=Totals(requests=_least(totals.requests, turns), tokens=_least(totals.tokens, tokens), usd=totals.usd),
        ends_at=max(given.ends_at, now + KEEP_SECONDS),
    )
    others = tuple(share for share in caller.shares if share is not given)
    return replace(caller, shares=(*others, own))


def _of_header(scope: Scope) -> str:
    found = header_fields.values(scope, HEADER.lower().encode())
    if not found:
        return ""
    if len(found) > 1 or not _ID.fullmatch(found[0]):
        raise BadRequest("must be one id of 1 to 256 visible ASCII characters", field=HEADER)
    return found[0].decode("ascii")


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
