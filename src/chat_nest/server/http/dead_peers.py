"""Find clients that disappeared without a packet, and clients that read nothing. Only on Linux.

For the first, the kernel would retransmit for a quarter of an hour; for the second, it would hold the answer; the
provider's tokens would cost money meanwhile. The kernel's buffer is bounded, and its counters distinguish both from a
slow client, which acknowledges probes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from msgspec import Struct

log = logging.getLogger("chat_nest.server")

LONGEST_LOOK_SECONDS = 2.0
TRIES = 2
"""Retransmissions without an answer: after the first one the packet may still be under way."""
_INFO = struct.Struct("=2xB21xI28xI60xQ16xI")
"""struct tcp_info of Linux: retransmits at 2, unacked at 24, last_ack_recv (ms) at 56, bytes_acked at 120,
notsent_bytes at 144."""


class Peer(Protocol):
    transport: Any
    acked: int
    """The acknowledged bytes at the last time that they grew."""
    progress_at: float
    """When that was seen, or no byte for the client was waiting, in the loop's seconds."""

    def drop(self, *, slow: bool = False) -> None:
        """Reset the connection. `slow` means that the client is reachable but reads nothing."""


class TcpState(Struct, frozen=True):
    """The kernel's state of a connection."""

    retransmits: int
    """Retransmissions of the oldest packet since the last acknowledgement."""
    silent_seconds: float
    """Seconds since the last acknowledgement."""
    acked: int
    """Bytes, since the connection began."""
    owes: bool
    """Whether bytes are unsent or not acknowledged."""


class DeadPeers:
    """Drops each client that has taken nothing for `seconds` while bytes for it were waiting."""

    def __init__(self, seconds: float, peers: Callable[[], Iterable[Peer]]) -> None:
        self._seconds = seconds
        self._peers = peers
        self.every = min(LONGEST_LOOK_SECONDS, seconds / 4)
        """Seconds between two checks."""

    def look(self) -> None:
        """Check all clients once."""
        now = asyncio.get_running_loop().time()
        gone = slow = 0
        for peer in list(self._peers()):
            state = tcp_state(peer.transport)
            if state is None:
                continue
            if state.retransmits >= TRIES and state.silent_seconds >= self._seconds:
                gone += 1
                peer.drop()
            elif state.acked != peer.acked or not (state.owes or peer.transport.get_write_buffer_size()):
                peer.acked, peer.progress_at = state.acked, now
            elif now - peer.progress_at >= self._seconds:
                slow += 1
                peer.drop(slow=True)
        if gone:
            log.info("dropped %d connections of clients that are gone", gone)
        if slow:
            log.info("dropped %d connections of clients that read nothing", slow)


def tcp_state(transport: Any) -> TcpState | None:
    """Return the kernel's state; None for a closed socket, one that is not TCP, and on systems other than Linux."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0 or sys.platform != "linux":
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:  # no TCP
        return None
    if len(info) < _INFO.size:
        return None
    retransmits, unacked, silent, acked, unsent = _INFO.unpack(info)
    return TcpState(retransmits, silent / 1_000, acked, bool(unacked or unsent))
