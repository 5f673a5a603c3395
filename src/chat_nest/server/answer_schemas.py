"""The JSON that the server answers with, as JSON Schema: what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from chat_nest.limits import Scope
from chat_nest.server.schema_words import NULL, SWITCH, Schema, described, either, table

STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
REQUEST_ID = described(STRING, "As in the header x-request-id")


def whole(properties: Mapping[str, Any], **optional: Any) -> Schema:
    """An object that has these properties, and may have those of `optional`."""
    return table({**properties, **optional}, *properties)


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


NATIVE_ERROR = whole(
    {"error": described(STRING, "The text to show"), "code": STRING, "request_id": REQUEST_ID},
    field=described(STRING, "What broke the rule"),
    detail=described(STRING, "The rule"),
    limit=described(STRING, "The limit that refused, by its name in the configuration"),
    scope={"enum": [*get_args(Scope)], "description": "Whose limit it is"},
    retry_after=described(COUNT, "Seconds"),
)
REFUSED = described(
    whole({"error": STRING, "code": STRING, "request_id": REQUEST_ID}, field=STRING, detail=STRING),
    "What is refused before anybody looks at its path: no readable HTTP, too much of it, too slow, no room",
)
ERRORS: Mapping[str, Schema] = {
    "native": NATIVE_ERROR,
    "openai": whole(
        {
            "error": whole(
                {"message": STRING, "type": STRING, "param": either(STRING, NULL), "code": either(STRING, NULL)}
            )
        }
    ),
    "ai_sdk": described(STRING, "A sentence to show"),
    "ag_ui": whole({"message": STRING, "code": STRING, "request_id": REQUEST_ID}, field=STRING),
    "anthropic": whole(
        {"type": {"const": "error"}, "error": whole({"type": STRING, "message": STRING}), "request_id": REQUEST_ID}
    ),
    "blog": whole({"error": STRING, "code": STRING, "request_id": REQUEST_ID}),
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
WHOLE: Mapping[str, Schema] = {"openai": CHAT_COMPLETION, "anthropic": ANTHROPIC_MESSAGE}
"""Of the formats in which an answer can be asked for whole: with `stream` false or left out."""

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
                }
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
PART = whole({"status": described(STRING, "`ok`, `degraded`, or an error's code")}, advice=STRING)
READY = whole({"status": {"enum": ["ready", "degraded"]}, "store": PART, "providers": table({})})
NOT_READY = whole({"status": {"enum": ["unavailable", "draining"]}}, store=PART, providers=table({}))


def event(*names: str, **more: Schema) -> Schema:
    """An event of a stream as its reader has it (WHATWG, "Server-sent events"): one without a name is a `message`."""
    return whole({"event": {"enum": [*names]}, "data": STRING}, **more)


EVENTS: Mapping[str, Schema] = {
    "native": event("start", "token", "ping", "done", "error", id=described(STRING, "Where the run can be resumed")),
    "openai": event("message"),
    "ai_sdk": event("message"),
    "ag_ui": event("message"),
    "anthropic": event(
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop", "ping", "error"),
    ),
    "blog": event("chunk", "done", "error", id=described(STRING, "Of the first one: the run's")),
}
"""Each event of an answer that is streamed."""
