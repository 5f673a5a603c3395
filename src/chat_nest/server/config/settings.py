"""The configuration of `chat-nest serve`: the command line overrides the environment, which overrides a TOML file.

The server does not start with a wrong configuration: unknown keys, wrong values, providers without a key. It reports
all problems at once, each with its place, the rule, and the fix. It never repeats a value that may be a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.core.limits import Limits
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Price
from chat_nest.dialects.frames import BudgetStatus
from chat_nest.limits.numbers import PresetName
from chat_nest.limits.prices import FREE, Prices, price
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.spec import Allowance, HardCaps, Profile, Queue, built_in_caps
from chat_nest.runs.urls import REDIS
from chat_nest.server.config.admin import resolve_admin
from chat_nest.server.config.alerts import AlertsConfig, resolve_alerts
from chat_nest.server.config.front_ends import resolve_dialects
from chat_nest.server.config.identity import Identity, check_identity, check_kept_keys, resolve_identity
from chat_nest.server.config.models import resolve_profiles
from chat_nest.server.config.page import check_page
from chat_nest.server.config.provider import ProviderConfig, Secret
from chat_nest.server.config.providers import FindLocal, resolve_providers
from chat_nest.server.config.schema import (
    LogSection,
    MetricsSection,
    PageSection,
    RunsSection,
    ServerSection,
    StoreSection,
    TracesSection,
)
from chat_nest.server.config.server_section import check_server, closed_on_loopback, with_origins
from chat_nest.server.config.sessions import SessionsConfig, resolve_sessions
from chat_nest.server.config.signatures import resolve_signatures
from chat_nest.server.config.sources import Sources, hint
from chat_nest.server.config.storage import (
    accept_command,
    check_degraded,
    check_runs,
    check_store,
    journal_directory,
    state_directory,
)
from chat_nest.server.config.telemetry import check_telemetry
from chat_nest.server.config.values import read
from chat_nest.server.config.visitors import VisitorConfig, check_profiles, make_visitors, resolve_visitors
from chat_nest.stores.places import place_of
from chat_nest.stores.urls import open_store


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
    budget_status: BudgetStatus = 429
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
    """For a caller to whom no profile is assigned."""
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

    Raises ConfigError, which names every problem. The function is long because each section is one step of it, in the
    order in which they depend on each other.
    """
    environ = os.environ if environ is None else environ
    sources, values = read(file, environ)
    server, store = ServerSection(**values["server"]), StoreSection(**values["store"])
    server = replace(server, host=host or server.host, port=server.port if port is None else port)
    server = with_origins(sources, server, values["server"])
    server = closed_on_loopback(server, values["server"])
    check_server(sources, server)
    identity = resolve_identity(sources, values["identity"], server, environ)
    sessions = resolve_sessions(sources, values["sessions"], identity)
    visitors = resolve_visitors(sources, values, environ)
    dialects = resolve_dialects(sources, values["dialects"])
    check_store(sources, store)
    check_kept_keys(sources, identity, store.url)
    journal = journal_directory(sources, store)
    state = state_directory(sources, store, journal)
    limits = Limits(**values["limits"])
    degraded = Allowance(**values["degraded"]) if "degraded" in sources.values else None
    if degraded is not None:
        check_degraded(sources, degraded, limits, store.url)
    runs = RunsSection(**values["runs"])
    check_runs(sources, runs)
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
        budget_status=values["dialects"].get("budget_status", 429),
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


def _note_capped_values(sources: Sources, profiles: Mapping[str, Mapping[str, Any]], caps: HardCaps) -> None:
    for name, table in profiles.items():
        for key, value in table.items():
            cap = getattr(caps, key, None)
            if cap is not None and (value is None or value > cap):
                here = sources.where(("profiles", name, key))
                sources.notes.append(f"{here}: hard_caps.{key} is lower and wins ({cap}); lift it to use this value")
