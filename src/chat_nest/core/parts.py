"""Names of the parts that an application plugs in, and their bugs as one sentence for the log.

A part's exception may hold a key or a prompt in its message, so only its type and its places in the code are logged.
`PartMisused` is our own: its message holds no value.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, Protocol, TypeGuard, TypeVar, cast

Ability = TypeVar("Ability")

_BUGS = (TypeError, AttributeError, NameError, LookupError, ValueError, ArithmeticError, AssertionError, RuntimeError)
"""Exceptions that mean a bug. An outage raises others: OSError, TimeoutError, a driver's own error."""


class PartMisused(TypeError):
    """A part broke its Protocol; the message names the part, what it returned and what is right."""


def part_name(part: object) -> str:
    """Return a function's or class's name with its module; for another object, the name of its class."""
    while isinstance(part, functools.partial):
        part = part.func
    named: Any = part if isinstance(part, type) or inspect.isroutine(part) else type(part)
    return f"{named.__module__}.{named.__qualname__}"


def offers(part: object, ability: Callable[..., Ability]) -> TypeGuard[Ability]:
    """Return whether a part has all members of `ability`, a Protocol: what `isinstance` returns.

    Before Python 3.12 `isinstance` collects a Protocol's members at every call, for twenty times the price.
    """
    for name in _members(ability):  # noqa: SIM110 - a generator would double the price
        if not hasattr(part, name):
            return False
    return True


@cache
def _members(ability: Callable[..., object]) -> tuple[str, ...]:
    protocols = [each for each in cast("type", ability).__mro__ if each not in (Protocol, Generic, object)]
    return tuple(name for each in protocols for name in vars(each) if name == "__call__" or not name.startswith("_"))


def kind_of(value: object) -> str:
    """Return a value's kind without the value: `None`, `a str`, `the class Profile`."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def failure_text(failure: BaseException) -> str:
    """Return an exception's text for the log: its type, then its places in the code, one a line."""
    if isinstance(failure, PartMisused):
        return str(failure)
    return "\n".join((type(failure).__name__, *traceback.format_tb(failure.__traceback__))).rstrip()


class KnownBugs:
    """The bugs already seen in parts. Each is logged once, because a store is called for every request."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str, int]] = set()

    def explain(self, part: object, failure: BaseException) -> str:
        """Return the exception's type; for a new bug, also the part and the places."""
        name = type(failure).__name__
        if not isinstance(failure, _BUGS):
            return name
        place = traceback.extract_tb(failure.__traceback__)[-1]
        key = (name, place.filename, place.lineno or 0)
        if key in self._known:
            return name
        self._known.add(key)
        return f"a bug in {part_name(part)} (logged once): {failure_text(failure)}"
