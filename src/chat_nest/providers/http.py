"""A pooled HTTP/1.1 session that streams bodies and never leaves a socket open.

It does only what a model provider's API needs: no cookies, no redirects, no content codings, no credentials but the
caller's. `http_connection` has the protocol, `http_route` the way to the origin.

If a kept-alive connection turns out to be closed, a GET is sent once more on a new connection; a POST is never sent
twice from here. If a kept-alive connection is lost before the first byte of the response, the provider may or may not
have received the request (RFC 9110, 9.2.2, rules out an automatic retry): UpstreamUnavailable then leaves
`spent_nothing` False, and a retry is the caller's decision.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Never

from chat_nest.core.errors import (
    UpstreamError,
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
    UpstreamUnreachable,
    failure_name,
)
from chat_nest.core.trace_headers import TRACEPARENT
from chat_nest.providers.http_connection import SLICE, ClientConnection
from chat_nest.providers.http_route import HttpRoute, request_head

logger = logging.getLogger("chat_nest.providers")

KEEP_SECONDS: Final = 15.0
"""How long a connection without a request is kept."""
_WITH_BODY: Final = frozenset(("POST", "PUT", "PATCH"))
_CANT_CONNECT = (UpstreamError, OSError, UnicodeError)  # TimeoutError and ssl.SSLError are OSErrors


class HTTPStream:
    """A response; its body is still to be read, piece by piece."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.fields
        """Looked up in any case; repeated fields are joined by commas."""
        self.read: Callable[[], Coroutine[Any, Any, bytes]] = connection.read
        """`await read()`: return the bytes since the last read, as soon as there are any; b"" at the body's clean end.

        Raises UpstreamTruncated if the body was cut or left, UpstreamProtocol if its framing is invalid.
        """
        self.pass_on: Callable[[Callable[[bytes], bool]], Coroutine[Any, Any, bool]] = connection.pass_on
        """`await pass_on(take)`: call `take` with each such piece, straight from the socket's read, while it returns
        True.

        Returns whether it has returned False; raises what `read` raises, and what `take` raises.
        """
        self._unread: tuple[list[bytes], bool] = ([], False)

    @property
    def whole(self) -> bool:
        """Whether all of it was read."""
        return self._connection.drained

    @property
    def framed(self) -> bool:
        """Whether its length or its chunks mark its end, and not only the connection's end."""
        return self._connection.framed

    async def read_body(self, limit: int) -> bytes:
        """Return the rest of the body, or its first `limit` bytes."""
        body = bytearray()
        while len(body) < limit and (piece := await self.read()):
            body += piece
        return bytes(body[:limit])

    def leave(self) -> None:
        """Release the connection, which may serve another request from now on."""
        if self.status == 200:
            self._unread = self._connection.take_unread()
        self.read = self.pass_on = _left

    def take_unread(self) -> tuple[list[bytes], bool]:
        """Return what `Connection.take_unread` returned when this was left; nothing the second time."""
        unread, self._unread = self._unread, ([], False)
        return unread


async def _left(*_: object) -> Never:
    raise UpstreamTruncated


