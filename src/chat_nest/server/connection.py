"""One connection of `chat-nest serve`: framing that can't be read in two ways, and an end to every wait.

Nothing here runs for a token. A connection has a deadline while it is silent, sends a request, does not take what was
written for it, or is being closed, and none while an answer flows.
"""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from secrets import token_hex
from typing import Any, Literal

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from chat_nest.asgi.response import error_headers
from chat_nest.errors import (
    BadRequest,
    BodyTooLarge,
    ChatError,
    HeadersTooLarge,
    MethodNotAllowed,
    Overloaded,
    RequestTimeout,
)
from chat_nest.server.edge import Edge
from chat_nest.server.framing import MOST_HEAD_BYTES, check_head
from chat_nest.server.protocol import AbortableProtocol

MOST_FRAMING_BYTES = 65_536
"""Of a chunked body, beside its content: a chunk of one byte brings five of them."""
MOST_DRAINED_BYTES = 1_048_576
"""Of what a refused client still sends; then its connection is reset."""
MOST_REFUSED = 16
"""Connections at once that are told why they are refused; more are reset."""
METHODS = "GET, HEAD, POST, OPTIONS"

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ")
_json = msgspec.json.Encoder().encode
log = logging.getLogger("chat_nest")

Phase = Literal["idle", "head", "body"]


