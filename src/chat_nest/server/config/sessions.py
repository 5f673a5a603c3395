"""[sessions]: session tokens, which the app's own backend makes with a key of the scope `sessions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from chat_nest.core.protocols import Identify
from chat_nest.identity.api_key import SESSIONS
from chat_nest.identity.api_keys import ApiKeys, KeyTable
from chat_nest.identity.guarded import Guarded
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.session_fields import MAX_SECONDS
from chat_nest.identity.sessions import Sessions
from chat_nest.server.config.identity import Identity
from chat_nest.server.config.provider import Secret
from chat_nest.server.config.schema import SessionsSection
from chat_nest.server.config.signing_secrets import signing_secrets
from chat_nest.server.config.sources import Sources

SECTION = "sessions"
VARIABLE = "CHAT_NEST_SESSIONS_SECRETS"
ADVICE = f"set {VARIABLE} to one of your own, such as `openssl rand -hex 32` writes, the same for all servers"


class SessionsConfig(Struct, frozen=True, kw_only=True):
    """The section, with its secrets resolved: the first signs."""

    secrets: tuple[Secret, ...]
    expires_in: int


def resolve_sessions(sources: Sources, table: Mapping[str, Any], identity: Identity) -> SessionsConfig | None:
    """Resolve [sessions]; None without it. Notes secrets that are missing or guessable, and a section without use."""
    if SECTION not in sources.values:
        return None
    section = SessionsSection(**table)
    if "session" not in identity.ways:
        sources.problem((SECTION,), 'has no meaning while identity.accept leaves "session" out')
    if section.expires_in > MAX_SECONDS:
        sources.problem((SECTION, "expires_in"), f"must be at most {MAX_SECONDS} seconds, a day")
    secrets = signing_secrets(sources, SECTION, section.secrets, section.secrets_file, ADVICE)
    if not secrets and not section.secrets_file:
        sources.problem((SECTION, "secrets"), f"needs a secret: {ADVICE}")
    return SessionsConfig(secrets=tuple(map(Secret, secrets)), expires_in=section.expires_in)


def make_sessions(
    config: SessionsConfig | None, identity: Identity, trusted_proxies: Sequence[str], keys: KeyTable | None
) -> Sessions | None:
    """Return what makes and accepts session tokens, if it is configured.

    Without API keys no key can make one over HTTP.
    """
    if config is None:
        return None
    operators: Identify | None = None
    if keys is not None:
        minting = ApiKeys(keys, identity.secret.reveal(), scope=SESSIONS)
        operators = Guarded(minting, PeerAddress(trusted_proxies))
    return Sessions([secret.reveal() for secret in config.secrets], operators=operators, expires_in=config.expires_in)
