"""The parts of a chat endpoint that can be replaced while it runs, built from its settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.asgi.arguments import check_arguments
from chat_nest.asgi.cors import Cors
from chat_nest.asgi.hosts import LOOPBACK_HOSTS, Hosts
from chat_nest.asgi.routing import Routes
from chat_nest.asgi.settings import HandlerSettings
from chat_nest.challenges.create import make_gate
from chat_nest.challenges.gate import ChallengeGate
from chat_nest.core.held_text import Uploads
from chat_nest.core.protocols import Dialect, HasBaseUrl, HasContext, Identify, Provider, SendsKey
from chat_nest.core.usage import Price
from chat_nest.counting.tokens import TokenCounters
from chat_nest.dialects import named
from chat_nest.identity.api_key import checked_secret
from chat_nest.identity.first_of import FirstOf
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.sessions import Sessions
from chat_nest.limits.numbers import MAX_UPLOAD_BYTES
from chat_nest.limits.prices import Prices
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.spec import Profile, built_in_caps, built_in_profiles, fitted
from chat_nest.pipeline.callers import CallerRules
from chat_nest.pipeline.signatures import Signatures
from chat_nest.pipeline.terms import Terms
from chat_nest.pipeline.upstream import Upstream, split_model
from chat_nest.providers.openai import OpenAIProvider

log = logging.getLogger("chat_nest")

OPENAI_URL = "https://api.openai.com/v1"


class Parts(Struct, frozen=True, kw_only=True, eq=False):
    settings: HandlerSettings
    """Those that the parts were built from."""
    providers: Mapping[str, Provider]
    terms: Terms
    counters: TokenCounters
    callers: CallerRules
    sessions: Sessions | None
    visitor_gate: ChallengeGate | None
    """What visitors pass with a challenge."""
    dialects: Sequence[Dialect]
    routes: Routes
    cors: Cors
    hosts: Hosts
    uploads: Uploads | None


def make_parts(settings: HandlerSettings, before: Parts | None = None) -> Parts:
    """Build the parts. Nothing is opened or called. `before` are those in force; what they know of a provider is kept.

    Raises what `create_chat_handler` raises.
    """
    check_arguments(settings)
    providers = _providers(settings, before)
    profiles = _profiles(settings, providers)
    _check_names("counting", settings.counting, providers)
    _check_names("provider_streams", settings.provider_streams, providers)
    counters = TokenCounters(settings.counting) if before is None else before.counters.renewed(settings.counting)
    prices = _prices(settings, providers)
    for profile in profiles.values():
        for model in profile.models:
            counters.of(model)  # builds its tables now, not in the first request
            prices.of(model)
    rules = _rules(settings, profiles, prices)
    upstream = Upstream(
        providers,
        settings.timeouts,
        counters=counters,
        before=None if before is None else before.terms.upstream,
    )
    peers = PeerAddress(settings.trusted_proxies)
    visitor_gate = _visitor_gate(settings, rules)
    dialects = [named(each) for each in settings.dialects or (settings.dialect,)]
    return Parts(
        settings=settings,
        providers=providers,
        terms=Terms(rules, prices, upstream, _signatures(settings.turn_secrets, rules.all)),
        counters=counters,
        callers=CallerRules(
            identify=_identify(settings, peers), profiles=rules, address_of=peers.address, visitor_gate=visitor_gate
        ),
        sessions=settings.sessions,
        visitor_gate=visitor_gate,
        dialects=dialects,
        routes=Routes(dialects),
        cors=_cors(settings),
        hosts=Hosts(settings.allowed_hosts),
        uploads=_uploads(rules.all, settings.max_upload_bytes),
    )


def _check_names(argument: str, named: Iterable[str] | None, providers: Mapping[str, Provider]) -> None:
    """Raise ValueError unless the argument names only providers that there are."""
    if unknown := set(named or ()) - set(providers):
        raise ValueError(f"{argument} names {sorted(unknown)}, which are not among the providers {sorted(providers)}")


def _identify(settings: HandlerSettings, peers: PeerAddress) -> Identify:
    """Return the way to identify callers. Session tokens go before it, and replace the default one."""
    if settings.sessions is None:
        return settings.identify or settings.visitors or peers
    others = settings.identify or settings.visitors
    return settings.sessions if others is None else FirstOf(settings.sessions, others)


def _cors(settings: HandlerSettings) -> Cors:
    if settings.origins is not None and settings.cors_origins is not None:
        raise ValueError("pass origins only: cors_origins is its old name")
    old = ("*",) if settings.cors_origins is None else settings.cors_origins
    on_loopback = set(settings.allowed_hosts) <= set(LOOPBACK_HOSTS)  # programs of this machine only
    return Cors(old if settings.origins is None else settings.origins, lets_programs=on_loopback)


def _visitor_gate(settings: HandlerSettings, rules: Profiles) -> ChallengeGate | None:
    if settings.challenge is None:
        return None
    if settings.visitors is None:
        raise ValueError("challenge needs visitors: only they are challenged")
    try:
        return make_gate(settings.challenge, settings.visitors.secrets, rules, settings.now)
    except ValueError as error:
        raise ValueError(f"challenge: {error}") from None


def _providers(settings: HandlerSettings, before: Parts | None) -> Mapping[str, Provider]:
    if settings.providers is None:
        if before is not None and _own(settings) == _own(before.settings):
            return before.providers
        own = _openai(settings.api_key, settings.base_url)
        _warn_of_clear_text({"base_url": own})
        return {"openai": own}
    if settings.api_key is not None or settings.base_url is not None:
        raise ValueError("pass either `providers` or `api_key` and `base_url`, not both")
    _warn_of_clear_text({f"providers[{name!r}]": provider for name, provider in settings.providers.items()})
    return settings.providers


def _own(settings: HandlerSettings) -> tuple[object, ...]:
    """Return the arguments that make the one provider of a handler without `providers`."""
    return settings.providers, settings.api_key, settings.base_url


def _profiles(settings: HandlerSettings, providers: Mapping[str, Provider]) -> Mapping[str, Profile]:
    if settings.profiles is None:
        return _built_in(settings, providers)
    if settings.preset != "default":
        raise ValueError("pass either `profiles` or `preset`: chat_nest.built_in_profiles(preset) are its profiles")
    if settings.model is not None:
        raise ValueError("pass either `profiles`, which name their models, or `model`, not both")
    for name, profile in settings.profiles.items():
        for full in profile.models:
            if split_model(full)[0] not in providers:
                raise ValueError(
                    f"profile {name!r}: the model must be PROVIDER:MODEL with one of the providers {sorted(providers)}"
                )
    return settings.profiles


def _built_in(settings: HandlerSettings, providers: Mapping[str, Provider]) -> Mapping[str, Profile]:
    full = _full_model(settings.model or ("gpt-4o-mini" if "openai" in providers else None), providers)
    provider = providers[split_model(full)[0]]
    context = provider.context_tokens if isinstance(provider, HasContext) else None
    found = built_in_profiles(settings.preset).items()
    profiles = {name: replace(profile, model=full) for name, profile in found}
    if context is not None:
        profiles = {name: fitted(profile, context) for name, profile in profiles.items()}
    return profiles


def _prices(settings: HandlerSettings, providers: Mapping[str, Provider]) -> Prices:
    urls = {name: each.base_url if isinstance(each, HasBaseUrl) else "" for name, each in providers.items()}
    return Prices(_checked_prices(settings.prices or {}, providers), urls)


def _rules(settings: HandlerSettings, profiles: Mapping[str, Profile], prices: Prices) -> Profiles:
    caps = built_in_caps(settings.preset) if settings.hard_caps is None else settings.hard_caps
    visitors = None if settings.visitors is None else settings.visitors.all_limits
    zone, default = settings.time_zone, settings.default_profile
    return Profiles(
        profiles, settings.limits, caps, zone, default, groups=settings.groups, visitors=visitors, prices=prices
    )


def _signatures(secrets: Sequence[str | bytes], profiles: Sequence[Profile]) -> Signatures | None:
    """Return what signs answers, if there is a secret. Raises ValueError for a profile that can't have signed turns."""
    for profile in profiles:
        if profile.signed_turns and not secrets:
            raise ValueError(f"profile {profile.name!r}: signed_turns needs turn_secrets")
        if profile.signed_turns and profile.allow_tools:
            raise ValueError(f"profile {profile.name!r}: signed_turns needs allow_tools=False: calls are not signed")
    return Signatures([checked_secret(secret) for secret in secrets]) if secrets else None


