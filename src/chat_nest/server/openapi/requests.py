"""JSON Schemas of the request bodies of each wire format, for the OpenAPI document.

The dialects read bodies field by field, for errors that name the field and the rule; the schemas use their bounds and
names. A schema may accept what a dialect refuses, if JSON Schema can't express the rule; never the reverse. The schemas
are not made from types: `msgspec.json.schema` of such unions, with patterns, makes the interpreter crash at exit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chat_nest.dialects import (
    ag_ui,
    ai_sdk,
    anthropic,
    media_parts,
    native,
    openai,
    options,
    responses,
    responses_items,
)
from chat_nest.dialects.fields import MAX_PARTS, MAX_TOOLS, OWN_CONNECTION, TOOL_NAME
from chat_nest.dialects.turns import MAX_MESSAGES, ROLES
from chat_nest.server.openapi.words import (
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
    WRITTEN,
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
URL = described(TEXT, "A data URL in base64, or an https URL if the profile allows it")
DETAIL = {"enum": [*media_parts.DETAILS]}
IMAGE_URL = either(TEXT, table({"url": URL, **nullable({"detail": DETAIL})}, "url"))
FILE = table(nullable({"file_data": URL, "filename": TEXT}))
PARTS = either(
    TEXT,
    array(
        either(
            TEXT_PART,
            block("image_url", {"image_url": IMAGE_URL}, "image_url"),
            block("file", {"file": FILE}, "file"),
        ),
        MAX_PARTS,
    ),
)
SPECIFIED = nullable({"description": TEXT, "parameters": JSON_SCHEMA})
FUNCTION = table({"name": TOOL, **SPECIFIED, **nullable({"strict": SWITCH})}, "name")
SCHEMA_NAME = {"type": "string", "pattern": f"^{TOOL_NAME.pattern}$"}
DESCRIBED = table(
    {"schema": JSON_SCHEMA, **nullable({"name": SCHEMA_NAME, "description": TEXT, "strict": SWITCH})}, "schema"
)
STOP = {**TEXT, "maxLength": options.MAX_STOP}
STOPS = array(STOP, options.MAX_STOPS)
EFFORT = {"enum": [*options.EFFORTS]}
SEED = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
TOP_P = {"type": "number", "minimum": 0, "maximum": 1}
TOP_K = {"type": "integer", "minimum": 0, "maximum": 1_000_000}
PENALTY = {"type": "number", "minimum": -2, "maximum": 2}


def formats(schema: Schema, *kinds: str) -> Schema:
    """Return the format of an answer: text, one of `kinds` (any JSON), or a schema."""
    return either(*(block(kind, {}) for kind in ("text", *kinds)), schema)


JSON_SCHEMA_FORMAT = block("json_schema", DESCRIBED["properties"], "schema")
CALL = table({"id": NAME, "function": table({"name": NAME, "arguments": TEXT}, "name", "arguments")}, "id", "function")


def turns(calls: str, answers: str, parts: Schema = PARTS) -> list[Schema]:
    """Return messages of OpenAI's shape, with these names of two fields. `parts` are those of users and tools."""
    said = nullable({"content": parts, calls: array(CALL, MAX_TOOLS)})
    return [
        role("user", {"content": parts}, "content"),
        *(role(name, {"content": CONTENT}, "content") for name in ("system", "developer")),
        role("assistant", said),
        role("tool", {"content": parts, answers: NAME}, "content", answers),
    ]


NATIVE = refusing(
    native.REFUSED_FIELDS,
    table(
        {
            "messages": messages(
                table(
                    {"role": {"enum": [*ROLES]}, **nullable({"content": PARTS, "signature": NAME})}, "role", "content"
                ),
                "the user's, and not blank",
            ),
            "profile": described(ANY, PROFILE["description"]),
            **nullable(
                {
                    "dailyTokenLimit": {**WRITTEN, "examples": [50_000]},
                    "maxTokensPerRequest": {**WRITTEN, "examples": [2_000]},
                    **dict.fromkeys(native.OUTPUT_FIELDS, WRITTEN),
                    "temperature": TEMPERATURE,
                    "systemPrompt": described(TEXT, "Ignored unless the profile allows it"),
                    "conversation": described(NAME, "The client's id of the conversation"),
                }
            ),
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
                    "response_format": formats(
                        block("json_schema", {"json_schema": DESCRIBED}, "json_schema"), "json_object"
                    ),
                    "stop": either(STOP, STOPS),
                    "parallel_tool_calls": SWITCH,
                    "reasoning_effort": EFFORT,
                    "verbosity": {"enum": [*options.VERBOSITIES]},
                    "seed": SEED,
                    "top_p": TOP_P,
                    "top_k": TOP_K,
                    **dict.fromkeys(("frequency_penalty", "presence_penalty"), PENALTY),
                    **{name: {"const": only} for name, only in openai.ONLY.items()},
                }
            ),
        },
        "messages",
    ),
)

