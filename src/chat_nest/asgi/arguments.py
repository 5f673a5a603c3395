"""Checks of the arguments of `create_chat_handler`: a wrong type is reported at once, not by a failed request."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Final, Literal, Protocol, Union, cast, get_args, get_origin

from msgspec import Struct
from msgspec.structs import fields

from chat_nest.asgi.settings import HandlerSettings
from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.limits import Limits
from chat_nest.core.parts import kind_of
from chat_nest.core.protocols import (
    BatchesCalls,
    BillsAborts,
    Checkable,
    Choosy,
    Closable,
    Dialect,
    FollowsSteps,
    HasBaseUrl,
    HasContext,
    HasQuotaHeaders,
    HasRemedy,
    LimitsRetryAfter,
    Located,
    NamesOptions,
    Observer,
    Provider,
    RefersToAnswers,
    Reported,
    Resumable,
    RunLogs,
    SendsKey,
    Store,
)
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Price
from chat_nest.counting.tokens import Counting
from chat_nest.limits.counters import LEAST_USD, MOST_USD
from chat_nest.limits.spec import Allowance, Profile, Queue, Rung

log = logging.getLogger("chat_nest.asgi")


def _is_plain(kind: Any) -> bool:
    """Return whether `_fits` checks this type completely: no Protocol, and no list or dict."""
    if get_origin(kind) in (Union, UnionType):
        return all(map(_is_plain, get_args(kind)))
    return get_origin(kind) is Literal or (isinstance(kind, type) and Protocol not in kind.__bases__)


_PLAIN: Final[Mapping[str, Any]] = {
    field.name: field.type for field in fields(HandlerSettings) if _is_plain(field.type)
}
MOST_SECONDS = 86_400
MOST_WAITING = 10_000
"""Each waiting request keeps its body in memory."""
SECONDS = f"a number of seconds above 0 and at most {MOST_SECONDS}"
WHOLE = f"a whole number from 1 to {MAX_AMOUNT}"
_OF_STRUCTS: Final[Mapping[str, type[Struct]]] = {"profiles": Profile, "groups": Limits, "prices": Price}
_OPTIONAL: Final[Mapping[type, Sequence[type]]] = {
    Provider: (BillsAborts, Checkable, Choosy, Closable, HasBaseUrl, HasContext, SendsKey),
    Dialect: (HasQuotaHeaders, LimitsRetryAfter, NamesOptions, RefersToAnswers, Resumable),
    Store: (BatchesCalls, HasRemedy, Located),
}
"""The optional methods of a part, besides its Protocol."""
ABORT_BILLS = ("stops", "full", "unknown")
_HINTS: Final[Mapping[object, str]] = {Price: ", which chat_nest.price(input=..., output=...) makes"}


def check_arguments(settings: HandlerSettings) -> None:
    """Raise TypeError or ValueError for the first wrong argument: a type, a word or a number that is not allowed.

    The message names the argument, its type, and the right type or the rule. It never holds a value. The numbers of
    profiles, limits and hard caps are checked later, when they are combined.
    """
    given = {name: getattr(settings, name) for name in settings.__struct_fields__}
    for name, kind in _PLAIN.items():
        _check(name, given[name], kind)
    for name, kind in _OF_STRUCTS.items():
        for key, value in _items(name, given[name]):
            _check(f"{name}[{key!r}]", value, kind)
            for number, rung in enumerate(value.ladder if isinstance(value, Profile) else ()):
                _check(f"{name}[{key!r}].ladder[{number}]", rung, Rung)
    for key, value in _items("provider_streams", given["provider_streams"]):
        _check(f"provider_streams[{key!r}]", value, int)
    for key, value in _items("counting", given["counting"]):
        _check(f"counting[{key!r}]", value, Counting)
    for key, value in _items("providers", given["providers"]):
        _check_part(f"providers[{key!r}]", value, Provider)
        _check_abort_bills(f"providers[{key!r}]", value)
    _check_part("store", given["store"], Store, or_text=True)
    _check_part("logs", given["logs"], RunLogs, or_text=True)
    _check_part("dialect", given["dialect"], Dialect, or_text=True)
    for index, value in enumerate(_each("dialects", given["dialects"])):
        _check_part(f"dialects[{index}]", value, Dialect, or_text=True)
    for index, value in enumerate(_each("observers", given["observers"])):
        for kind in _observes(value):
            _check_part(f"observers[{index}]", value, kind, is_async=False)
    for name in ("origins", "cors_origins"):
        for index, value in enumerate(() if given[name] is None else _each(name, given[name])):
            _check(f"{name}[{index}]", value, str)
    for name in ("allowed_hosts", "trusted_proxies"):
        for index, value in enumerate(_each(name, given[name])):
            _check(f"{name}[{index}]", value, str)
    for index, value in enumerate(_each("turn_secrets", given["turn_secrets"])):
        _check(f"turn_secrets[{index}]", value, str | bytes)
    for name in ("identify", "now"):
        _check_callable(name, given[name])
    _check_numbers(given)


def _check(where: str, value: object, kind: Any) -> None:
    if not _fits(value, kind):
        message = f"{where} must be {_shown(kind)}{_HINTS.get(kind, '')}, not {kind_of(value)}"
        raise TypeError(message)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{where} must be {_shown(kind)}")
    if isinstance(value, Struct):
        for field in fields(value):
            _check(f"{where}.{field.name}", getattr(value, field.name), field.type)


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Raise ValueError for a number that a configuration file could not have either."""
    timeouts: Timeouts = given["timeouts"]
    for field in fields(timeouts):
        seconds: float = getattr(timeouts, field.name)
        _require(f"timeouts.{field.name}", 0 < seconds <= MOST_SECONDS, SECONDS)
    _require("lease", 5 <= given["lease"] <= 3_600, "a number of seconds from 5 to 3600")
    for name, profile in cast("Mapping[str, Profile]", given["profiles"] or {}).items():
        here = f"profiles[{name!r}].grace_seconds"
        _require(here, 0 <= profile.grace_seconds <= MOST_SECONDS, f"a number of seconds from 0 to {MOST_SECONDS}")
    for name in ("max_body_bytes", "max_upload_bytes", "max_streams"):
        count: int | None = given[name]
        _require(name, count is None or 1 <= count <= MAX_AMOUNT, WHOLE)
    for name, most in cast("Mapping[str, int]", given["provider_streams"] or {}).items():
        _require(f"provider_streams[{name!r}]", 1 <= most <= MAX_AMOUNT, WHOLE)
    if (queue := cast("Queue | None", given["queue"])) is not None:
        _require("queue.seconds", 0 < queue.seconds <= MOST_SECONDS, SECONDS)
        _require("queue.length", 1 <= queue.length <= MOST_WAITING, f"a whole number from 1 to {MOST_WAITING}")
    allowance: Allowance | None = given["degraded"]
    for name in ("tokens", "requests", "streams") if allowance is not None else ():
        amount: int | None = getattr(allowance, name)
        _require(f"degraded.{name}", amount is None or 1 <= amount <= MAX_AMOUNT, WHOLE)
    if allowance is not None and allowance.usd is not None:
        rule = f"a number of dollars from {LEAST_USD:.9f} to {MOST_USD}"
        _require("degraded.usd", LEAST_USD <= allowance.usd <= MOST_USD, rule)