def _uploads(profiles: Sequence[Profile], most: int | None) -> Uploads | None:
    """Return the limits of a body with images; None if no profile allows images and no length was given."""
    open_to = [profile for profile in profiles if profile.allow_images]
    if not open_to and most is None:
        return None
    number = max((profile.max_images for profile in open_to), default=0)
    size = max((profile.max_image_bytes for profile in open_to), default=0)
    return Uploads(number=number, size=-(-size // 3) * 4, most=most or MAX_UPLOAD_BYTES)


def _warn_of_clear_text(providers: Mapping[str, Provider]) -> None:
    for where, provider in providers.items():
        if isinstance(provider, SendsKey) and provider.key_in_clear:
            log.warning("%s: the key and every prompt travel unencrypted; use https", where)


def _checked_prices(prices: Mapping[str, Price], providers: Mapping[str, Provider]) -> Mapping[str, Price]:
    """Raise ValueError for a price that no model can have: a misspelt one would be ignored silently."""
    for key in prices:
        provider, _, model = key.partition(":")
        if not model or provider not in providers:
            said = f"must be PROVIDER:MODEL or PROVIDER:* with one of the providers {sorted(providers)}"
            near = f"; did you mean {next(iter(providers))}:{key}?" if not model and len(providers) == 1 else ""
            raise ValueError(f"prices[{key!r}] {said}{near}")
    return prices


def _openai(api_key: str | None, base_url: str | None) -> OpenAIProvider:
    api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    if api_key is None and base_url == OPENAI_URL:
        msg = (
            "no API key: pass api_key=..., or set OPENAI_API_KEY; a local server needs base_url=... instead. "
            'Without either, see "A model without a key" in docs/embedding.md'
        )
        raise ValueError(msg)
    return OpenAIProvider(api_key, base_url)


def _full_model(model: str | None, providers: Mapping[str, Provider]) -> str:
    if model is None:
        raise ValueError("name the model: model='PROVIDER:MODEL'")
    return model if split_model(model)[0] in providers else f"{next(iter(providers))}:{model}"
