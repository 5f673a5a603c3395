"""The schema of the config file: its keys, and the rule for each value.

The file is long because it is one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_type_hints

from msgspec import Meta, Struct
from msgspec.structs import fields

from chat_nest.challenges.settings import Bind, Challenge, Kind, Unreachable, When
from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.limits import Limits
from chat_nest.core.records import RECORDS_DAYS
from chat_nest.core.timeouts import Timeouts
from chat_nest.dialects import DIALECTS
from chat_nest.dialects.frames import BudgetStatus
from chat_nest.identity.sessions import EXPIRES_IN
from chat_nest.ledger.ledger import LEASE_SECONDS
from chat_nest.limits.counters import RANGES, Range
from chat_nest.limits.numbers import MAX_BODY_BYTES, PresetName
from chat_nest.limits.spec import Allowance, HardCaps, OnDisconnect, Profile, Queue, Rung
from chat_nest.providers import PRESETS
from chat_nest.providers.credentials import Cloud
from chat_nest.providers.think_tags import ThinkTags
from chat_nest.server.config.ways import IdentitySection


class Rule(Struct, frozen=True):
    """The rule for a value. msgspec converts to `type`; `says` completes the sentence "must be ..."."""

    type: Any
    says: str
    range: Range | None = None
    """The rule of Python's own arguments, if it is the same."""


TEXT = Rule(Annotated[str, Meta(min_length=1)], "a string that is not empty")
TEXTS = Rule(tuple[Annotated[str, Meta(min_length=1)], ...], "a list of strings")
PERCENTS = Rule(
    Annotated[tuple[Annotated[int, Meta(ge=1, le=100)], ...], Meta(min_length=1)],
    "a list of whole numbers from 1 to 100",
)
SWITCH = Rule(bool, "true or false")
COUNT = Rule(Annotated[int, Meta(ge=1, le=MAX_AMOUNT)], f"a whole number from 1 to {MAX_AMOUNT}")
SECONDS = Rule(Annotated[float, Meta(gt=0, le=86_400)], "a number of seconds above 0 and at most 86400")
SECRET = Rule(Annotated[str, Meta(min_length=32, max_length=4_096)], "a secret of at least 32 characters")
LEEWAY = Rule(Annotated[float, Meta(ge=0, le=300)], "a number of seconds from 0 to 300")
LEASE = Rule(Annotated[float, Meta(ge=5, le=3_600)], "a number of seconds from 5 to 3600")
USD = Rule(Annotated[float, Meta(ge=0.000_000_001, le=1_000_000)], "a number of dollars above 0 and at most 1000000")
PRICE = Rule(Annotated[float, Meta(ge=0, le=1_000_000)], "a number of dollars from 0 to 1000000")
DAYS = Rule(Annotated[float, Meta(ge=0, le=36_500)], "a number of days from 0, which keeps none, to 36500")
BUDGET_STATUS = Rule(BudgetStatus, "402 or 429")
FRONT_END = Rule(
    bool | Annotated[str, Meta(pattern=r"^(/[!-~]*|true|false)$")], "true, false, or a path that begins with /"
)
PORT = Rule(Annotated[int, Meta(ge=0, le=65_535)], "a whole number from 0 (any free port) to 65535")

BY_TYPE: Mapping[Any, Rule] = {
    str: TEXT,
    tuple[str, ...]: TEXTS,
    tuple[str, ...] | None: TEXTS,
    bool: SWITCH,
    int: COUNT,
    int | None: COUNT,
    float: SECONDS,
    OnDisconnect: Rule(OnDisconnect, 'one of "cancel", "grace", "finish"'),
    float | None: USD,
    bool | None: SWITCH,
    tuple[Rung, ...]: Rule(
        tuple[Rung, ...], "tables with `below`, and `model` (with `fallbacks` or without), `max_output_tokens` or both"
    ),
}
KeyRules = Mapping[str, Rule]


def keys_of(struct: type[Struct], *, but: frozenset[str] = frozenset(), **special: Rule) -> KeyRules:
    """Return a key for each field of the struct, except those in `but`, with the rule of the field's type."""
    types = get_type_hints(struct)
    names = [field.name for field in fields(struct) if field.name not in but]
    return {name: special.get(name) or BY_TYPE[types[name]] for name in names}


def _quoted(words: Any) -> str:
    return ", ".join(f'"{word}"' for word in get_args(words))


