"""Checks of the arguments of `create_chat_handler`: a wrong type is named at once, not by a failed request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, cast, get_args, get_origin

from msgspec import Struct
from msgspec.structs import fields

from chat_nest.limits import Allowance, HardCaps, Limits, Profile, Timeouts
from chat_nest.parts import kind_of
from chat_nest.protocols import Dialect, Observer, Provider, RunLogs, Store
from chat_nest.usage import Price

_PLAIN: Final[Mapping[str, Any]] = {
    "api_key": str | None,
    "base_url": str | None,
    "model": str | None,
    "default_profile": str | None,
    "limits": Limits,
    "hard_caps": HardCaps,
    "timeouts": Timeouts,
    "journal": str | Path | None,
    "degraded": Allowance | None,
    "lease": float,
    "time_zone": str,
    "max_body_bytes": int,
    "max_streams": int | None,
}
_OF_STRUCTS: Final[Mapping[str, type[Struct]]] = {"profiles": Profile, "groups": Limits, "prices": Price}
_HINTS: Final[Mapping[object, str]] = {Price: ", which chat_nest.prices.price(input=..., output=...) makes"}


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise TypeError, or ValueError for a word that is none of those allowed, for the first argument that is wrong.

    The message names the argument, the type that came and the right one, and never holds a value.
    """
    for name, kind in _PLAIN.items():
        _check(name, given[name], kind)
    for name, kind in _OF_STRUCTS.items():
        for key, value in _items(name, given[name]):
            _check(f"{name}[{key!r}]", value, kind)
    for key, value in _items("providers", given["providers"]):
        _check_part(f"providers[{key!r}]", value, Provider)
    _check_part("store", given["store"], Store, or_text=True)
    _check_part("logs", given["logs"], RunLogs, or_text=True)
    _check_part("dialect", given["dialect"], Dialect, or_text=True)
    for index, value in enumerate(_each("dialects", given["dialects"])):
        _check_part(f"dialects[{index}]", value, Dialect, or_text=True)
    for index, value in enumerate(_each("observers", given["observers"])):
        _check_part(f"observers[{index}]", value, Observer, is_async=False)
    for index, value in enumerate(_each("cors_origins", given["cors_origins"])):
        _check(f"cors_origins[{index}]", value, str)
    for name in ("identify", "now"):
        _check_callable(name, given[name])


def _check(where: str, value: object, kind: Any) -> None:
    if not _fits(value, kind):
        message = f"{where} must be {_shown(kind)}{_HINTS.get(kind, '')}, not {kind_of(value)}"
        raise TypeError(message)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{where} must be {_shown(kind)}")
    if isinstance(value, Struct):
        for field in fields(value):
            _check(f"{where}.{field.name}", getattr(value, field.name), field.type)


def _fits(value: object, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if origin is Literal:
        return isinstance(value, str)
    if origin is tuple:
        items = cast("tuple[object, ...]", value)
        return isinstance(value, tuple) and all(_fits(each, get_args(kind)[0]) for each in items)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def _shown(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(_shown(each) for each in get_args(kind))
    if origin is Literal:
        return " or ".join(f'"{each}"' for each in get_args(kind))
    if origin is tuple:
        return f"a tuple, each {_shown(get_args(kind)[0])}"
    if kind is NoneType:
        return "None"
    name = {float: "number", int: "integer", str: "string"}.get(kind) or str(kind.__name__)
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _items(name: str, value: object) -> Iterable[tuple[object, object]]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict by name, not {kind_of(value)}")
    items = cast("Mapping[object, object]", value)
    for key in items:
        if not isinstance(key, str):
            raise TypeError(f"the names in {name} must be strings, not {kind_of(key)}")
    return items.items()


def _each(name: str, value: object) -> Iterable[object]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list, not {kind_of(value)}")
    return cast("Iterable[object]", value)


def _check_part(where: str, part: object, protocol: type, *, or_text: bool = False, is_async: bool = True) -> None:
    if or_text and isinstance(part, str):
        return
    name = protocol.__name__
    if isinstance(part, type):
        raise TypeError(f"{where} must be {_article(name)}, not {kind_of(part)}: call the class to make one")
    missing = [member for member in vars(protocol) if not member.startswith("_") and not _has(part, member)]
    if missing:
        text = "a string or " if or_text else ""
        raise TypeError(
            f"{where} must be {text}{_article(name)} (chat_nest.protocols), not {kind_of(part)}, which has no "
            f"{', '.join(missing)}"
        )
    for member in () if is_async else vars(protocol):
        if not member.startswith("_") and inspect.iscoroutinefunction(inspect.getattr_static(part, member, None)):
            raise TypeError(f"{where}.{member} must be a plain function, not an async one: nothing awaits it")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _has(part: object, member: str) -> bool:
    try:
        return getattr(part, member) is not None
    except AttributeError:
        return False
    except Exception:  # a property of the part's own that fails: it is there
        return True


def _check_callable(name: str, value: Callable[..., object] | type | None) -> None:
    if value is None and name == "identify":
        return
    if isinstance(value, type):
        raise TypeError(f"{name} must be a function, not {kind_of(value)}: call the class to make one")
    if not callable(value):
        raise TypeError(f"{name} must be a function, not {kind_of(value)}")
