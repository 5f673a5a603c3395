"""The output of `chat-nest check`: the configuration as it will apply."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click
from msgspec.structs import asdict

from chat_nest.cli.strangers import UNLIMITED, open_to_everybody, price_notes, spending_rows, title
from chat_nest.core.limits import NO_LIMIT
from chat_nest.core.usage import NANO, Price
from chat_nest.limits.counters import LIMITS
from chat_nest.limits.spec import Profile
from chat_nest.server.config.provider import ProviderConfig
from chat_nest.server.config.settings import Config

NUMBERS = ("max_output_tokens", "max_messages", "temperature", *LIMITS)


def table(config: Config, *, color: bool = False) -> str:
    """Return the address, providers, store, each profile's limits under the hard caps, and what callers can spend.

    `color` prints what is unlimited in red.
    """
    rules = config.rules()
    profiles = rules.all
    shared = {"all callers": config.limits, **{f"group {name}": limits for name, limits in config.groups.items()}}
    prices = config.known_prices()
    rows = [["", *(profile.name for profile in profiles), *shared]]
    rows += [["model", *(profile.model for profile in profiles), *("" for _ in shared)]]
    rows += [["price per million", *(_price(prices.of(profile.model)) for profile in profiles), *("" for _ in shared)]]
    if any(profile.ladder for profile in profiles):
        rows += [["ladder", *(_ladder(profile) for profile in profiles), *("" for _ in shared)]]
    columns = (*profiles, *shared.values())
    rows += [[name, *(_shown(getattr(each, name, "-")) for each in columns)] for name in NUMBERS]
    providers = [
        [name, provider.kind, provider.base_url or "on this machine", _keys(provider)]
        for name, provider in config.providers.items()
    ]
    facts = [
        ["config", config.file or "no file"],
        ["preset", f"{config.preset}: the limits that the file does not set"],
        ["listen", f"{config.server.host} port {config.server.port}"],
        ["operators", config.admin_listen or "no listener for them: see [admin]"],
        ["dialects", ", ".join(f"{name} at {path}" for name, path in config.dialects.items())],
        ["store", config.store_shown],
        ["day begins", f"midnight, {config.server.time_zone}"],
        ["proxies", ", ".join(config.server.trusted_proxies) or "none trusted"],
        ["callers", config.identity.shown],
        ["profile", f"{config.default_profile}, unless the request or the caller has another one"],
        ["hosts", "any" if "*" in config.server.allowed_hosts else ", ".join(config.server.allowed_hosts)],
        ["page", _page(config)],
        ["origins", ", ".join(config.server.origins) or "same origin only"],
        ["timeouts", ", ".join(f"{name} {seconds:g} s" for name, seconds in asdict(config.timeouts).items())],
    ]
    parts = [_aligned(facts), "Providers\n" + _aligned(providers), "Limits in force\n" + _aligned(rows)]
    parts.append(f"{title(config)}\n{_aligned(spending_rows(config), red=UNLIMITED if color else None)}")
    openness = open_to_everybody(config)
    notes = (*config.notes, *price_notes(config), *([openness] if openness else []))
    if notes:
        parts.append("\n".join(f"Note: {note}" for note in notes))
    return "\n\n".join(parts)


def _ladder(profile: Profile) -> str:
    steps: list[str] = []
    for rung in sorted(profile.ladder, key=lambda rung: -rung.below):
        tokens = () if rung.max_output_tokens is None else (f"{rung.max_output_tokens:,} output tokens",)
        steps.append(f"below {rung.below:.0%} " + ", ".join((*filter(None, (rung.model,)), *tokens)))
    return "; ".join(steps)


def _keys(provider: ProviderConfig) -> str:
    if provider.credentials is not None:
        return f"with credentials of {provider.credentials}"
    count = provider.key_count
    where = f" in {provider.api_keys_file}" if provider.api_keys_file else ""
    return (f"{count} keys{where}" if count > 1 else f"with a key{where}") if count else "no key"


def _page(config: Config) -> str:
    """Return the pages that may show the chat in a frame."""
    origins = config.page.embed_origins
    return f"at /, also in pages of {', '.join(origins)}" if origins else "at /, in no other page"


def _price(price: Price | None) -> str:
    """Return the dollars for a million tokens in and out, of the most expensive tier."""
    if price is None:
        return "not known"
    dearest = price.rates[-1]
    return f"${_money(dearest.input)} in, ${_money(dearest.output)} out" if dearest.output else "free"


def _money(nano: int) -> str:
    """Return dollars with cents, and with more places if needed."""
    dollars, cents = f"{nano / NANO:.9f}".rstrip("0").split(".")
    return f"{dollars}.{cents:0<2}"


def _shown(value: float | str | None) -> str:
    if isinstance(value, str):
        return value  # there is no such limit for all callers together
    return NO_LIMIT if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _aligned(rows: Sequence[Sequence[str]], red: str | None = None) -> str:
    """Align cells in columns; those that are the word `red` are red."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        lines.append(f"  {line}")
    text = "\n".join(lines)
    return text if red is None else re.sub(rf"(?<=  ){red}\b", click.style(red, fg="red"), text)
