"""[admin]: the operators' listener and its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from msgspec import Struct

from chat_nest.server.config.provider import Secret
from chat_nest.server.config.schema import AdminSection, ServerSection
from chat_nest.server.config.sources import Sources

SECTION = "admin"
VARIABLE = "CHAT_NEST_ADMIN_KEY"
ADVICE = f"set {VARIABLE} to one of your own, such as `openssl rand -hex 32` writes"
UNIX = "unix:"
PLACE = "must be HOST:PORT, such as 127.0.0.1:9080 or [::1]:9080, or unix:/PATH"
CLEARTEXT = (
    "other machines can connect, and the key crosses the network in clear text: listen on 127.0.0.1 or unix:/PATH, "
    "or put a proxy with TLS in front and let a firewall admit nothing else"
)
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]]+):([0-9]{1,5})")
_KEY = re.compile(r"[!-~]{32,4096}")


class AdminPlace(Struct, frozen=True):
    """Where the operators' listener is: a path, or a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0


def place_of_admin(listen: str) -> AdminPlace:
    """Return the place of HOST:PORT or unix:/PATH. Raises ValueError, whose message is the rule."""
    if listen.startswith(UNIX):
        path = listen.removeprefix(UNIX)
        if not path.startswith("/") or not path.isprintable() or len(path.encode()) > 100:
            raise ValueError(
                "must be unix: and an absolute path of at most 100 bytes, such as unix:/run/chat-nest/admin.sock"
            )
        return AdminPlace(path=path)
    found = _PLACE.fullmatch(listen)
    if found is None or int(found[2]) > 65_535:
        raise ValueError(PLACE)
    return AdminPlace(host=found[1].strip("[]"), port=int(found[2]))


def resolve_admin(
    sources: Sources, table: Mapping[str, Any], server: ServerSection, *, has_keys: bool = False
) -> tuple[AdminSection, tuple[Secret, ...]]:
    """Resolve [admin]. Notes a wrong address, keys that are missing or short, and a listener for the whole network.

    With `has_keys` an API key of the scope admin may be the only one.
    """
    section = AdminSection(**table)
    if not section.listen:
        if table:
            sources.notes.append(f"{sources.where((SECTION,))}: has no effect without admin.listen")
        return section, ()
    here = (SECTION, "listen")
    try:
        place = place_of_admin(section.listen)
    except ValueError as error:
        sources.problem(here, str(error))
    else:
        if place.host and not _is_loopback(place.host):
            sources.notes.append(f"{sources.where(here)}: {CLEARTEXT}")
        if place.port and (place.host, place.port) == (server.host, server.port):
            sources.problem(here, "must differ from the address of the chat: see [server] host and port")
    return section, tuple(map(Secret, _keys(sources, section, has_keys=has_keys)))


def _keys(sources: Sources, section: AdminSection, *, has_keys: bool) -> Sequence[str]:
    """Return the keys. The variable overrides the file of keys."""
    here = (SECTION, "key")
    found: tuple[str, ...] = (section.key,) if section.key else ()
    if section.key_file and here not in sources.variables:
        if found:
            sources.problem((SECTION, "key_file"), "give either key or key_file, not both")
        here = (SECTION, "key_file")
        try:
            lines = Path(section.key_file).read_text("utf-8").splitlines()
        except OSError as error:
            sources.problem(here, f"can't be read: {error.strerror}")
            return ()
        except UnicodeDecodeError:
            sources.problem(here, "must be UTF-8 text, with a key in each line")
            return ()
        found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not found and (section.key_file or not has_keys):
        sources.problem(here if section.key_file else (SECTION,), f"needs a key: {ADVICE}")
    for index, key in enumerate(found, 1):
        if not _KEY.fullmatch(key):
            rule = f"key {index} must be 32 to 4096 visible ASCII characters without a space, and be random"
            sources.problem(here, f"{rule}; {ADVICE}")
            break
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
