"""The values of [visitors], [addresses], [networks] and [challenge]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.challenges.settings import Challenge, check_challenge
from chat_nest.core.limits import Limits
from chat_nest.identity.api_key import checked_secret
from chat_nest.identity.visitors import Visitors
from chat_nest.limits.profile_names import find_name
from chat_nest.limits.spec import Profile
from chat_nest.server.config.identity import Identity
from chat_nest.server.config.provider import Secret
from chat_nest.server.config.schema import CHALLENGE_SECRETS, VISITOR_SECRETS, ServerSection
from chat_nest.server.config.sources import Sources

ADVICE = "set CHAT_NEST_VISITORS_SECRET to one of your own, such as `openssl rand -hex 32` writes, and keep it"
SHARED = ("addresses", "networks")


class VisitorConfig(Struct, frozen=True, kw_only=True):
    """How visitors are identified, and their limits. `secrets` has the newest first; `challenge` has no secret."""

    secrets: tuple[Secret, ...]
    limits: Limits
    addresses: Limits
    networks: Limits
    challenge: Challenge | None = None
    challenge_secret: Secret = Secret("")

    @property
    def all_limits(self) -> Mapping[str, Limits]:
        """The limits by their section."""
        return {"visitors": self.limits, "addresses": self.addresses, "networks": self.networks}

    @property
    def full_challenge(self) -> Challenge | None:
        """The challenge with its secret."""
        return self.challenge and replace(self.challenge, secret=self.challenge_secret.reveal())


def make_visitors(server: ServerSection, identity: Identity, config: VisitorConfig | None) -> Visitors | None:
    """Return the part that identifies visitors; None if they are not accepted. Raises ValueError."""
    if config is None or "visitor" not in identity.ways:
        return None
    return Visitors(
        [secret.reveal() for secret in config.secrets],
        limits=config.limits,
        addresses=config.addresses,
        networks=config.networks,
        trusted_proxies=server.trusted_proxies,
    )


def resolve_visitors(
    sources: Sources, values: Mapping[str, dict[str, Any]], environ: Mapping[str, str]
) -> VisitorConfig | None:
    """Resolve the four sections; None without [visitors].

    Notes a missing or guessable secret, visitors without a limit for addresses or networks, and a wrong challenge.
    """
    if "visitors" not in sources.values:
        for section in (*SHARED, "challenge"):
            if section in sources.values:
                sources.problem((section,), "has no meaning without [visitors]: see docs/visitors.md")
        return None
    limits = {key: value for key, value in values["visitors"].items() if key not in VISITOR_SECRETS}
    challenge, secret = _challenge(sources, values["challenge"], environ)
    found = VisitorConfig(
        secrets=_secrets(sources, values["visitors"], environ),
        limits=Limits(**limits),
        addresses=Limits(**values["addresses"]),
        networks=Limits(**values["networks"]),
        challenge=challenge,
        challenge_secret=secret,
    )
    if found.addresses == found.networks == Limits():
        said = (
            "needs a limit in [addresses] or [networks], such as tokens_per_day: one client can be a thousand visitors"
        )
        sources.problem(("visitors",), said)
    return found


def check_profiles(sources: Sources, visitors: VisitorConfig | None, profiles: Mapping[str, Profile]) -> None:
    """Note a profile of the challenge that does not exist."""
    if visitors is None or visitors.challenge is None:
        return
    names = [name.lower() for name in profiles]
    for field in ("before", "after"):
        name: str = getattr(visitors.challenge, field)
        if name and find_name(names, name) is None:
            sources.problem(("challenge", field), f"must name one of the profiles: {', '.join(names)}")


def _secrets(sources: Sources, table: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Secret, ...]:
    found: list[Secret] = []
    for name in ("secret", "previous_secret"):
        value, here = secret_of(sources, "visitors", name, table, environ)
        if value:
            try:
                checked_secret(value)
            except ValueError as error:
                sources.problem(here, f"{error}; {ADVICE}")
            found.append(Secret(value))
        elif name == "secret" and not sources.problems:
            sources.problem(("visitors",), f"needs a secret, with which the ids of visitors are signed: {ADVICE}")
    return tuple(found)


def _challenge(
    sources: Sources, table: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[Challenge | None, Secret]:
    if "challenge" not in sources.values:
        return None, Secret("")
    secret, _ = secret_of(sources, "challenge", "secret", table, environ)
    given = {key: value for key, value in table.items() if key not in CHALLENGE_SECRETS}
    if "kind" not in given:
        if not sources.problems:
            sources.problem(("challenge", "kind"), "is missing: proof_of_work, turnstile, hcaptcha or recaptcha")
        return None, Secret("")
    challenge = Challenge(**given)
    try:
        check_challenge(replace(challenge, secret=secret))
    except ValueError as error:
        field = str(error).partition(" ")[0]
        sources.refused(("challenge", field), error)
    return challenge, Secret(secret)


def secret_of(
    sources: Sources, section: str, name: str, table: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[str, tuple[str, str]]:
    """Return a secret and its place: the key `name`, or the variable that `name`_env names. Notes problems."""
    direct, named = (section, name), (section, f"{name}_env")
    secret, variable = table.get(name, "").strip(), table.get(f"{name}_env", "")
    if not variable or direct in sources.variables:
        return secret, direct
    if secret:
        sources.problem(named, f"give either {name} or {name}_env, not both")
    secret = environ.get(variable, "").strip()
    if not secret:
        # Not repeated: it may be the secret itself, in the wrong place.
        sources.problem(named, "must name an environment variable that is set; set it, or correct the name")
    return secret, named
