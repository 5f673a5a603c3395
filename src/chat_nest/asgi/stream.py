"""One answer over ASGI: opened late, watched by one timer, ended once.

The timer is armed again only when it fires (every 15 s on a lively stream), reads the floats that the relay stores, and
does the heartbeat, the commit of the status and every time-out. Nothing here runs per token but `write`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from chat_nest.asgi.quota_headers import quota_headers
from chat_nest.asgi.request import Send
from chat_nest.asgi.response import error_headers, respond
from chat_nest.errors import ChatError, ClientGone, DeadlineExceeded, SlowReader, UpstreamIdle, UpstreamTimeout
from chat_nest.limits import Timeouts
from chat_nest.protocols import Answer, Dialect, Encoder
from chat_nest.run import Run

log = logging.getLogger("chat_nest.asgi")


class EventStream:
    """The reader's end of one run (run.Client). `headers` go out with the answer, whatever its status.

    Once the run is detached from its reader, nothing more is sent. `abort` drops the connection, `push` takes a batch
    without a detour, where a server can.

    Two tasks may write: the run's, and for a heartbeat or the early start `_aside`. They never overlap in the middle of
    an event, because each event is one send; only the order of start, pings and end is kept by waiting.
    """

    def __init__(
        self,
        send: Send,
        run: Run,
        dialect: Dialect,
        headers: Sequence[tuple[bytes, bytes]],
        timeouts: Timeouts,
        abort: Callable[[], None] | None = None,
        push: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._send = send
        self._run = run
        self._push = push
        self._dialect = dialect
        self._headers = headers
        self._timeouts = timeouts
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._encoder: Encoder | None = None
        self._model = ""
        self._asked_at = 0.0
        self._started = False
        self._letting_go = False
        self._aside: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, encoder: Encoder, model: str) -> None:
        """Start the clocks: from now on a provider is being asked."""
        self._encoder = encoder
        self._model = model
        self._asked_at = self._run.pulse.read_at = self._run.pulse.written_at = self._loop.time()
        self._watch()

    async def start(self, model: str) -> None:
        """Send the headers and the first event, once, unless the answer is sent whole. Raises ClientGone."""
        if self._started:
            await self._wait_aside()
            return
        assert self._encoder is not None
        if not self._encoder.streams:
            self._encoder.start(model)
            return
        self._started = True
        if self._run.detached:
            return
        self._run.pulse.written_at = self._loop.time()
        headers = [*self._headers, *self._encoder.headers, *self._quota_headers()]
        try:
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        except OSError:
            self._lost()
        if data := self._encoder.start(model):
            await self.write(data)

    async def write(self, data: bytes) -> None:
        """Send one batch; returns when the server takes more. Raises ClientGone where the server tells."""
        if self._run.detached or (self._push is not None and self._push(data)):
            return
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except OSError:
            self._lost()
        except asyncio.CancelledError:
            if not self._letting_go:
                raise
            self._letting_go = False
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()

    @property
    def push(self) -> Callable[[bytes], bool] | None:
        """See Sink. Not kept: it refers to us, and the collector comes seldom."""
        return None if self._push is None else self._offer

    def _offer(self, data: bytes) -> bool:
        assert self._push is not None
        return self._run.detached or self._push(data)

    def _lost(self) -> None:
        """The server says that nobody reads: raise ClientGone, unless the run goes on without a reader."""
        self._run.leave(ClientGone())
        if not self._run.detached:
            raise ClientGone from None

    async def finish(self, data: bytes) -> None:
        """Send the last bytes, or the whole answer, and end it. A reader who has left meanwhile is not an error."""
        if self._run.detached:
            return
        pulse = self._run.pulse
        pulse.writing, pulse.written_at = True, self._loop.time()
        await self._wait_aside()
        try:
            if self._encoder is not None and not self._encoder.streams:
                self._started = True
                whole = Answer(status=200, body=data, headers=tuple(self._encoder.headers))
                await respond(self._send, whole, [*self._headers, *self._quota_headers()])
                return
            await self._send({"type": "http.response.body", "body": data, "more_body": False})
        except OSError:
            return
        finally:
            pulse.writing = False

    async def fail(self, error: ChatError) -> None:
        """End with a status while nothing was sent, else with an error event; say nothing where nobody listens."""
        if self._run.lost_reader or self._run.detached or isinstance(error, ClientGone):
            return
        if self._started and self._encoder is not None:
            data = self._encoder.fail(error)
            await self.finish(self._encoder.number(data, self._run.last) if self._run.last else data)
            return
        self._started = True
        refusal = self._dialect.refuse(error, self._run.id)
        await respond(self._send, refusal, [*self._headers, *self._quota_headers(), *error_headers(error)])

    def close(self) -> None:
        """Stop the clocks. Nothing is sent afterwards."""
        if self._timer is not None:
            self._timer.cancel()
        if self._aside is not None:
            self._aside.cancel()

    def _quota_headers(self) -> list[tuple[bytes, bytes]]:
        run = self._run
        headers = quota_headers(run.lines, run.quotas)
        own = getattr(self._dialect, "quota_headers", None)
        if own is not None:
            headers += own(run.quotas)
        return [*headers, (b"idempotency-replayed", b"true")] if run.replayed else headers

    def _watch(self) -> None:
        """End the run if something took too long, send what is due, and come back when the next thing may be due."""
        now = self._loop.time()
        limits, pulse, run = self._timeouts, self._run.pulse, self._run
        ending = run.closing or run.ended_by is not None
        due: list[tuple[float, type[ChatError]]] = []
        if pulse.writing and not run.detached:
            due.append((pulse.written_at + limits.write, SlowReader))
        elif run.ended_by is not None and not run.closing and run.task is not None:
            if now >= run.ended_at + limits.write:
                log.error("request %s: a provider does not let go of its stream", run.id)
                run.ended_at = now
                run.task.cancel()
        elif not ending:
            if pulse.first_at is None:
                due.append((self._asked_at + limits.first_token, UpstreamTimeout))
            else:
                due.append((pulse.read_at + limits.idle, UpstreamIdle))
        if not ending:
            due.append((run.began_at + limits.total, DeadlineExceeded))
        wake = now + min(limits.write, limits.idle, limits.heartbeat)
        for at, error in due:
            if at <= now and error is SlowReader:
                run.leave(SlowReader())
                ending = not run.detached
                if run.detached:
                    self._let_go()
            elif at <= now:
                run.end(error())
                ending = True
            else:
                wake = min(wake, at)
        if not ending and not run.detached:
            wake = min(wake, self._speak(now))
        self._timer = self._loop.call_at(max(wake, now + 0.001), self._watch)

    def _let_go(self) -> None:
        """The run goes on without a reader who does not read: the write that waits for him must not."""
        if self._abort is not None:
            self._abort()
        elif self._run.task is not None:
            self._letting_go = True
            self._run.task.cancel()

    def _speak(self, now: float) -> float:
        """Open the stream if the provider keeps us waiting; ping after a long silence. Returns when to look again."""
        if self._encoder is None or not self._encoder.streams:
            return now + self._timeouts.heartbeat
        idle_aside = self._aside is None or self._aside.done()
        if not self._started:
            at = self._asked_at + self._timeouts.commit
            if at > now:
                return at
            self._aside = self._loop.create_task(self._tell(self.start(self._model)))
        pulse = self._run.pulse
        at = pulse.written_at + self._timeouts.heartbeat
        if at <= now and idle_aside and not pulse.writing:
            pulse.written_at = now
            self._aside = self._loop.create_task(self._tell(self.write(self._encoder.heartbeat())))
            at = now + self._timeouts.heartbeat
        return at if at > now else now + self._timeouts.heartbeat

    async def _tell(self, sending: Coroutine[Any, Any, None]) -> None:
        try:
            await sending
        except ClientGone as gone:
            self._run.end(gone)

    async def _wait_aside(self) -> None:
        aside = self._aside
        if aside is not None and not aside.done() and aside is not asyncio.current_task():
            await asyncio.wait([aside])
