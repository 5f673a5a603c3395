"""Which way the server tells who is asking, from [identity] and [server]: one, or it does not start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.jwt import JsonWebTokens
from chat_nest.identity.key_file import checked_secret
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.trusted_header import TrustedHeader
from chat_nest.protocols import Identify
from chat_nest.server.providers import Secret
from chat_nest.server.schema import IdentitySection, ServerSection
from chat_nest.server.sources import Sources

SECTION = "identity"
SECRET_VARIABLE = "CHAT_NEST_IDENTITY_SECRET"  # noqa: S105 - a variable's name
ADVICE = f"set {SECRET_VARIABLE} to one of your own, such as `openssl rand -hex 32` writes, and keep it"


class Identity(Struct, frozen=True, kw_only=True):
    """The section, with its secret found. Not shown by its repr: `section.secret` is empty."""

    section: IdentitySection = IdentitySection()
    secret: Secret = Secret("")

    @property
    def shown(self) -> str:
        """How callers are told apart, in words; nothing where [server] says it."""
        if self.section.keys_file:
            return f"by their API keys, in {self.section.keys_file}"
        if self.section.jwt_algorithms:
            return f"by JSON Web Tokens ({', '.join(self.section.jwt_algorithms)}) for {self.section.jwt_audience}"
        return ""


def resolve_identity(
    sources: Sources, table: Mapping[str, Any], server: ServerSection, environ: Mapping[str, str]
) -> Identity:
    """Notes problems: two ways at once, settings without their way, a secret that is missing or can be guessed."""
    section = IdentitySection(**table)
    tokens = [key for key in table if key.startswith("jwt_")]
    headers = [key for key in ("caller_header", "group_header") if getattr(server, key)]
    ways = [
        *([f"{SECTION}.keys_file"] if section.keys_file else []),
        *([f"{SECTION}.{tokens[0]}"] if tokens else []),
        *([f"server.{headers[0]}"] if headers else []),
    ]
    if table and len(ways) > 1:
        said = f"contradicts {' and '.join(ways[1:])}: callers can be told in one way only"
        sources.problem(tuple(ways[0].split(".")), said)
    elif tokens and not section.jwt_algorithms:
        sources.problem((SECTION, tokens[0]), "needs jwt_algorithms, the list of those that are accepted")
    elif table and not section.keys_file and not tokens:
        sources.problem((SECTION, next(iter(table))), "has no meaning without keys_file or jwt_algorithms")
    secret = _secret(sources, section, environ)
    return Identity(section=replace(section, secret=""), secret=secret)


def _secret(sources: Sources, section: IdentitySection, environ: Mapping[str, str]) -> Secret:
    """A variable CHAT_NEST_IDENTITY_SECRET wins over what the file says."""
    direct, named = (SECTION, "secret"), (SECTION, "secret_env")
    secret, here = section.secret.strip(), direct
    if section.secret_env and direct not in sources.variables:
        if secret:
            sources.problem(named, "give either secret or secret_env, not both")
        secret, here = environ.get(section.secret_env, "").strip(), named
        if not secret:
            # Not repeated: it may be the secret itself, put at the wrong place.
            sources.problem(named, "must name an environment variable that is set; set it, or correct the name")
            return Secret("")
    if secret:
        try:
            checked_secret(secret)
        except ValueError as error:
            sources.problem(here, f"{error}; {ADVICE}")
    elif section.keys_file:
        sources.problem((SECTION, "keys_file"), f"needs a secret, with which the keys' hashes are made: {ADVICE}")
    return Secret(secret)


def check_identity(sources: Sources, server: ServerSection, identity: Identity) -> None:
    """Note what keeps a server from starting: files that are not there, keys that don't fit."""
    try:
        make_identify(server, identity)
    except ValueError as error:
        advice = ""
        if identity.section.keys_file and not Path(identity.section.keys_file).exists():
            advice = "; make it, and a key, with `chat-nest keys create CALLER`"
        key = "keys_file" if identity.section.keys_file else "jwt_algorithms"
        sources.problem((SECTION, key), f"{error}{advice}")


def make_identify(server: ServerSection, identity: Identity) -> Identify:
    """Raises ValueError."""
    section, secret = identity.section, identity.secret.reveal()
    if section.keys_file:
        return ApiKeys(section.keys_file, secret)
    if section.jwt_algorithms:
        return JsonWebTokens(
            section.jwt_algorithms,
            section.jwt_audience,
            secret=secret,
            keys_file=section.jwt_keys_file,
            issuer=section.jwt_issuer,
            caller_claim=section.jwt_caller_claim,
            group_claim=section.jwt_group_claim,
            leeway=section.jwt_leeway,
        )
    if server.caller_header:
        return TrustedHeader(server.trusted_proxies, server.caller_header, server.group_header)
    return PeerAddress(server.trusted_proxies)
