"""The way from a server to its store, over a TCP proxy that can be cut, slowed, and made to lose answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class StoreLink:
    """Carries what is said on its `port` to the port `to` and back.

    `delay` tells for each piece of an answer how many seconds it takes, and `loses` whether the connection breaks instead:
    the store has then done what it was asked, and nobody is told.
    """

    def __init__(self, to: int) -> None:
        self.port = 0
        self.delay: Callable[[], float] | None = None
        self.loses: Callable[[], bool] | None = None
        self._to = to
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def repair(self) -> None:
        """Listen, at the same port each time."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Break every connection and refuse new ones: nothing of what was said before arrives later."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # as the test ends
            try:
                there, back = await asyncio.open_connection("127.0.0.1", self._to)
            except OSError:
                writer.transport.abort()
                return
            both = {writer, back}
            self._writers |= both
            await asyncio.gather(self._ask(reader, back), self._answer(there, writer))
            self._writers -= both

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self.delay is not None:
                    await asyncio.sleep(self.delay())
                if self.loses is not None and self.loses():
                    writer.transport.abort()
                    break
                writer.write(data)
                await writer.drain()
        writer.close()
