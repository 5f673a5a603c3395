"""A reader who comes back to a run: what it said since, and what it says from now on, in any dialect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Sequence

from chat_nest.asgi.request import Receive, Send, header
from chat_nest.errors import ChatError, ClientGone, RunsUnavailable
from chat_nest.limits import Timeouts
from chat_nest.messages import ChatRequest
from chat_nest.protocols import Dialect, Encoder, FollowedRun, Scope
from chat_nest.run import followed_ending


class Forgotten(ChatError):
    """The run's beginning is not kept any more, so a reader can't be given the whole of it."""

    code, status, text = "forgotten", 410, "The beginning of this answer is not kept any more"


def last_read(scope: Scope, id: str) -> int:
    """The number of the last batch of run `id` that the client has, by its Last-Event-ID; 0 where it names none."""
    run, _, number = (header(scope, b"last-event-id") or b"").decode("latin-1").rpartition("-")
    return int(number) if run == id and number.isascii() and number.isdigit() and len(number) < 10 else 0


class Follower:
    """One reader of a run that goes on without it. Leaving ends nothing.

    A write that takes longer than `Timeouts.write` ends the following; `abort` then drops the connection.
    """

    def __init__(
        self,
        send: Send,
        receive: Receive,
        followed: FollowedRun,
        dialect: Dialect,
        headers: Sequence[tuple[bytes, bytes]],
        timeouts: Timeouts,
        abort: Callable[[], None] | None,
    ) -> None:
        self._send = send
        self._receive = receive
        self._followed = followed
        self._encoder: Encoder = dialect.encoder(ChatRequest(messages=()), followed.id)
        self._headers = headers
        self._timeouts = timeouts
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._writing = False
        self._written_at = self._loop.time()

    async def follow(self, after: int) -> None:
        """Answer with the batches behind number `after`, and how the run ended."""
        copying = asyncio.create_task(self._copy(after))
        gone = asyncio.create_task(self._until_gone())
        try:
            while not (copying.done() or gone.done()):
                await asyncio.wait({copying, gone}, timeout=self._pause(), return_when=asyncio.FIRST_COMPLETED)
                silent = self._loop.time() - self._written_at
                if self._writing and silent >= self._timeouts.write:
                    if self._abort is not None:
                        self._abort()
                    return
                if not self._writing and silent >= self._timeouts.heartbeat and not (copying.done() or gone.done()):
                    await self._write(self._encoder.heartbeat())
        except ClientGone:
            return
        finally:
            for task in (copying, gone):
                task.cancel()
            await asyncio.wait({copying, gone})
        if not copying.cancelled() and (failure := copying.exception()) and not isinstance(failure, ClientGone):
            raise failure

    def _pause(self) -> float:
        limit = self._timeouts.write if self._writing else self._timeouts.heartbeat
        return max(0.001, self._written_at + limit - self._loop.time())

    async def _copy(self, after: int) -> None:
        encoder = self._encoder
        start = {"type": "http.response.start", "status": 200, "headers": [*self._headers, *encoder.headers]}
        with _gone_is_gone():
            await self._send(start)
        if not after:
            await self._write(encoder.start(self._followed.model))
        number = after
        try:
            async with contextlib.aclosing(self._followed.read(after)) as batches:
                async for number, batch in batches:
                    await self._write(encoder.number(encoder.encode(batch), number))
        except (LookupError, RunsUnavailable) as error:
            failure = error if isinstance(error, RunsUnavailable) else Forgotten()
            await self._write(encoder.fail(failure), more=False)
            return
        ending = followed_ending(self._followed.finale)
        data = encoder.fail(ending) if isinstance(ending, ChatError) else encoder.finish(ending)
        numbered = data if self._followed.finale is None else encoder.number(data, number + 1)
        await self._write(numbered, more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        if not data and more:
            return
        self._writing, self._written_at = True, self._loop.time()
        with _gone_is_gone():
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._writing = False

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


@contextlib.contextmanager
def _gone_is_gone() -> Generator[None]:
    try:
        yield
    except OSError:
        raise ClientGone from None