class HTTPSession:
    """Sends requests to one origin, `base_url`, over kept-alive connections, with no limit on their number.

    HTTP_PROXY, HTTPS_PROXY and NO_PROXY are read at the first request; loopback addresses are never proxied. One event
    loop at a time may use it; the connections of a loop that is gone are replaced.
    """

    def __init__(self, base_url: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._base_url = base_url
        self._tls = tls
        self._pool: _Pool | None = None

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes | None = None, connect_timeout: float
    ) -> AbstractAsyncContextManager[HTTPStream]:
        """Send one request (no HEAD). Entering returns once the head of the response has arrived, with any status.

        `connect_timeout`, in seconds, is for name resolution, TCP and TLS together; nothing else has a time-out.
        Leaving returns the connection to the pool if the body was read to its end, else closes its socket at once, as
        does cancelling. Raises UpstreamUnreachable or UpstreamTimeout if there was no connection, UpstreamUnavailable
        if it was lost before the response, and UpstreamProtocol for a response that is not HTTP/1, or a success with a
        content coding. The body of an error is passed on unchanged.
        """
        return _Exchange(self._running(), method, path, headers, body, connect_timeout)

    async def aclose(self) -> None:
        """Close every connection; a stream that is still being read ends with UpstreamTruncated."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
            await asyncio.sleep(0)  # the loop closes an aborted socket in its next turn

    def _running(self) -> _Pool:
        """Return the connections of the running loop."""
        pool = self._pool
        if pool is None or pool.loop is not asyncio.get_running_loop():
            if pool is not None:
                pool.close()
            pool = self._pool = _Pool(HttpRoute(self._base_url, self._tls))
        return pool


class _Pool:
    """The connections to one origin, on one event loop. Those without a request are closed after KEEP_SECONDS."""

    def __init__(self, route: HttpRoute) -> None:
        self.loop = asyncio.get_running_loop()
        self.route = route
        fields = {"host": route.authority, "accept": "*/*", "accept-encoding": "identity", **route.fields}
        self.fields = tuple(fields.items())
        self.busy: set[ClientConnection] = set()
        self.closed = False
        self._idle: list[tuple[ClientConnection, float]] = []
        self._sweeper: asyncio.TimerHandle | None = None

    def take(self) -> ClientConnection | None:
        """Return the most recently used connection that is still open, if there is one."""
        while self._idle:
            connection, since = self._idle.pop()
            if not connection.closed and since + KEEP_SECONDS > self.loop.time():
                return connection
            connection.abort()
        return None

    def leave(self, connection: ClientConnection) -> None:
        """Keep the connection if it can be used again; else close its socket at once."""
        self.busy.discard(connection)
        if not connection.release():
            return
        self._idle.append((connection, self.loop.time()))
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(KEEP_SECONDS, self._sweep)

    def close(self) -> None:
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self.busy, *(connection for connection, _ in self._idle)]:
            with suppress(RuntimeError):  # its loop may be closed
                connection.abort()
        self._idle.clear()

    def _sweep(self) -> None:
        """Close what was idle for too long, and schedule the next sweep."""
        now = self.loop.time()
        old = [connection for connection, since in self._idle if since + KEEP_SECONDS <= now or connection.closed]
        self._idle = [(connection, since) for connection, since in self._idle if connection not in old]
        for connection in old:
            connection.abort()
        self._sweeper = self.loop.call_at(self._idle[0][1] + KEEP_SECONDS, self._sweep) if self._idle else None


@lru_cache(maxsize=64)  # of headers that are signed anew for each request, it keeps 64 in vain
def _fixed_lines(
    method: str, target: str, own: tuple[tuple[str, str], ...], given: tuple[tuple[str, str], ...], traced: bool
) -> bytes:
    """Return the lines of a head that most requests of an origin share; `given` overrides `own`."""
    fields = {**dict(own), **{name.lower(): value for name, value in given}}
    if traced:
        fields.pop("traceparent", None)
    return request_head(method, target, fields).removesuffix(b"\r\n")


class _Exchange:
    """One request and its response. At any end, its connection is back in the pool or closed."""

    def __init__(
        self,
        pool: _Pool,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        connect_timeout: float,
    ) -> None:
        self._pool = pool
        self._method = method
        self._connect_timeout = connect_timeout
        traceparent = TRACEPARENT.get()
        head = _fixed_lines(method, pool.route.prefix + path, pool.fields, tuple(headers.items()), bool(traceparent))
        if traceparent:
            head += b"traceparent: %b\r\n" % traceparent.encode("ascii")
        if body is not None or method in _WITH_BODY:
            head += b"content-length: %d\r\n" % len(body or b"")
        head += b"\r\n"
        self._parts = [head, body] if body else [head]
        self._stream: HTTPStream | None = None
        self._connection: ClientConnection | None = None

    async def __aenter__(self) -> HTTPStream:
        kept = self._pool.take()
        if kept is not None:
            try:
                return await self._ask(kept)
            except UpstreamUnavailable:
                if self._method != "GET":
                    raise
        return await self._ask(await self._connect())

    async def _ask(self, connection: ClientConnection) -> HTTPStream:
        pool = self._pool
        if pool.closed:
            connection.abort()
            raise UpstreamUnreachable(spent_nothing=True)
        pool.busy.add(connection)
        try:
            long = sum(map(len, self._parts)) > 2 * SLICE
            connection.send(self._parts[:1] if long else self._parts)
            if long:
                await connection.send_more(memoryview(self._parts[1]))
            if self._method != "GET":
                self._parts = []  # the answer may take minutes
            await connection.answered()
            coding = connection.fields.get("content-encoding", "identity")
            if connection.status < 300 and coding.strip().lower() != "identity":
                connection.reason = "a content coding"
                raise UpstreamProtocol
        except BaseException as error:
            connection.abort()
            pool.busy.discard(connection)
            if isinstance(error, UpstreamError):
                logger.warning("the provider did not answer the request: %s", connection.reason)
            raise
        self._connection = connection
        self._stream = HTTPStream(connection)
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._connection is not None
        assert self._stream is not None
        self._stream.leave()
        self._pool.leave(self._connection)

    async def _connect(self) -> ClientConnection:
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await self._pool.route.connect()
        except _CANT_CONNECT as error:
            name, timed_out = failure_name(error), isinstance(error, TimeoutError)
        logger.warning("no connection to the provider: %s", name)  # never its text
        if timed_out:
            raise UpstreamTimeout(spent_nothing=True)
        raise UpstreamUnreachable(spent_nothing=True)  # out here, so that it carries no context
