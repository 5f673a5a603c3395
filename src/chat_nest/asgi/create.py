"""`create_chat_handler`: every part of the chat endpoint, put together."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from chat_nest.asgi.arguments import check_arguments
from chat_nest.asgi.cors import Cors
from chat_nest.asgi.handler import ChatHandler
from chat_nest.chat import Chat
from chat_nest.dialects.built_in import DialectName, named
from chat_nest.identity.peer import PeerAddress
from chat_nest.journal import Journal
from chat_nest.landing import Landing
from chat_nest.ledger import LEASE_SECONDS, Ledger
from chat_nest.limits import BUILT_IN_PROFILES, HARD_CAPS, Allowance, HardCaps, Limits, Profile, Timeouts
from chat_nest.prices import Prices
from chat_nest.profiles import Profiles
from chat_nest.protocols import Dialect, Identify, Now, Observer, Provider, RunLogs, Store
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.run_logs import open_runs
from chat_nest.stores.allowance import check_allowance
from chat_nest.stores.prefunded import Prefunded
from chat_nest.stores.urls import open_store
from chat_nest.tokens import counter_for
from chat_nest.upstream import Upstream, split_model
from chat_nest.usage import Price

OPENAI_URL = "https://api.openai.com/v1"


def create_chat_handler(
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    model: str | None = None,
    providers: Mapping[str, Provider] | None = None,
    profiles: Mapping[str, Profile] | None = None,
    default_profile: str | None = None,
    limits: Limits = Limits(),
    groups: Mapping[str, Limits] | None = None,
    prices: Mapping[str, Price] | None = None,
    hard_caps: HardCaps = HARD_CAPS,
    timeouts: Timeouts = Timeouts(),
    store: Store | str = "memory://",
    journal: str | Path | None = None,
    degraded: Allowance | None = None,
    lease: float = LEASE_SECONDS,
    identify: Identify | None = None,
    observers: Sequence[Observer] = (),
    cors_origins: Sequence[str] = ("*",),
    time_zone: str = "UTC",
    max_body_bytes: int = 262_144,
    max_streams: int | None = None,
    dialect: Dialect | DialectName = "native",
    dialects: Sequence[Dialect | DialectName] = (),
    logs: RunLogs | str = "memory://",
    now: Now = time.time,
) -> ChatHandler:
    """Make the chat endpoint: an ASGI application to mount, or to run by itself.

    `api_key` and `base_url` name an OpenAI-compatible provider (else OPENAI_API_KEY and OPENAI_BASE_URL do); `model` is
    the model of every built-in profile. With `providers` of your own, by name, `model` is PROVIDER:MODEL, or a model of
    the first one. `profiles`, by name, replace the built-in constrained, balanced and expanded, which are open to every
    caller. `default_profile` is that of a caller who names none (`balanced`, the only one, or the only one with
    `open=True`); of your own profiles a caller without a `Caller.profile` may choose it and those with `open=True`.

    `store` is a URL (`memory://`, `sqlite:///chat-nest.db`) or a Store; `lease` seconds after a process died, what it
    held is charged. `identify` returns the Caller of an ASGI scope; the default is by the peer's IP address. `limits`
    are for all callers together, `groups` for the callers of each group together, by its name (`default` is for groups
    without limits of their own); windows begin at midnight in `time_zone`. `prices`, by PROVIDER:MODEL or PROVIDER:*
    (see `chat_nest.prices.price`), win over those of genai-prices. `dialect` is the wire format: "native", "openai",
    "ai_sdk", "ag_ui", "anthropic", "blog", or a Dialect; `dialects` are several of them, each at paths of its own. A
    chat that comes while `max_streams` answers run is refused (503 `overloaded`) before anything is reserved.

    `journal` is a directory on this machine in which settlements outlive the process that the store did not take them
    from. `degraded` is what this process may spend while the store is down; it is held in `limits` beforehand.

    `logs` is where runs are kept that readers may come back to: a URL (see `chat_nest.run_logs.open_runs`) or RunLogs.

    The handler owns its providers, store and logs: `aclose()` closes them. Raises ValueError for a missing key, a
    profile whose provider is unknown, a default profile that is missing or closed, a limit in dollars for a model
    whose price is not known, an unknown or a second dialect at the same path, a time zone, origin, store URL or journal
    that can't be used, or an allowance that `limits` can't hold. Raises TypeError for an argument of the wrong type, or
    a part that lacks a method.
    """
    check_arguments(locals())
    if providers is None:
        providers = {"openai": _openai(api_key, base_url)}
    elif api_key is not None or base_url is not None:
        msg = "pass either `providers` or `api_key` and `base_url`, not both"
        raise ValueError(msg)
    if profiles is None:
        full = _full_model(model or ("gpt-4o-mini" if "openai" in providers else None), providers)
        profiles = {name: replace(profile, model=full) for name, profile in BUILT_IN_PROFILES.items()}
    elif model is not None:
        msg = "pass either `profiles`, which name their models, or `model`, not both"
        raise ValueError(msg)
    urls = {name: str(getattr(provider, "base_url", "")) for name, provider in providers.items()}
    known = Prices(prices, urls)
    for name, profile in profiles.items():
        for full in (profile.model, *profile.fallbacks):
            if split_model(full)[0] not in providers:
                msg = (
                    f"profile {name!r}: the model must be PROVIDER:MODEL with one of the providers {sorted(providers)}"
                )
                raise ValueError(msg)
            counter_for(split_model(full)[1])  # builds its tables now, not in the first request
            known.of(full)
    rules = Profiles(profiles, limits, hard_caps, time_zone, default_profile, groups=groups, prices=known)
    opened = open_store(store, now) if isinstance(store, str) else store
    kept = None if journal is None else Journal(journal)
    landing = Landing(opened, journal=kept, patience=timeouts.store)
    if degraded is not None:
        check_allowance(degraded, limits)
        shared, deadline = lambda: rules.shared_lines(now()), timeouts.store / 2
        opened = Prefunded(opened, degraded, shared, landing=landing, now=now, deadline=deadline)
    ledger = Ledger(opened, rules.refusal, lease=lease, patience=timeouts.store, landing=landing)
    chat = Chat(
        identify=identify or PeerAddress(),
        profiles=rules,
        ledger=ledger,
        upstream=Upstream(providers, timeouts),
        prices=known,
        logs=open_runs(logs) if isinstance(logs, str) else logs,
        observers=observers,
        now=now,
    )
    return ChatHandler(
        chat,
        ledger,
        providers,
        dialects=[named(each) for each in dialects or (dialect,)],
        timeouts=timeouts,
        cors=Cors(cors_origins),
        max_body_bytes=max_body_bytes,
        max_streams=max_streams,
        now=now,
    )


def _openai(api_key: str | None, base_url: str | None) -> OpenAIProvider:
    api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    if api_key is None and base_url == OPENAI_URL:
        msg = (
            "no API key: pass api_key=..., or set OPENAI_API_KEY; a local server needs base_url=... instead. "
            'Without either, see "A model without a key" in docs/embedding.md'
        )
        raise ValueError(msg)
    return OpenAIProvider(api_key, base_url)


def _full_model(model: str | None, providers: Mapping[str, Provider]) -> str:
    if model is None:
        msg = "name the model: model='PROVIDER:MODEL'"
        raise ValueError(msg)
    return model if split_model(model)[0] in providers else f"{next(iter(providers))}:{model}"
