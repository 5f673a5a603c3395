"""The listening sockets of a server: one for the chat, and one for operators. All workers share both.

The kernel gives a connection to whichever worker accepts first, so the operators' listener needs no process of its own,
and outlives every worker. Every worker shows the same: its data come from the store, and from files that all write.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from pathlib import Path
from typing import cast

from msgspec import Struct

from chat_nest.server.config.admin import AdminPlace, place_of_admin
from chat_nest.server.config.settings import Config
from chat_nest.server.listen import BACKLOG, ListenError, listen, url_of
from chat_nest.server.socket_activation import Passed

SOCKET_MODE = 0o660
NONE_PASSED = Passed()


class Listeners(Struct, frozen=True):
    """The listening sockets, which all workers share: each accepts from both."""

    public: socket.socket
    operators: socket.socket | None = None
    path: str = ""
    """Of the operators' Unix socket, if this server has made it."""
    outlives: bool = False
    """Whether the public socket is the service manager's: what connects after this server's end waits for the next."""

    @property
    def operators_url(self) -> str:
        """The URL of the operators' listener, or an empty string."""
        return "" if self.operators is None else url_of(self.operators)

    def close(self) -> None:
        """Close both in this process."""
        self.public.close()
        if self.operators is not None:
            self.operators.close()

    def remove(self) -> None:
        """Remove the file of the Unix socket, at the end of the server."""
        if self.path:
            with contextlib.suppress(OSError):
                Path(self.path).unlink()


def open_listeners(config: Config, passed: Passed = NONE_PASSED) -> Listeners:
    """Listen on the configured addresses, with the sockets that were passed or new ones. Raises ListenError."""
    host, port = config.server.host, config.server.port
    public = passed.public
    if public is None:
        public = listen(host, port)
    elif not _is_at(public, host, port):
        raise ListenError(
            f"the service manager passed a socket at {url_of(public)}, but [server] has {host} port {port}: "
            "make ListenStream= of the .socket unit and [server] host and port the same"
        )
    try:
        operators, path = _operators(config.admin_listen, passed.operators)
    except ListenError:
        public.close()
        raise
    return Listeners(public, operators, path, outlives=passed.public is not None)


def _operators(place_name: str, passed: socket.socket | None) -> tuple[socket.socket | None, str]:
    """Return the socket of operators, and the path of the file that this server has made. Raises ListenError."""
    if not place_name:
        if passed is None:
            return None, ""
        raise ListenError(
            f"the service manager passed a socket for operators, {url_of(passed)}: name it in [admin] listen"
        )
    place = place_of_admin(place_name)
    if passed is None:
        return listen_for_operators(place), place.path
    if passed.getsockname() == place.path if place.path else _is_at(passed, place.host, place.port):
        return passed, ""
    raise ListenError(
        f"the service manager passed a socket for operators at {url_of(passed)}, but [admin] has {place_name}: "
        "make it and ListenStream= of the .socket unit the same"
    )


def _is_at(listener: socket.socket, host: str, port: int) -> bool:
    """Return whether the socket has this address. The configuration has no paths for chats: a Unix socket is right."""
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return True
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    at_host, at_port = cast(tuple[str, int], name[:2])
    return port in (0, at_port) and at_host in [address[0] for *_, address in found]


def listen_for_operators(place: AdminPlace) -> socket.socket:
    """Return the listening socket of operators, TCP or a Unix socket that its user and group may use.

    Raises ListenError.
    """
    if not place.path:
        return listen(place.host, place.port, host_from="listen in [admin]", port_from="listen in [admin]")
    try:
        return _listen_unix(place.path)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
        raise ListenError(f"{place.path} {why}: name another path with listen in [admin]") from None


def _listen_unix(path: str) -> socket.socket:
    """Return a socket at this path. The one of a dead process is replaced, and nothing else."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "there are no Unix sockets here")
    listener = socket.socket(socket.AF_UNIX)
    try:
        if _is_left_over(path):
            Path(path).unlink()
        listener.bind(path)
        Path(path).chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _is_left_over(path: str) -> bool:
    """Return whether the path is a socket at which nothing listens."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
