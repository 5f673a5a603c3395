"""One connection to a Redis server (RESP 2), on which the commands of all callers are pipelined.

The server answers in order, so an answer belongs to the oldest unanswered command. A cancelled caller leaves its place
in that order: its answer is read and dropped, and no other caller gets it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

Word = str | bytes | int
HostPort = tuple[str, int]

_SUSPECT = 0.2
"""Seconds without a byte from the server after which an abandoned command closes its connection."""
_NOTHING = object()
_pack = cast("Callable[[tuple[Word, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]


class Broken(ConnectionError):
    """The connection is gone. Commands sent on it may or may not have run."""


class Denied(Exception):
    """The server's error. `code` is its first word, as in `NOSCRIPT`; only that is fit for a log."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class Wire(asyncio.Protocol):
    """Sends commands and receives answers. All commands of one turn of the event loop are written at once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=Denied, notEnoughData=_NOTHING)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._heard_at = 0.0
        self._ending = False
        self._closed = asyncio.Event()

    @property
    def usable(self) -> bool:
        return not self._ending and not self._closed.is_set()

    async def ask(self, *words: Word) -> Any:
        """Return the answer. Raises Denied or Broken. It waits as long as the connection lives: give it a deadline."""
        if not self.usable:
            raise Broken
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(_pack(words))
        self._waiting.append(future)
        asked_at = self._loop.time()
        try:
            return await future
        except asyncio.CancelledError:
            if max(self._heard_at, asked_at) < self._loop.time() - _SUSPECT:
                self.abort()
            raise

    def retire(self) -> None:
        """Refuse new commands, and close when the sent ones are answered."""
        self._ending = True
        if not self._waiting:
            self.abort()

    def abort(self) -> None:
        """Close now; waiting callers get Broken."""
        self._ending = True
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    def _send(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _NOTHING:
                future = self._waiting.popleft()
                if future.done():
                    continue
                if isinstance(answer, Denied):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        except (hiredis.HiredisError, IndexError):  # not a Redis server
            self.abort()
        if self._ending and not self._waiting:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - Broken is all that a caller can use
        self._closed.set()
        for future in self._waiting:
            if not future.done():
                future.set_exception(Broken())
        self._waiting.clear()


class Login:
    """How to open wires: with TLS if there is a context, the login, and the database."""

    def __init__(self, tls: ssl.SSLContext | None, username: str | None, password: str | None, db: int) -> None:
        self._tls = tls
        self._commands: list[Sequence[Word]] = []
        if password is not None:
            self._commands.append(("AUTH", username, password) if username else ("AUTH", password))
        if db:
            self._commands.append(("SELECT", db))

    async def open(self, address: HostPort) -> Wire:
        """Open a wire. Raises Denied, Broken, or OSError, of which a bad certificate is one."""
        host, port = address
        _, wire = await asyncio.get_running_loop().create_connection(
            Wire, host, port, ssl=self._tls, server_hostname=host if self._tls else None
        )
        try:
            for command in self._commands:
                await wire.ask(*command)
        except BaseException:
            wire.abort()
            raise
        return wire


def tls_context(files: dict[str, str]) -> ssl.SSLContext:
    """Return a context that verifies the server by `ssl_ca_certs`, else by the system's authorities, and shows
    `ssl_certfile`.

    Raises ValueError if a file is unreadable or invalid.
    """
    try:
        context = ssl.create_default_context(cafile=files.get("ssl_ca_certs"))
        if "ssl_certfile" in files:
            context.load_cert_chain(files["ssl_certfile"], files.get("ssl_keyfile"))
    except OSError as error:
        raise ValueError(
            "store.url: ssl_ca_certs, ssl_certfile and ssl_keyfile must be PEM files that can be read"
        ) from error
    return context
