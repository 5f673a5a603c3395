"""Report the server's state to systemd: sd_notify(3), without a library, for it is one datagram."""

from __future__ import annotations

import logging
import os
import socket
import time

log = logging.getLogger("chat_nest.server")

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def notify(state: str) -> None:
    """Send a state to the service manager, if there is one (NOTIFY_SOCKET). A failure is only logged."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)  # a service manager that does not read must not stop a server
            sending.sendto(state.encode(), f"\0{name[1:]}" if name[0] == "@" else name)
    except OSError as error:
        log.warning("the service manager was not notified: %s", error.strerror)


def notify_reloading() -> None:
    """Send that a reload begins; READY ends it. Its time is that of CLOCK_MONOTONIC, in microseconds."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1_000}")


def watchdog_seconds() -> float | None:
    """Return how often to send WATCHDOG: twice as often as the service manager expects it; None if it does not."""
    micros, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not micros.isdecimal() or int(micros) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(micros) / 2e6