INPUT_PART = either(
    *(block(kind, {"text": TEXT}, "text") for kind in sorted(responses_items.TEXT_PARTS)),
    block("refusal", {"refusal": TEXT}, "refusal"),
    block("input_image", nullable({"image_url": URL, "detail": DETAIL})),
    block("input_file", nullable({"file_data": URL, "file_url": URL, "filename": TEXT})),
)
INPUT_TEXT = either(TEXT, array(INPUT_PART, MAX_PARTS))
ITEM = either(
    table(
        {
            "type": {"enum": ["message", None]},
            "role": {"enum": ["user", "assistant", "system", "developer"]},
            "content": INPUT_TEXT,
        },
        "role",
        "content",
    ),
    block("function_call", {"call_id": NAME, "name": NAME, "arguments": TEXT}, "call_id", "name", "arguments"),
    block("function_call_output", {"call_id": NAME, "output": INPUT_TEXT}, "call_id", "output"),
    described(block("reasoning", {}), "Left out; not sent to the model"),
    described(block("item_reference", {"id": NAME}, "id"), "To an item of an answer that is kept"),
)
RESPONSES_TOOL = block(
    "function", {"name": TOOL, **nullable({"description": TEXT, "parameters": JSON_SCHEMA, "strict": SWITCH})}, "name"
)
RESPONSES_CHOICE = {
    **either(
        {"enum": ["auto", "none", "required"]},
        block("function", {"name": NAME}, "name"),
        block(
            "allowed_tools",
            {"mode": {"enum": ["auto", "required", None]}, "tools": array(table({"name": NAME}, "name"), MAX_TOOLS)},
            "tools",
        ),
    ),
    "examples": ["auto"],
}
RESPONSES = refusing(
    responses.REFUSED_FIELDS,
    table(
        {
            "input": {
                **either(TEXT, array(ITEM, MAX_MESSAGES, 1)),
                "description": "Text of the user's, or items; the last one is the user's or the result of a tool",
            },
            **nullable(
                {
                    "instructions": TEXT,
                    "model": MODEL,
                    "stream": SWITCH,
                    "store": described(
                        SWITCH, "Whether the answer may be kept, for a while; it is unless this is false"
                    ),
                    "previous_response_id": described(NAME, "A kept answer that the request goes on from"),
                    **dict.fromkeys(responses.OUTPUT_FIELDS, LOWERED),
                    "temperature": TEMPERATURE,
                    "top_p": TOP_P,
                    **dict.fromkeys(("frequency_penalty", "presence_penalty"), PENALTY),
                    "tools": array(RESPONSES_TOOL, MAX_TOOLS),
                    "tool_choice": RESPONSES_CHOICE,
                    "parallel_tool_calls": SWITCH,
                    "text": table(
                        nullable(
                            {
                                "format": formats(JSON_SCHEMA_FORMAT, "json_object"),
                                "verbosity": {"enum": [*options.VERBOSITIES]},
                            }
                        )
                    ),
                    "reasoning": table(nullable({"effort": EFFORT, "summary": {"enum": [*responses.SUMMARIES]}})),
                    "truncation": {"enum": ["auto", "disabled"]},
                    "include": array({"enum": [*responses.INCLUDED]}, 16),
                    "metadata": {
                        "type": "object",
                        "maxProperties": responses.MAX_METADATA,
                        "propertyNames": {**TEXT, "maxLength": 64},
                        "additionalProperties": {**TEXT, "maxLength": 512},
                    },
                    "user": TEXT,
                    **dict.fromkeys(("safety_identifier", "prompt_cache_key"), NAME),
                    **{name: {"const": only} for name, only in responses.ONLY.items()},
                }
            ),
        },
        "input",
    ),
)

