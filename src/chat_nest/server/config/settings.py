"""The configuration of `chat-nest serve`: the command line overrides the environment, which overrides a TOML file.

The server does not start with a wrong configuration: unknown keys, wrong values, providers without a key. All problems
are reported at once, each with its place, the rule, and what to do. A value that may be a secret is never repeated.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chat_nest.asgi.cors import Cors
from chat_nest.asgi.hosts import LOOPBACK_HOSTS, Hosts
from chat_nest.core.limits import NO_LIMIT, Limits
from chat_nest.core.protocols import Store
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Price
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.trusted_header import TrustedHeader
from chat_nest.ledger.allowance import check_allowance
from chat_nest.ledger.journal import Journal
from chat_nest.limits.numbers import PresetName
from chat_nest.limits.prices import FREE, Prices, price
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.spec import BUILT_IN_PROFILES, Allowance, HardCaps, Profile, Queue, built_in_caps
from chat_nest.runs.urls import REDIS, open_runs
from chat_nest.server.config.admin import resolve_admin
from chat_nest.server.config.alerts import AlertsConfig, resolve_alerts
from chat_nest.server.config.front_ends import resolve_dialects
from chat_nest.server.config.identity import Identity, check_identity, check_kept_keys, resolve_identity
from chat_nest.server.config.models import resolve_profiles
from chat_nest.server.config.page import check_page
from chat_nest.server.config.providers import FindLocal, ProviderConfig, Secret, resolve_providers
from chat_nest.server.config.schema import (
    NAMED,
    SECTIONS,
    TOP,
    Keys,
    LogSection,
    MetricsSection,
    PageSection,
    Rule,
    RunsSection,
    ServerSection,
    StoreSection,
    TracesSection,
)
from chat_nest.server.config.sessions import SessionsConfig, resolve_sessions
from chat_nest.server.config.signatures import resolve_signatures
from chat_nest.server.config.sources import Path, Sources, hint, is_table
from chat_nest.server.config.telemetry import check_telemetry
from chat_nest.server.config.visitors import VisitorConfig, check_profiles, make_visitors, resolve_visitors
from chat_nest.stores.epochs import ACCEPT
from chat_nest.stores.places import place_of
from chat_nest.stores.urls import keeps_records, open_store

DEFAULT_JOURNAL = "chat-nest-journal"
NO_JOURNAL = "off"
ABOVE = "put it above the first [section]: in TOML a key belongs to the section that it follows"


class Config(Struct, frozen=True, kw_only=True):
    """The resolved configuration: each profile has its model, each provider its URL and key."""

    server: ServerSection
    identity: Identity = Identity()
    sessions: SessionsConfig | None = None
    visitors: VisitorConfig | None = None
    dialects: Mapping[str, str]
    """The path of each enabled wire format, by name."""
    blog_get: bool = False
    responses_store: bool = True
    store: str
    records_days: float
    journal: str | None
    """A directory."""
    state: str | None = None
    """The directory that holds the note that a store was seen."""
    degraded: Allowance | None
    lease: float
    """Seconds until the hold of a process that died is charged."""
    queue: Queue | None = None
    turn_secrets: tuple[Secret, ...] = ()
    """They sign answers; the first is the newest."""
    runs: RunsSection
    page: PageSection = PageSection()
    log: LogSection = LogSection()
    admin_listen: str = ""
    """HOST:PORT or unix:/PATH of the operators' listener. Empty: there is none."""
    admin_keys: tuple[Secret, ...] = ()
    alerts: AlertsConfig | None = None
    metrics: MetricsSection = MetricsSection()
    traces: TracesSection = TracesSection()
    providers: Mapping[str, ProviderConfig]
    preset: PresetName = "default"
    """The source of numbers that the operator did not set."""
    profiles: Mapping[str, Profile]
    default_profile: str
    """For a caller without a profile of its own."""
    limits: Limits
    groups: Mapping[str, Limits]
    prices: Mapping[str, Price]
    """By PROVIDER:MODEL or PROVIDER:*: the operator's own, and those of models that cost nothing."""
    hard_caps: HardCaps
    timeouts: Timeouts
    file: str = ""
    """The config file, or an empty string."""
    notes: tuple[str, ...] = ()
    """Settings that work, but perhaps not as the operator expects."""

    @property
    def accept_command(self) -> str:
        """The command with which an operator accepts that the store was emptied."""
        return accept_command(self.file)

    @property
    def model(self) -> str:
        """PROVIDER:MODEL of the default profile."""
        return self.profiles[self.default_profile].model

    @property
    def runs_url(self) -> str:
        """The URL of the logs of runs, for readers that reconnect."""
        return self.runs.url or (self.store if self.store.startswith(REDIS) else "memory://")

    @property
    def store_shown(self) -> str:
        """The store's URL for display: without password and options, which may hold a password."""
        shown = re.sub(r"//([^/?#:@]*):[^/?#]*@", r"//\1:***@", self.store.partition("?")[0])
        if "@" in self.store and not re.search(r"//[^/?#:@]*(:\*\*\*)?@", shown):
            return place_of(open_store(self.store))  # a password with a character that ends the host elsewhere
        return shown

    @property
    def is_demo(self) -> bool:
        """Whether `model` is the demo model."""
        return self.providers[self.model.partition(":")[0]].kind == "demo"

    def rules(self) -> Profiles:
        """Return the profiles and limits that apply. Raises ValueError if they are not valid."""
        return Profiles(
            self.profiles,
            self.limits,
            self.hard_caps,
            self.server.time_zone,
            self.default_profile,
            groups=self.groups,
            visitors=None if self.visitors is None else self.visitors.all_limits,
            prices=self.known_prices(),
        )

    def known_prices(self) -> Prices:
        """Return the operator's prices, and the known ones."""
        return Prices(self.prices, {name: provider.base_url for name, provider in self.providers.items()})


