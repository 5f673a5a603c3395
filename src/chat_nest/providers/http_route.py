"""The route to an origin: its address, the proxy from the environment, TCP and TLS.

Addresses are tried as in RFC 8305 (happy eyeballs): the next one after a failure, or after a quarter of a second
without an answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from base64 import b64encode
from functools import cache
from itertools import chain, zip_longest
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from chat_nest.providers.http_connection import ClientConnection

NEXT_ADDRESS = 0.25
"""Seconds, as RFC 8305 recommends."""
PORTS = {"http": 80, "https": 443}


def default_tls() -> ssl.SSLContext:
    """Return a TLS context with the system's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    return _tls(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@cache
def _tls(_file: str | None, _directory: str | None) -> ssl.SSLContext:  # OpenSSL reads both from the environment
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class HttpRoute:
    """The way to the origin of `url`, with the current proxies of the environment.

    `authority` is for the Host header, `prefix` comes before the path in the request line, and `fields` are for a proxy
    that reads the requests.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)
        self._tls = (tls or default_tls()) if parts.scheme == "https" else None
        self.authority = parts.netloc.rpartition("@")[2]
        if parts.port == PORTS.get(parts.scheme):
            self.authority = self.authority.removesuffix(f":{parts.port}")
        self.prefix = parts.path.rstrip("/")
        self.fields: dict[str, str] = {}
        self._proxy = _environment_proxy(parts)
        if self._proxy is not None and self._tls is None:
            self.prefix = f"http://{self.authority}{self.prefix}"
            self.fields = _credentials(self._proxy)

    async def connect(self) -> ClientConnection:
        """Connect.

        Raises OSError, TimeoutError or UnicodeError (an invalid host name), and UpstreamError from a proxy.
        """
        if self._proxy is None:
            connection = await _open(self._host, self._port)
            return connection if self._tls is None else await _start_tls(connection, self._tls, self._host)
        if self._proxy.scheme not in PORTS:
            raise OSError("the environment names a proxy that is not an HTTP proxy")
        connection = await _open(self._proxy.hostname or "", self._proxy.port or PORTS[self._proxy.scheme])
        if self._proxy.scheme == "https":
            connection = await _start_tls(connection, default_tls(), self._proxy.hostname or "")
        if self._tls is None:
            return connection
        await self._tunnel(connection, self._proxy)
        return await _start_tls(connection, self._tls, self._host)

    async def _tunnel(self, connection: ClientConnection, proxy: SplitResult) -> None:
        """Request a connection to the origin from the proxy (RFC 9110, 9.3.6)."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        target = f"{host}:{self._port}"
        try:
            connection.send([request_head("CONNECT", target, {"host": target, **_credentials(proxy)})])
            await connection.answered()
            if connection.status // 100 != 2:
                raise OSError("the proxy refuses")
        except BaseException:
            connection.abort()
            raise


def request_head(method: str, target: str, fields: dict[str, str]) -> bytes:
    """Return a request line and its fields. Raises ValueError, without the value, for a value that breaks its line."""
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in fields.items()]]
    text = "\r\n".join(lines)
    if not text.isascii() or text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
        raise ValueError("a path and headers must be ASCII, each in one line")
    return f"{text}\r\n\r\n".encode()


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username and not proxy.password:
        return {}
    pair = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
    return {"proxy-authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _environment_proxy(origin: SplitResult) -> SplitResult | None:
    """Return the proxy of the environment for this origin. The URL may hold a user and password."""
    host = origin.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost" or host.endswith(".localhost")
    proxy = getproxies().get(origin.scheme)
    if loopback or not proxy or proxy_bypass(origin.netloc.rpartition("@")[2]):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


async def _start_tls(below: ClientConnection, tls: ssl.SSLContext, host: str) -> ClientConnection:
    """Start TLS on a connection. If that fails or is cancelled, the socket is closed at once."""
    connection = ClientConnection()
    assert below.transport is not None
    try:
        transport = await asyncio.get_running_loop().start_tls(below.transport, connection, tls, server_hostname=host)
        if transport is None:  # by asyncio's types; it happens while the loop is being stopped
            raise ConnectionAbortedError
    except BaseException:
        below.abort()
        raise
    connection.connection_made(transport)
    return connection


async def _open(host: str, port: int) -> ClientConnection:
    """Open a TCP connection to the first of the host's addresses that accepts one."""
    waiting = await _resolve(host, port)
    if len(waiting) == 1:
        return await _connect(waiting[0], port)
    attempts: list[asyncio.Task[ClientConnection]] = []
    running: set[asyncio.Task[ClientConnection]] = set()
    won: ClientConnection | None = None
    failure: BaseException = OSError("no address")
    try:
        while waiting or running:
            if waiting:
                attempts.append(asyncio.create_task(_connect(waiting.pop(0), port)))
                running.add(attempts[-1])
            pause = NEXT_ADDRESS if waiting else None
            done, running = await asyncio.wait(running, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                failure = attempt.exception() or failure
                if attempt.exception() is None:
                    won = attempt.result()
                    return won
        raise failure
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(lambda late: _drop(late, won))


async def _connect(address: str, port: int) -> ClientConnection:
    _, connection = await asyncio.get_running_loop().create_connection(ClientConnection, address, port)
    return connection


def _drop(late: asyncio.Task[ClientConnection], won: ClientConnection | None) -> None:
    """Drop a connection that came too late: after another one, or after the caller had left."""
    if not late.cancelled() and late.exception() is None and late.result() is not won:
        late.result().abort()


async def _resolve(host: str, port: int) -> list[str]:
    """Return the host's addresses, IPv6 and IPv4 in alternation (RFC 8305, 4), at least one."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    families: dict[int, list[str]] = {}
    for family, _, _, _, address in found:
        families.setdefault(family, []).append(str(address[0]))
    turns = chain.from_iterable(zip_longest(*families.values()))
    addresses = list(dict.fromkeys(address for address in turns if address is not None))
    if not addresses:
        raise OSError("no address")
    return addresses
