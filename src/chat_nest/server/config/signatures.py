"""[signatures]: the secrets with which answers are signed, for profiles with `signed_turns`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chat_nest.limits.spec import Profile
from chat_nest.server.config.provider import Secret
from chat_nest.server.config.schema import SignaturesSection
from chat_nest.server.config.signing_secrets import signing_secrets
from chat_nest.server.config.sources import Sources

SECTION = "signatures"
VARIABLE = "CHAT_NEST_SIGNATURES_SECRETS"
ADVICE = f"set {VARIABLE} to one of your own, such as `openssl rand -hex 32` writes, the same for all servers"


def resolve_signatures(
    sources: Sources, table: Mapping[str, Any], profiles: Mapping[str, Profile]
) -> tuple[Secret, ...]:
    """Return the secrets: the first signs.

    Notes secrets that are missing or guessable, and profiles that can't use them.
    """
    section = SignaturesSection(**table)
    secrets = signing_secrets(sources, SECTION, section.secrets, section.secrets_file, ADVICE)
    for name, profile in profiles.items():
        here = ("profiles", name, "signed_turns")
        if profile.signed_turns and not secrets:
            sources.problem(here, f"needs a secret in [{SECTION}]: {ADVICE}")
        if profile.signed_turns and profile.allow_tools:
            sources.problem(here, "needs allow_tools = false: the calls of tools are not signed")
    return tuple(map(Secret, secrets))
