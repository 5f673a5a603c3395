"""The settings of a chat endpoint, from `create_chat_handler` or `chat-nest serve`.

Each argument is named once, as a field. The signatures of `create_chat_handler` and `ChatHandler.reload` are made of
the fields: a trick, but type checkers, editors and `help` see every argument, and no list of them has to be copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from msgspec import Struct

from chat_nest.asgi.hosts import ANY_HOST
from chat_nest.challenges.settings import Challenge
from chat_nest.core.limits import Limits
from chat_nest.core.protocols import AnyObserver, Dialect, Identify, Now, Provider, RunLogs, Store
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Price
from chat_nest.counting.tokens import Counting
from chat_nest.dialects import DialectName
from chat_nest.identity.sessions import Sessions
from chat_nest.identity.visitors import Visitors
from chat_nest.ledger.ledger import LEASE_SECONDS
from chat_nest.limits.numbers import MAX_BODY_BYTES, PresetName
from chat_nest.limits.spec import Allowance, HardCaps, Profile, Queue

P = ParamSpec("P")
Settings = TypeVar("Settings")
Owner = TypeVar("Owner")
Returned = TypeVar("Returned")


class ChangeableSettings(Struct, frozen=True, kw_only=True):
    """The arguments of `create_chat_handler`, which documents them, that `ChatHandler.reload` takes, too."""

    # the models
    api_key: str | None = None
    base_url: str | None = None
    model: str | None = None
    providers: Mapping[str, Provider] | None = None
    provider_streams: Mapping[str, int] | None = None

    # what a request may do and spend
    preset: PresetName = "default"
    profiles: Mapping[str, Profile] | None = None
    default_profile: str | None = None
    limits: Limits = Limits()
    groups: Mapping[str, Limits] | None = None
    time_zone: str = "UTC"
    prices: Mapping[str, Price] | None = None
    counting: Mapping[str, Counting] | None = None
    hard_caps: HardCaps | None = None
    turn_secrets: Sequence[str | bytes] = ()

    # the callers
    identify: Identify | None = None
    sessions: Sessions | None = None
    visitors: Visitors | None = None
    challenge: Challenge | None = None
    trusted_proxies: Sequence[str] = ()

    # HTTP
    dialect: Dialect | DialectName = "native"
    dialects: Sequence[Dialect | DialectName] = ()
    origins: Sequence[str] | None = None
    cors_origins: Sequence[str] | None = None
    allowed_hosts: Sequence[str] = ANY_HOST
    max_body_bytes: int = MAX_BODY_BYTES
    max_upload_bytes: int | None = None
    max_streams: int | None = None
    queue: Queue | None = None


class HandlerSettings(ChangeableSettings, frozen=True, kw_only=True):
    """All arguments of `create_chat_handler`: those that can change, and those that stay while the handler runs."""

    # the budget counters
    store: Store | str = "memory://"
    journal: str | Path | None = None
    degraded: Allowance | None = None
    lease: float = LEASE_SECONDS

    # the rest
    logs: RunLogs | str = "memory://"
    observers: Sequence[AnyObserver] = ()
    timeouts: Timeouts = Timeouts()
    now: Now = time.time


CAN_CHANGE = frozenset(ChangeableSettings.__struct_fields__)


def takes_fields_of(
    kind: Callable[P, Settings],
) -> Callable[[Callable[[Settings], Returned]], Callable[P, Returned]]:
    """Decorate a function of one struct: callers pass the struct's fields, as keyword arguments."""

    def decorate(function: Callable[[Settings], Returned]) -> Callable[P, Returned]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> Returned:
            return function(kind(*args, **kwargs))

        called.__dict__["__signature__"] = signature(kind)
        return called

    return decorate


def takes_some_fields_of(
    kind: Callable[P, Struct],
) -> Callable[[Callable[[Owner, Mapping[str, Any]], Returned]], Callable[Concatenate[Owner, P], Returned]]:
    """Decorate a method of one mapping: callers pass fields of the struct, and the mapping has those they passed."""

    def decorate(method: Callable[[Owner, Mapping[str, Any]], Returned]) -> Callable[Concatenate[Owner, P], Returned]:
        @wraps(method)
        def called(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> Returned:
            if args:
                raise TypeError(f"{method.__name__} takes keyword arguments only")
            return method(self, kwargs)

        own = next(iter(signature(method).parameters.values()))
        given = signature(kind)
        called.__dict__["__signature__"] = given.replace(parameters=[own, *given.parameters.values()])
        return called

    return decorate
