"""The socket options and addresses of a connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

HostPort = tuple[str, int]
"""Host and port."""

PROBES = 4
SEND_BUFFER_BYTES = 131_072
"""The send buffer; the kernel doubles it for its own records. By default it would grow to megabytes."""
UNSENT_BYTES = 32_768
"""The bytes that the kernel holds unsent (TCP_NOTSENT_LOWAT). The rest waits in the process, which can see it."""
MOST_UNSENT_BYTES, FEW_UNSENT_BYTES = 32_768, 8_192
"""Unread bytes of a response in the process. Above the first number the application waits, down to the second."""


def bound_the_buffer(transport: asyncio.Transport) -> None:
    """Make the application wait as soon as the kernel accepts no more of its response."""
    transport.set_write_buffer_limits(MOST_UNSENT_BYTES, FEW_UNSENT_BYTES)


def peer_of(transport: asyncio.Transport) -> HostPort | None:
    """Return the client's address; None for a socket that has none."""
    return _address(transport.get_extra_info("peername"))


def own_address(transport: asyncio.Transport) -> HostPort | None:
    """Return the address that the client has connected to; None for a socket that has none."""
    return _address(transport.get_extra_info("sockname"))


def _address(name: Any) -> HostPort | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None  # pyright: ignore[reportUnknownArgumentType]


def reset(transport: asyncio.Transport) -> None:
    """Reset the connection, with all that is buffered for it, here and in the kernel."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:  # else it is already closed
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def bound_the_kernel(listener: socket.socket, seconds: float) -> None:
    """Limit what the kernel holds for each accepted client, and how long it waits for a silent one.

    Idle clients are probed, and dropped after `seconds` and a sixth of that without an answer.
    """
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    whole = max(1, min(round(seconds / 2), 3_600))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    for name, value in (
        ("TCP_KEEPIDLE", whole),
        ("TCP_KEEPINTVL", max(1, whole // 3)),
        ("TCP_KEEPCNT", PROBES),
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
    ):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