def _require(where: str, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{where} must be {rule}")


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
            f"{where} must be {text}{_article(name)} (chat_nest.{name}), not {kind_of(part)}, which has no "
            f"{', '.join(missing)}"
        )
    _check_spelling(where, part, protocol)
    for member in () if is_async else vars(protocol):
        if not member.startswith("_") and inspect.iscoroutinefunction(inspect.getattr_static(part, member, None)):
            raise TypeError(f"{where}.{member} must be a plain function, not an async one: nothing awaits it")


def _observes(part: object) -> Sequence[type]:
    """Return the Protocols of AnyObserver that an observer has to keep: those that its class begins, or Observer."""
    begun = [
        kind
        for kind in (Observer, Reported, FollowsSteps)
        if any(not member.startswith("_") and _has(type(part), member) for member in vars(kind))
    ]
    return begun or [Observer]


def _check_spelling(where: str, part: object, protocol: type) -> None:
    """Log a name that is close to an optional name: a misspelt one would be ignored silently."""
    optional = {member for each in _OPTIONAL.get(protocol, ()) for member in vars(each) if not member.startswith("_")}
    for name in sorted({*dir(type(part)), *getattr(part, "__dict__", ())}):
        near = [] if name.startswith("_") or name in optional else get_close_matches(name, optional, n=1, cutoff=0.85)
        if near and near[0][0] == name[0] and not _has(part, near[0]):  # `close` is no `aclose`
            log.warning("%s has %s, which nothing reads: did you mean %s?", where, name, near[0])


def _check_abort_bills(where: str, provider: object) -> None:
    if isinstance(provider, BillsAborts):
        _require(f"{where}.abort_bills", provider.abort_bills in ABORT_BILLS, '"stops" or "full" or "unknown"')


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _has(part: object, member: str) -> bool:
    try:
        return getattr(part, member) is not None
    except AttributeError:
        return False
    except Exception:  # a property of the part that fails: the name exists
        return True


def _check_callable(name: str, value: Callable[..., object] | type | None) -> None:
    if value is None and name == "identify":
        return
    if isinstance(value, type):
        raise TypeError(f"{name} must be a function, not {kind_of(value)}: call the class to make one")
    if not callable(value):
        raise TypeError(f"{name} must be a function, not {kind_of(value)}")
