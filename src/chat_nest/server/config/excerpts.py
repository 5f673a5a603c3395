"""Read only a part of the configuration, for commands that need no provider's key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from zoneinfo import ZoneInfo

from msgspec import Struct

from chat_nest.core.limits import Limits
from chat_nest.core.protocols import Store
from chat_nest.limits.spec import BUILT_IN_PROFILES
from chat_nest.server.config.identity import Identity, check_kept_keys, resolve_identity
from chat_nest.server.config.schema import ServerSection, StoreSection
from chat_nest.server.config.server_section import check_server
from chat_nest.server.config.storage import accept_command, check_store, journal_directory, state_directory
from chat_nest.server.config.values import read
from chat_nest.stores.urls import open_store


def load_store(file: str = "", environ: Mapping[str, str] | None = None) -> tuple[StoreSection, ZoneInfo]:
    """Return the store and the zone of its days, without reading the providers and their keys.

    Raises ConfigError.
    """
    sources, values = read(file, os.environ if environ is None else environ)
    server, store = ServerSection(**values["server"]), StoreSection(**values["store"])
    check_server(sources, server)
    check_store(sources, store)
    sources.raise_problems()
    return store, ZoneInfo(server.time_zone)


def load_shared_limits(file: str = "", environ: Mapping[str, str] | None = None) -> tuple[Limits, Mapping[str, Limits]]:
    """Return the limits of all callers, and those of each group, without reading the providers. Raises ConfigError."""
    _, values = read(file, os.environ if environ is None else environ)
    return Limits(**values["limits"]), {name: Limits(**table) for name, table in values["groups"].items()}


def load_stored(file: str = "", environ: Mapping[str, str] | None = None) -> Store:
    """Return the store, with its remembered epoch. Raises ConfigError."""
    sources, values = read(file, os.environ if environ is None else environ)
    store = StoreSection(**values["store"])
    check_store(sources, store)
    state = state_directory(sources, store, journal_directory(sources, store))
    sources.raise_problems()
    return open_store(store.url, records_days=store.records_days, state=state, accept=accept_command(file))


class KeySettings(Struct, frozen=True, kw_only=True):
    """What `chat-nest keys` needs of the configuration."""

    identity: Identity
    profiles: tuple[str, ...]
    """The names of the profiles."""
    groups: frozenset[str]
    """The groups with limits."""
    store: str
    """Its URL."""


def load_keys(file: str = "", environ: Mapping[str, str] | None = None) -> KeySettings:
    """Return what is needed to manage API keys, without reading the providers and their keys.

    Raises ConfigError, also if there are no API keys.
    """
    environ = os.environ if environ is None else environ
    sources, values = read(file, environ)
    identity = resolve_identity(sources, values["identity"], ServerSection(**values["server"]), environ)
    store = StoreSection(**values["store"])
    if not identity.has_keys and not sources.problems:
        name = "CHAT_NEST_IDENTITY_KEYS_FILE"
        said = f'is missing: name the file of the keys there, or in {name}; or set keys to "store"'
        sources.problem(("identity", "keys_file"), said)
    check_kept_keys(sources, identity, store.url)
    sources.raise_problems()
    return KeySettings(
        identity=identity,
        profiles=tuple(values["profiles"] or BUILT_IN_PROFILES),
        groups=frozenset(values["groups"]),
        store=store.url,
    )
