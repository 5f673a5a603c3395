"""Read JSON that a strict decoder refuses, because of a field that may not even matter."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final, TypeVar, cast, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

from chat_nest.core.errors import UpstreamProtocol

MAX_DIGITS: Final = 32
"""A longer integer becomes infinity, which is no valid count: converting thousands of digits is slow."""

T = TypeVar("T", bound=Struct)


def loosely(event: bytes, kind: type[T]) -> T:
    """Return the fields of `kind` from a JSON object. A field of another JSON type keeps its default.

    Halves of surrogate pairs, which strict decoders refuse, stay in the texts. An object counts as an array of one.
    Raises UpstreamProtocol for anything but a JSON object in UTF-8.
    """
    try:
        value = _DECODER.decode(event.decode().strip())
    except (ValueError, RecursionError):
        raise UpstreamProtocol from None
    if not isinstance(value, dict):
        raise UpstreamProtocol
    return _struct(cast("dict[str, object]", value), kind)


def json_text(value: object) -> str:
    """Return a value as JSON text, with U+FFFD for halves of surrogate pairs."""
    return whole_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def whole_text(text: str) -> str:
    """Join the halves of surrogate pairs; U+FFFD replaces a half that stands alone."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float("inf")


_DECODER: Final = json.JSONDecoder(parse_int=_integer, strict=False)


def _struct(value: dict[str, object], kind: type[T]) -> T:
    fields: dict[str, object] = {}
    for name, written, wanted, many, texts in _plan(kind):
        found = value.get(written)
        if wanted is None:
            fields[name] = found
        elif wanted is Raw:
            fields[name] = Raw(json_text(found).encode())
        elif many and not (isinstance(found, str) and texts):
            items = cast("list[object]", found) if isinstance(found, list) else [found] if found else []
            fields[name] = [_struct(cast("Any", item), wanted) for item in items if isinstance(item, dict)]
        elif isinstance(found, dict):
            fields[name] = _struct(cast("dict[str, object]", found), wanted)
        elif isinstance(found, str) and texts:
            fields[name] = found
    return kind(**fields)


@cache
def _plan(kind: type[Struct]) -> list[tuple[str, str, Any, bool, bool]]:
    """Return each field: its name, its name in JSON, its struct or Raw, and whether it is a list or may be text."""
    plan: list[tuple[str, str, Any, bool, bool]] = []
    for field in msgspec.structs.fields(kind):
        options = [field.type, *get_args(field.type)]
        many = next((option for option in options if get_origin(option) is list), None)
        options += get_args(many)
        wanted = next((one for one in options if isinstance(one, type) and issubclass(one, Struct | Raw)), None)
        plan.append((field.name, field.encode_name, wanted, many is not None, str in options))
    return plan


def field(value: object, name: str) -> object:
    """Return a field of a JSON object, else None."""
    fields: Any = value
    return fields.get(name) if isinstance(fields, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
