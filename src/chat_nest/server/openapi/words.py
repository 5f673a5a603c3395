"""Shared JSON Schemas: the bounds of the dialects, and functions for objects."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from chat_nest.dialects.fields import MAX_NAME, TOOL_NAME
from chat_nest.dialects.turns import MAX_MESSAGES

Schema = Mapping[str, Any]

NULL: Schema = {"type": "null"}
ANY: Schema = {}
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "pattern": r"^[^\u0000]*$", "minLength": 1, "maxLength": MAX_NAME}
SWITCH: Schema = {"type": "boolean"}
LOWERED: Schema = {
    "type": "integer",
    "minimum": 1,
    "description": "Only lowers what the caller may",
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


def refusing(names: Collection[str], schema: Schema, but: Any = NULL) -> Schema:
    """Return an object without fields that would choose a provider, open a connection or cost what no limit counts."""
    return {**schema, "patternProperties": {f"^({'|'.join(sorted(names))})$": but}}


def role(name: str, properties: Mapping[str, Schema], *required: str) -> Schema:
    return table({"role": {"const": name}, **properties}, "role", *required)


def messages(items: Schema, last: str = "the user's, and not blank, or the result of a tool") -> Schema:
    return described(array(items, MAX_MESSAGES, 1), f"The last one is {last}")


def block(kind: str, properties: Mapping[str, Schema], *required: str) -> Schema:
    return table({"type": {"const": kind}, **properties}, "type", *required)
