"""One request and its response, between a connection and the application (ASGI 3, HTTP 2.3).

Three scope extensions do what ASGI has no message for; `chat_nest.asgi.request` has their names.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from chat_nest.asgi.request import ABORT, GONE, PUSH, ASGIMessage
from chat_nest.core.protocols import Scope
from chat_nest.core.request_log import CURRENT, RequestLog
from chat_nest.server.http.access import write_line
from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.request_body import RequestBody
from chat_nest.server.http.request_parser import Request
from chat_nest.server.http.response_head import fields, response_head
from chat_nest.server.http.sockets import HostPort

log = logging.getLogger("chat_nest.server")

MOST_MERGED = 8
"""The most pieces at the beginning of a response that become one write."""
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_BODYLESS = (204, 304)
_FAILED = b"Internal Server Error"


class Owner(Protocol):
    """The connection, as its exchange uses it."""

    transport: asyncio.Transport

    def answered(self) -> None:
        """Continue after the last byte of the response was written."""

    def abandon(self) -> None:
        """Close the connection in the middle of the response."""

    def drop(self) -> None: ...


class Exchange:
    """A request and its response.

    The application uses `receive`, `send` and the extensions; the connection the rest.
    """

    def __init__(self, owner: Owner, context: ServerContext, request: Request) -> None:
        self.keep_alive = request.keep_alive
        """Whether the connection may serve another request after this one."""
        self.started = False
        self.complete = False
        self.disconnected = False
        self.body = RequestBody(owner.transport)
        self._owner = owner
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._write: Callable[[bytes], object] = owner.transport.write
        self._begun: list[bytes] | None = None
        """Pieces that were written in the event loop's turn in which the response began: they become one packet."""
        self._request = request
        self._is_head = request.method == "HEAD"
        self._has_chunks = request.version == "1.1"
        self._left: int | None = None
        """Remaining bytes of the body, if the application has given its length."""
        self._pushes = False
        self._expects_continue = request.expects_continue
        self._writable: asyncio.Event | None = None
        self._when_gone: Callable[[bool], None] | None = None
        self._was_slow = False
        self._facts = RequestLog(joined=True) if context.access_log else None
        self._began_at = self._loop.time()
        self._status: int | None = None

    # For the connection.

    def start(self, client: HostPort | None, server: HostPort | None) -> None:
        """Run the application, in a separate task."""
        request = self._request
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": request.version,
            "server": server,
            "client": client,
            "scheme": "http",
            "method": request.method,
            "root_path": "",
            "path": request.target.path,
            "raw_path": request.target.raw_path,
            "query_string": request.target.query,
            "headers": request.fields,
            "extensions": {ABORT: self._owner.drop, PUSH: self.push, GONE: self.when_gone},
        }
        self._client = client
        self._context.running.add(self)
        self._task = self._loop.create_task(self._run(scope))

    def pause(self) -> None:
        """Block the application's writes: the client does not read what was written."""
        self._writable = asyncio.Event()
        self._pushes = False

    def resume(self) -> None:
        """Unblock the application's writes."""
        waiting, self._writable = self._writable, None
        if waiting is not None:
            waiting.set()
        self._pushes = self.started and self._has_chunks and not (self.complete or self.disconnected)

    def leave(self, *, slow: bool = False) -> None:
        """Note that the client has disconnected, or is dropped as a `slow` reader."""
        if self.complete or self.disconnected:
            return
        self.disconnected = True
        self._was_slow = slow
        self._pushes = False
        self.body.stop()
        if self._writable is not None:
            self._writable.set()
        when_gone, self._when_gone = self._when_gone, None
        if when_gone is not None:
            when_gone(slow)

    # For the application.

    async def receive(self) -> ASGIMessage:
        """See ASGI. After the body it waits for the client's disconnect."""
        if self._expects_continue and not (self.started or self.body.complete or self.disconnected):
            self._owner.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expects_continue = False
        read = await self.body.read()
        if read is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": read[0], "more_body": read[1]}

    async def send(self, message: ASGIMessage) -> None:
        """See ASGI. Returns when the client accepts more. Does nothing after the client has disconnected."""
        while self._writable is not None and not self.disconnected:
            await self._writable.wait()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.body" and self.started and not self.complete:
            self._send_body(message.get("body", b""), last=not message.get("more_body", False))
        elif kind == "http.response.start" and not self.started:
            self._send_head(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"the application sent {kind} out of turn")

    def push(self, data: bytes) -> bool:
        """Send a piece of a chunked body now, if that is possible. See PUSH."""
        if self._pushes and data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
            return True
        return False

    def when_gone(self, call: Callable[[bool], None] | None) -> None:
        """Set the callback for the client's disconnect; None removes it. See GONE."""
        if call is not None and self.disconnected:
            call(self._was_slow)
        else:
            self._when_gone = call

    def _send_head(self, status: int, headers: Any) -> None:
        self.started = True
        self._status = status
        by_name = dict(headers)
        lines = [self._context.date(), *fields(headers)]
        length = by_name.get(b"content-length")
        if self._is_head or status in _BODYLESS:
            self._has_chunks = False
        elif length is not None:
            self._left = int(length)
            self._has_chunks = False
        elif self._has_chunks:
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self.keep_alive = False  # the body ends with the connection
        if b"close" in by_name.get(b"connection", b"").lower():
            self.keep_alive = False
        else:
            # A response that begins before the request is complete ends the connection.
            self.keep_alive = self.keep_alive and self.body.complete and not self._context.draining
            if not self.keep_alive:
                lines.append(b"connection: close\r\n")
        self._begun = [response_head(status, lines)]
        self._write = self._begun.append
        self._pushes = self._has_chunks
        self._loop.call_soon(self._flush)

    def _send_body(self, body: bytes, *, last: bool) -> None:
        if self._has_chunks:
            framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            framed = framed + b"0\r\n\r\n" if last else framed
        elif self._is_head:
            framed = b""
        else:
            framed = body
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (last and self._left):
                    raise RuntimeError("the answer has another length than its content-length")
        if framed:
            self._write(framed)
        if self._begun is not None and len(self._begun) > MOST_MERGED:
            self._flush()  # an application that never waits would fill the memory
        if last:
            self.complete = True
            self._pushes = False
            self._flush()
            self.body.stop()
            self._owner.answered()

    def _flush(self) -> None:
        """Write what was kept since the response began; later pieces go straight to the transport."""
        begun, self._begun = self._begun, None
        if begun is not None:
            self._write = self._owner.transport.write
            if not self._owner.transport.is_closing():
                self._write(b"".join(begun))

    async def _run(self, scope: Scope) -> None:
        if self._facts is not None:
            CURRENT.set(self._facts)
        try:
            await self._context.app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not (self.complete or self.disconnected):
                self._owner.abandon()
            raise
        except Exception:
            log.exception("the application failed")
            await self._end()
        else:
            if not (self.complete or self.disconnected):
                log.error("the application returned without a complete answer")
                await self._end()
        finally:
            self._context.running.discard(self)
            if self._facts is not None:
                write_line(self._facts, self._request, self._client, self._status, self._loop.time() - self._began_at)

    async def _end(self) -> None:
        """End a response that the application did not end: with a status if that is possible."""
        if self.complete or self.disconnected:
            return
        if self.started:
            self._owner.abandon()
        else:
            headers = [(b"content-type", b"text/plain"), (b"content-length", b"21"), (b"connection", b"close")]
            await self.send({"type": "http.response.start", "status": 500, "headers": headers})
            await self.send({"type": "http.response.body", "body": _FAILED})