def _rule(number: Range) -> Rule:
    return Rule(int if number.whole else float, number.rule, number)


class ServerSection(Struct, frozen=True, kw_only=True):
    """The address to listen on, proxies, hosts, limits of connections and bodies, and the time zone."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free port."""
    trusted_proxies: tuple[str, ...] = ()
    """The proxies that may set X-Forwarded-For: addresses, networks in CIDR notation, or `unix`."""
    origins: tuple[str, ...] = ("*",)
    """Default on loopback without a proxy: none, so only pages of the same origin may send requests."""
    cors_origins: tuple[str, ...] = ()
    """The old name of `origins`."""
    allowed_hosts: tuple[str, ...] = ("*",)
    """Default on loopback without a proxy: the names of loopback."""
    caller_header: str = ""
    """The header in which a trusted proxy names the user; without it callers are identified by IP address."""
    group_header: str = ""
    """The header in which a trusted proxy names the user's group."""
    time_zone: str = "UTC"
    """The IANA name of the zone in which budgets begin at midnight."""
    max_body_bytes: int = MAX_BODY_BYTES
    """Without its images."""
    max_upload_bytes: int | None = None
    """With its images; None is 32 MiB if a profile allows images, else `max_body_bytes`."""
    max_streams: int = 1_000
    """Concurrent answers of each worker."""
    max_connections: int = 4_096
    """Of each worker."""
    max_connections_per_address: int | None = None
    """Of each worker, for each IPv4 address or IPv6 /64; None is half of max_connections."""
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 65.0
    drain_seconds: float = 30.0
    """How long running answers may go on after SIGTERM."""
    caller_secret: str = ""
    """The secret of the log's names for callers. Empty: a generated one, kept beside the store."""
    readyz_details: bool = False
    """Whether /readyz shows models, providers and settings to all clients; else only to this machine."""
    blocked_seconds: float = 0.1
    """A block of the event loop that is longer is logged with its stack."""


SERVER = keys_of(
    ServerSection, port=PORT, max_connections_per_address=COUNT, max_upload_bytes=COUNT, caller_secret=SECRET
)


KEYS = Rule(Literal["store"], '"store"; keys_file is for keys in a file')
IDENTITY = keys_of(IdentitySection, keys=KEYS, jwt_leeway=LEEWAY)


class SignaturesSection(Struct, frozen=True, kw_only=True):
    """The secrets that sign answers. The first signs; the signatures of all are accepted."""

    secrets: tuple[str, ...] = ()
    secrets_file: str = ""
    """A file with a secret in each line, instead of `secrets`."""


class SessionsSection(Struct, frozen=True, kw_only=True):
    """Session tokens, made by the app's own backend."""

    secrets: tuple[str, ...] = ()
    """The first signs, all are accepted."""
    secrets_file: str = ""
    """A file with one in each line."""
    expires_in: int = EXPIRES_IN
    """The lifetime of a token that is made without one, in seconds."""


class StoreSection(Struct, frozen=True, kw_only=True):
    """The store of budgets and records."""

    url: str = "sqlite:///chat-nest.db"
    journal: str = ""
    """The directory of settlements that the store did not accept. Empty: depends on the kind of store."""
    state: str = ""
    """The directory with the note that the store was seen. Empty: the journal's."""
    records_days: float = RECORDS_DAYS
    """How long the record of each request is kept in SQLite and PostgreSQL; 0 keeps none."""
    lease: float = LEASE_SECONDS
    """Seconds until the hold of a process that died is charged."""


class RunsSection(Struct, frozen=True, kw_only=True):
    """The logs of runs, for readers that reconnect."""

    url: str = ""
    """Empty: the store's Redis, if it is one; else the server's own processes."""
    keep_seconds: float = 300.0
    """How long runs are kept after their end."""


class PageSection(Struct, frozen=True, kw_only=True):
    """The look of the page at `/`, and the pages that may show it. An empty value keeps the default."""

    title: str = ""
    greeting: str = ""
    suggestions: tuple[str, ...] | None = None
    """Shown at the start of a conversation; an empty list shows none."""
    notice: str = ""
    """Shown above every conversation."""
    accent: str = ""
    """The colour of buttons and links, #rrggbb; `accent_dark` is for dark themes."""
    accent_dark: str = ""
    logo: str = ""
    """A file: SVG, PNG, WebP or JPEG."""
    language: str = ""
    """A tag such as `de`. Empty: the browser's language, if there is a file for it."""
    words_folder: str = ""
    """A folder of files LANGUAGE.json that add languages, or replace some of the page's words."""
    embed_origins: tuple[str, ...] = ()
    """The origins of pages that may show this one in a frame."""


