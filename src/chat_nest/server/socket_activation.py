"""Take the listening sockets that the service manager has opened: sd_listen_fds(3), without a library.

These sockets outlive the server: a connection that comes during a restart waits in the kernel for the next process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from msgspec import Struct

from chat_nest.server.listen import ListenError

FIRST: Final = 3
"""The first file descriptor."""
ADMIN: Final = "admin"
"""The name of the operators' socket, FileDescriptorName= in its unit. One with any other name is for chats."""
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Passed(Struct, frozen=True):
    """The sockets for chats and for operators. None: the server opens its own."""

    public: socket.socket | None = None
    operators: socket.socket | None = None


def take_passed(environ: MutableMapping[str, str] = os.environ) -> Passed:
    """Return the sockets passed to this process, and remove the variables, which no child may read.

    Raises ListenError if they can't be served.
    """
    pid, count, names = (environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal() or int(count) == 0:
        return Passed()
    are_admin = [name == ADMIN for name in (names.split(":") + [""] * int(count))[: int(count)]]
    for is_admin, use in ((True, "operators"), (False, "chats")):
        if are_admin.count(is_admin) > 1:
            raise ListenError(
                f"the service manager passed two sockets for {use}: give one ListenStream= to each .socket unit, "
                f"and FileDescriptorName={ADMIN} to that of operators"
            )
    taken = {is_admin: _listening(FIRST + index) for index, is_admin in enumerate(are_admin)}
    return Passed(taken.get(False), taken.get(True))


def _listening(number: int) -> socket.socket:
    """Return the socket with this file descriptor. Raises ListenError unless it accepts stream connections."""
    try:
        os.set_inheritable(number, False)
        listener = socket.socket(fileno=number)
        accepts = listener.type == socket.SOCK_STREAM and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(f"file descriptor {number} of LISTEN_FDS is no socket: {error.strerror}") from None
    if not accepts:
        listener.close()
        raise ListenError(
            f"file descriptor {number} of LISTEN_FDS does not listen for streams: use ListenStream= and Accept=no"
        )
    listener.setblocking(False)
    return listener
