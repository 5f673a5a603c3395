"""Fields that several dialects read. What breaks a rule raises BadRequest: the field and the rule, never the value."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from chat_nest.dialects.strict_json import flaw, is_array, is_object, parse_object
from chat_nest.errors import BadRequest
from chat_nest.messages import Tool

MAX_PARTS = 1_000
"""Of one message."""
MAX_TOOLS = 128
MAX_NAME = 256
"""Characters of an id or a name."""

OWN_CONNECTION = frozenset(
    [
        *("base_url", "baseUrl", "baseURL", "api_base", "api_key", "apiKey", "headers", "extra_headers", "extra_body"),
        *("callback", "callback_url", "image_url"),
    ]
)
"""What would choose a provider or open a connection."""

TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_encode = msgspec.json.Encoder().encode


def parse_fields(body: bytes, refused: Collection[str]) -> dict[str, Any]:
    """The body's fields without those that are null, which is as good as absent."""
    fields = {name: value for name, value in parse_object(body).items() if value is not None}
    refuse(fields, refused)
    return fields


def refuse(fields: Mapping[str, Any], refused: Collection[str]) -> None:
    for name in fields:
        if name in refused:
            raise BadRequest("is not accepted from a client", field=name)


def positive(fields: Mapping[str, Any], name: str) -> int | None:
    if name not in fields:
        return None
    value = fields[name]
    if type(value) is not int or value < 1:
        raise BadRequest("must be a positive integer", field=name)
    return value


def least(fields: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The smallest of the positive integers with these names; None without any."""
    return min([limit for name in names if (limit := positive(fields, name)) is not None], default=None)


def temperature(fields: Mapping[str, Any]) -> float | None:
    if "temperature" not in fields:
        return None
    value = fields["temperature"]
    if type(value) not in (int, float) or value < 0:
        raise BadRequest("must be a number, and not negative", field="temperature")
    return float(value)


def switch(fields: Mapping[str, Any], name: str) -> bool:
    """True or false; false where it is left out."""
    value = fields.get(name, False)
    if type(value) is not bool:
        raise BadRequest("must be true or false", field=name)
    return value


def text(value: Any, field: str) -> str:
    if type(value) is not str:
        raise BadRequest("must be a string", field=field)
    if rule := flaw(value):
        raise BadRequest(rule, field=field)
    return value


def name(value: Any, field: str) -> str:
    """An id or a name: a short string."""
    named = text(value, field)
    if not 1 <= len(named) <= MAX_NAME:
        raise BadRequest(f"must have from 1 to {MAX_NAME} characters", field=field)
    return named


def model(fields: Mapping[str, Any]) -> str | None:
    return name(fields["model"], "model") if "model" in fields else None


def array(value: Any, field: str, most: int) -> list[Any]:
    if not is_array(value):
        raise BadRequest("must be an array", field=field)
    if len(value) > most:
        raise BadRequest(f"must not have more than {most} items", field=field)
    return value


def table(value: Any, field: str) -> dict[str, Any]:
    if not is_object(value):
        raise BadRequest("must be an object", field=field)
    return value


def written(value: Any, field: str) -> str:
    """A JSON value as text, as a model would write it; a string stays what it is."""
    if type(value) is str:
        return text(value, field)
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        raise BadRequest("must not contain half of a surrogate pair", field=field) from None


def tool(named: Any, description: Any, parameters: Any, field: str, schema: str) -> Tool:
    """A tool whose description and parameters may be None; `schema` is what the dialect calls the parameters."""
    if type(named) is not str or not TOOL_NAME.fullmatch(named):
        raise BadRequest("must be 1 to 64 letters, digits, - _ and .", field=f"{field}.name")
    said = "" if description is None else text(description, f"{field}.description")
    if parameters is None:
        return Tool(name=named, description=said)
    at = f"{field}.{schema}"
    return Tool(name=named, description=said, parameters=Raw(written(table(parameters, at), at).encode()))


def choice(chosen: str, tools: Sequence[Tool], field: str) -> str:
    """A choice of a tool as ChatRequest has it, if it can be met."""
    kind, _, named = chosen.partition(":")
    if (kind == "tool" and named not in [tool.name for tool in tools]) or (kind == "required" and not tools):
        raise BadRequest("must choose among the tools of the request", field=field)
    return chosen
