"""What `chat-nest check` prints: the configuration as it will be in force."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import asdict

from chat_nest.messages import Caller, ChatRequest
from chat_nest.profiles import COUNTERS
from chat_nest.server.config import Config
from chat_nest.usage import NANO, Price

LIMITS = (
    "max_output_tokens",
    "max_messages",
    "temperature",
    "tokens_per_request",
    *(name for name, _, _ in COUNTERS),
)


def table(config: Config) -> str:
    """The listening address, providers, store, limits of each profile under the hard caps, and time-outs."""
    rules = config.rules()
    profiles = [rules.resolve(Caller(id="-", profile=name), ChatRequest(messages=())) for name in config.profiles]
    shared = {"all callers": config.limits, **{f"group {name}": limits for name, limits in config.groups.items()}}
    prices = config.known_prices()
    rows = [["", *(profile.name for profile in profiles), *shared]]
    rows += [["model", *(profile.model for profile in profiles), *("" for _ in shared)]]
    rows += [["price", *(_price(prices.of(profile.model)) for profile in profiles), *("" for _ in shared)]]
    rows += [[name, *(_shown(getattr(each, name, None)) for each in (*profiles, *shared.values()))] for name in LIMITS]
    providers = [
        [name, provider.kind, provider.base_url or "on this machine", "with a key" if provider.api_key else "no key"]
        for name, provider in config.providers.items()
    ]
    facts = [
        ["config", config.file or "no file"],
        ["listen", f"{config.server.host} port {config.server.port}"],
        ["dialects", ", ".join(f"{name} at {path}" for name, path in config.dialects.items())],
        ["store", config.store_shown],
        ["day begins", f"midnight, {config.server.time_zone}"],
        ["proxies", ", ".join(config.server.trusted_proxies) or "none trusted"],
        ["callers", _callers(config)],
        ["origins", ", ".join(config.server.cors_origins) or "same origin only"],
        ["time-outs", ", ".join(f"{name} {seconds:g} s" for name, seconds in asdict(config.timeouts).items())],
    ]
    parts = [_aligned(facts), "Providers\n" + _aligned(providers), "Limits in force\n" + _aligned(rows)]
    if config.notes:
        parts.append("\n".join(f"Note: {note}" for note in config.notes))
    return "\n\n".join(parts)


def _callers(config: Config) -> str:
    header = config.server.caller_header
    return config.identity.shown or (f"by the header {header} of trusted proxies" if header else "by their address")


def _price(price: Price | None) -> str:
    """In dollars for a million tokens in and out; the dearest tier."""
    if price is None:
        return "not known"
    dearest = price.rates[-1]
    return f"${dearest.input / NANO:g} in, ${dearest.output / NANO:g} out" if dearest.output else "free"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)
