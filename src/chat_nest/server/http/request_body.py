"""The body of a request, between the connection that reads it and the application that receives it."""

from __future__ import annotations

import asyncio

MOST_WAITING = 65_536
"""The most bytes that wait for the application; above it the connection is not read."""


class RequestBody:
    """Bytes that wait for the application. If there are too many, reading from the connection stops."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.complete = False
        """Whether all of it has come."""
        self._transport = transport
        self._parts: list[bytes] = []
        self._size = 0
        self._paused = False
        self._given = False
        self._over = False
        self._news: asyncio.Event | None = None

    def feed(self, data: bytes) -> None:
        """Add a piece."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > MOST_WAITING and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def end(self) -> None:
        """Note that the body is complete."""
        self.complete = True
        self._wake()

    def stop(self) -> None:
        """Note that the client has disconnected, or the response is complete: nothing more is read."""
        self._over = True
        self._read_on()
        self._wake()

    async def read(self) -> tuple[bytes, bool] | None:
        """Return the waiting bytes, and whether more will follow; None after `stop` was called."""
        while not (self._over or self._parts or (self.complete and not self._given)):
            self._read_on()
            if self._news is None or self._news.is_set():
                self._news = asyncio.Event()
            await self._news.wait()
        if self._over:
            return None
        parts, self._parts, self._size = self._parts, [], 0
        self._given = self.complete
        return parts[0] if len(parts) == 1 else b"".join(parts), not self.complete

    def _read_on(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()
