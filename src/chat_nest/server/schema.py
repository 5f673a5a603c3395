"""Which keys the config file may hold, and the rule for each value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

from msgspec import Meta, Struct
from msgspec.structs import fields

from chat_nest.ledger import LEASE_SECONDS
from chat_nest.limits import MAX_AMOUNT, Allowance, HardCaps, Limits, OnDisconnect, Profile, Timeouts
from chat_nest.providers.presets import PRESETS
from chat_nest.records import RECORDS_DAYS


class Rule(Struct, frozen=True):
    """`type` is what msgspec converts to; `says` completes the sentence "must be ..."."""

    type: Any
    says: str


TEXT = Rule(Annotated[str, Meta(min_length=1)], "a string that is not empty")
TEXTS = Rule(tuple[Annotated[str, Meta(min_length=1)], ...], "a list of strings")
SWITCH = Rule(bool, "true or false")
COUNT = Rule(Annotated[int, Meta(ge=1, le=MAX_AMOUNT)], f"a whole number from 1 to {MAX_AMOUNT}")
SECONDS = Rule(Annotated[float, Meta(gt=0, le=86_400)], "a number of seconds above 0 and at most 86400")
LEEWAY = Rule(Annotated[float, Meta(ge=0, le=300)], "a number of seconds from 0 to 300")
LEASE = Rule(Annotated[float, Meta(ge=5, le=3_600)], "a number of seconds from 5 to 3600")
TEMPERATURE = Rule(Annotated[float, Meta(ge=0, le=2)], "a number from 0 to 2")
USD = Rule(Annotated[float, Meta(ge=0.000_000_001, le=1_000_000)], "a number of dollars above 0 and at most 1000000")
PRICE = Rule(Annotated[float, Meta(ge=0, le=1_000_000)], "a number of dollars from 0 to 1000000")
DAYS = Rule(Annotated[float, Meta(ge=0, le=36_500)], "a number of days from 0, which keeps none, to 36500")
FRONT_END = Rule(
    bool | Annotated[str, Meta(pattern=r"^(/[!-~]*|true|false)$")], "true, false, or a path that begins with /"
)
PORT = Rule(Annotated[int, Meta(ge=0, le=65_535)], "a whole number from 0 (any free port) to 65535")

BY_TYPE: Mapping[Any, Rule] = {
    str: TEXT,
    tuple[str, ...]: TEXTS,
    bool: SWITCH,
    int: COUNT,
    int | None: COUNT,
    float: SECONDS,
    OnDisconnect: Rule(OnDisconnect, 'one of "cancel", "grace", "finish"'),
    float | None: USD,
    bool | None: SWITCH,
}
Keys = Mapping[str, Rule]


def keys_of(struct: type[Struct], *, but: frozenset[str] = frozenset(), **special: Rule) -> Keys:
    """A key for each field of the struct, except those named in `but`, with the rule of the field's type."""
    types = get_type_hints(struct)
    names = [field.name for field in fields(struct) if field.name not in but]
    return {name: special.get(name) or BY_TYPE[types[name]] for name in names}


class ServerSection(Struct, frozen=True, kw_only=True):
    """Where to listen, who may be in between, and whose day it is."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free port."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses, networks in CIDR notation, or `unix`, whose X-Forwarded-For is believed."""
    cors_origins: tuple[str, ...] = ("*",)
    caller_header: str = ""
    """The header in which a trusted proxy names the user who asks; else callers are told apart by address."""
    group_header: str = ""
    """The header in which it names the user's group."""
    time_zone: str = "UTC"
    """The IANA name of the zone in which budgets begin at midnight."""
    max_body_bytes: int = 262_144
    max_streams: int = 1_000
    """Answers at once, in each worker."""
    max_connections: int = 4_096
    """In each worker."""
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 65.0
    drain_seconds: float = 30.0
    """How long running answers may go on after SIGTERM."""
    blocked_seconds: float = 0.1
    """An event loop that is blocked for longer is logged with its stack."""


SERVER = keys_of(ServerSection, port=PORT)


class IdentitySection(Struct, frozen=True, kw_only=True):
    """Who is asking, where it is neither the address nor a header of a proxy: API keys, or JSON Web Tokens."""

    keys_file: str = ""
    """The file of API keys."""
    secret: str = ""
    """Of the keys' hashes, or of HS256."""
    secret_env: str = ""
    """The variable that holds it."""
    jwt_algorithms: tuple[str, ...] = ()
    jwt_keys_file: str = ""
    """A public key in PEM, or a JWK Set."""
    jwt_audience: str = ""
    jwt_issuer: str = ""
    jwt_caller_claim: str = "sub"
    jwt_group_claim: str = ""
    jwt_leeway: float = 30.0
    """How far clocks may differ."""


IDENTITY = keys_of(IdentitySection, jwt_leeway=LEEWAY)


class StoreSection(Struct, frozen=True, kw_only=True):
    """Where budgets and records are kept."""

    url: str = "sqlite:///chat-nest.db"
    journal: str = ""
    """The directory in which settlements wait for a store that does not take them; nothing: by the kind of store."""
    records_days: float = RECORDS_DAYS
    """How long what each request used is kept, in SQLite and PostgreSQL; 0 keeps none of it."""
    lease: float = LEASE_SECONDS
    """Seconds after which what a process that died had reserved is charged."""


class RunsSection(Struct, frozen=True, kw_only=True):
    """Where runs are kept for readers who come back."""

    url: str = ""
    """None: in the store's Redis, where it is one; else by the server's own processes."""
    keep_seconds: float = 300.0
    """How long after their end."""


RUNS = keys_of(RunsSection)
STORE = keys_of(StoreSection, records_days=DAYS, lease=LEASE)

DIALECTS = ("native", "openai", "ai_sdk", "ag_ui", "anthropic", "blog")
"""The wire formats; each key switches one on or off, or gives it another path."""
PROVIDER: Keys = {
    "kind": TEXT,
    "base_url": TEXT,
    "api_key": TEXT,
    "api_key_env": TEXT,
    "api_version": TEXT,
    "abort_bills": TEXT,
}
PROFILE = keys_of(Profile, but=frozenset({"name", "min_output_tokens"}), temperature=TEMPERATURE, grace_seconds=COUNT)

TOP: Keys = {"default_profile": TEXT}
"""The keys above all sections."""
SECTIONS: Mapping[str, Keys] = {
    "server": SERVER,
    "identity": IDENTITY,
    "dialects": {**dict.fromkeys(DIALECTS, FRONT_END), "blog_get": SWITCH},
    "store": STORE,
    "runs": RUNS,
    "providers": PROVIDER,
    "profiles": PROFILE,
    "limits": keys_of(Limits),
    "groups": keys_of(Limits),
    "prices": {"input": PRICE, "output": PRICE, "cached_input": PRICE, "cache_write": PRICE},
    "degraded": keys_of(Allowance),
    "hard_caps": keys_of(HardCaps, temperature=TEMPERATURE),
    "timeouts": keys_of(Timeouts),
}
NAMED = frozenset({"providers", "profiles", "groups", "prices"})
"""Sections that hold a table for each name."""

PROVIDER_KINDS = (*PRESETS, "demo")
ABORT_BILLS = ("stops", "full", "unknown")