class Connection(AbortableProtocol):
    """See asyncio.Protocol and httptools; `edge` is shared by the worker's connections."""

    def __init__(
        self,
        edge: Edge,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._parser: Any = self.parser
        self.deadline = 0.0
        self._edge = edge
        self._admitted = False
        self._phase: Phase = "idle"
        self._received = 0
        """Bytes of the head, or of the body with its framing."""
        self._content = 0
        self._body_until = 0.0
        self._keep_alive = True
        self._refusal: ChatError | None = None
        """Why the connection ends, once the answers before it are given."""
        self._lingering = False
        self._drained = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._unread = Unread(self)
        edge = self._edge
        self._admitted = edge.admit(transport.get_extra_info("socket").fileno())
        if self._admitted:
            edge.watch(self, edge.deadlines.header)
        elif len(self.connections) - edge.connections > MOST_REFUSED:
            self._reset()
        else:
            self._refuse(Overloaded(retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._edge.forget(self)
        if self._admitted:
            self._admitted = False
            self._edge.connections -= 1
        super().connection_lost(exc)
        self._parser = None  # like uvicorn's: it refers to us, and the collector comes seldom
        if self._served is not None:
            self.cycle.transport = self.transport  # so does what it had instead

    @property
    def answering(self) -> bool:
        """Whether a request has begun that is not answered yet."""
        served = self._served
        return served is not None and not bool(served.response_complete or served.disconnected)

    # What comes in.

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._lingering or self._refusal is not None:
            self._drained += len(data)
            if self._drained > MOST_DRAINED_BYTES:
                self._reset()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # to what nobody here speaks: what follows may be anything
            self._phase = "idle"
            self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, ChatError) else _unreadable(error, data))
            return
        if self._phase == "head" and self._received > MOST_HEAD_BYTES:
            self._refuse(HeadersTooLarge())
        elif self._phase == "body":
            self._look_at_body()

    def _look_at_body(self) -> None:
        if self._received - self._content > MOST_FRAMING_BYTES + MOST_HEAD_BYTES:
            self._refuse(BodyTooLarge("The body comes in too many small chunks"))
        elif self.cycle is self._served and not self.cycle.response_complete:
            left = self._body_until - self.loop.time()
            self._edge.watch(self, min(left, self._edge.deadlines.header))

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._phase = "head"
        self._received = 0
        if not self.answering:
            self._edge.watch(self, self._edge.deadlines.header)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if self._phase == "head":  # else a trailer: nobody asked for it, and it must not pass for a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        version: str = self._parser.get_http_version()
        check_head(version, self.url, self.headers)
        super().on_headers_complete()
        if self.transport.is_closing():
            return
        self._phase = "body"
        self._received = self._content = 0
        self._body_until = self.loop.time() + self._edge.deadlines.body
        cycle = self.cycle
        self._keep_alive = cycle.keep_alive and not self._edge.draining
        # An answer that is complete before the request is ends the connection, in a way that it can be read.
        cycle.keep_alive = False
        cycle.transport = self._unread  # type: ignore[assignment]  # what a cycle uses of a transport
        if version == "1.0":
            cycle.send = partial(_send_until_closed, cycle)  # type: ignore[method-assign]
        if cycle is self._served:
            self._edge.watch(self, min(self._edge.deadlines.body, self._edge.deadlines.header))

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._content += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._phase = "idle"
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        begins = self.cycle is self._served and not self.cycle.response_started and self._beginning is not None
        self.cycle.transport = self._beginning if begins else self.transport  # type: ignore[assignment]
        super().on_message_complete()
        if self.cycle is self._served and not self.cycle.response_complete:
            self._edge.forget(self)

    # What goes out.

    def on_response_complete(self) -> None:
        """As uvicorn's, with one deadline instead of a timer a request."""
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self._lingering:
            return
        if self.transport.is_closing():
            self._edge.watch(self, self._edge.deadlines.write)
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            self._body_until = self.loop.time() + self._edge.deadlines.body
            self._watch()
        elif self._refusal is not None:
            self._say(self._refusal)
        else:
            self._watch()

    def _watch(self) -> None:
        """Set the deadline of what is waited for now."""
        deadlines = self._edge.deadlines
        if self.flow.write_paused:
            self._edge.watch(self, deadlines.write + deadlines.grace)
        elif self.answering and not (self._phase == "body" and self.cycle is self._served):
            self._edge.forget(self)
        else:
            self._edge.watch(self, deadlines.idle if self._phase == "idle" else deadlines.header)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        if not (self._lingering or self.transport.is_closing()):
            self._watch()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        if not (self._lingering or self.transport.is_closing()):
            self._watch()

    def shutdown(self) -> None:
        """See uvicorn."""
        self._keep_alive = False
        super().shutdown()
        if self.transport.is_closing():
            self._edge.watch(self, self._edge.deadlines.linger)

    # How it ends.

    def expire(self) -> None:
        """See Expiring."""
        if self._lingering or self.transport.is_closing() or self.flow.write_paused:
            self._reset()
        elif self._phase == "idle":
            self.transport.close()
            self._edge.watch(self, self._edge.deadlines.linger)
        else:
            self._refuse(RequestTimeout())

    def drop(self) -> None:
        """See Peer."""
        self._reset()

    def _refuse(self, error: ChatError) -> None:
        """Answer the request that is coming in with `error`, after those before it, and end the connection."""
        self._refusal = error
        if self._phase == "body":
            self._phase = "idle"
            broken = self.cycle
            if broken is not self._served:
                self.pipeline.popleft()
            elif broken.response_started:
                if not self._lingering:
                    self._reset()
                return
            broken.disconnected = True  # the application sees its client leave
            broken.message_event.set()
        if not self.answering and not self.pipeline:
            self._say(error)

    def _say(self, error: ChatError) -> None:
        id = token_hex(12)
        log.info("refused id=%s error=%s", id, error.code)
        details = {"field": error.field, "detail": error.message} if isinstance(error, BadRequest) else {}
        text = error.text if details else error.message
        body = _json({"error": text, "code": error.code, "request_id": id, **details})
        headers = [
            (b"x-request-id", id.encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
            *error_headers(error),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        self.linger()

    def linger(self) -> None:
        """Close, but throw away for a while what still comes: else the client may never read what was sent."""
        self._lingering = True
        self.flow.resume_reading()
        if not self.transport.is_closing():
            self.transport.write_eof()
        self._edge.watch(self, self._edge.deadlines.linger)


class Unread:
    """The transport of an answer to a request that has not come in whole."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        self._connection.linger()


async def _send_until_closed(cycle: RequestResponseCycle, message: Any) -> None:
    """ASGI's send to a client of HTTP/1.0, which knows no chunks: a body of unknown length ends with the connection."""
    if message["type"] == "http.response.start":
        if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
            cycle.chunked_encoding = False
            cycle.expected_content_length = 1 << 62
    elif not message.get("more_body", False) and cycle.expected_content_length > 1 << 61:
        cycle.expected_content_length = len(message.get("body", b""))
        cycle.__dict__.pop("send", None)  # which refers to the cycle
    await RequestResponseCycle.send(cycle, message)


def _unreadable(error: Exception, data: bytes) -> ChatError:
    """What the parser could not read; its words may repeat what it read, so they are not told."""
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _TOKEN.match(data):
        return MethodNotAllowed(METHODS)
    return BadRequest("must be HTTP/1.1 as in RFC 9112", field="request")
