"""Ports for servers that a test starts: below those that the kernel gives to connections, so that none is taken from it."""

from __future__ import annotations

import random
import socket

LOWEST, HIGHEST = 12_000, 21_999
"""A Cluster's nodes also use the ports 10,000 above theirs: those must be below the kernel's own, too."""


def free_ports(count: int, *, neighbour: int = 0) -> list[int]:
    """Ports that were free a moment ago, of those in which no other test is likely to look at this moment.

    With `neighbour`, the ports so far above them were free as well.
    """
    found: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(found) < count:
            port = random.SystemRandom().randint(LOWEST, HIGHEST)
            both = [socket.socket(), socket.socket()]
            held += both
            try:
                both[0].bind(("127.0.0.1", port))
                if neighbour:
                    both[1].bind(("127.0.0.1", port + neighbour))
            except OSError:
                continue
            found.append(port)
    finally:
        for one in held:
            one.close()
    return found


def free_port() -> int:
    """See free_ports."""
    return free_ports(1)[0]
