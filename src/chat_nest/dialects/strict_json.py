"""A strict JSON parser (RFC 8259) that refuses everything that two parsers could read differently.

msgspec reads a body in a third of the time, but keeps the last of two equal keys, and can't say what is wrong where. So
what it has read is accepted only if it certainly keeps every rule; whatever is in doubt is read once more, by json.
"""

from __future__ import annotations

import json
import math
import re
from codecs import BOM_UTF8, readbuffer_encode
from collections.abc import Iterable
from typing import Any, TypeGuard

import msgspec

from chat_nest.core.errors import BadRequest
from chat_nest.core.held_text import HeldBody, with_held

MAX_DEPTH = 128
"""Levels of arrays and objects. Arguments of a call are a few levels down, and must return as the model nested them."""
MAX_VALUES = 8_192
"""Items of arrays and members of objects, in the whole body: each costs far more to build than to send."""
MAX_DIGITS = 32
"""Digits in a row in a number: no field needs more, and converting thousands of digits is slow."""


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`.

    A leading byte order mark is ignored (RFC 8259, section 8.1).

    Raises BadRequest with field `body` and the rule that it breaks: UTF-8, one object, no duplicate key, no NaN or
    Infinity, numbers within the range of a double and of at most 32 digits in a row, at most 128 levels and 8,192
    values, which are counted before any is built. A string may have a `flaw`: a dialect refuses it in the strings that
    it sends on. In a HeldBody, a string that is held apart is a Held.
    """
    held = body if isinstance(body, HeldBody) else None
    body = body.removeprefix(BOM_UTF8)
    value = _read_fast(body)
    if value is None:
        value = read_carefully(body)
    return value if held is None or not held.held else {name: with_held(item, held) for name, item in value.items()}


def read_carefully(body: bytes) -> dict[str, Any]:
    """Return the same as `parse_object`, or raise the same, for a body without a byte order mark or held texts."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _broken(f"must be UTF-8; byte {error.start} is not") from None
    _check_size(body)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _broken(f"must be valid JSON; it is not at character {error.pos}") from None
    if not is_object(value):
        raise _broken("must be a JSON object")
    return value


def _read_fast(body: bytes) -> dict[str, Any] | None:
    """Return the object if it certainly keeps every rule; None leaves the decision to `read_carefully`."""
    if len(body) > _SHORT and not _is_small(body):
        _check_size(body)
    try:
        value: Any = _fast(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: invalid UTF-8
        return None
    if not is_object(value):
        return None
    # Without two equal keys there is a member for each colon behind a quote; a string with such a colon is in doubt.
    members, has_numbers = len(_KEY_ENDS.findall(body)), False
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for container in level:
            items: Iterable[Any] = container
            if is_object(container):
                members -= len(container)
                items = container.values()
            if _PLAIN.issuperset(map(type, items)):
                continue
            for item in items:
                kind = type(item)  # pyright: ignore[reportUnknownVariableType]
                if kind is dict or kind is list:
                    deeper.append(item)
                elif kind is float or (kind is int and not -_LARGE < item < _LARGE):
                    has_numbers = True
        if not deeper:
            break
        level = deeper
    else:
        return None
    if members or (has_numbers and _LONG in body.translate(_NINES)):
        return None
    return value


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return type(value) is dict


def is_array(value: Any) -> TypeGuard[list[Any]]:
    return type(value) is list


def flaw(text: str) -> str | None:
    """Return why `text` can't be sent on: it holds half of a surrogate pair, which is no character. Else None."""
    if not text.isascii():
        try:
            readbuffer_encode(text)  # unlike `encode`, the string keeps its UTF-8 for who counts and sends it
        except UnicodeEncodeError:
            return "must not contain half of a surrogate pair"
    return None


def _broken(rule: str) -> BadRequest:
    return BadRequest(rule, field="body")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _broken("must not have the same key twice in one object")
    return members


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _broken("must not have a number beyond the range of a double")
    return number


def _constant(_: str) -> float:
    raise _broken("must not have NaN or Infinity")


_fast = msgspec.json.Decoder().decode
_SHORT = MAX_VALUES
"""Bytes. A shorter body can't have more values: each has a bracket or a comma."""
_PLAIN = frozenset((str, bool, type(None)))
"""Values that break no rule."""
_LARGE = 10**15
"""An integer below has no more digits than MAX_DIGITS."""
_KEY_ENDS = re.compile(rb'"[ \t\r\n]*:')

# No hook for integers: it would cost more than all the rest.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)


_TOO_DEEP = f"must not nest deeper than {MAX_DEPTH} levels"
_TOO_MANY = f"must not have more than {MAX_VALUES} values"
_DEEP_START = re.compile(rb'\s*(?:[\[{]\s*(?:"[^"\\]*"\s*:\s*)?){%d}' % (MAX_DEPTH + 1))
_LONG = b"9" * (MAX_DIGITS + 1)
_NINES = bytes.maketrans(b"0123456789", b"9" * 10)
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


def _is_small(body: bytes) -> bool:
    """Return whether it has few values and no long number, even if none of its marks is inside a string."""
    marks = body.count(b",") + body.count(b"[") + body.count(b"{")
    return marks <= MAX_VALUES and _LONG not in body.translate(_NINES)


def _check_size(body: bytes) -> None:
    """Refuse too many values, levels or digits. Only searches bytes, in time proportional to the body.

    A body that is not JSON may be refused here for its size; otherwise the decoder refuses it.
    """
    containers = body.count(b"[") + body.count(b"{")
    small = containers <= MAX_DEPTH and containers + body.count(b",") <= MAX_VALUES
    if small and _LONG not in body.translate(_NINES):
        return  # allowed even if none of them is inside a string
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # now each quote begins or ends a string
    if plain.count(b'"') > 4 * MAX_VALUES:  # one key and one string for each value
        raise _broken(_TOO_DEEP if _DEEP_START.match(body) else _TOO_MANY)
    outside = b"".join(plain.split(b'"')[::2])
    nesting = outside.translate(_SQUARE, _NO_BRACKET)
    if b"[" * (MAX_DEPTH + 1) in nesting:
        raise _broken(_TOO_DEEP)
    if nesting.count(b"[") + outside.count(b",") > MAX_VALUES:
        raise _broken(_TOO_MANY)
    if _LONG in outside.translate(_NINES):
        raise _broken(f"must not have a number of more than {MAX_DIGITS} digits")
    for _ in range(MAX_DEPTH):  # each round removes the innermost level
        if not nesting:
            return
        nesting = nesting.replace(b"[]", b"")
    if b"[]" in nesting or nesting.count(b"[") > MAX_DEPTH:
        raise _broken(_TOO_DEEP)
