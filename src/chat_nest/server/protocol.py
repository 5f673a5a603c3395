"""The HTTP protocol of `chat-nest serve`: uvicorn's, with a way to drop a connection.

ASGI has no message for it: an application that returns early makes the server flush what it has buffered first, and a
reader that never reads keeps that buffer and the socket for as long as it likes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from chat_nest.asgi.request import ABORT, GONE, PUSH

MOST_PIPELINED = 8
MOST_PIPELINED_BYTES = 65_536
"""Of the body of a request that has to wait; a client that sends more is dropped."""


class Beginning:
    """Stands for the transport until the turn of the event loop in which an answer begins is over.

    The head, the first event and a first token that is there already then are one write, and one packet.
    """

    def __init__(
        self, transport: asyncio.Transport, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._transport = transport
        self._cycle = cycle
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        """Write what was kept; what follows goes straight to the transport."""
        parts, self._parts = self._parts, []
        self._cycle.transport = self._transport
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class AbortableProtocol(HttpToolsProtocol):
    """Offers `scope["extensions"][ABORT]`, a function that resets the connection at once.

    It also goes on reading while a request waits behind another on the same connection (pipelining), within bounds:
    uvicorn would stop, and so never notice that the client has left the answer that is running; and when it does
    notice, it would tell only the last request.
    """

    _served: RequestResponseCycle | None = None
    _beginning: Beginning | None = None
    _gone: tuple[RequestResponseCycle, Callable[[], None]] | None = None

    def _reset(self) -> None:
        """Drop the connection with all that is buffered for it, here and in the kernel."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:  # else it is closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._served is not None:
            self._served.disconnected = True
        self.transport.abort()

    def _push(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        """Send a piece of a chunked body, if it can be sent now: what uvicorn's `send` does in the end."""
        if not (data and cycle.chunked_encoding) or cycle.disconnected or cycle.response_complete:
            return False
        if self.flow.write_paused:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _when_gone(self, cycle: RequestResponseCycle, call: Callable[[], None] | None) -> None:
        """Call `call` once the client of this request has left; with None, forget it."""
        if call is None:
            if self._gone is not None and self._gone[0] is cycle:
                self._gone = None
        elif cycle.disconnected:
            call()
        else:
            self._gone = cycle, call

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._served = cycle
        extensions: dict[str, Any] = cycle.scope.get("extensions") or {}
        extensions[PUSH] = partial(self._push, cycle)
        extensions[GONE] = partial(self._when_gone, cycle)
        self._beginning = Beginning(self.transport, cycle, self.loop)
        cycle.transport = cast("asyncio.Transport", self._beginning)
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """See uvicorn: it closes a connection whose answer is complete."""
        if self._beginning is not None:
            self._beginning.flush()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        if self._served is not None and not self._served.response_complete:
            self._served.disconnected = True
            self._served.message_event.set()
        gone, self._gone = self._gone, None
        if gone is not None:
            gone[1]()

    def on_headers_complete(self) -> None:
        """See httptools."""
        super().on_headers_complete()
        if len(self.pipeline) > MOST_PIPELINED:
            self._reset()
        elif self.pipeline:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        super().on_body(body)
        if self.pipeline and len(self.cycle.body) > MOST_PIPELINED_BYTES:
            self._reset()

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        extensions: dict[str, Any] = {ABORT: self._reset}
        self.scope["extensions"] = extensions
