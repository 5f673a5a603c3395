"""Shared state of the connections of one worker."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Protocol

from chat_nest.asgi.request import Receive, Send
from chat_nest.core.protocols import Scope
from chat_nest.server.http.connection_limits import ConnectionLimits
from chat_nest.server.http.dead_peers import Peer
from chat_nest.server.http.deadlines import ConnectionDeadlines
from chat_nest.server.http.refusal_rates import RefusalRates
from chat_nest.server.http.sockets import HostPort

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""ASGI 3."""


class Open(Peer, Protocol):
    """An open connection, as the server uses it."""

    deadline: float
    """When it expires, in the loop's seconds; infinity while it has no deadline."""

    @property
    def answering(self) -> bool:
        """Whether a request has begun and its response is not complete."""
        ...

    @property
    def expects_request(self) -> bool:
        """Whether a client has connected for a request that has not come yet, or not whole; an idle one has had its."""
        ...

    def expire(self) -> None:
        """Act on a deadline that has passed."""

    def drain(self) -> None:
        """Close the connection now if it is idle, else after its response."""


class ServerContext:
    """The application, its limits, and the open connections and running requests."""

    def __init__(
        self,
        app: Application,
        deadlines: ConnectionDeadlines | None = None,
        limits: ConnectionLimits | None = None,
        *,
        caller_of: Callable[[str], str] | None = None,
        access_log: bool = False,
    ) -> None:
        self.app = app
        self.deadlines = deadlines or ConnectionDeadlines()
        self.limits = limits or ConnectionLimits()
        self.refusals = RefusalRates()
        self.caller_of = caller_of
        """Returns the log's name for the caller at an IP address."""
        self.access_log = access_log
        self.draining = False
        self.connections: set[Open] = set()
        self.running: set[object] = set()
        """Exchanges of applications that have not returned."""
        self._second = -1
        self._date = b""

    def name_of(self, client: HostPort | None) -> str:
        """Return the log's name for the caller at this address, or an empty string."""
        return self.caller_of(client[0]) if self.caller_of is not None and client else ""

    def date(self) -> bytes:
        """Return the Date field of a response that begins now, with its line end (RFC 9110, section 6.6.1)."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = b"date: %b\r\n" % formatdate(second, usegmt=True).encode("ascii")
        return self._date
