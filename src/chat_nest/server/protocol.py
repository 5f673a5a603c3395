"""The HTTP protocol of `chat-nest serve`: uvicorn's, with a way to drop a connection.

ASGI has no message for it: an application that returns early makes the server flush what it has buffered first, and a
reader that never reads keeps that buffer and the socket for as long as it likes.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from chat_nest.asgi.request import ABORT


class AbortableProtocol(HttpToolsProtocol):
    """Offers `scope["extensions"][ABORT]`, a function that resets the connection at once."""

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        extensions: dict[str, Any] = {ABORT: self.transport.abort}
        self.scope["extensions"] = extensions
