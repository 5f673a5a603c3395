"""Resolve and check [server]: the origins, hosts and proxies that may use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from msgspec.structs import replace

from chat_nest.asgi.cors import Cors
from chat_nest.asgi.hosts import LOOPBACK_HOSTS, Hosts
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.trusted_header import TrustedHeader
from chat_nest.server.config.schema import ServerSection
from chat_nest.server.config.sources import Sources, hint


def closed_on_loopback(server: ServerSection, given: Mapping[str, Any]) -> ServerSection:
    """Restrict a server on loopback without a proxy to its own names and pages.

    Any page on the internet can send a browser here, under a name of its own.
    """
    if not is_on_loopback(server):
        return server
    if "allowed_hosts" not in given:
        server = replace(server, allowed_hosts=LOOPBACK_HOSTS)
    return server if "origins" in given or "cors_origins" in given else replace(server, origins=())


def with_origins(sources: Sources, server: ServerSection, given: Mapping[str, Any]) -> ServerSection:
    """Return the section with its origins, which may stand under their old name."""
    if "cors_origins" not in given:
        return server
    here = ("server", "cors_origins")
    if "origins" in given:
        sources.problem(here, "is the old name of origins: keep origins only")
        return server
    sources.notes.append(f"{sources.where(here)}: is the old name of origins, and has the same meaning: rename it")
    return replace(server, origins=server.cors_origins)


def is_on_loopback(server: ServerSection) -> bool:
    """Return whether only programs of this machine can connect, and none of them is a proxy for others."""
    if server.trusted_proxies:
        return False
    try:
        return ip_address(server.host).is_loopback
    except ValueError:
        return server.host.lower() == "localhost"


def check_server(sources: Sources, server: ServerSection) -> None:
    for key, entries, check in (
        ("trusted_proxies", server.trusted_proxies, PeerAddress),
        ("cors_origins" if server.cors_origins else "origins", server.cors_origins or server.origins, Cors),
        ("allowed_hosts", server.allowed_hosts, Hosts),
    ):
        for entry in entries:
            try:
                check((entry,))
            except ValueError as error:
                sources.problem(("server", key), re.sub(r"^(origins|allowed_hosts): ", "", str(error)))
    if (server.caller_header or server.group_header) and not sources.problems:
        try:
            TrustedHeader(server.trusted_proxies, server.caller_header, server.group_header)
        except ValueError as error:
            sources.refused(("server", "caller_header"), error)
    try:
        ZoneInfo(server.time_zone)
    except (KeyError, ValueError, OSError):
        near = hint(server.time_zone, available_timezones())
        sources.problem(("server", "time_zone"), f"must be the IANA name of a time zone, such as Europe/Paris{near}")
