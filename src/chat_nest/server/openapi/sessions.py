"""Session tokens in the OpenAPI document: the requests that make one, and its answers."""

from __future__ import annotations

from collections.abc import Sequence

from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.errors import (
    BadRequest,
    BodyTooLarge,
    ChatError,
    Forbidden,
    InvalidSession,
    LimiterUnavailable,
    NotFound,
    SessionExpired,
    SessionRevoked,
    UnsupportedMediaType,
)
from chat_nest.dialects.schemas import COUNT, STRING, Schema, array, described, table, whole
from chat_nest.identity.session_fields import LEAST_USD, MAX_ORIGINS, MAX_PROFILES, MAX_SECONDS, MOST_USD
from chat_nest.server.openapi.parts import JsonObject, Told

Errors = Sequence[type[ChatError]]

CHECKED: Errors = (InvalidSession, SessionExpired, SessionRevoked)
"""What a session token may be refused for, at every path that takes one."""
MINTING: Errors = (BadRequest, Forbidden, NotFound, BodyTooLarge, UnsupportedMediaType, LimiterUnavailable)

REVOKING: Errors = (BadRequest, Forbidden, NotFound, LimiterUnavailable)

_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 256}
_AMOUNT: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_AMOUNT}
_USD: Schema = {"type": "number", "minimum": LEAST_USD, "maximum": MOST_USD}
ASKED = table(
    {
        "caller": described(_NAME, "The user of the session"),
        "group": described(_NAME, "The user's group"),
        "profile": described(_NAME, "The profile that is its ceiling"),
        "profiles": described(array(_NAME, MAX_PROFILES, 1), "Or those that it may choose"),
        "expires_in": {"type": "integer", "minimum": 1, "maximum": MAX_SECONDS, "description": "Seconds"},
        "origins": described(array(_NAME, MAX_ORIGINS), "The only pages that may use it"),
        "limits": described(
            {
                **table({"usd": _USD, "tokens": _AMOUNT, "requests": _AMOUNT, "concurrent_streams": _AMOUNT}),
                "additionalProperties": False,
            },
            "Its totals until it ends",
        ),
        "conversation": described(_NAME, "The conversation that it belongs to"),
    },
    "caller",
)
EXAMPLE = {"caller": "user_42", "limits": {"tokens": 20_000, "requests": 10}}
MADE = Told(
    status=201,
    text="The session",
    schema=whole(
        {
            "token": described(STRING, "To send as a key"),
            "read_token": described(STRING, "It may only follow answers, and stand in a URL"),
            "expires_at": described(COUNT, "Unix time in seconds"),
            "session": described(STRING, "Its id, to revoke it by"),
        }
    ),
    headers=("x-request-id",),
)
BODY: JsonObject = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {**ASKED, "additionalProperties": False},
            "examples": {"a user of yours": {"value": EXAMPLE}},
        }
    },
}
GONE = Told(
    status=204, text="It is refused from now on, and its answers end, in every worker", headers=("x-request-id",)
)
ID: Schema = {
    "name": "session",
    "in": "path",
    "required": True,
    "description": "The session's id",
    "schema": {"type": "string", "pattern": "^s_[0-9a-f]{24}$"},
}
READ_TOKEN: Schema = {
    "name": "session",
    "in": "query",
    "description": "A session's read_token, for an EventSource, which sends no headers",
    "schema": STRING,
}
