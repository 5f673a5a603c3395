"""What `chat-nest serve` runs with: a TOML file, the environment over it, the command line over both.

Whatever can't be meant as it stands refuses to start: unknown keys, wrong values, providers without their key. Every
problem is told at once, with its place, the rule, and what to do; a value that may be a secret is never repeated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chat_nest.asgi.cors import Cors
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.trusted_header import TrustedHeader
from chat_nest.journal import Journal
from chat_nest.limits import Allowance, HardCaps, Limits, Profile, Timeouts
from chat_nest.prices import FREE, Prices, price
from chat_nest.profiles import Profiles
from chat_nest.run_logs import REDIS, open_runs
from chat_nest.server.front_ends import resolve_dialects
from chat_nest.server.identity import Identity, check_identity, resolve_identity
from chat_nest.server.models import resolve_profiles
from chat_nest.server.providers import ProviderConfig, resolve_providers
from chat_nest.server.schema import NAMED, SECTIONS, TOP, Keys, RunsSection, ServerSection, StoreSection
from chat_nest.server.sources import Path, Sources, hint, is_table
from chat_nest.stores.allowance import check_allowance
from chat_nest.stores.urls import keeps_records, open_store
from chat_nest.usage import Price

DEFAULT_JOURNAL = "chat-nest-journal"
NO_JOURNAL = "off"
ABOVE = "put it above the first [section]: in TOML a key belongs to the section that it follows"


class Config(Struct, frozen=True, kw_only=True):
    """Everything resolved: each profile has its model, each provider its URL and key."""

    server: ServerSection
    identity: Identity = Identity()
    dialects: Mapping[str, str]
    """The path of each wire format that is on, by its name."""
    blog_get: bool = False
    store: str
    records_days: float
    journal: str | None
    """A directory."""
    degraded: Allowance | None
    lease: float
    """Seconds after which the hold of a process that died is charged."""
    runs: RunsSection
    providers: Mapping[str, ProviderConfig]
    profiles: Mapping[str, Profile]
    default_profile: str
    """Of a caller without a profile of its own."""
    limits: Limits
    groups: Mapping[str, Limits]
    prices: Mapping[str, Price]
    """By PROVIDER:MODEL or PROVIDER:*: the operator's own, and those of models that cost nothing."""
    hard_caps: HardCaps
    timeouts: Timeouts
    file: str = ""
    """The config file, or nothing."""
    notes: tuple[str, ...] = ()
    """What runs, but perhaps not as the operator expects."""

    @property
    def model(self) -> str:
        """PROVIDER:MODEL of the default profile."""
        return self.profiles[self.default_profile].model

    @property
    def runs_url(self) -> str:
        """Where runs are kept for readers who come back."""
        return self.runs.url or (self.store if self.store.startswith(REDIS) else "memory://")

    @property
    def store_shown(self) -> str:
        """The store's URL as it may be shown: without a password, and without options, which may hold one."""
        return re.sub(r"//([^/?#:@]*):[^/?#]*@", r"//\1:***@", self.store.partition("?")[0])

    @property
    def is_demo(self) -> bool:
        """Whether `model` is the demo model."""
        return self.providers[self.model.partition(":")[0]].kind == "demo"

    def rules(self) -> Profiles:
        """The profiles and limits as they are in force. Raises ValueError where they can't be."""
        return Profiles(
            self.profiles,
            self.limits,
            self.hard_caps,
            self.server.time_zone,
            self.default_profile,
            groups=self.groups,
            prices=self.known_prices(),
        )

    def known_prices(self) -> Prices:
        """The operator's prices, and those that are known without."""
        return Prices(self.prices, {name: provider.base_url for name, provider in self.providers.items()})


