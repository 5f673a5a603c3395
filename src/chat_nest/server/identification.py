"""Make the ways to identify callers that a configuration has."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from chat_nest.asgi.handler import ChatHandler
from chat_nest.core.protocols import Identify
from chat_nest.identity.api_keys import KeyTable
from chat_nest.identity.guarded import Guarded
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.sessions import Sessions
from chat_nest.identity.stored_keys import StoredKeys
from chat_nest.identity.visitors import Visitors
from chat_nest.server.config.identity import make_identify, make_keys
from chat_nest.server.config.sessions import make_sessions
from chat_nest.server.config.settings import Config
from chat_nest.server.config.visitors import make_visitors


class Identification(Struct, frozen=True, kw_only=True, eq=False):
    """The ways to identify callers, made from a configuration."""

    identify: Identify | None
    guarded: Identify | None
    """`identify` with a rate of refusals."""
    visitors: Visitors | None
    keys: KeyTable | None
    sessions: Sessions | None

    def bind(self, handler: ChatHandler) -> None:
        """Let keys in the store be read from the handler's copy of its controls."""
        if isinstance(self.keys, StoredKeys):
            self.keys.bind(handler.controls)


def make_identification(config: Config) -> Identification:
    """Build the ways to identify callers. Raises OSError and ValueError."""
    keys, proxies = make_keys(config.identity), config.server.trusted_proxies
    visitors = make_visitors(config.server, config.identity, config.visitors)
    identify = make_identify(config.server, config.identity, visitors, keys)
    return Identification(
        identify=identify,
        guarded=_guarded(identify, proxies),
        visitors=visitors,
        keys=keys,
        sessions=make_sessions(config.sessions, config.identity, proxies, keys),
    )


def identity_settings(config: Config) -> tuple[object, ...]:
    """Return the settings of the ways to identify callers."""
    server = config.server
    return (
        config.identity,
        config.sessions,
        config.visitors,
        server.trusted_proxies,
        server.caller_header,
        server.group_header,
    )


def _guarded(identify: Identify | None, trusted_proxies: Sequence[str]) -> Identify | None:
    """Add a rate of refusals to `identify`. An IP address is always known, and needs no such rate."""
    return (
        identify
        if identify is None or isinstance(identify, PeerAddress)
        else Guarded(identify, PeerAddress(trusted_proxies))
    )
