"""How the server identifies callers, from [identity] and [server]: in one way, or in the first of several."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.core.protocols import Identify
from chat_nest.identity.api_key import checked_secret
from chat_nest.identity.api_keys import KeyTable
from chat_nest.identity.first_of import FirstOf
from chat_nest.identity.key_holders import Holders, watch_keys
from chat_nest.identity.stored_keys import StoredKeys
from chat_nest.identity.visitors import Visitors
from chat_nest.limits.profile_names import find_name
from chat_nest.server.config.provider import Secret
from chat_nest.server.config.schema import ServerSection
from chat_nest.server.config.sources import Sources
from chat_nest.server.config.ways import WAYS, IdentitySection, WayParts, WaySettings, make_tokens

SECTION = "identity"
SECRET_VARIABLE = "CHAT_NEST_IDENTITY_SECRET"  # noqa: S105 - a variable's name
ADVICE = f"set {SECRET_VARIABLE} to one of your own, such as `openssl rand -hex 32` writes, and keep it"

MOST_NAMED = 5
"""The most keys that a note names."""


class Identity(Struct, frozen=True, kw_only=True):
    """The section, with its secret resolved. Its repr hides the secret: `section.secret` is empty."""

    section: IdentitySection = IdentitySection()
    secret: Secret = Secret("")
    ways: tuple[str, ...] = ("address",)
    """The accepted ones of WAYS, in that order."""
    caller_header: str = ""

    @property
    def accepts_strangers(self) -> bool:
        """Whether a request without any credential may chat."""
        return any(WAYS[way].strangers for way in self.ways)

    @property
    def takes_keys(self) -> bool:
        """Whether a request may present a key or a token."""
        return any(WAYS[way].credential for way in self.ways)

    @property
    def has_keys(self) -> bool:
        """Whether there are API keys, in the store or in a file."""
        return bool(self.section.keys or self.section.keys_file)

    @property
    def shown(self) -> str:
        """The ways in which callers are identified, for display."""
        settings = WaySettings(section=self.section, caller_header=self.caller_header)
        return "; or ".join(WAYS[way].text(settings) for way in self.ways)


def resolve_identity(
    sources: Sources, table: Mapping[str, Any], server: ServerSection, environ: Mapping[str, str]
) -> Identity:
    """Resolve [identity].

    Notes accepted ways that are not configured, settings without their way, and a secret that is missing or guessable.
    """
    section = IdentitySection(**table)
    tokens = [key for key in table if key.startswith("jwt_")]
    missing = [way.lacks(WaySettings(section=section)) for way in WAYS.values()]
    if tokens and not section.jwt_algorithms:
        sources.problem((SECTION, tokens[0]), "needs jwt_algorithms, the list of those that are accepted")
    elif SECTION in sources.values and not section.accept and _keys_in(missing) == _NEEDED:
        sources.problem((SECTION, *list(table)[:1]), f"has no meaning without {', '.join(_NEEDED)} or accept")
    if section.keys and section.keys_file:
        sources.problem((SECTION, "keys"), "give either keys or keys_file, not both")
    ways = _ways(sources, section, server)
    secret = _secret(sources, section, environ)
    return Identity(section=replace(section, secret=""), secret=secret, ways=ways, caller_header=server.caller_header)


def _keys_in(missing: Iterable[str]) -> list[str]:
    """Return the keys of [identity] among missing settings such as `identity.keys or identity.keys_file`."""
    names = [name for text in missing for name in text.split(" or ") if name.startswith(f"{SECTION}.")]
    return [name.removeprefix(f"{SECTION}.") for name in names]


_NEEDED = _keys_in(way.lacks(WaySettings()) for way in WAYS.values())
"""The keys of which [identity] needs one."""


def _ways(sources: Sources, section: IdentitySection, server: ServerSection) -> tuple[str, ...]:
    """Return the accepted ways. Notes unknown ones, and those that lack their settings."""
    known = WaySettings(section=section, caller_header=server.caller_header, sections=sources.values)
    lacking = {name: way.lacks(known) for name, way in WAYS.items()}
    here = (SECTION, "accept")
    for way in section.accept:
        if way not in WAYS:
            sources.problem(here, f"must be some of {', '.join(WAYS)}")
        elif lacking[way]:
            sources.problem(here, f"{way} needs {lacking[way]}")
    if section.accept:
        return tuple(way for way in WAYS if way in section.accept)
    return tuple(way for way in WAYS if not lacking[way] and way != "address") or ("address",)


def _secret(sources: Sources, section: IdentitySection, environ: Mapping[str, str]) -> Secret:
    """Return the secret. The variable CHAT_NEST_IDENTITY_SECRET overrides the file."""
    direct, named = (SECTION, "secret"), (SECTION, "secret_env")
    secret, here = section.secret.strip(), direct
    if section.secret_env and direct not in sources.variables:
        if secret:
            sources.problem(named, "give either secret or secret_env, not both")
        secret, here = environ.get(section.secret_env, "").strip(), named
        if not secret:
            # Not repeated: it may be the secret itself, in the wrong place.
            sources.problem(named, "must name an environment variable that is set; set it, or correct the name")
            return Secret("")
    if secret:
        try:
            checked_secret(secret)
        except ValueError as error:
            sources.problem(here, f"{error}; {ADVICE}")
    elif section.keys or section.keys_file:
        key = "keys" if section.keys else "keys_file"
        sources.problem((SECTION, key), f"needs a secret, with which the keys' hashes are made: {ADVICE}")
    return Secret(secret)


def check_kept_keys(sources: Sources, identity: Identity, store: str) -> None:
    """Note a store that ends with its process, if it is to keep the API keys."""
    if identity.section.keys and store.startswith("memory:"):
        said = "needs a store that outlives the server: set [store] url, such as sqlite:///chat-nest.db"
        sources.problem((SECTION, "keys"), said)


def check_identity(
    sources: Sources,
    server: ServerSection,
    identity: Identity,
    visitors: Visitors | None = None,
    *,
    profiles: Collection[str],
) -> None:
    """Note problems that prevent a start: missing files, keys of the wrong kind; and API keys of a lost profile."""
    section, secret = identity.section, identity.secret.reveal()
    if section.keys_file:
        try:
            keys = watch_keys(section.keys_file, secret.encode())
            _note_lost_profiles(sources, keys.content or {}, profiles)
        except ValueError as error:
            missing = not Path(section.keys_file).exists()
            advice = "; make it, and a key, with `chat-nest keys create CALLER`" if missing else ""
            sources.problem((SECTION, "keys_file"), f"{error}{advice}")
    if section.jwt_algorithms:
        try:
            make_tokens(section, secret)
        except ValueError as error:
            public = section.jwt_keys_file
            key = "jwt_keys_file" if public and str(error).startswith(f"{public}: ") else "jwt_algorithms"
            sources.problem((SECTION, key), str(error))
    if not sources.problems:
        make_identify(server, identity, visitors, make_keys(identity))


def _note_lost_profiles(sources: Sources, keys: Holders, profiles: Collection[str]) -> None:
    """Note the valid keys of a file that name a profile which does not exist."""
    names, now = [name.strip().lower() for name in profiles], time.time()
    lost = [
        holder.id
        for holder in keys.values()
        if holder.until > now and not all(find_name(names, name) for name in holder.caller.profiles or ())
    ]
    if lost:
        some = ", ".join(lost[:MOST_NAMED]) + (", ..." if len(lost) > MOST_NAMED else "")
        here = sources.where((SECTION, "keys_file"))
        sources.notes.append(
            f"{here}: these keys name a profile that does not exist, so their requests get 403: {some}"
        )


def make_keys(identity: Identity) -> KeyTable | None:
    """Return the API keys, in the store or in a file, if there are any. Raises ValueError."""
    section, secret = identity.section, identity.secret.reveal().encode()
    if section.keys:
        return StoredKeys(secret)
    return watch_keys(section.keys_file, secret) if section.keys_file else None


def make_identify(
    server: ServerSection, identity: Identity, visitors: Visitors | None = None, keys: KeyTable | None = None
) -> Identify | None:
    """Return the function that identifies callers without a session, `visitors` if it accepts them, by these `keys`.

    None if each caller needs a session. Raises ValueError.
    """
    given = WayParts(
        section=identity.section,
        secret=identity.secret.reveal(),
        trusted_proxies=server.trusted_proxies,
        caller_header=server.caller_header,
        group_header=server.group_header,
        keys=keys,
        visitors=visitors,
        takes_keys=identity.takes_keys,
    )
    parts = [part for way in identity.ways for part in WAYS[way].make(given)]
    if len(parts) > 1:
        return FirstOf(*parts)
    return parts[0] if parts else None
