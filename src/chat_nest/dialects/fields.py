"""Fields that several dialects read. A wrong one raises BadRequest with the field and the rule, never the value."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from chat_nest.core.errors import BadRequest
from chat_nest.core.held_text import Held, restored
from chat_nest.core.messages import Tool
from chat_nest.dialects.strict_json import flaw, is_array, is_object, parse_object

MAX_PARTS = 1_000
"""The most parts of one message."""
MAX_TOOLS = 128
MAX_NAME = 256
"""The most characters of an id or a name."""

OWN_CONNECTION = frozenset(
    [
        *("base_url", "baseUrl", "baseURL", "api_base", "api_key", "apiKey", "headers", "extra_headers", "extra_body"),
        *("callback", "callback_url", "image_url"),
    ]
)
"""Fields that would choose a provider or open a connection."""

DIGITS = re.compile(r"[0-9]{1,15}")
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_encode = msgspec.json.Encoder(enc_hook=restored).encode


EMPTY: tuple[Any, ...] = ("", 0, [], {})


def parse_fields(body: bytes, refused: Collection[str]) -> dict[str, Any]:
    """Return the fields of the body, without those that are null: null means absent.

    So does an empty value of a refused field: some clients send every field that they know.
    """
    sent = parse_object(body).items()
    fields = {name: value for name, value in sent if value is not None and not (name in refused and value in EMPTY)}
    refuse(fields, refused)
    return fields


def refuse(fields: Mapping[str, Any], refused: Collection[str]) -> None:
    for name in fields:
        if name in refused:
            raise BadRequest("is not accepted from a client", field=name)


def positive(fields: Mapping[str, Any], name: str, *, written: bool = False) -> int | None:
    """Return a positive integer, also from 1e3 or 8000.0; if `written`, also from decimal digits in a string."""
    if name not in fields:
        return None
    value = fields[name]
    if (type(value) is float and value.is_integer()) or (written and type(value) is str and DIGITS.fullmatch(value)):
        value = int(value)
    if type(value) is not int or value < 1:
        raise BadRequest("must be a positive integer", field=name)
    return value


def least(fields: Mapping[str, Any], names: Sequence[str], *, written: bool = False) -> int | None:
    """Return the smallest of the positive integers with these names; None if there is none.

    Unless they may be `written`, -1 is no limit, as llama.cpp and LM Studio have it.
    """
    if not written:
        names = [name for name in names if fields.get(name) != -1]
    found = [positive(fields, name, written=written) for name in names]
    return min([limit for limit in found if limit is not None], default=None)


def temperature(fields: Mapping[str, Any]) -> float | None:
    if "temperature" not in fields:
        return None
    value = fields["temperature"]
    if type(value) not in (int, float) or value < 0:
        raise BadRequest("must be a number, and not negative", field="temperature")
    return float(value)


def switch(fields: Mapping[str, Any], name: str) -> bool:
    """Return true or false; false if the field is absent."""
    value = fields.get(name, False)
    if type(value) is not bool:
        raise BadRequest("must be true or false", field=name)
    return value


def text(value: Any, field: str) -> str:
    """Return a string to send on. A NUL becomes U+FFFD: models write some, and not every provider accepts them."""
    if type(value) is Held:
        value = restored(value)
    if type(value) is not str:
        raise BadRequest("must be a string", field=field)
    if rule := flaw(value):
        raise BadRequest(rule, field=field)
    return value.replace("\x00", "\ufffd")


def name(value: Any, field: str) -> str:
    """Return an id or a name: a short string."""
    if type(value) is str and "\x00" in value:
        raise BadRequest("must not contain NUL", field=field)
    named = text(value, field)
    if not 1 <= len(named) <= MAX_NAME:
        raise BadRequest(f"must have from 1 to {MAX_NAME} characters", field=field)
    return named


def signature(fields: Mapping[str, Any], field: str) -> str:
    """Return the signature of an earlier answer; an empty string if it has none."""
    value = fields.get("signature")
    return "" if value is None else name(value, f"{field}.signature")


def word(value: Any, field: str) -> str:
    """Return an id or a name of a call in the history. A model chose it, so it may be of any length."""
    said = text(value, field)
    if not said:
        raise BadRequest("must not be empty", field=field)
    return said


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
    """Return a JSON value as text, as a model would write it; a string is returned unchanged."""
    if type(value) is str or type(value) is Held:
        return text(value, field)
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        raise BadRequest("must not contain half of a surrogate pair", field=field) from None


def tool(named: Any, description: Any, parameters: Any, field: str, schema: str, *, strict: bool | None = None) -> Tool:
    """Return a tool. Description and parameters may be None; `schema` is the dialect's name for the parameters."""
    if type(named) is not str or not TOOL_NAME.fullmatch(named):
        raise BadRequest("must be 1 to 64 letters, digits, - _ and .", field=f"{field}.name")
    said = "" if description is None else text(description, f"{field}.description")
    if parameters is None:
        return Tool(name=named, description=said, strict=strict)
    at = f"{field}.{schema}"
    schema_text = Raw(written(table(parameters, at), at).encode())
    return Tool(name=named, description=said, parameters=schema_text, strict=strict)


def choice(chosen: str, tools: Sequence[Tool], field: str) -> str:
    """Return a choice of a tool in the form of ChatRequest, if the tools can satisfy it."""
    kind, _, named = chosen.partition(":")
    if (kind == "tool" and named not in [tool.name for tool in tools]) or (kind == "required" and not tools):
        raise BadRequest("must choose among the tools of the request", field=field)
    return chosen
