"""The bodies that each wire format takes, as JSON Schema: what the OpenAPI document says of them.

The dialects read bodies field by field, for errors that name the field and the rule; their bounds and names are used
here. A schema may let through what a dialect still refuses, where JSON Schema has no words for it; never the other way
round. Not from types: `msgspec.json.schema` of such unions, with patterns, lets the interpreter crash at its end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from chat_nest.dialects import ag_ui, ai_sdk, anthropic, native, openai
from chat_nest.dialects.fields import MAX_NAME, MAX_PARTS, MAX_TOOLS, OWN_CONNECTION, TOOL_NAME
from chat_nest.dialects.turns import MAX_MESSAGES, ROLES

Schema = Mapping[str, Any]

NULL: Schema = {"type": "null"}
ANY: Schema = {}
TEXT: Schema = {"type": "string", "pattern": r"^[^\u0000]*$"}
NAME: Schema = {**TEXT, "minLength": 1, "maxLength": MAX_NAME}
SWITCH: Schema = {"type": "boolean"}
LOWERED: Schema = {"type": "integer", "minimum": 1, "description": "Only lowers what the caller may"}
TEMPERATURE: Schema = {"type": "number", "minimum": 0, "description": "Only lowers what the caller may"}
MODEL: Schema = {**NAME, "description": "A model or a profile that is offered: see the list of models"}
JSON_SCHEMA: Schema = {"type": "object", "description": "A JSON Schema"}
TOOL: Schema = {"type": "string", "pattern": f"^{TOOL_NAME.pattern}$"}


def described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def table(properties: Mapping[str, Any], *required: str) -> Schema:
    """An object; what it has beside these properties is ignored."""
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def array(items: Schema, most: int, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def nullable(properties: Mapping[str, Schema]) -> dict[str, Schema]:
    """Null is as good as absent."""
    return {name: either(schema, NULL) for name, schema in properties.items()}


def refusing(names: Collection[str], schema: Schema, but: Any = NULL) -> Schema:
    """An object without what would choose a provider, open a connection or cost what no limit sees."""
    return {**schema, "patternProperties": {f"^({'|'.join(sorted(names))})$": but}}


def role(name: str, properties: Mapping[str, Schema], *required: str) -> Schema:
    return table({"role": {"const": name}, **properties}, "role", *required)


def messages(items: Schema, last: str = "the user's, and not blank, or the result of a tool") -> Schema:
    return described(array(items, MAX_MESSAGES, 1), f"The last one is {last}")


def block(kind: str, properties: Mapping[str, Schema], *required: str) -> Schema:
    return table({"type": {"const": kind}, **properties}, "type", *required)


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
            "profile": described(ANY, "A profile's name; one that is not known means the default"),
            **dict.fromkeys(("dailyTokenLimit", "maxTokensPerRequest", *native.OUTPUT_FIELDS), LOWERED),
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
                    "tool_choice": either({"enum": ["auto", "none", "required"]}, CHOSEN),
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
UI_MESSAGE = table(
    {
        "role": {"enum": [*ai_sdk.ROLES]},
        "parts": array(UI_PART, MAX_PARTS),
        "content": described(ANY, "Instead of `parts`: a string, as version 4 had it"),
    },
    "role",
)
UI_OPTIONS = nullable(
    {
        "id": described(NAME, "The chat's"),
        "profile": NAME,
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
                    "forwardedProps": table(nullable({"profile": NAME, "model": MODEL})),
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
ANTHROPIC_CHOICE = table(
    {"type": {"enum": ["auto", "none", "any", "tool"]}, "name": described(ANY, "The tool's, with `tool`")}, "type"
)
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
