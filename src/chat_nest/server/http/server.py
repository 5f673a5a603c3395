"""The HTTP server: listen, serve, drain and stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.dead_peers import DeadPeers
from chat_nest.server.http.deadlines import Sweep
from chat_nest.server.http.lifespan import Lifespan
from chat_nest.server.http.protocol import ServerConnection
from chat_nest.server.http.sockets import bound_the_kernel

BACKLOG = 2_048
_UNIX = getattr(socket, "AF_UNIX", None)


class HttpServer:
    """Serves the application of `context` on listening sockets of any stream family."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._lifespan = Lifespan(context.app)
        self._listening: list[asyncio.Server] = []
        dead = DeadPeers(context.deadlines.write, lambda: context.connections)
        self._sweeps = (Sweep(context.deadlines.sweep, self._expire), Sweep(dead.every, dead.look))

    async def start(self, *listeners: socket.socket) -> None:
        """Start the application, then accept connections. Raises StartFailed."""
        await self._lifespan.startup()
        loop = asyncio.get_running_loop()
        for listener in listeners:
            bound_the_kernel(listener, self._context.deadlines.write)
            make = loop.create_server if listener.family != _UNIX else loop.create_unix_server
            server = await make(lambda: ServerConnection(self._context), sock=listener, backlog=BACKLOG)
            self._listening.append(server)
        for sweep in self._sweeps:
            sweep.start()

    @property
    def answering(self) -> int:
        """Return the number of requests that are coming in or being answered."""
        return sum(connection.answering for connection in self._context.connections)

    @property
    def expecting(self) -> int:
        """Return the number of connections without a first request."""
        return sum(connection.expects_request for connection in self._context.connections)

    async def stop_accepting(self) -> None:
        """Leave new connections to the listening sockets' other owners, and close idle ones.

        Each other connection is closed after its response, also a new one whose request is on its way.
        """
        listening, self._listening = self._listening, []
        await stop_listening(listening)
        self._context.draining = True
        for connection in [each for each in self._context.connections if not each.expects_request]:
            connection.drain()

    def drain(self) -> None:
        """Close idle connections, and each other one after its response. New connections are still accepted."""
        self._context.draining = True
        for connection in list(self._context.connections):
            connection.drain()

    async def stop(self) -> None:
        """Stop listening, and end the application, which ends the remaining answers."""
        await stop_listening(self._listening)
        self.drain()  # those that came since
        await self._lifespan.shutdown()
        for sweep in self._sweeps:
            sweep.stop()

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in [each for each in self._context.connections if each.deadline <= now]:
            connection.deadline = now + self._context.deadlines.linger  # unless it sets another deadline
            connection.expire()


async def stop_listening(servers: Sequence[asyncio.Server]) -> None:
    """Close listening servers, in two turns of the loop.

    What was accepted just before becomes a connection like any other: asyncio's `close` alone leaves its socket open,
    with an error in the log, because it connects an accepted socket to its server a turn later.
    """
    loop = asyncio.get_running_loop()
    for server in servers:
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
    for _ in range(2):
        await asyncio.sleep(0)
    for server in servers:
        server.close()
