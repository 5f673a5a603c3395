"""The output of `chat-nest check --public`: what is still open to strangers, in order of danger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Literal

import click
from msgspec import Struct

from chat_nest.cli.strangers import exposure_of, has_visitors, usable_by_strangers
from chat_nest.core.limits import Limits
from chat_nest.limits.counters import RATES, is_closed
from chat_nest.limits.exposure import Exposure
from chat_nest.limits.spec import Profile
from chat_nest.server.config.settings import Config
from chat_nest.server.config.visitors import VisitorConfig

Danger = Literal["MONEY", "ABUSE", "CARE"]
"""Money without a bound; use by those it is not meant for; what makes either easier. `check --public` exits with 1 for
the first."""
COLORS = {"MONEY": "red", "ABUSE": "yellow", "CARE": "cyan"}
BINDS = ("proof_of_work", "turnstile")
"""The challenges that can be bound to a network."""
LONG_SESSION = 3_600
"""Seconds."""
SAFE = "Nothing of what is known here is open to strangers."


class Finding(Struct, frozen=True):
    """Something that is open, and the lines or the command that close it."""

    danger: Danger
    what: str
    close: str


def findings(config: Config) -> Sequence[Finding]:
    """Return what is open to strangers, the most dangerous first."""
    strangers = usable_by_strangers(config) if config.identity.accepts_strangers else ()
    profiles = [profile for profile in strangers if not is_closed(profile)]
    if is_closed(config.limits):
        profiles = []
    return [*_money(config, profiles), *_abuse(config, profiles), *_care(config, profiles)]


def report(config: Config, *, color: bool = False) -> str:
    """Return the findings as text, each with its remedy."""
    found = findings(config)
    lines = [f"Strangers: {_strangers(config)}", ""]
    for number, each in enumerate(found, 1):
        danger = click.style(each.danger, fg=COLORS[each.danger]) if color else each.danger
        lines += [f"{number}. {danger}: {each.what}", f"   {each.close}"]
    return "\n".join(lines if found else [*lines, SAFE])


def _strangers(config: Config) -> str:
    if not config.identity.accepts_strangers:
        return f"can't chat; callers are identified {config.identity.shown}"
    named = ", ".join(profile.name for profile in usable_by_strangers(config)) or "no profile"
    return f"may chat in {named}; they are identified {config.identity.shown}"


def _money(config: Config, profiles: Sequence[Profile]) -> Iterator[Finding]:
    exposure = exposure_of(config)
    if profiles and exposure.together(profiles).unlimited:
        what = "nothing bounds what all strangers together can spend in a day"
        yield Finding("MONEY", what, "[limits] usd_per_day = 5, or tokens_per_day = 2_000_000")
    visitors = _visitors(config)
    if profiles and visitors and exposure.of_address(profiles, visitors.addresses, visitors.networks).unlimited:
        what = "nothing bounds what all visitors of one IP address can spend in a day"
        yield Finding("MONEY", what, "[addresses] tokens_per_day = 100_000")
    for profile in profiles:
        if exposure.alone([profile]).unlimited:
            what = f"nothing bounds what one stranger can spend in a day in the profile {profile.name}"
            yield Finding("MONEY", what, f"[profiles.{profile.name}] tokens_per_day = 20_000")
    if profiles and config.store == "memory://":
        what = "budgets are kept in memory: each restart begins them again"
        yield Finding("MONEY", what, '[store] url = "sqlite:///chat-nest.db"')
    for model in exposure.unpriced(profiles):
        what = f"the price of {model} is not known, so no limit in dollars can bound it"
        yield Finding("MONEY", what, f'[prices."{model}"] input = ..., output = ...')


def _abuse(config: Config, profiles: Sequence[Profile]) -> Iterator[Finding]:
    server = config.server
    if not profiles:
        return
    if "*" in server.origins:
        what = "every page and program on the internet can use this chat"
        yield Finding("ABUSE", what, '[server] origins = ["https://your-site.example"]')
    if any(ip_network(each, strict=False).prefixlen == 0 for each in server.trusted_proxies if each != "unix"):
        what = "every client can make up its IP address, and with it a new budget: all of them are trusted proxies"
        yield Finding("ABUSE", what, '[server] trusted_proxies = ["127.0.0.1"], the address of your proxy alone')
    if config.blog_get:
        what = "any page that a visitor opens can spend by a link or an image: the blog's path answers GET"
        yield Finding("ABUSE", what, "[dialects] blog_get = false")
    yield from _known_secrets(config)
    yield from _told_apart(config, profiles)
    if not server.trusted_proxies and _is_loopback(server.host):
        what = "only this machine reaches the server; behind a proxy here, all strangers are one address"
        yield Finding("ABUSE", what, '[server] trusted_proxies = ["127.0.0.1"]')
    yield from _of_profiles(_visitors(config), profiles)


def _known_secrets(config: Config) -> Iterator[Finding]:
    visitors, sessions = config.visitors, config.sessions
    secrets = {
        "signatures": config.turn_secrets,
        "visitors": visitors.secrets if visitors else (),
        "sessions": sessions.secrets if sessions else (),
    }
    for section, ours in secrets.items():
        if any("openssl rand" in secret.reveal() for secret in ours):
            what = f"a secret in [{section}] is the example of the documentation: everybody can sign with it"
            yield Finding("ABUSE", what, f"put what `openssl rand -hex 32` writes into [{section}]")


def _told_apart(config: Config, profiles: Sequence[Profile]) -> Iterator[Finding]:
    """Yield what a person gains by more addresses, more ids or a program."""
    visitors = _visitors(config)
    if visitors is None:
        what = "strangers are identified by IP address alone: a person with many addresses has many budgets"
        yield Finding("ABUSE", what, "[visitors] with a secret, and limits in [addresses] and [networks]")
        return
    alone = Exposure(Limits(), config.known_prices(), config.server.max_body_bytes)
    if alone.of_address(profiles, visitors.addresses, visitors.networks).unlimited:
        what = "the visitors of one IP address can use up the budget of all strangers: an id costs nothing"
        yield Finding("ABUSE", what, "[addresses] tokens_per_day = 100_000")
    elif alone.of_address(profiles, Limits(), visitors.networks).unlimited:
        what = "a person with a network of IP addresses has the budget of an address in each"
        yield Finding("ABUSE", what, "[networks] tokens_per_day = 400_000")
    if visitors.challenge is None:
        what = "a program is a visitor like a person: nothing makes its requests expensive"
        yield Finding("ABUSE", what, '[challenge] kind = "proof_of_work", when = "always"')
    elif visitors.challenge.unreachable == "before" and visitors.challenge.when != "limit":
        what = "while the challenge's service does not answer, visitors pass without it"
        yield Finding("ABUSE", what, '[challenge] unreachable = "closed"')


def _of_profiles(visitors: VisitorConfig | None, profiles: Sequence[Profile]) -> Iterator[Finding]:
    shared = tuple(visitors.all_limits.values()) if visitors else ()
    for profile in profiles:
        drawn: tuple[Profile | Limits, ...] = (profile, *shared)
        here = f"[profiles.{profile.name}]"
        if all(getattr(each, name) is None for name in _PACE for each in drawn):
            what = f"a stranger in the profile {profile.name} may send any number of requests in a minute"
            yield Finding("ABUSE", what, f"{here} {RATES[0]} = 6")
        if all(each.concurrent_streams is None for each in drawn):
            what = f"a stranger in the profile {profile.name} may have any number of answers at once"
            yield Finding("ABUSE", what, f"{here} concurrent_streams = 2")
        for name, said in _ALLOWED.items():
            if getattr(profile, name):
                yield Finding("ABUSE", f"a stranger in the profile {profile.name} {said}", f"{here} {name} = false")


_PACE = ("requests_per_minute", "requests_per_hour")
_ALLOWED = {
    "allow_system_prompt": "may write the system prompt, and so use the model for anything",
    "allow_tools": "may offer tools, and so run its own program with your model",
    "allow_image_urls": "may make your provider fetch any https URL",
}


def _care(config: Config, profiles: Sequence[Profile]) -> Iterator[Finding]:
    server = config.server
    if "*" in server.allowed_hosts:
        yield Finding("CARE", "the server answers under every host name", '[server] allowed_hosts = ["chat.example"]')
    if server.readyz_details:
        what = "/readyz shows models, providers and settings to everybody"
        yield Finding("CARE", what, "[server] readyz_details = false")
    if config.sessions is not None and config.sessions.expires_in > LONG_SESSION:
        what = f"a session token that is stolen works for {config.sessions.expires_in / 3_600:g} hours"
        yield Finding("CARE", what, "[sessions] expires_in = 600")
    if not profiles:
        return
    challenge = None if config.visitors is None else config.visitors.challenge
    if challenge is not None and challenge.bind == "none" and challenge.kind in BINDS:
        what = "a solution counts from any network, so one machine can pass challenges for many"
        yield Finding("CARE", what, '[challenge] bind = "network"')
    if config.queue is None:
        what = "one stranger's requests can take all of a provider's rate; others are refused meanwhile"
        yield Finding("CARE", what, "[queue], and [providers.NAME] concurrent_streams = 20")
    for profile in profiles:
        here = f"[profiles.{profile.name}]"
        if not profile.signed_turns and not profile.allow_tools:
            what = f"a stranger in the profile {profile.name} can put words into the model's mouth"
            yield Finding("CARE", what, f"{here} signed_turns = true, with a secret in [signatures]")
        if profile.tokens_per_request is None:
            what = f"one request in the profile {profile.name} may use a whole day's budget"
            yield Finding("CARE", what, f"{here} tokens_per_request = 4_000")


def _visitors(config: Config) -> VisitorConfig | None:
    return config.visitors if has_visitors(config) else None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
