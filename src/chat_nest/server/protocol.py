"""The HTTP protocol of `chat-nest serve`: uvicorn's, with a way to drop a connection.

ASGI has no message for it: an application that returns early makes the server flush what it has buffered first, and a
reader that never reads keeps that buffer and the socket for as long as it likes.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from chat_nest.asgi.request import ABORT

MOST_PIPELINED = 8
MOST_PIPELINED_BYTES = 65_536
"""Of the body of a request that has to wait; a client that sends more is dropped."""


class AbortableProtocol(HttpToolsProtocol):
    """Offers `scope["extensions"][ABORT]`, a function that resets the connection at once.

    It also goes on reading while a request waits behind another on the same connection (pipelining), within bounds:
    uvicorn would stop, and so never notice that the client has left the answer that is running; and when it does
    notice, it would tell only the last request.
    """

    _served: RequestResponseCycle | None = None

    def _reset(self) -> None:
        """Drop the connection with all that is buffered for it, here and in the kernel."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:  # else it is closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._served is not None:
            self._served.disconnected = True
        self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        if self._served is not None and not self._served.response_complete:
            self._served.disconnected = True
            self._served.message_event.set()

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
