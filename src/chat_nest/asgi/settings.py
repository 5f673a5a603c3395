"""The settings of a chat endpoint, from `create_chat_handler` or `chat-nest serve`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from msgspec import Struct

from chat_nest.asgi.hosts import ANY_HOST
from chat_nest.challenges.settings import Challenge
from chat_nest.core.limits import Limits
from chat_nest.core.protocols import Dialect, Identify, Now, Observer, Provider, RunLogs, Store
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Price
from chat_nest.counting.tokens import Counting
from chat_nest.dialects import DialectName
from chat_nest.identity.sessions import Sessions
from chat_nest.identity.visitors import Visitors
from chat_nest.ledger.ledger import LEASE_SECONDS
from chat_nest.limits.numbers import MAX_BODY_BYTES, PresetName
from chat_nest.limits.spec import Allowance, HardCaps, Profile, Queue


class HandlerSettings(Struct, frozen=True, kw_only=True):
    """The arguments of `create_chat_handler`, which documents them."""

    api_key: str | None = None
    base_url: str | None = None
    model: str | None = None
    providers: Mapping[str, Provider] | None = None
    preset: PresetName = "default"
    profiles: Mapping[str, Profile] | None = None
    default_profile: str | None = None
    limits: Limits = Limits()
    groups: Mapping[str, Limits] | None = None
    prices: Mapping[str, Price] | None = None
    counting: Mapping[str, Counting] | None = None
    hard_caps: HardCaps | None = None
    timeouts: Timeouts = Timeouts()
    store: Store | str = "memory://"
    journal: str | Path | None = None
    degraded: Allowance | None = None
    lease: float = LEASE_SECONDS
    identify: Identify | None = None
    sessions: Sessions | None = None
    visitors: Visitors | None = None
    challenge: Challenge | None = None
    observers: Sequence[Observer] = ()
    origins: Sequence[str] | None = None
    cors_origins: Sequence[str] | None = None
    allowed_hosts: Sequence[str] = ANY_HOST
    trusted_proxies: Sequence[str] = ()
    time_zone: str = "UTC"
    max_body_bytes: int = MAX_BODY_BYTES
    max_upload_bytes: int | None = None
    max_streams: int | None = None
    dialect: Dialect | DialectName = "native"
    dialects: Sequence[Dialect | DialectName] = ()
    logs: RunLogs | str = "memory://"
    queue: Queue | None = None
    provider_streams: Mapping[str, int] | None = None
    turn_secrets: Sequence[str | bytes] = ()
    now: Now = time.time


class Changes(TypedDict, total=False):
    """The arguments of `ChatHandler.reload`."""

    api_key: str | None
    base_url: str | None
    model: str | None
    providers: Mapping[str, Provider] | None
    preset: PresetName
    profiles: Mapping[str, Profile] | None
    default_profile: str | None
    limits: Limits
    groups: Mapping[str, Limits] | None
    prices: Mapping[str, Price] | None
    counting: Mapping[str, Counting] | None
    hard_caps: HardCaps | None
    identify: Identify | None
    sessions: Sessions | None
    visitors: Visitors | None
    challenge: Challenge | None
    origins: Sequence[str] | None
    cors_origins: Sequence[str] | None
    allowed_hosts: Sequence[str]
    trusted_proxies: Sequence[str]
    time_zone: str
    max_body_bytes: int
    max_upload_bytes: int | None
    max_streams: int | None
    queue: Queue | None
    provider_streams: Mapping[str, int] | None
    turn_secrets: Sequence[str | bytes]
    dialect: Dialect | DialectName
    dialects: Sequence[Dialect | DialectName]


CAN_CHANGE = frozenset(Changes.__annotations__)
