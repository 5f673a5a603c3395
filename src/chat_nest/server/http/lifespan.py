"""The application's startup and shutdown (ASGI's lifespan protocol)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from chat_nest.server.http.context import Application

log = logging.getLogger("chat_nest.server")


class StartFailed(Exception):
    """The application did not start; the reason was logged."""


class Lifespan:
    """Starts and ends an application. An application that returns without a message has nothing to start or end."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Start the application, and return when it is ready. Raises StartFailed."""
        self._task = asyncio.create_task(self._run())
        answer = await self._ask("lifespan.startup")
        if answer.get("type") == "lifespan.startup.failed":
            if message := answer.get("message"):
                log.error("%s", message)
            raise StartFailed

    async def shutdown(self) -> None:
        """End the application, and return when it has ended."""
        if self._task is not None and not self._task.done():
            await self._ask("lifespan.shutdown")

    async def _ask(self, message: str) -> dict[str, Any]:
        assert self._task is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._messages.put_nowait({"type": message})
        either: list[asyncio.Future[Any]] = [self._answer, self._task]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self._answer.result() if self._answer.done() else self._failure()

    def _failure(self) -> dict[str, Any]:
        """Return the event for an application that ended without a message."""
        assert self._task is not None
        if error := self._task.exception():
            log.error("the application's lifespan failed", exc_info=error)
            return {"type": "lifespan.startup.failed"}
        return {}

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        await self._app(scope, self._messages.get, self._send)

    async def _send(self, message: Any) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(dict(message))
