"""One client connection: requests are read and answered one by one, and every wait has a time-out.

    reading -> answering -> reading ... -> closing

While a request is being answered, later requests are not parsed: bytes that a client sends ahead (pipelining) are kept,
up to a limit, and read after the answer. Nothing here runs for each token.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from chat_nest.core.errors import ChatError, Overloaded, RequestTimeout
from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.exchange import Exchange
from chat_nest.server.http.refusals import refusal
from chat_nest.server.http.request_parser import Request, RequestParser
from chat_nest.server.http.sockets import HostPort, bound_the_buffer, own_address, peer_of, reset

MOST_DISCARDED_BYTES = 1_048_576
"""Bytes that a refused client may still send; then its connection is reset."""
MOST_PIPELINED = 8
"""The most requests in a row that a client may send ahead. The connection ends after the response to the last one."""
MOST_PIPELINED_BYTES = 65_536
"""The most bytes of requests that were sent ahead. A client that sends more is dropped."""
HEALTH = ("/healthz", "/readyz")
"""Answered even on connections over the limits."""


class ServerConnection(asyncio.Protocol):
    """A client connection.

    Methods without a docstring are in asyncio.Protocol, Owner, Open, Peer, Evictable and Droppable.
    """

    transport: asyncio.Transport

    def __init__(self, context: ServerContext) -> None:
        self.deadline = math.inf
        self.address: str | None = None
        self.acked = -1
        self.progress_at = 0.0
        self._context = context
        self._deadlines = context.deadlines
        self._now = asyncio.get_running_loop().time
        self._parser = RequestParser(self._begin)
        self._phase: Literal["reading", "answering", "closing"] = "reading"
        self._client: HostPort | None = None
        self._admitted = False
        self._exchange: Exchange | None = None
        self._body_until = 0.0
        self._ahead = b""
        """Bytes that came while a request was being answered."""
        self._pipelined = 0
        """Requests in a row that came before the response to the previous one."""
        self._write_paused = False
        self._discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is a stream
        self.transport = transport
        bound_the_buffer(transport)
        self._client = peer_of(transport)
        self.progress_at = self._now()
        self._context.connections.add(self)
        limits = self._context.limits
        self.address = limits.address_of(self._client[0]) if self._client else None
        self._admitted = limits.admit(transport.get_extra_info("socket").fileno(), self.address)
        self._expire_in(self._deadlines.header if self._admitted else self._deadlines.linger)
        if not self._admitted:  # a health check is answered; anything else is refused when its head, or nothing, came
            limits.refuse_later(self)

    def eof_received(self) -> None:
        """See asyncio.Protocol. A client that closes its side counts as disconnected."""
        self._phase = "closing"
        self._expire_in(self._deadlines.write)
        if self._exchange is not None:
            self._exchange.leave()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._context.connections.discard(self)
        self._release()
        self._phase = "closing"
        self._parser.close()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()

    def _release(self) -> None:
        limits = self._context.limits
        limits.idle.pop(self, None)
        limits.extra.pop(self, None)
        if self._admitted:
            self._admitted = False
            limits.release(self.address)

    @property
    def answering(self) -> bool:
        return self._exchange is not None

    @property
    def expects_request(self) -> bool:
        return self._phase == "reading" and self._exchange is None and self not in self._context.limits.idle

    def data_received(self, data: bytes) -> None:
        if self._phase == "reading":
            data = self._read(data)
        if data and self._phase == "answering":
            self._ahead += data
            if len(self._ahead) > MOST_PIPELINED_BYTES:
                self.drop()
        elif data and self._phase == "closing":
            self._discarded += len(data)
            if self._discarded > MOST_DISCARDED_BYTES:
                self.drop()

    def _read(self, data: bytes) -> bytes:
        """Read one request, and return the bytes after it."""
        parser = self._parser
        was_idle = parser.part == "none"
        try:
            rest = parser.feed(data)
        except ChatError as error:
            self._refuse(error)
            return b""
        if parser.part == "end":
            self._phase = "answering"
            self.deadline = self.deadline if self._write_paused else math.inf
            if self._exchange is not None:
                self._exchange.keep_alive = self._exchange.keep_alive and not parser.is_last
                self._exchange.body.end()
        elif parser.part == "body":
            self._expire_in(min(self._body_until - self._now(), self._deadlines.header))
        elif was_idle and parser.part == "head":
            self._context.limits.idle.pop(self, None)
            self._expire_in(self._deadlines.header if self._admitted else self._deadlines.linger)
        return rest

    def _begin(self, request: Request) -> Callable[[bytes], None]:
        """Start the application for a request whose head is complete; return the function for its body."""
        if not self._admitted and request.target.path not in HEALTH:
            raise Overloaded(retry_after=1)
        self._context.limits.idle.pop(self, None)
        self._body_until = self._now() + self._deadlines.body
        exchange = Exchange(self, self._context, request)
        exchange.keep_alive = request.keep_alive and self._admitted and self._pipelined < MOST_PIPELINED
        self._exchange = exchange
        exchange.start(self._client, own_address(self.transport))
        return exchange.body.feed

    def answered(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None or self._phase == "closing":
            return
        if self._phase == "reading" or (self._ahead and not exchange.keep_alive):
            self._linger()  # closing a socket with unread bytes would reset it, and lose the response
        elif not exchange.keep_alive:
            self._close(self._deadlines.write)
        elif not self._write_paused:
            self._next()

    def _next(self) -> None:
        self._phase = "reading"
        self._parser.next()
        if self._ahead:
            asyncio.get_running_loop().call_soon(self._read_ahead)  # after the other connections' turn
        else:
            self._pipelined = 0
            self._context.limits.idle[self] = None
            self._expire_in(self._deadlines.idle)

    def _read_ahead(self) -> None:
        if self._phase == "reading":
            self._pipelined += 1
            ahead, self._ahead = self._ahead, b""
            self._expire_in(self._deadlines.header)
            self.data_received(ahead)

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._phase != "closing":
            self._expire_in(self._deadlines.write + self._deadlines.grace)
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._exchange is not None:
            self._exchange.resume()
        if self._phase == "answering":
            self.deadline = math.inf
            if self._exchange is None:
                self._next()
        elif self._phase == "reading":
            self._expire_in(min(self._body_until - self._now(), self._deadlines.header))

    def expire(self) -> None:
        if self._phase == "closing" or self._write_paused:
            self.drop(slow=self._write_paused)
        elif not self._admitted and self._exchange is None:
            self._refuse(Overloaded(retry_after=1))
        elif self._parser.part == "none":
            self._close(self._deadlines.linger)
        else:
            self._refuse(RequestTimeout())

    def evict(self) -> None:
        self._release()
        self._close(self._deadlines.linger)

    def drain(self) -> None:
        if self._exchange is not None:
            self._exchange.keep_alive = False
        elif self._phase != "closing":
            self._close(self._deadlines.linger)

    def abandon(self) -> None:
        self._exchange = None
        self._close(self._deadlines.linger)

    def drop(self, *, slow: bool = False) -> None:
        """Reset the connection, with all that is buffered for it, here and in the kernel."""
        self._phase = "closing"
        self._ahead = b""
        if self._exchange is not None:
            self._exchange.leave(slow=slow)
        reset(self.transport)

    def _close(self, seconds: float) -> None:
        """Close when everything is written, or reset after this many seconds."""
        self._phase = "closing"
        self.transport.close()
        self._expire_in(seconds)

    def _linger(self) -> None:
        """Close, but discard incoming bytes for a while: else the client may never read what was sent."""
        self._phase = "closing"
        self._ahead = b""
        if not self.transport.is_closing():
            self.transport.write_eof()
        self._expire_in(self._deadlines.linger)

    def _refuse(self, error: ChatError) -> None:
        """Answer the incoming request with `error`, and end the connection.

        An address with too many such requests gets no answer. One that finds no place has done nothing wrong.
        """
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()  # as the application sees it
            if exchange.started:
                self.drop()
                return
        if not isinstance(error, Overloaded):
            name = partial(self._context.name_of, self._client)
            if not self._context.refusals.count(self.address, name):
                self.drop()
                return
        self.transport.write(refusal(error, self._context, self._client))
        self._linger()

    def _expire_in(self, seconds: float) -> None:
        self.deadline = self._now() + seconds
