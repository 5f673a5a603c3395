"""Options that several dialects read: the format of the answer, stop sequences, and sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from msgspec import Raw

from chat_nest.core.errors import BadRequest
from chat_nest.core.messages import Effort, Format, Tool
from chat_nest.dialects import fields as read
from chat_nest.dialects.strict_json import is_array

MAX_STOPS = 16
MAX_STOP = 256
"""The most characters of a stop sequence."""
EFFORTS: tuple[Effort, ...] = get_args(Effort)
VERBOSITIES = ("low", "medium", "high")


def json_format(
    value: Any, field: str, *, described: str = "", kinds: tuple[str, ...] = ("json_object",)
) -> Format | None:
    """Return a format: a `type` of text (None), one of `kinds` (any JSON object), or json_schema.

    The fields of a schema are in the field `described`, if the dialect has one.
    """
    fields = read.table(value, field)
    kind = fields.get("type")
    if kind == "text":
        return None
    if type(kind) is str and kind in kinds:
        return Format()
    if kind != "json_schema":
        raise BadRequest(f"must be {', '.join(('text', *kinds))} or json_schema", field=f"{field}.type")
    at = f"{field}.{described}" if described else field
    return schema_format(read.table(fields.get(described), at) if described else fields, at)


def schema_format(fields: Mapping[str, Any], field: str) -> Format:
    """Return a format with `schema`, and with `name`, `description` and `strict` if they are present."""
    schema = read.table(fields.get("schema"), f"{field}.schema")
    named = fields.get("name")
    if named is not None and (type(named) is not str or not read.TOOL_NAME.fullmatch(named)):
        raise BadRequest("must be 1 to 64 letters, digits, - _ and .", field=f"{field}.name")
    said = fields.get("description")
    return Format(
        schema=Raw(read.written(schema, f"{field}.schema").encode()),
        name=named or "answer",
        description="" if said is None else read.text(said, f"{field}.description"),
        strict=strictness(fields, field),
    )


def strictness(fields: Mapping[str, Any], field: str) -> bool | None:
    value = fields.get("strict")
    if value is not None and type(value) is not bool:
        raise BadRequest("must be true or false", field=f"{field}.strict")
    return value


def stops(fields: Mapping[str, Any], name: str, *, alone: bool = False) -> tuple[str, ...]:
    """Return several strings; a single string is accepted if `alone`. An empty string is left out."""
    value = fields.get(name)
    if value is None:
        return ()
    found: list[str] = []
    for index, item in enumerate(read.array([value] if alone and not is_array(value) else value, name, MAX_STOPS)):
        at = f"{name}[{index}]" if is_array(value) else name
        if len(text := read.text(item, at)) > MAX_STOP:
            raise BadRequest(f"must have at most {MAX_STOP} characters", field=at)
        found += [text] if text else []
    return tuple(found)


def integer(fields: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = fields.get(name)
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise BadRequest(f"must be an integer from {least} to {most}", field=name)
    return value


def number(fields: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = fields.get(name)
    if value is not None and (type(value) not in (int, float) or not least <= value <= most):
        raise BadRequest(f"must be a number from {least:g} to {most:g}", field=name)
    return None if value is None else float(value)


def sampling(fields: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """Return the sampling options of the dialect; `names` has the dialect's name of each."""
    bounds = {"top_p": (0, 1), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2)}
    found: dict[str, Any] = {
        option: number(fields, names[option], *bound) for option, bound in bounds.items() if option in names
    }
    if "top_k" in names:
        chosen = integer(fields, names["top_k"], -1, 1_000_000)  # vLLM's default is -1, llama.cpp's 0: all tokens
        found["top_k"] = chosen if chosen is not None and chosen > 0 else None
    if "seed" in names:
        found["seed"] = integer(fields, names["seed"], -(2**63), 2**63 - 1)
    return found


def allowed_tools(
    fields: Mapping[str, Any], tools: tuple[Tool, ...], field: str, *, described: str = ""
) -> tuple[str, tuple[Tool, ...]]:
    """Return the choice `mode`, and those of the tools that are in the list `tools`.

    The name of an entry is in its field `described`, if the dialect has one.
    """
    mode = word(fields.get("mode"), ("auto", "required"), f"{field}.mode") or "auto"
    allowed: set[str] = set()
    for index, entry in enumerate(read.array(fields.get("tools"), f"{field}.tools", read.MAX_TOOLS)):
        at = f"{field}.tools[{index}]"
        tool = read.table(entry, at)
        if described:
            at = f"{at}.{described}"
            tool = read.table(tool.get(described), at)
        named = read.name(tool.get("name"), f"{at}.name")
        read.choice(f"tool:{named}", tools, f"{at}.name")
        allowed.add(named)
    left = tuple(tool for tool in tools if tool.name in allowed)
    return read.choice(mode, left, f"{field}.mode"), left


def word(value: Any, words: tuple[str, ...], field: str) -> Any:
    """Return one of `words`; None if the field is absent."""
    if value is not None and (type(value) is not str or value not in words):
        raise BadRequest(f"must be one of {', '.join(words)}", field=field)
    return value


def switch(fields: Mapping[str, Any], name: str) -> bool | None:
    return read.switch(fields, name) if name in fields else None
