"""Bodies as RFC 8259 has them, and nothing that two parsers could read in two ways."""

from __future__ import annotations

import json
import math
from typing import Any, TypeGuard

from chat_nest.errors import BadRequest

MAX_DEPTH = 32
MAX_DIGITS = 32
"""Longer integers are refused: no field takes one, and converting thousands of digits is slow."""


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is.

    Raises BadRequest with field `body` and the rule that it breaks: UTF-8 without a byte order mark, one object, no
    key twice, no NaN or Infinity, numbers within the range of a double, integers of at most 32 digits, at most 32
    levels. A string may hold what `flaw` names: a dialect refuses it in the strings that it sends on.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _broken(f"must be UTF-8; byte {error.start} is not") from None
    if text.startswith("\ufeff"):
        raise _broken("must not begin with a byte order mark")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _broken(f"must be valid JSON; it is not at character {error.pos}") from None
    except RecursionError:
        raise _broken(f"must not nest deeper than {MAX_DEPTH} levels") from None
    if not is_object(value):
        raise _broken("must be a JSON object")
    _check_depth(value)
    return value


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return type(value) is dict


def is_array(value: Any) -> TypeGuard[list[Any]]:
    return type(value) is list


def flaw(text: str) -> str | None:
    """The rule that `text` breaks if it can't be sent on: it holds a NUL or half of a surrogate pair."""
    if "\x00" in text:
        return "must not contain NUL"
    if not text.isascii():
        try:
            text.encode()
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


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS + digits.startswith("-"):
        raise _broken(f"must not have a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _broken("must not have a number beyond the range of a double")
    return number


def _constant(_: str) -> float:
    raise _broken("must not have NaN or Infinity")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            children = item.values() if is_object(item) else item
            below += [child for child in children if type(child) in (dict, list)]
        if not below:
            return
        level = below
    raise _broken(f"must not nest deeper than {MAX_DEPTH} levels")
