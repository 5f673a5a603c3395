"""The settings of the HTTP server: deadlines and connections, from the configuration and the system."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

from chat_nest.identity.peer import PeerAddress
from chat_nest.server.config.schema import ServerSection
from chat_nest.server.config.settings import Config
from chat_nest.server.http.deadlines import ConnectionDeadlines


def deadlines_of(config: Config) -> ConnectionDeadlines:
    """Return the deadlines of a connection, in seconds."""
    server = config.server
    return ConnectionDeadlines(
        header=server.header_seconds, body=server.body_seconds, idle=server.idle_seconds, write=config.timeouts.write
    )


def most_per_address(server: ServerSection) -> int:
    """Return the most connections of one IP address."""
    return server.max_connections_per_address or max(1, server.max_connections // 2)


def address_of(peers: PeerAddress) -> Callable[[str], str | None]:
    """Return how to count a peer's connections: by IPv4 address or IPv6 /64.

    Those of a trusted proxy are not counted.
    """

    def counted_as(host: str) -> str | None:
        scope = {"client": (host, 0)}
        return None if peers.trusts(scope) else peers(scope).id

    return counted_as


def max_files() -> float:
    """Return how many files the process may open, after raising the limit to its maximum."""
    try:
        import resource  # noqa: PLC0415 - not there on Windows
    except ImportError:
        return math.inf
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft
