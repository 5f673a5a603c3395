"""The bodies that each wire format takes, as JSON Schema: what the OpenAPI document says of them.

The dialects read bodies field by field, for errors that name the field and the rule; their bounds and names are used
here. A schema may let through what a dialect still refuses, where JSON Schema has no words for it; never the other way
round. Not from types: `msgspec.json.schema` of such unions, with patterns, lets the interpreter crash at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chat_nest.dialects import ag_ui, ai_sdk, anthropic, native, openai
from chat_nest.dialects.fields import MAX_PARTS, MAX_TOOLS, OWN_CONNECTION
from chat_nest.dialects.turns import ROLES
from chat_nest.server.schema_words import (
    ANY,
    JSON_SCHEMA,
    LOWERED,
    MODEL,
    NAME,
    NULL,
    PROFILE,
    SWITCH,
    TEMPERATURE,
    TEXT,
    TOOL,
    Schema,
    array,
    block,
    described,
    either,
    messages,
    nullable,
    refusing,
    role,
    table,
)

TEXT_PART = block("text", {"text": TEXT}, "text")
CONTENT = either(TEXT, array(TEXT_PART, MAX_PARTS))
FUNCTION = table({"name": TOOL, **nullable({"description": TEXT, "parameters": JSON_SCHEMA})}, "name")
CALL = table({"id": NAME, "function": table({"name": NAME, "arguments": TEXT}, "name", "arguments")}, "id", "function")


def turns(calls: str, answers: str) -> list[Schema]:
    """Messages as OpenAI has them, with these names for two of their fields."""
    said = nullable({"content": CONTENT, calls: array(CALL, MAX_TOOLS)})
    return [
        *(role(name, {"content": CONTENT}, "content") for name in ("user", "system", "developer")),
        role("assistant", said),
        role("tool", {"content": CONTENT, answers: NAME}, "content", answers),
    ]


NATIVE = refusing(
    native.REFUSED_FIELDS,
    table(
        {
            "messages": messages(
                table({"role": {"enum": [*ROLES]}, "content": TEXT}, "role", "content"), "the user's, and not blank"
            ),
            "profile": described(ANY, PROFILE["description"]),
            "dailyTokenLimit": {**LOWERED, "examples": [50_000]},
            "maxTokensPerRequest": {**LOWERED, "examples": [2_000]},
            **dict.fromkeys(native.OUTPUT_FIELDS, LOWERED),
            "temperature": TEMPERATURE,
            "systemPrompt": described(TEXT, "Ignored unless the profile allows it"),
        },
        "messages",
    ),
    but=False,
)

CHOSEN = block("function", {"function": table({"name": NAME}, "name")}, "function")
OPENAI = refusing(
    openai.REFUSED_FIELDS,
    table(
        {
            "messages": messages(either(*turns("tool_calls", "tool_call_id"))),
            **nullable(
                {
                    "model": MODEL,
                    "stream": SWITCH,
                    "stream_options": described(table({}), "`include_usage` is read"),
                    **dict.fromkeys(openai.OUTPUT_FIELDS, LOWERED),
                    "temperature": TEMPERATURE,
                    "tools": array(block("function", {"function": FUNCTION}, "function"), MAX_TOOLS),
                    "tool_choice": {**either({"enum": ["auto", "none", "required"]}, CHOSEN), "examples": ["auto"]},
                    **{name: {"const": only} for name, only in openai.ONLY.items()},
                }
            ),
        },
        "messages",
    ),
)

UI_PART = table(
    {
        "type": {**TEXT, "not": {"enum": sorted(ai_sdk.FILES)}, "description": "Parts that are not known are ignored"},
        "text": described(ANY, "A string, in a part of type `text`"),
    },
    "type",
)
UI_MESSAGE = {
    **table(
        {
            "role": {"enum": [*ai_sdk.ROLES]},
            "parts": array(UI_PART, MAX_PARTS),
            "content": described(ANY, "Instead of `parts`: a string, as version 4 had it"),
        },
        "role",
    ),
    "examples": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}],
}
UI_OPTIONS = nullable(
    {
        "id": described(NAME, "The chat's"),
        "profile": PROFILE,
        "model": MODEL,
        "system": TEXT,
        "maxOutputTokens": LOWERED,
        "temperature": TEMPERATURE,
        "tools": {
            "type": "object",
            "maxProperties": MAX_TOOLS,
            "propertyNames": TOOL,
            "additionalProperties": table(
                nullable({"description": TEXT, "inputSchema": described(JSON_SCHEMA, "Or `parameters`")})
            ),
        },
    }
)
AI_SDK = either(
    refusing(ai_sdk.REFUSED_FIELDS, table({"messages": messages(UI_MESSAGE), **UI_OPTIONS}, "messages")),
    refusing(ai_sdk.REFUSED_FIELDS, table({"message": UI_MESSAGE, "messages": NULL, **UI_OPTIONS}, "message")),
)

NOT_SAID = described(
    table({"role": {"enum": [*ag_ui.NOT_SAID]}}, "role"), "For the page to show: no model is told of it"
)
AG_UI = refusing(
    OWN_CONNECTION,
    table(
        {
            "messages": messages(either(*turns("toolCalls", "toolCallId"), NOT_SAID)),
            **nullable(
                {
                    "threadId": NAME,
                    "runId": NAME,
                    "context": array(table({"description": TEXT, "value": TEXT}, "description", "value"), MAX_PARTS),
                    "tools": array(FUNCTION, MAX_TOOLS),
                    "forwardedProps": table(nullable({"profile": PROFILE, "model": MODEL})),
                }
            ),
        },
        "messages",
    ),
)

RESULT = table(
    {"type": {"const": "tool_result"}, "tool_use_id": NAME, **nullable({"content": CONTENT})}, "type", "tool_use_id"
)
USE = block("tool_use", {"id": NAME, "name": NAME, "input": {"type": "object"}}, "id", "name")
THOUGHTS = [block(kind, {}) for kind in sorted(anthropic.THOUGHTS)]
ASKED = either(TEXT, array(either(TEXT_PART, RESULT), MAX_PARTS))
ANSWERED = either(TEXT, array(either(TEXT_PART, USE, *THOUGHTS), MAX_PARTS))
ANTHROPIC_TOOL = table(
    {
        "name": TOOL,
        **nullable({"type": {"const": "custom"}, "description": TEXT, "input_schema": JSON_SCHEMA}),
    },
    "name",
)
ANTHROPIC_CHOICE = {
    **table(
        {"type": {"enum": ["auto", "none", "any", "tool"]}, "name": described(ANY, "The tool's, with `tool`")}, "type"
    ),
    "examples": [{"type": "auto"}],
}
ANTHROPIC = refusing(
    anthropic.REFUSED_FIELDS,
    table(
        {
            "messages": messages(
                either(
                    role("user", {"content": ASKED}, "content"),
                    role("assistant", {"content": ANSWERED}, "content"),
                )
            ),
            **nullable(
                {
                    "system": CONTENT,
                    "model": MODEL,
                    "stream": SWITCH,
                    "max_tokens": LOWERED,
                    "temperature": TEMPERATURE,
                    "tools": array(ANTHROPIC_TOOL, MAX_TOOLS),
                    "tool_choice": ANTHROPIC_CHOICE,
                }
            ),
        },
        "messages",
    ),
)

BLOG = refusing(OWN_CONNECTION, table({"message": described({**TEXT, "minLength": 1}, "Not blank")}, "message"))

REQUESTS: Mapping[str, Schema] = {
    "native": NATIVE,
    "openai": OPENAI,
    "ai_sdk": AI_SDK,
    "ag_ui": AG_UI,
    "anthropic": ANTHROPIC,
    "blog": BLOG,
}

_HELLO = {"role": "user", "content": "Hello"}
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "native": {"messages": [_HELLO], "profile": "balanced"},
    "openai": {"messages": [_HELLO], "stream": True},
    "ai_sdk": {"id": "chat-1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]},
    "ag_ui": {"threadId": "thread-1", "runId": "run-1", "messages": [{"id": "1", **_HELLO}]},
    "anthropic": {"messages": [_HELLO], "max_tokens": 100},
    "blog": {"message": "Hello"},
}
