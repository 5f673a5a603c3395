"""JSON Schemas of the server's responses, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from chat_nest.challenges.settings import Kind
from chat_nest.core.claims import Scope
from chat_nest.server.openapi.words import NULL, SWITCH, Schema, described, either, table

STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
LEFT: Schema = {"type": "number", "minimum": 0}
REQUEST_ID = described(STRING, "As in the header x-request-id")


def whole(properties: Mapping[str, Any], **optional: Any) -> Schema:
    """Return an object with these properties, and optionally those of `optional`."""
    return table({**properties, **optional}, *properties)


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


CHALLENGE = whole(
    {"kind": {"enum": [*get_args(Kind)]}, "path": described(STRING, "Where to POST the solution")},
    challenge=described({"type": "object"}, "A proof of work by the ALTCHA protocol, version 2"),
    site_key=described(STRING, "For the service's widget, as are the next two"),
    action=STRING,
    data=STRING,
)
_CHALLENGE = described(CHALLENGE, "What a visitor must solve first, with `challenge_required`")
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

NATIVE_ERROR = whole(
    {"error": described(STRING, "The text to show"), "code": STRING, "request_id": REQUEST_ID},
    field=described(STRING, "What broke the rule"),
    detail=described(STRING, "The rule"),
    limit=described(STRING, "The limit that refused, by its name in the configuration"),
    scope={"enum": [*get_args(Scope)], "description": "Whose limit it is"},
    remaining=described(LEFT, "What is left of the limit, in tokens or dollars, if a shorter request may fit"),
    needed=described(LEFT, "What this request needs of it, at least"),
    retry_after=described(COUNT, "Seconds"),
    challenge=_CHALLENGE,
)
REFUSED = described(
    whole({"error": STRING, "code": STRING, "request_id": REQUEST_ID}, field=STRING, detail=STRING),
    "What is refused before anybody looks at its path: no readable HTTP, too much of it, too slow, no room",
)
OPENAI_ERROR = whole(
    {
        "error": whole(
            {"message": STRING, "type": STRING, "param": either(STRING, NULL), "code": either(STRING, NULL)},
            challenge=_CHALLENGE,
        )
    }
)
ERRORS: Mapping[str, Schema] = {
    "native": NATIVE_ERROR,
    "openai": OPENAI_ERROR,
    "responses": OPENAI_ERROR,
    "ai_sdk": described(STRING, "A sentence to show"),
    "ag_ui": whole({"message": STRING, "code": STRING, "request_id": REQUEST_ID}, field=STRING, challenge=_CHALLENGE),
    "anthropic": whole(
        {
            "type": {"const": "error"},
            "error": whole({"type": STRING, "message": STRING}, code=STRING, challenge=_CHALLENGE),
            "request_id": REQUEST_ID,
        }
    ),
    "blog": whole({"error": STRING, "code": STRING, "request_id": REQUEST_ID}, challenge=_CHALLENGE),
}

CALL = whole(
    {"id": STRING, "type": {"const": "function"}, "function": whole({"name": STRING, "arguments": STRING})},
)
CHAT_COMPLETION = whole(
    {
        "id": STRING,
        "object": {"const": "chat.completion"},
        "created": described(COUNT, "Unix time in seconds"),
        "model": STRING,
        "choices": listed(
            whole(
                {
                    "index": COUNT,
                    "message": whole(
                        {"role": {"const": "assistant"}, "content": either(STRING, NULL), "refusal": NULL},
                        reasoning_content=STRING,
                        tool_calls=listed(CALL),
                    ),
                    "logprobs": NULL,
                    "finish_reason": {"enum": ["stop", "length", "tool_calls", "content_filter"]},
                }
            )
        ),
        "usage": whole(
            {
                "prompt_tokens": COUNT,
                "completion_tokens": COUNT,
                "total_tokens": COUNT,
                "prompt_tokens_details": whole({"cached_tokens": COUNT}),
                "completion_tokens_details": whole({"reasoning_tokens": COUNT}),
            }
        ),
    }
)
RESPONSE_USAGE = whole(
    {
        "input_tokens": COUNT,
        "input_tokens_details": whole({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
        "output_tokens": COUNT,
        "output_tokens_details": whole({"reasoning_tokens": COUNT}),
        "total_tokens": COUNT,
    }
)
RESPONSE = described(
    whole(
        {
            "id": STRING,
            "object": {"const": "response"},
            "created_at": described(COUNT, "Unix time in seconds"),
            "completed_at": either(COUNT, NULL),
            "status": {"enum": ["completed", "incomplete", "failed", "cancelled", "in_progress"]},
            "model": STRING,
            "output": described(listed({"type": "object"}), "Items of type message, reasoning or function_call"),
            "usage": RESPONSE_USAGE,
            "error": either(whole({"code": STRING, "message": STRING}), NULL),
            "incomplete_details": either(whole({"reason": {"enum": ["max_output_tokens", "content_filter"]}}), NULL),
            "store": described(SWITCH, "Whether it can be read again, for a while"),
        }
    ),
    "OpenAI's response object, with every field of it",
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
ANTHROPIC_MESSAGE = whole(
    {
        "id": STRING,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": STRING,
        "content": listed(
            either(
                whole({"type": {"const": "text"}, "text": STRING}),
                whole({"type": {"const": "thinking"}, "thinking": STRING, "signature": STRING}),
                whole({"type": {"const": "tool_use"}, "id": STRING, "name": STRING, "input": {"type": "object"}}),
            )
        ),
        "stop_reason": {"enum": ["end_turn", "max_tokens", "tool_use", "refusal"]},
        "stop_sequence": NULL,
        "usage": whole(
            {
                "input_tokens": COUNT,
                "cache_creation_input_tokens": COUNT,
                "cache_read_input_tokens": COUNT,
                "output_tokens": COUNT,
            }
        ),
    }
)
WHOLE: Mapping[str, Schema] = {"openai": CHAT_COMPLETION, "responses": RESPONSE, "anthropic": ANTHROPIC_MESSAGE}
"""Of the formats with complete responses: with `stream` false or absent."""

MODEL = whole({"id": STRING, "object": {"const": "model"}, "created": COUNT, "owned_by": STRING})
MODELS = whole({"object": {"const": "list"}, "data": listed(MODEL)})

AMOUNT: Schema = {"type": "number"}
USAGE = whole(
    {
        "limits": listed(
            whole(
                {
                    "name": described(STRING, "As in the configuration"),
                    "unit": {"enum": ["requests", "tokens", "usd", "streams"]},
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


def event(*names: str, **more: Schema) -> Schema:
    """Return an event of a stream as its reader gets it (WHATWG, "Server-sent events"); no name means `message`."""
    return whole({"event": {"enum": [*names]}, "data": STRING}, **more)


EVENTS: Mapping[str, Schema] = {
    "native": event(
        "queued", "start", "token", "ping", "done", "error", id=described(STRING, "Where the run can be resumed")
    ),
    "openai": event("message"),
    "responses": event(
        *("response.created", "response.in_progress", "response.output_item.added", "response.output_item.done"),
        *("response.content_part.added", "response.content_part.done"),
        *("response.output_text.delta", "response.output_text.done"),
        *("response.reasoning_summary_part.added", "response.reasoning_summary_part.done"),
        *("response.reasoning_summary_text.delta", "response.reasoning_summary_text.done"),
        *("response.function_call_arguments.delta", "response.function_call_arguments.done"),
        *("response.completed", "response.incomplete", "response.failed", "error"),
    ),
    "ai_sdk": event("message"),
    "ag_ui": event("message"),
    "anthropic": event(
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop", "ping", "error"),
    ),
    "blog": event("chunk", "done", "error", id=described(STRING, "Of the first one: the run's")),
}
"""Each event of a streamed response."""
