"""The ways to identify callers, as a table: for each way its settings, its text, and its parts.

To add a way, add a file in `identity` and a row here, and its settings to IdentitySection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from chat_nest.core.protocols import Identify
from chat_nest.identity.api_keys import ApiKeys, KeyTable
from chat_nest.identity.jwt import JsonWebTokens
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.trusted_header import TrustedHeader
from chat_nest.identity.visitors import Visitors, VisitorTokens


class IdentitySection(Struct, frozen=True, kw_only=True):
    """The accepted ways to identify callers, with the settings of API keys and JSON Web Tokens."""

    accept: tuple[str, ...] = ()
    """Some of WAYS. Empty: each one that is configured, or the IP address if none is."""
    keys: Literal["", "store"] = ""
    """"store": the API keys are in the store, for all its servers."""
    keys_file: str = ""
    """The file of API keys, for one machine."""
    secret: str = ""
    """For the keys' hashes, or for HS256."""
    secret_env: str = ""
    """The variable that holds it."""
    jwt_algorithms: tuple[str, ...] = ()
    jwt_keys_file: str = ""
    """A public key in PEM, or a JWK Set."""
    jwt_audience: str = ""
    jwt_issuer: str = ""
    jwt_caller_claim: str = "sub"
    jwt_group_claim: str = ""
    jwt_profiles_claim: str = ""
    jwt_limits_claim: str = ""
    jwt_leeway: float = 30.0
    """The tolerated difference of clocks."""


class WaySettings(Struct, frozen=True, kw_only=True):
    """The settings that decide which ways are configured."""

    section: IdentitySection = IdentitySection()
    caller_header: str = ""
    sections: Collection[str] = ()
    """The sections that the configuration has."""


class WayParts(Struct, frozen=True, kw_only=True, eq=False):
    """What the parts are made from."""

    section: IdentitySection
    secret: str
    trusted_proxies: Sequence[str] = ()
    caller_header: str = ""
    group_header: str = ""
    keys: KeyTable | None = None
    visitors: Visitors | None = None
    takes_keys: bool = False
    """Whether a request may present a key or a token."""


class Way(Struct, frozen=True, kw_only=True):
    """One way to identify callers."""

    lacks: Callable[[WaySettings], str]
    """Returns the setting that it needs and that is missing; an empty string if nothing is."""
    text: Callable[[WaySettings], str]
    """Completes "callers are identified ..."."""
    make: Callable[[WayParts], Sequence[Identify]]
    """Returns its parts, in the order in which they are tried. Raises ValueError."""
    credential: bool = False
    """Whether the request presents a key or a token."""
    strangers: bool = False
    """Whether it accepts a request without any credential."""


def make_tokens(section: IdentitySection, secret: str) -> JsonWebTokens:
    """Return the part that verifies JSON Web Tokens. Raises ValueError."""
    by_secret = "HS256" in section.jwt_algorithms or not (section.keys or section.keys_file)
    return JsonWebTokens(
        section.jwt_algorithms,
        section.jwt_audience,
        secret=secret if by_secret else "",
        keys_file=section.jwt_keys_file,
        issuer=section.jwt_issuer,
        caller_claim=section.jwt_caller_claim,
        group_claim=section.jwt_group_claim,
        profiles_claim=section.jwt_profiles_claim,
        limits_claim=section.jwt_limits_claim,
        leeway=section.jwt_leeway,
    )


def _make_visitors(given: WayParts) -> Sequence[Identify]:
    if given.visitors is None:
        return ()
    return (VisitorTokens(given.visitors), given.visitors) if given.takes_keys else (given.visitors,)


WAYS: Mapping[str, Way] = {
    "api_key": Way(
        lacks=lambda known: (
            "" if known.section.keys or known.section.keys_file else "identity.keys or identity.keys_file"
        ),
        text=lambda known: f"by their API keys, in {known.section.keys_file or 'the store'}",
        make=lambda given: () if given.keys is None else (ApiKeys(given.keys, given.secret),),
        credential=True,
    ),
    "session": Way(
        lacks=lambda known: "" if "sessions" in known.sections else "[sessions]",
        text=lambda _: "by session tokens",
        make=lambda _: (),  # create_chat_handler puts sessions before all others
        credential=True,
    ),
    "jwt": Way(
        lacks=lambda known: "" if known.section.jwt_algorithms else "identity.jwt_algorithms",
        text=lambda known: (
            f"by JSON Web Tokens ({', '.join(known.section.jwt_algorithms)}) for {known.section.jwt_audience}"
        ),
        make=lambda given: (make_tokens(given.section, given.secret),),
        credential=True,
    ),
    "header": Way(
        lacks=lambda known: "" if known.caller_header else "server.caller_header",
        text=lambda known: f"by the header {known.caller_header} of trusted proxies",
        make=lambda given: (TrustedHeader(given.trusted_proxies, given.caller_header, given.group_header),),
    ),
    "visitor": Way(
        lacks=lambda known: "" if "visitors" in known.sections else "[visitors]",
        text=lambda _: "by a visitor's cookie",
        make=_make_visitors,
        strangers=True,
    ),
    "address": Way(
        lacks=lambda _: "",
        text=lambda _: "by their address",
        # With visitors, every request that presents nothing else is a visitor's.
        make=lambda given: (PeerAddress(given.trusted_proxies),) if given.visitors is None else (),
        strangers=True,
    ),
}
"""From the strongest to the weakest: the order in which they are tried."""
