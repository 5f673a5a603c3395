"""The listening socket, which is opened before anything else is started."""

from __future__ import annotations

import errno
import socket

BACKLOG = 2_048


class ListenError(Exception):
    """The address can't be listened on. The message has the reason and what to do."""


def listen(host: str, port: int, *, host_from: str = "--host", port_from: str = "--port") -> socket.socket:
    """Return a listening TCP socket; port 0 takes any free one.

    `host_from` and `port_from` are where each is set, for the advice. Raises ListenError.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ListenError(
            f"the host {host!r} is neither an address nor a name of this machine: correct {host_from}"
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(_advice(host, port, error, host_from, port_from)) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return http://HOST:PORT with the actual port, or unix:/PATH."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _advice(host: str, port: int, error: OSError, host_from: str, port_from: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use: stop what listens there, or choose another with {port_from}"
        case errno.EACCES:
            return f"port {port} needs more rights than this user has: choose one above 1023 with {port_from}"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: correct {host_from}; 0.0.0.0 is all of them"
        case _:
            return f"can't listen on {host} port {port}: {error.strerror}"
