"""Calls that wait share the next one: one round trip and one commit for all that came while the last was under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Generic, TypeVar

from msgspec import Struct

Asked = TypeVar("Asked")
Result = TypeVar("Result")

Send = Callable[[Sequence[Asked]], Awaitable[Sequence[Result]]]
"""Sends a batch, and returns an answer for each of its calls, in their order."""

MOST = 64
"""Calls in one batch: more make every one of them wait longer, and save little."""
AT_ONCE = 2
"""Batches under way: while one is answered, the next is already on its way."""


class _Call(Struct, Generic[Asked, Result], gc=False):
    asked: Asked
    answer: asyncio.Future[Result]


class CallBatches(Generic[Asked, Result]):
    """A queue of calls of one kind, sent in batches, for one event loop.

    The first call does not wait for others: those made in the same turn of the loop go with it. A caller may leave at
    any time: a call that waits is then never sent, and one under way is answered to nobody. If a batch fails, each of
    its calls fails with that error.
    """

    def __init__(self, send: Send[Asked, Result], *, most: int = MOST, at_once: int = AT_ONCE) -> None:
        self._send = send
        self._most = most
        self._at_once = at_once
        self._waiting: list[_Call[Asked, Result]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._called = False

    async def ask(self, asked: Asked) -> Result:
        """Return the answer to this call."""
        loop = asyncio.get_running_loop()
        call: _Call[Asked, Result] = _Call(asked, loop.create_future())
        self._waiting.append(call)
        if not self._called and len(self._running) < self._at_once:
            self._called = True
            loop.call_soon(self._start)
        return await call.answer

    async def drain(self) -> None:
        """Wait until all calls are answered."""
        while self._waiting or self._running:
            if self._running:
                await asyncio.wait(self._running)
            else:
                await asyncio.sleep(0)

    def _start(self) -> None:
        """Start as many batches as may be under way."""
        self._called = False
        while len(self._running) < self._at_once:
            waiting = [call for call in self._waiting if not call.answer.done()]  # the others' callers have left
            batch, self._waiting = waiting[: self._most], waiting[self._most :]
            if not batch:
                return
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.result()
        self._start()

    async def _run(self, batch: Sequence[_Call[Asked, Result]]) -> None:
        try:
            answers = await self._send([call.asked for call in batch])
        except Exception as error:  # each caller raises its own, with a traceback of its own
            for call in batch:
                if not call.answer.done():
                    call.answer.set_exception(_twin(error))
        else:
            for call, answer in zip(batch, answers, strict=True):
                if not call.answer.done():
                    call.answer.set_result(answer)
        finally:
            for call in batch:
                call.answer.cancel()  # of a batch that was cancelled when the event loop ended


def _twin(error: Exception) -> Exception:
    twin = copy(error)
    twin.__cause__ = error.__cause__
    return twin
