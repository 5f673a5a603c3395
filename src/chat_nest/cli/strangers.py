"""The most that callers can spend in a day, for `check` to print and for `serve` to warn of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf
from zoneinfo import ZoneInfo

from chat_nest.core.usage import NANO
from chat_nest.limits.counters import is_closed
from chat_nest.limits.exposure import Exposure, Most, longest_day
from chat_nest.limits.prices import how_to_add
from chat_nest.limits.spec import Profile
from chat_nest.server.config.server_section import is_on_loopback
from chat_nest.server.config.settings import Config

UNLIMITED = "unlimited"


def exposure_of(config: Config) -> Exposure:
    day = longest_day(ZoneInfo(config.server.time_zone), time.time())
    return Exposure(config.limits, config.known_prices(), config.server.max_body_bytes, day)


def noun(config: Config) -> str:
    """Return the noun for a caller that may choose the open profiles: a stranger, unless callers are identified."""
    return "stranger" if config.identity.accepts_strangers else "caller"


def title(config: Config) -> str:
    return f"What a {noun(config)} can spend in a day, at most"


def spending_rows(config: Config) -> list[list[str]]:
    """Return a row for each profile, with its callers; then one caller in any profile, and all callers together."""
    exposure, rules, who = exposure_of(config), config.rules(), noun(config)
    usable, one_of = usable_by_strangers(config), "visitors of one address" if has_visitors(config) else f"one {who}"
    rows = [["", "open to", "tokens", "dollars"]]
    rows += [
        [profile.name, _open_to(config, profile, usable), *_shown(_alone(config, exposure, [profile]))]
        for profile in rules.all
    ]
    one, all_of_them = _alone(config, exposure, usable), exposure.together(usable)
    rows.append(["alone", f"{one_of}, in any open profile", *_shown(one)])
    rows.append(["together", f"all {who}s, however many", *_shown(all_of_them)])
    return rows


def price_notes(config: Config) -> list[str]:
    """Return how to add a price, for each model without one."""
    models = exposure_of(config).unpriced(config.rules().all)
    return [f"The price of {model} is not known: {how_to_add(model)}" for model in models]


def warning(config: Config) -> str:
    """Return the warning of `serve` if no limit bounds the cost of all callers together; else an empty string."""
    if not exposure_of(config).together(usable_by_strangers(config)).unlimited:
        return ""
    set_one = "set tokens_per_day or usd_per_day in [limits]"
    return f"what all {noun(config)}s together can spend in a day is {UNLIMITED}: {set_one} (see: chat-nest check)"


def open_to_everybody(config: Config) -> str:
    """Return the warning of a server that any page and program may use without a credential; else an empty string."""
    if "*" not in config.server.origins or not config.identity.accepts_strangers or is_on_loopback(config.server):
        return ""
    return (
        "every page and program on the internet can spend from your limits, without a key: name your site with "
        'origins = ["https://example.com"] in [server], or identify callers in [identity]'
    )


def has_visitors(config: Config) -> bool:
    """Return whether strangers are visitors, with an id of their own."""
    return config.visitors is not None and "visitor" in config.identity.ways


def usable_by_strangers(config: Config) -> tuple[Profile, ...]:
    """Return the profiles that a stranger can have: the open ones, and those of a challenge."""
    rules, visitors = config.rules(), config.visitors
    if visitors is None or visitors.challenge is None or not has_visitors(config):
        return rules.open
    named = [visitors.challenge.before, visitors.challenge.after]
    given = tuple(rules.named(name) for name in named if name)
    return tuple(dict.fromkeys((*(rules.open if "" in named else ()), *given)))


def _alone(config: Config, exposure: Exposure, profiles: Sequence[Profile]) -> Most:
    """Return the bound of one stranger: of its address, if strangers are visitors."""
    visitors = config.visitors
    if visitors is None or not has_visitors(config):
        return exposure.alone(profiles)
    return exposure.of_address(profiles, visitors.addresses, visitors.networks)


def _open_to(config: Config, profile: Profile, open_ones: tuple[Profile, ...]) -> str:
    if is_closed(profile) or is_closed(config.limits):
        return "no caller: a limit is 0"
    return f"every {noun(config)}" if profile in open_ones else "only a caller to whom it is given"


def _shown(most: Most) -> tuple[str, str]:
    tokens = UNLIMITED if most.tokens == inf else f"{int(most.tokens):,}"
    if most.nanousd is None:
        return tokens, "price not known"
    return tokens, UNLIMITED if most.nanousd == inf else _dollars(int(most.nanousd))


def _dollars(nanousd: int) -> str:
    """Round up to cents, or to two significant digits below ten cents."""
    digits = next((digits for digits in range(2, 9) if nanousd >= NANO // 10 ** (digits - 1)), 9)
    step = NANO // 10**digits
    return f"${-(-nanousd // step) / 10**digits:,.{digits}f}" if nanousd else "$0"