def load(
    file: str = "", environ: Mapping[str, str] | None = None, *, host: str | None = None, port: int | None = None
) -> Config:
    """Read the configuration; `host` and `port` win over the file and over `environ` (default: this process's).

    Raises ConfigError, which names every problem.
    """
    environ = os.environ if environ is None else environ
    sources, values = read(file, environ)
    server, store = ServerSection(**values["server"]), StoreSection(**values["store"])
    server = replace(server, host=host or server.host, port=server.port if port is None else port)
    _check_server(sources, server)
    identity = resolve_identity(sources, values["identity"], server, environ)
    dialects = resolve_dialects(sources, values["dialects"])
    _check_store(sources, store)
    journal = _journal(sources, store)
    limits = Limits(**values["limits"])
    degraded = Allowance(**values["degraded"]) if "degraded" in sources.values else None
    if degraded is not None:
        _check_degraded(sources, degraded, limits, store.url)
    runs = RunsSection(**values["runs"])
    _check_runs(sources, runs)
    hard_caps = HardCaps(**values["hard_caps"])
    providers = resolve_providers(sources, values["providers"], values["profiles"], environ)
    sources.raise_problems()
    profiles, default_profile = resolve_profiles(
        sources, values["profiles"], values[""].get("default_profile"), providers, environ
    )
    prices = _prices(sources, values["prices"], providers)
    _note_capped_values(sources, values["profiles"], hard_caps)
    check_identity(sources, server, identity)
    sources.raise_problems()
    config = Config(
        server=server,
        identity=identity,
        dialects=dialects,
        blog_get=values["dialects"].get("blog_get", False),
        store=store.url,
        records_days=store.records_days,
        journal=journal,
        degraded=degraded,
        lease=store.lease,
        runs=runs,
        providers=providers,
        profiles=profiles,
        default_profile=default_profile,
        limits=limits,
        groups={name: Limits(**table) for name, table in values["groups"].items()},
        prices=prices,
        hard_caps=hard_caps,
        timeouts=Timeouts(**values["timeouts"]),
        file=file,
        notes=tuple(sources.notes),
    )
    try:
        config.rules()
    except ValueError as error:
        sources.problems.append(f"{file or 'the configuration'}: {error}")
    sources.raise_problems()
    return config


def load_store(file: str = "", environ: Mapping[str, str] | None = None) -> tuple[StoreSection, ZoneInfo]:
    """The store, and the zone of its days: what reading it takes, without the providers and their keys.

    Raises ConfigError.
    """
    sources, values = read(file, os.environ if environ is None else environ)
    server, store = ServerSection(**values["server"]), StoreSection(**values["store"])
    _check_server(sources, server)
    _check_store(sources, store)
    sources.raise_problems()
    return store, ZoneInfo(server.time_zone)


def load_identity(file: str = "", environ: Mapping[str, str] | None = None) -> tuple[Identity, frozenset[str]]:
    """How callers are told apart, and the groups that have limits: what managing keys takes, without the providers.

    Raises ConfigError, also where there is no file of keys to manage.
    """
    environ = os.environ if environ is None else environ
    sources, values = read(file, environ)
    identity = resolve_identity(sources, values["identity"], ServerSection(**values["server"]), environ)
    if not identity.section.keys_file and not sources.problems:
        name = "CHAT_NEST_IDENTITY_KEYS_FILE"
        sources.problem(("identity", "keys_file"), f"is missing: name the file of the keys there, or in {name}")
    sources.raise_problems()
    return identity, frozenset(values["groups"])


def read(file: str, environ: Mapping[str, str]) -> tuple[Sources, dict[str, dict[str, Any]]]:
    """The values by section, each of its type; those above all sections under "". Raises ConfigError."""
    sources = Sources(file, environ)
    top = {key: value for key, value in sources.values.items() if key in TOP}
    values = {"": _table(sources, (), top, TOP)}
    values |= {section: _section(sources, section, keys) for section, keys in SECTIONS.items()}
    _refuse_unknown_sections(sources)
    sources.raise_problems()
    return sources, values


def _section(sources: Sources, section: str, keys: Keys) -> dict[str, Any]:
    tables = sources.values.get(section, {})
    if section not in NAMED:
        return _table(sources, (section,), tables, keys)
    if not is_table(tables):
        sources.problem((section,), f"must be tables with a name each: [{section}.NAME]")
        return {}
    return {name: _table(sources, (section, name), table, keys) for name, table in tables.items()}


def _table(sources: Sources, path: Path, table: Any, keys: Keys) -> dict[str, Any]:
    """The table's values, converted; what is wrong is noted and left out."""
    if path and path[-1] in TOP and not is_table(table):
        sources.problem(path, ABOVE)
        return {}
    if not is_table(table):
        inside = f", with keys such as {next(iter(keys))}" if path[0] in NAMED else ""
        sources.problem(path, f"must be a table: [{'.'.join(path)}]{inside}")
        return {}
    values: dict[str, Any] = {}
    for key, value in table.items():
        here = (*path, key)
        rule = keys.get(key)
        if rule is None and key in TOP:
            sources.problem(here, ABOVE)
            continue
        if rule is None:
            sources.problem(here, f"there is no such key{hint(key, keys)}")
            continue
        try:
            values[key] = msgspec.convert(value, rule.type, strict=here not in sources.variables)
        except (msgspec.ValidationError, OverflowError):
            sources.problem(here, f"must be {rule.says}")
    return values