def load(
    file: str = "",
    environ: Mapping[str, str] | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    find_local: FindLocal | None = None,
) -> Config:
    """Read the configuration. `host` and `port` override the file and `environ` (default: this process's).

    `find_local` is called if no provider is configured; what it finds replaces the demo model.

    Raises ConfigError, which names every problem.
    """
    environ = os.environ if environ is None else environ
    sources, values = read(file, environ)
    server, store = ServerSection(**values["server"]), StoreSection(**values["store"])
    server = replace(server, host=host or server.host, port=server.port if port is None else port)
    server = _with_origins(sources, server, values["server"])
    server = _closed_on_loopback(server, values["server"])
    _check_server(sources, server)
    identity = resolve_identity(sources, values["identity"], server, environ)
    sessions = resolve_sessions(sources, values["sessions"], identity)
    visitors = resolve_visitors(sources, values, environ)
    dialects = resolve_dialects(sources, values["dialects"])
    _check_store(sources, store)
    check_kept_keys(sources, identity, store.url)
    journal = _journal(sources, store)
    state = _state(sources, store, journal)
    limits = Limits(**values["limits"])
    degraded = Allowance(**values["degraded"]) if "degraded" in sources.values else None
    if degraded is not None:
        _check_degraded(sources, degraded, limits, store.url)
    runs = RunsSection(**values["runs"])
    _check_runs(sources, runs)
    page = PageSection(**values["page"])
    check_page(sources, page)
    metrics, traces = MetricsSection(**values["metrics"]), TracesSection(**values["traces"])
    check_telemetry(sources, metrics, traces)
    admin, admin_keys = resolve_admin(sources, values["admin"], server, has_keys=identity.has_keys)
    alerts = resolve_alerts(sources, values["alerts"])
    preset: PresetName = values[""].get("preset", "default")
    hard_caps = replace(built_in_caps(preset), **values["hard_caps"])
    providers = resolve_providers(sources, values["providers"], values["profiles"], environ, find_local)
    sources.raise_problems()
    profiles, default_profile = resolve_profiles(
        sources, values["profiles"], values[""].get("default_profile"), preset, providers, environ
    )
    prices = _prices(sources, values["prices"], providers)
    turn_secrets = resolve_signatures(sources, values["signatures"], profiles)
    _note_capped_values(sources, values["profiles"], hard_caps)
    strangers = None if sources.problems else make_visitors(server, identity, visitors)
    check_identity(sources, server, identity, strangers, profiles=profiles)
    check_profiles(sources, visitors, profiles)
    sources.raise_problems()
    config = Config(
        server=server,
        identity=identity,
        sessions=sessions,
        visitors=visitors,
        dialects=dialects,
        blog_get=values["dialects"].get("blog_get", False),
        responses_store=values["dialects"].get("responses_store", True),
        store=store.url,
        state=state,
        records_days=store.records_days,
        journal=journal,
        degraded=degraded,
        lease=store.lease,
        queue=Queue(**values["queue"]) if "queue" in sources.values else None,
        turn_secrets=turn_secrets,
        runs=runs,
        page=page,
        log=LogSection(**values["log"]),
        admin_listen=admin.listen,
        admin_keys=admin_keys,
        alerts=alerts,
        metrics=metrics,
        traces=traces,
        providers=providers,
        preset=preset,
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
    """Return the store and the zone of its days, without reading the providers and their keys.

    Raises ConfigError.
    """
    sources, values = read(file, os.environ if environ is None else environ)
    server, store = ServerSection(**values["server"]), StoreSection(**values["store"])
    _check_server(sources, server)
    _check_store(sources, store)
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
    _check_store(sources, store)
    state = _state(sources, store, _journal(sources, store))
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


def read(file: str, environ: Mapping[str, str]) -> tuple[Sources, dict[str, dict[str, Any]]]:
    """Return the values by section, converted; those above all sections are under "". Raises ConfigError."""
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
    """Return the table's converted values; wrong values are noted and left out."""
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
            values[key] = _converted(value, rule, from_variable=here in sources.variables)
        except (msgspec.ValidationError, OverflowError):
            says = rule.says.replace('"', "") if here in sources.variables else rule.says  # no quotes in a variable
            sources.problem(here, f"must be {says}")
    return values


def _converted(value: Any, rule: Rule, *, from_variable: bool) -> Any:
    """Return the value in the rule's type. Raises ValidationError or OverflowError."""
    number = rule.range
    if number is None:
        return msgspec.convert(value, rule.type, strict=not from_variable)
    if number.optional and value == NO_LIMIT:
        return None
    if number.whole and isinstance(value, str) and not value.isdecimal():
        raise msgspec.ValidationError  # msgspec takes "5.0" and "1e3" for whole numbers, too
    converted = msgspec.convert(value, rule.type, strict=not from_variable)
    if not number.holds(converted):
        raise msgspec.ValidationError
    return converted


def _refuse_unknown_sections(sources: Sources) -> None:
    for name in sources.values:
        if name in SECTIONS or name in TOP:
            continue
        homes = [f"[{section}]" for section, keys in SECTIONS.items() if name in keys and section not in NAMED]
        advice = f"; it belongs into {' or '.join(homes)}" if homes else hint(name, (*SECTIONS, *TOP))
        sources.problem((name,), f"there is no such section{advice}")


def _closed_on_loopback(server: ServerSection, given: Mapping[str, Any]) -> ServerSection:
    """Restrict a server on loopback without a proxy to its own names and pages.

    Any page on the internet can send a browser here, under a name of its own.
    """
    if not is_on_loopback(server):
        return server
    if "allowed_hosts" not in given:
        server = replace(server, allowed_hosts=LOOPBACK_HOSTS)
    return server if "origins" in given or "cors_origins" in given else replace(server, origins=())


def _with_origins(sources: Sources, server: ServerSection, given: Mapping[str, Any]) -> ServerSection:
    """Return the section with its origins, which may stand under their old name."""
    if "cors_origins" not in given:
        return server
    here = ("server", "cors_origins")
    if "origins" in given:
        sources.problem(here, "is the old name of origins: keep origins only")
        return server
    sources.notes.append(f"{sources.where(here)}: is the old name of origins, and has the same meaning: rename it")
    return replace(server, origins=server.cors_origins)


def is_on_loopback(server: ServerSection) -> bool:
    """Return whether only programs of this machine can connect, and none of them is a proxy for others."""
    if server.trusted_proxies:
        return False
    try:
        return ip_address(server.host).is_loopback
    except ValueError:
        return server.host.lower() == "localhost"


def _check_server(sources: Sources, server: ServerSection) -> None:
    for key, entries, check in (
        ("trusted_proxies", server.trusted_proxies, PeerAddress),
        ("cors_origins" if server.cors_origins else "origins", server.cors_origins or server.origins, Cors),
        ("allowed_hosts", server.allowed_hosts, Hosts),
    ):
        for entry in entries:
            try:
                check((entry,))
            except ValueError as error:
                sources.problem(("server", key), re.sub(r"^(origins|allowed_hosts): ", "", str(error)))
    if (server.caller_header or server.group_header) and not sources.problems:
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
    """Return the operator's prices; the demo model costs nothing."""
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
    """Return the journal's directory. There is a default one for stores that can be down while the server runs."""
    named = store.journal
    if named == NO_JOURNAL or (not named and store.url.startswith(("memory:", "sqlite:"))):
        return None
    try:
        Journal(named or DEFAULT_JOURNAL)  # creates nothing before it is needed
    except ValueError as error:
        if named:
            sources.problem(("store", "journal"), str(error))
            return None
        sources.notes.append(f"no journal: {error}; name another with store.journal, or turn it {NO_JOURNAL}")
        return None
    return named or DEFAULT_JOURNAL


def _state(sources: Sources, store: StoreSection, journal: str | None) -> str | None:
    """Return the directory with the note that the store was seen. SQLite keeps the note beside its file."""
    if store.state == NO_JOURNAL or (not store.state and store.url.startswith(("memory:", "sqlite:"))):
        return None
    directory = store.state or journal
    if directory is None:
        sources.notes.append(
            "nothing remembers the store: if it is emptied while no server runs, all budgets begin anew; name a "
            f"directory with store.state, or turn it {NO_JOURNAL}"
        )
    elif store.state:
        try:
            Journal(directory)  # the rules for a directory are the same
        except ValueError as error:
            sources.problem(("store", "state"), str(error).replace("the journal", "what is remembered of the store"))
    return directory


def accept_command(file: str) -> str:
    """Return the command that accepts an emptied store, with the config file."""
    return f"{ACCEPT} --config {shlex.quote(file)}" if file else ACCEPT


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
            if cap is not None and (value is None or value > cap):
                here = sources.where(("profiles", name, key))
                sources.notes.append(f"{here}: hard_caps.{key} is lower and wins ({cap}); lift it to use this value")