class LogSection(Struct, frozen=True, kw_only=True):
    """The log on standard error."""

    format: str = "text"
    """`text`, or `json` for one object a line."""
    level: str = "info"
    """The lowest level of its lines."""
    requests: bool = False
    """Whether every HTTP request has a line, with its peer's IP address."""


class MetricsSection(Struct, frozen=True, kw_only=True):
    """Metrics for Prometheus."""

    enabled: bool = False


class AdminSection(Struct, frozen=True, kw_only=True):
    """The operators' listener."""

    listen: str = ""
    """HOST:PORT, or unix:/PATH. Empty: there is none."""
    key: str = ""
    key_file: str = ""
    """A file with a key in each line, instead of `key`."""


class AlertsSection(Struct, frozen=True, kw_only=True):
    """Alerts to operators, by webhook, by e-mail or both."""

    webhook: str = ""
    """A URL, to which alerts are posted with the signature of Standard Webhooks."""
    webhook_secrets: tuple[str, ...] = ()
    """whsec_ and base64. With several there is a signature by each, so that the receiver can change to another one."""
    webhook_secrets_file: str = ""
    """A file with a secret in each line, instead of `webhook_secrets`."""
    email: tuple[str, ...] = ()
    """The recipients' addresses."""
    email_from: str = ""
    """The sender's address."""
    smtp_host: str = ""
    smtp_port: int | None = None
    """Without it 587, 465 with `tls`, or 25 with `none`."""
    smtp_security: str = "starttls"
    smtp_user: str = ""
    smtp_password: str = ""
    smtp_password_file: str = ""
    """A file that holds the password, instead of `smtp_password`."""
    name: str = ""
    """The name of this installation, at the start of each alert."""
    events: tuple[str, ...] = ()
    """The types of alerts that are sent. Empty: all."""
    percents: tuple[int, ...] = (50, 80, 100)
    """The used shares of a limit, of all callers or of a group, at which there is an alert, once a window."""
    repeat_seconds: float = 3_600.0
    """The least time between two alerts of the same other condition."""
    store_seconds: float = 30.0
    """How long the store must be down."""
    breaker_seconds: float = 120.0
    """How long a provider's circuit breaker must be open."""
    pending_seconds: float = 300.0
    """How long settlements must be pending."""
    refused_per_minute: int = 120
    """Refused requests of all servers, on the average of five minutes; 0 sends no such alert."""
    visitors_per_minute: int = 60
    """New visitors of all servers, on the average of five minutes; 0 sends no such alert."""


class TracesSection(Struct, frozen=True, kw_only=True):
    """Traces by OpenTelemetry, sent with OTLP over HTTP."""

    endpoint: str = ""
    """The collector's URL, such as http://127.0.0.1:4318/v1/traces. Empty: no traces."""
    sample: float = 0.1
    """The share of requests that are traced, unless a trusted proxy has decided."""
    service: str = "chat-nest"
    """The name of this service in the traces."""


LOG = keys_of(
    LogSection,
    format=Rule(Literal["text", "json"], 'one of "text", "json"'),
    level=Rule(Literal["debug", "info", "warning", "error"], 'one of "debug", "info", "warning", "error"'),
)
METRICS = keys_of(MetricsSection)
ADMIN = keys_of(AdminSection)
_COUNT_OR_NONE = Rule(Annotated[int, Meta(ge=0, le=MAX_AMOUNT)], f"a whole number from 0 to {MAX_AMOUNT}")
ALERTS = keys_of(
    AlertsSection,
    webhook=Rule(Annotated[str, Meta(pattern=r"^https?://[!-~]+$")], "a URL that begins with https://"),
    smtp_port=Rule(Annotated[int, Meta(ge=1, le=65_535)], "a whole number from 1 to 65535"),
    smtp_security=Rule(Literal["starttls", "tls", "none"], 'one of "starttls", "tls", "none"'),
    percents=PERCENTS,
    refused_per_minute=_COUNT_OR_NONE,
    visitors_per_minute=_COUNT_OR_NONE,
)
TRACES = keys_of(
    TracesSection,
    endpoint=Rule(Annotated[str, Meta(pattern=r"^https?://[!-~]+$")], "a URL that begins with http:// or https://"),
    sample=Rule(Annotated[float, Meta(ge=0, le=1)], "a number from 0 to 1"),
)

