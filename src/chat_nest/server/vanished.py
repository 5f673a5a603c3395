"""Finds clients that are gone without having said so: their packets, and ours, are dropped somewhere.

The kernel would send again for a quarter of an hour, and the provider would be paid meanwhile. A client that still
acknowledges is there, however slowly it reads: that is the write deadline's business.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

log = logging.getLogger("chat_nest.server")

MOST_EVERY_SECONDS = 5.0
TRIES = 2
"""Times that the kernel has sent the same again, in vain: one packet that is still under way says nothing."""
PROBES = 4
_INFO_BYTES = 60
_RETRANSMITS, _LAST_ACK = 2, 56
"""Where struct tcp_info of Linux has them: a byte, and 32 bits of milliseconds."""


class Peer(Protocol):
    transport: Any

    def drop(self) -> None:
        """Reset the connection."""


class Vanished:
    """Drops every client that has acknowledged nothing for `seconds` while something was owed to it. Only on Linux."""

    def __init__(self, seconds: float, peers: Callable[[], Iterable[Peer]]) -> None:
        self._seconds = seconds
        self._every = min(MOST_EVERY_SECONDS, seconds / 4)
        self._peers = peers
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look from time to time, on the running loop."""
        if sys.platform == "linux":
            self._timer = asyncio.get_running_loop().call_later(self._every, self._look)

    def stop(self) -> None:
        """Look no more. Safe to call before `start`."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        gone = [peer for peer in self._peers() if unheard(peer.transport) >= self._seconds]
        for peer in gone:
            peer.drop()
        if gone:
            log.info("dropped %d connections whose clients have vanished", len(gone))
        self.start()


def unheard(transport: Any) -> float:
    """Seconds for which the peer has not acknowledged what was sent more than once; 0 where nothing was."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        return 0.0
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:  # no TCP
        return 0.0
    if len(info) < _INFO_BYTES or info[_RETRANSMITS] < TRIES:
        return 0.0
    (milliseconds,) = struct.unpack_from("=I", info, _LAST_ACK)
    return float(milliseconds) / 1_000


def ask_the_silent(listener: socket.socket, seconds: float) -> None:
    """Let the kernel ask clients to whom nothing is sent whether they are there, and end those that don't answer.

    That takes `seconds` and a sixth of it. What the listener accepts inherits it.
    """
    whole = max(1, min(round(seconds / 2), 3_600))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", whole),
        ("TCP_KEEPINTVL", max(1, whole // 3)),
        ("TCP_KEEPCNT", PROBES),
    ):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
