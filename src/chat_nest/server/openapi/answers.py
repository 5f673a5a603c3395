"""JSON Schemas of the server's own paths, for the OpenAPI document. Those of chats are in the dialects' files."""

from __future__ import annotations

from collections.abc import Mapping

from chat_nest.core.limits import UNITS
from chat_nest.dialects.schemas import (
    COUNT,
    NULL,
    REQUEST_ID,
    STRING,
    SWITCH,
    TEXT,
    Schema,
    described,
    either,
    listed,
    table,
    whole,
)

TOKEN: Mapping[str, Schema] = {
    "token": described(STRING, "To be sent as `Authorization: Bearer`"),
    "expires_at": described(COUNT, "Unix time in seconds"),
}
VISIT = whole(TOKEN)
PASSED = whole(
    {
        "passed": described(SWITCH, "False if the solution could not be checked, and is accepted for a short time"),
        "until": described(COUNT, "Unix time in seconds"),
    },
    **TOKEN,
)

REFUSED = described(
    whole({"error": STRING, "code": STRING, "request_id": REQUEST_ID}, field=STRING, detail=STRING),
    "What is refused before anybody looks at its path: no readable HTTP, too much of it, too slow, no room",
)

INPUT_ITEMS = whole(
    {
        "object": {"const": "list"},
        "data": listed({"type": "object"}),
        "first_id": STRING,
        "last_id": STRING,
        "has_more": SWITCH,
    }
)
COUNTED = whole(
    {
        "input_tokens": described(COUNT, "An upper bound: what a chat reserves"),
        "exact": described(SWITCH, "Whether the model's own tokenizer counted the texts"),
    },
    object={"const": "response.input_tokens"},
)
DELETED = whole({"id": STRING, "object": {"const": "response.deleted"}, "deleted": {"const": True}})

MODEL = whole({"id": STRING, "object": {"const": "model"}, "created": COUNT, "owned_by": STRING})
MODELS = whole({"object": {"const": "list"}, "data": listed(MODEL)})

AMOUNT: Schema = {"type": "number"}
USAGE = whole(
    {
        "limits": listed(
            whole(
                {
                    "name": described(STRING, "As in the configuration"),
                    "unit": {"enum": [each.name for each in UNITS.values()]},
                    "limit": AMOUNT,
                    "used": AMOUNT,
                    "held": described(AMOUNT, "By answers that run"),
                    "remaining": AMOUNT,
                    "resets_at": described(either(COUNT, NULL), "Unix time in seconds"),
                },
                scope={"enum": ["key", "session"], "description": "Whose limit it is, unless it is the caller's"},
            )
        )
    }
)
INFO = whole(
    {
        "demo": described(SWITCH, "Whether the demo model answers"),
        "model": STRING,
        "resumable": described(SWITCH, "Whether an answer outlives its reader"),
    }
)
ALIVE = whole({"status": {"const": "ok"}})
VERSION = whole({"version": STRING})
PART = whole({"status": described(STRING, "`ok`, `degraded`, or an error's code")}, advice=STRING)
SHOWN: dict[str, Schema] = {
    "ready": described(SWITCH, "To everybody"),
    "store": described(PART, "To the operator"),
    "providers": described(table({}), "To the operator"),
}
READY = whole({"status": {"enum": ["ready", "degraded"]}}, **SHOWN)
NOT_READY = whole({"status": {"enum": ["unavailable", "draining"]}}, message=described(STRING, "To everybody"), **SHOWN)


SOLUTION: Schema = table(
    {"solution": described(TEXT, "ALTCHA's payload in base64, or the token that the service's widget gave")}, "solution"
)
"""The body of a solved challenge."""
