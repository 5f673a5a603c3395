"""The one file that knows the HTTP client: a pooled session that streams bodies and never leaves a socket open.

The client is aiohttp, held to what a model provider's API needs: no cookies, no redirects, no content codings, no
credentials but the caller's (aiohttp's own `trust_env` would also read ~/.netrc, so it stays off).

A POST is never sent twice from here. When a kept-alive connection dies before the answer's first byte, the provider
may or may not have seen the request (RFC 9110, 9.2.2, rules out an automatic retry): UpstreamUnavailable then leaves
`spent_nothing` False, and a retry is the caller's decision.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.tracing import Trace

from chat_nest.errors import (
    UpstreamError,
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
    UpstreamUnreachable,
)

logger = logging.getLogger("chat_nest.upstream")

READ_BUFFER = 1 << 14
"""A stream that nobody reads stops its socket once twice this many bytes wait; the last read from it comes on top."""

_FAILURES = (aiohttp.ClientError, OSError, UnicodeError)  # TimeoutError and ssl.SSLError are OSErrors


class HTTPStream:
    """An answer whose body is still to be read, piece by piece."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        """Looked up in any case."""
        self._content = response.content

    async def read(self) -> bytes:
        """What has come since the last read, as soon as there is any; b"" at the body's clean end.

        Raises UpstreamTruncated where the body was cut, UpstreamProtocol where its framing is broken.
        """
        failure: UpstreamError
        try:
            return await self._content.readany()
        except HttpProcessingError:
            failure = UpstreamProtocol()
        except _FAILURES:
            failure = UpstreamTruncated()
        raise failure  # out here, so that it carries no context

    async def read_body(self, limit: int) -> bytes:
        """The rest of the body, or its first `limit` bytes."""
        body = bytearray()
        while len(body) < limit and (piece := await self.read()):
            body += piece
        return bytes(body[:limit])


class HTTPSession:
    """Requests to one origin, `base_url`, over kept-alive connections, as many at once as are asked for.

    HTTP_PROXY, HTTPS_PROXY and NO_PROXY are honoured as they stand at the first request; loopback addresses are never
    proxied. One event loop at a time may use it; the connections of a loop that is gone are replaced.
    """

    def __init__(self, base_url: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._base_url = base_url
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: aiohttp.ClientSession | None = None
        self._live: set[_Attempt] = set()

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes | None = None, connect_timeout: float
    ) -> AsyncGenerator[HTTPStream]:
        """Send one request; entering returns once the answer's head is here, whatever its status.

        `connect_timeout`, in seconds, is for name resolution, TCP and TLS together; nothing else is limited in time.
        Leaving returns the connection to the pool when the body was read to its end, else closes its socket at once,
        as does cancelling before that. Raises UpstreamUnreachable or UpstreamTimeout when there was no connection,
        UpstreamUnavailable when it was lost before the answer, UpstreamProtocol for an answer that is not HTTP/1, or a
        success with a content coding. The body of an error is passed on as it came.
        """
        session = await self._running()
        attempt = _Attempt()
        self._live.add(attempt)
        try:
            response = await attempt.send(session, method, self._base_url + path, headers, body, connect_timeout)
            del body  # the answer may take minutes
            if response.ok and response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
                raise UpstreamProtocol
            yield HTTPStream(response)
        finally:
            attempt.close()
            self._live.discard(attempt)

    async def aclose(self) -> None:
        """Close every connection; a stream that is still being read ends with UpstreamTruncated."""
        session, self._session = self._session, None
        for attempt in list(self._live):
            attempt.close()
        if session is not None:
            await session.close()

    async def _running(self) -> aiohttp.ClientSession:
        """The session of the running loop."""
        loop = asyncio.get_running_loop()
        session, old = self._session, None
        if session is None or self._loop is not loop:
            old, self._loop = session, loop
            session = self._session = aiohttp.ClientSession(
                connector=_Connector(limit=0, ssl=self._tls or True),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                skip_auto_headers=("User-Agent", "Content-Type"),
                auto_decompress=False,
                proxy=_environment_proxy(self._base_url),
                read_bufsize=READ_BUFFER,
            )
        if old is not None and old.connector is not None:
            await old.close()
        return session


class _Attempt:
    """One request on its way, and what must be closed when it is left."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] | None = None
        self._response: aiohttp.ClientResponse | None = None

    async def send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        connect_timeout: float,
    ) -> aiohttp.ClientResponse:
        limits = aiohttp.ClientTimeout(total=None, connect=connect_timeout, sock_connect=None, sock_read=None)
        token = _sending.set(self)
        try:
            self._response = await session.request(
                method, url, headers=headers, data=body, timeout=limits, allow_redirects=False
            )
            return self._response
        except _FAILURES as error:
            failure = self._failure(error)
        finally:
            _sending.reset(token)
        raise failure  # out here, so that it carries no context: aiohttp's errors hold the request's headers

    def connected(self, connection: Connection) -> None:
        """The connection is ours, before anything was sent on it."""
        self._transport = connection.transport
        self._closed = connection.protocol.closed if connection.protocol is not None else None
        if self._closed is not None:
            self._closed.remove_done_callback(_retrieve)
            self._closed.add_done_callback(_retrieve)
            self._closed.add_done_callback(self._lost)

    def close(self) -> None:
        """Close the socket at once, unless the whole answer was received: then the connection is in the pool again.

        aiohttp's own close would first send what is left of the request, to a provider that may never read it.
        """
        if self._closed is not None:
            self._closed.remove_done_callback(self._lost)
        whole = self._response is not None and self._response.content.is_eof()
        if self._transport is not None and not whole:
            self._transport.abort()
        if self._response is not None:
            self._response.close()

    def _lost(self, _: asyncio.Future[None]) -> None:
        """The connection is gone. aiohttp's C parser does not tell the reader of a body whose chunks it can't parse."""
        if self._response is not None and not self._response.content.is_eof():
            content = self._response.content
            if content.exception() is None:
                content.set_exception(UpstreamProtocol())

    def _failure(self, error: Exception) -> UpstreamError:
        name = type(error).__name__  # never its text
        if self._transport is None:
            logger.warning("no connection to the provider: %s", name)
            if isinstance(error, TimeoutError):
                return UpstreamTimeout(spent_nothing=True)
            return UpstreamUnreachable(spent_nothing=True)
        logger.warning("the provider did not answer the request: %s", name)
        return UpstreamProtocol() if isinstance(error, aiohttp.ClientResponseError) else UpstreamUnavailable()


def _retrieve(closed: asyncio.Future[None]) -> None:
    """A pooled connection may end in an error that nobody waits for; asyncio would log it."""
    if not closed.cancelled():
        closed.exception()


_sending: ContextVar[_Attempt] = ContextVar("chat_nest_sending")


class _Connector(aiohttp.TCPConnector):
    """Tells the attempt its connection, so that it can be aborted before aiohttp hands out a response."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109, aiohttp's signature
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        _sending.get().connected(connection)
        return connection


def _environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for this URL. Its user and password may be part of it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost" or host.endswith(".localhost")
    proxy = getproxies().get(parts.scheme)
    if loopback or not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
