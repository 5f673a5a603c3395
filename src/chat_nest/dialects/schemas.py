"""JSON Schemas of what dialects read and write, for the OpenAPI document: what several of them share.

The dialects read bodies field by field, for errors that name the field and the rule; the schemas use their bounds and
names. A schema may accept what a dialect refuses, if JSON Schema can't express the rule; never the reverse. The schemas
are not made from types: `msgspec.json.schema` of such unions, with patterns, makes the interpreter crash at exit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, get_args

from chat_nest.core.errors import ChallengeKind
from chat_nest.dialects import media_parts, options
from chat_nest.dialects.fields import MAX_NAME, MAX_PARTS, MAX_TOOLS, TOOL_NAME
from chat_nest.dialects.turns import MAX_MESSAGES

Schema = Mapping[str, Any]

NULL: Schema = {"type": "null"}
EMPTY: Schema = {"enum": [None, "", 0, False, [], {}]}
ANY: Schema = {}
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "pattern": r"^[^\u0000]*$", "minLength": 1, "maxLength": MAX_NAME}
SWITCH: Schema = {"type": "boolean"}
LOWERED: Schema = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"const": -1}],
    "description": "Only lowers what the caller may; -1 does not",
    "examples": [400],
}
WRITTEN: Schema = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^(?=.{1,15}$)0*[1-9][0-9]*$"}],
    "description": "Only lowers what the caller may",
    "examples": [400],
}
TEMPERATURE: Schema = {
    "type": "number",
    "minimum": 0,
    "description": "Only lowers what the caller may",
    "examples": [0.5],
}
MODEL: Schema = {
    **NAME,
    "description": "A model or a profile that is offered: see the list of models",
    "examples": ["balanced"],
}
PROFILE: Schema = {
    **NAME,
    "description": "A profile's name; one that is not known or not open means the default",
    "examples": ["balanced"],
}
JSON_SCHEMA: Schema = {"type": "object", "description": "A JSON Schema"}
TOOL: Schema = {"type": "string", "pattern": f"^{TOOL_NAME.pattern}$"}


def described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def table(properties: Mapping[str, Any], *required: str) -> Schema:
    """Return an object schema; other properties are ignored."""
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def array(items: Schema, most: int, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def or_null(schema: Schema) -> Schema:
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    words = {word: schema[word] for word in ("description", "examples") if word in schema}
    return {"anyOf": [{word: schema[word] for word in schema if word not in words}, NULL], **words}


def nullable(properties: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return properties that also accept null, which means absent."""
    return {name: or_null(schema) for name, schema in properties.items()}


def refusing(names: Collection[str], schema: Schema, but: Any = EMPTY) -> Schema:
    """Return an object without fields that would choose a provider, open a connection or cost what no limit counts."""
    return {**schema, "patternProperties": {f"^({'|'.join(sorted(names))})$": but}}


def role(name: str, properties: Mapping[str, Schema], *required: str) -> Schema:
    return table({"role": {"const": name}, **properties}, "role", *required)


def messages(items: Schema, last: str = "the user's, and not blank, or the result of a tool") -> Schema:
    return described(array(items, MAX_MESSAGES, 1), f"The last one is {last}")


def block(kind: str, properties: Mapping[str, Schema], *required: str) -> Schema:
    return table({"type": {"const": kind}, **properties}, "type", *required)


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
            block("refusal", {"refusal": TEXT}, "refusal"),
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

TOP_K = {"type": "integer", "minimum": -1, "maximum": 1_000_000}

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
        role("tool", {answers: NAME, **nullable({"content": parts})}, answers),
    ]


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
    {"kind": {"enum": [*get_args(ChallengeKind)]}, "path": described(STRING, "Where to POST the solution")},
    challenge=described({"type": "object"}, "A proof of work by the ALTCHA protocol, version 2"),
    site_key=described(STRING, "For the service's widget, as are the next two"),
    action=STRING,
    data=STRING,
)

REQUIRED_CHALLENGE = described(CHALLENGE, "What a visitor must solve first, with `challenge_required`")


def event_schema(*names: str, **more: Schema) -> Schema:
    """Return an event of a stream as its reader gets it (WHATWG, "Server-sent events"); no name means `message`."""
    return whole({"event": {"enum": [*names]}, "data": STRING}, **more)


OPENAI_ERROR = whole(
    {
        "error": whole(
            {"message": STRING, "type": STRING, "param": either(STRING, NULL), "code": either(STRING, NULL)},
            challenge=REQUIRED_CHALLENGE,
        )
    }
)
