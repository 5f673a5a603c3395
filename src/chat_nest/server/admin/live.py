"""The stream of the operators' page: Server-Sent Events, one for each part of the page that has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final

from chat_nest.core.errors import ChatError, Overloaded
from chat_nest.server.admin import views
from chat_nest.server.admin.activity import activity
from chat_nest.server.admin.routes import AdminRequest, Reply, json

EVERY_SECONDS: Final = 2.0
"""Between two looks at the store, however many pages are open."""
PART_SECONDS: Final = 7.0
"""The longest that one part may take: the first check of a provider takes five."""
PING_SECONDS: Final = 10.0
MOST_STREAMS: Final = 16
"""Of each worker."""
STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),
)


PARTS: Final[Mapping[str, Callable[[AdminRequest], Awaitable[Reply]]]] = {
    "activity": activity,
    "standing": views.standing,
    "running": views.running_answers,
    "controls": views.controls,
    "audit": views.audit,
}
"""The events, in order: each has the data of the route with its name."""


class Live:
    """The streams of one process. They share what they show: the store is read once for all of them."""

    def __init__(self) -> None:
        self.streams = 0
        """How many are open."""
        self._parts: dict[str, bytes] = {}
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams."""
        self._closing.set()

    async def stream(self, asked: AdminRequest, may_go_on: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes]:
        """Yield events until the caller stops, `may_go_on` is False, or this process ends. Raises Overloaded."""
        if self.streams >= MOST_STREAMS:
            raise Overloaded(f"This process serves {MOST_STREAMS} pages already", retry_after=EVERY_SECONDS)
        self.streams += 1
        try:
            sent: dict[str, bytes] = {}
            wrote_at = time.monotonic()
            while not self._closing.is_set():
                if not await may_go_on():
                    yield _event("refused", json({"code": "unauthorized"}))
                    return
                changed = {name: data for name, data in (await self._look(asked)).items() if sent.get(name) != data}
                sent |= changed
                now = time.monotonic()
                if changed or now - wrote_at >= PING_SECONDS:
                    wrote_at = now
                    yield b"".join(_event(name, data) for name, data in changed.items()) or b": ping\n\n"
                await self._pause()
        finally:
            self.streams -= 1

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), EVERY_SECONDS)
        except TimeoutError:
            return

    async def _look(self, asked: AdminRequest) -> Mapping[str, bytes]:
        """Return the data of all parts. One that fails has an error's code, and the others go on."""
        async with self._lock:
            if time.monotonic() - self._read_at >= EVERY_SECONDS * 0.9:
                found = await asyncio.gather(*(_part(serve, asked) for serve in PARTS.values()))
                self._parts = dict(zip(PARTS, found, strict=True))
                self._read_at = time.monotonic()
            return self._parts


async def _part(serve: Callable[[AdminRequest], Awaitable[Reply]], asked: AdminRequest) -> bytes:
    failure: dict[str, Any]
    try:
        async with asyncio.timeout(PART_SECONDS):
            return (await serve(asked)).body
    except ChatError as error:
        failure = {"error": error.message, "code": error.code}
    except TimeoutError:
        failure = {"error": "The store does not answer", "code": "limiter_unavailable"}
    return json(failure)


def _event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