def _refuse_unknown_sections(sources: Sources) -> None:
    for name in sources.values:
        if name in SECTIONS or name in TOP:
            continue
        homes = [f"[{section}]" for section, keys in SECTIONS.items() if name in keys and section not in NAMED]
        advice = f"; it belongs into {' or '.join(homes)}" if homes else hint(name, (*SECTIONS, *TOP))
        sources.problem((name,), f"there is no such section{advice}")


def _check_server(sources: Sources, server: ServerSection) -> None:
    for key, entries, check in (
        ("trusted_proxies", server.trusted_proxies, PeerAddress),
        ("cors_origins", server.cors_origins, Cors),
    ):
        for entry in entries:
            try:
                check((entry,))
            except ValueError as error:
                sources.refused(("server", key), error)
    if server.caller_header or server.group_header:
        try:
            TrustedHeader(server.trusted_proxies, server.caller_header, server.group_header)
        except ValueError as error:
            sources.refused(("server", "caller_header"), error)
    try:
        ZoneInfo(server.time_zone)
    except (KeyError, ValueError, OSError):
        near = hint(server.time_zone, available_timezones())
        sources.problem(("server", "time_zone"), f"must be the IANA name of a time zone, such as Europe/Paris{near}")


def _prices(
    sources: Sources, tables: Mapping[str, Mapping[str, float]], providers: Mapping[str, ProviderConfig]
) -> dict[str, Price]:
    """The operator's prices; the demo model costs nothing."""
    found = {f"{name}:*": FREE for name, provider in providers.items() if provider.kind == "demo"}
    for name, table in tables.items():
        here = ("prices", name)
        provider, _, model = name.partition(":")
        missing = [key for key in ("input", "output") if key not in table]
        if not model or provider not in providers:
            known = hint(name, [f"{provider}:*" for provider in providers])
            sources.problem(
                here, f"must be PROVIDER:MODEL or PROVIDER:*, in quotes, of a provider that is there{known}"
            )
        elif missing:
            sources.problem(here, f"needs {' and '.join(missing)}, in dollars for a million tokens")
        else:
            found[name] = price(**table)
    return found


def _check_runs(sources: Sources, runs: RunsSection) -> None:
    try:
        open_runs(runs.url or "memory://", runs.keep_seconds)
    except ValueError as error:
        sources.refused(("runs", "url"), error)


def _check_store(sources: Sources, store: StoreSection) -> None:
    try:
        open_store(store.url)  # opens nothing before its first call
    except (OSError, ValueError) as error:
        sources.refused(("store", "url"), error)
    days = ("store", "records_days")
    if not keeps_records(store.url) and "records_days" in sources.values.get("store", {}):
        scheme = store.url.partition(":")[0]
        sources.notes.append(f"{sources.where(days)}: has no effect: a store of {scheme}:// keeps no records")


def _journal(sources: Sources, store: StoreSection) -> str | None:
    """The journal's directory. Without being named there is one for the stores that can be away while we run."""
    named = store.journal
    if named == NO_JOURNAL or (not named and store.url.startswith(("memory:", "sqlite:"))):
        return None
    try:
        Journal(named or DEFAULT_JOURNAL)  # makes nothing before it is needed
    except ValueError as error:
        if named:
            sources.problem(("store", "journal"), str(error))
            return None
        sources.notes.append(f"no journal: {error}; name another with store.journal, or turn it {NO_JOURNAL}")
        return None
    return named or DEFAULT_JOURNAL


def _check_degraded(sources: Sources, allowance: Allowance, limits: Limits, url: str) -> None:
    if url == "memory://":
        sources.problem(("degraded",), "memory:// is never down: leave it out")
    try:
        check_allowance(allowance, limits)
    except ValueError as error:
        place, _, rule = str(error).partition(" ")
        sources.problem(tuple(place.split(".")), rule)


def _note_capped_values(sources: Sources, profiles: Mapping[str, Mapping[str, Any]], caps: HardCaps) -> None:
    for name, table in profiles.items():
        for key, value in table.items():
            cap = getattr(caps, key, None)
            if cap is not None and value > cap:
                here = sources.where(("profiles", name, key))
                sources.notes.append(f"{here}: hard_caps.{key} is lower and wins ({cap}); lift it to use this value")
