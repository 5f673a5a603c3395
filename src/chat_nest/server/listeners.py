"""The listening sockets of a server: that of the chat, and that of operators. All workers share both.

The kernel hands a connection to whichever worker accepts first, so the operators' listener needs no process of its own,
and outlives every worker. What it shows is the same in each: it comes from the store, and from files that all write.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from pathlib import Path

from msgspec import Struct

from chat_nest.server.config.admin import AdminPlace, place_of_admin
from chat_nest.server.config.settings import Config
from chat_nest.server.listen import BACKLOG, ListenError, listen, url_of

SOCKET_MODE = 0o660


class Listeners(Struct, frozen=True):
    """The listening sockets, which all workers share: each accepts from both."""

    public: socket.socket
    operators: socket.socket | None = None
    path: str = ""
    """Of the operators' Unix socket, if it is one."""

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


def open_listeners(config: Config) -> Listeners:
    """Listen where the configuration says. Raises ListenError."""
    public = listen(config.server.host, config.server.port)
    if not config.admin_listen:
        return Listeners(public)
    try:
        place = place_of_admin(config.admin_listen)
        return Listeners(public, listen_for_operators(place), place.path)
    except ListenError:
        public.close()
        raise


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