COLOUR = Rule(Annotated[str, Meta(pattern=r"^#[0-9a-fA-F]{6}$")], "a colour such as #0f766e")
LANGUAGE = Rule(Annotated[str, Meta(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})?$")], "a language tag such as de or pt-BR")
PAGE = keys_of(PageSection, accent=COLOUR, accent_dark=COLOUR, language=LANGUAGE)
RUNS = keys_of(RunsSection)
SESSIONS = keys_of(SessionsSection)
STORE = keys_of(StoreSection, records_days=DAYS, lease=LEASE)

PROVIDER: KeyRules = {
    "kind": TEXT,
    "base_url": TEXT,
    "api_key": TEXT,
    "api_key_env": TEXT,
    "api_keys": TEXTS,
    "api_keys_file": TEXT,
    "credentials": Rule(Cloud, '"aws" or "google"'),
    "api_version": TEXT,
    "abort_bills": TEXT,
    "counting": TEXT,
    "concurrent_streams": COUNT,
    "think_tags": Rule(ThinkTags, '"off", "on" or "opened"'),
}
NUMBERS = {struct: {name: _rule(each) for name, each in ranges.items()} for struct, ranges in RANGES.items()}
PROFILE: KeyRules = {
    **keys_of(Profile, but=frozenset({"name", *NUMBERS[Profile]}), grace_seconds=COUNT),
    **{name: rule for name, rule in NUMBERS[Profile].items() if name != "min_output_tokens"},
}

VISITOR_SECRETS: KeyRules = dict.fromkeys(("secret", "secret_env", "previous_secret", "previous_secret_env"), TEXT)
CHALLENGE_SECRETS: KeyRules = dict.fromkeys(("secret", "secret_env"), TEXT)
CHALLENGE: KeyRules = {
    **keys_of(
        Challenge,
        but=frozenset(("secret",)),
        kind=Rule(Kind, f"one of {_quoted(Kind)}"),
        when=Rule(When, f"one of {_quoted(When)}"),
        bind=Rule(Bind, f"one of {_quoted(Bind)}"),
        unreachable=Rule(Unreachable, f"one of {_quoted(Unreachable)}"),
        hours=Rule(float, "a number"),
        pressure=Rule(float, "a number"),
        score=Rule(float, "a number"),
    ),
    **CHALLENGE_SECRETS,
}
"""Their ranges are those of Python's own arguments: see challenges.settings."""

TOP: KeyRules = {"default_profile": TEXT, "preset": Rule(PresetName, '"default" or "npm"')}
"""The keys above all sections."""
SECTIONS: Mapping[str, KeyRules] = {
    "server": SERVER,
    "page": PAGE,
    "identity": IDENTITY,
    "sessions": SESSIONS,
    "visitors": {**VISITOR_SECRETS, **NUMBERS[Limits]},
    "addresses": NUMBERS[Limits],
    "networks": NUMBERS[Limits],
    "challenge": CHALLENGE,
    "dialects": {
        **dict.fromkeys(DIALECTS, FRONT_END),
        "blog_get": SWITCH,
        "responses_store": SWITCH,
        "budget_status": BUDGET_STATUS,
    },
    "queue": keys_of(Queue, length=Rule(Annotated[int, Meta(ge=1, le=10_000)], "a whole number from 1 to 10000")),
    "signatures": keys_of(SignaturesSection),
    "store": STORE,
    "runs": RUNS,
    "providers": PROVIDER,
    "profiles": PROFILE,
    "limits": NUMBERS[Limits],
    "groups": NUMBERS[Limits],
    "prices": {"input": PRICE, "output": PRICE, "cached_input": PRICE, "cache_write": PRICE},
    "degraded": keys_of(Allowance),
    "hard_caps": NUMBERS[HardCaps],
    "timeouts": keys_of(Timeouts),
    "admin": ADMIN,
    "alerts": ALERTS,
    "log": LOG,
    "metrics": METRICS,
    "traces": TRACES,
}
NAMED = frozenset({"providers", "profiles", "groups", "prices"})
"""Sections that hold a table for each name."""

PROVIDER_KINDS = (*PRESETS, "demo")
ABORT_BILLS = ("stops", "full", "unknown")
COUNTING = ("auto", "bytes")