UI_PART = table(
    {
        "type": described(TEXT, "Parts that are not known are ignored"),
        "text": described(ANY, "A string, in a part of type `text`"),
        "url": described(ANY, "A data URL, in a part of type `file`"),
        "filename": described(ANY, "A string, in a part of type `file`"),
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
        "responseFormat": either(
            block("text", {}), block("json", {**DESCRIBED["properties"], **nullable({"schema": JSON_SCHEMA})})
        ),
        "stopSequences": STOPS,
        "seed": SEED,
        "topP": TOP_P,
        "topK": TOP_K,
        **dict.fromkeys(("frequencyPenalty", "presencePenalty"), PENALTY),
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
    table({"role": {"enum": [*ag_ui.NOT_SAID]}}, "role"), "For the page to show; not sent to the model"
)
UI_SOURCE = table({"value": URL, **nullable({"type": {"enum": ["data", "url"]}, "mimeType": TEXT})}, "value")
UI_BINARY = block("binary", nullable({"mimeType": TEXT, "data": TEXT, "url": URL, "filename": TEXT}))
UI_PARTS = either(
    TEXT,
    array(
        either(
            TEXT_PART,
            *(block(kind, {"source": UI_SOURCE}, "source") for kind in ("image", "document")),
            UI_BINARY,
        ),
        MAX_PARTS,
    ),
)
AG_UI = refusing(
    OWN_CONNECTION,
    table(
        {
            "messages": messages(either(*turns("toolCalls", "toolCallId", UI_PARTS), NOT_SAID)),
            **nullable(
                {
                    "threadId": NAME,
                    "runId": NAME,
                    "context": array(table({"description": TEXT, "value": TEXT}, "description", "value"), MAX_PARTS),
                    "tools": array(table({"name": TOOL, **SPECIFIED}, "name"), MAX_TOOLS),
                    "forwardedProps": table(nullable({"profile": PROFILE, "model": MODEL})),
                }
            ),
        },
        "messages",
    ),
)

SOURCE = either(
    block("base64", {"data": TEXT, **nullable({"media_type": TEXT})}, "data"),
    block("url", {"url": URL}, "url"),
    block("text", {"data": TEXT}, "data"),
)
IMAGE = block("image", {"source": SOURCE}, "source")
DOCUMENT = block("document", {"source": SOURCE, **nullable({"title": TEXT})}, "source")
GIVEN = either(TEXT, array(either(TEXT_PART, IMAGE, DOCUMENT), MAX_PARTS))
RESULT = table(
    {"type": {"const": "tool_result"}, "tool_use_id": NAME, **nullable({"content": GIVEN})}, "type", "tool_use_id"
)
USE = block("tool_use", {"id": NAME, "name": NAME, **nullable({"input": {"type": "object"}})}, "id", "name")
THOUGHTS = [
    block("thinking", nullable({"thinking": TEXT, "signature": TEXT})),
    block("redacted_thinking", {"data": TEXT}, "data"),
]
ASKED = either(TEXT, array(either(TEXT_PART, IMAGE, DOCUMENT, RESULT), MAX_PARTS))
ANSWERED = either(TEXT, array(either(TEXT_PART, USE, *THOUGHTS), MAX_PARTS))
ANTHROPIC_TOOL = table(
    {
        "name": TOOL,
        **nullable({"type": {"const": "custom"}, "description": TEXT, "input_schema": JSON_SCHEMA, "strict": SWITCH}),
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
                    "output_config": table(nullable({"format": formats(JSON_SCHEMA_FORMAT), "effort": EFFORT})),
                    "output_format": formats(JSON_SCHEMA_FORMAT),
                    "stop_sequences": STOPS,
                    "top_p": TOP_P,
                    "top_k": TOP_K,
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
    "responses": RESPONSES,
    "ai_sdk": AI_SDK,
    "ag_ui": AG_UI,
    "anthropic": ANTHROPIC,
    "blog": BLOG,
}

_HELLO = {"role": "user", "content": "Hello"}
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "native": {"messages": [_HELLO], "profile": "balanced"},
    "openai": {"messages": [_HELLO], "stream": True},
    "responses": {"input": [_HELLO], "stream": True},
    "ai_sdk": {"id": "chat-1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]},
    "ag_ui": {"threadId": "thread-1", "runId": "run-1", "messages": [{"id": "1", **_HELLO}]},
    "anthropic": {"messages": [_HELLO], "max_tokens": 100},
    "blog": {"message": "Hello"},
}

SOLUTION: Schema = table(
    {"solution": described(TEXT, "ALTCHA's payload in base64, or the token that the service's widget gave")}, "solution"
)
