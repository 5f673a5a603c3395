"""One response over ASGI: opened late, watched by one timer, ended once.

The timer is set again only when it fires (every 15 s on an active stream). It reads the times that are stored with each
batch, and does the heartbeat, the commit of the status and every time-out. Nothing here runs for each token except
`push`, or `write` if the server has no push.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from chat_nest.asgi.quota_headers import quota_headers
from chat_nest.asgi.request import ABORT, PUSH, Send
from chat_nest.asgi.response import Headers, error_headers, longest_wait, respond
from chat_nest.core.errors import ChatError, ClientGone, SlowReader
from chat_nest.core.parts import offers
from chat_nest.core.protocols import Answer, Dialect, Encoder, HasQuotaHeaders, TellsPosition
from chat_nest.core.timeouts import Timeouts
from chat_nest.pipeline.client import NO_QUOTAS, Quotas
from chat_nest.pipeline.deadlines import Deadlines
from chat_nest.pipeline.lifecycle import Lifecycle, State


class ResponseStream:
    """The response to a reader, with batches from a provider or from a log (pipeline.chat.Client).

    `headers` are sent with any status. After the request has lost its reader, nothing is sent. `extensions` are those
    of the scope: a server may offer to drop the connection, and to take a batch without a detour.

    Two tasks may write: the task of the answer, and `_aside` for a heartbeat or the early start. They never interleave
    within an event, because each event is one send. Only the order of start, pings and end needs waiting.
    """

    def __init__(
        self,
        send: Send,
        life: Lifecycle,
        dialect: Dialect,
        headers: Headers,
        timeouts: Timeouts,
        extensions: Mapping[str, Any],
    ) -> None:
        self._send = send
        self._life = life
        self._dialect = dialect
        self._headers = headers
        self._timeouts = timeouts
        self._abort: Callable[[], None] | None = extensions.get(ABORT)
        self._push: Callable[[bytes], bool] | None = extensions.get(PUSH)
        self._loop = asyncio.get_running_loop()
        self._encoder: Encoder | None = None
        self._deadlines: Deadlines | None = None
        self._model = ""
        self._quotas = NO_QUOTAS
        self._replayed = False
        self._asked_at = 0.0
        self._opened = False
        """Whether the headers were sent: at the start, or before it to a reader who waits."""
        self._started = False
        self._waits = False
        self._letting_go = False
        self._aside: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, encoder: Encoder, model: str, quotas: Quotas = NO_QUOTAS, *, replayed: bool = False) -> None:
        """Start the clocks: a provider is being called from now on."""
        self._model, self._quotas, self._replayed = model, quotas, replayed
        self._deadlines = Deadlines(self._life, self._timeouts)
        self._waits = False
        self._begin(encoder)

    async def queued(self, encoder: Encoder, model: str, position: int, estimate: int | None) -> None:
        """Tell the reader of a stream its place in the queue. Raises ClientGone.

        The first call sends the headers, without those of quotas: nothing is reserved yet.
        """
        if not encoder.streams:
            return
        self._model = model
        if not self._opened:
            self._waits = True
            self._begin(encoder)
            await self._send_head(encoder)
        if offers(encoder, TellsPosition):
            await self.write(encoder.queued(position, estimate))
        else:
            known = "" if estimate is None else f" estimate_seconds={estimate}"
            await self.write(b": queued position=%d%b\n" % (position, known.encode()))

    async def resume(self, encoder: Encoder) -> None:
        """Send the headers at once, for an answer that is read from a log. Raises ClientGone."""
        self._begin(encoder)
        await self._open(encoder)

    async def start(self, model: str) -> None:
        """Send the headers and the first event, once, unless the answer is sent whole. Raises ClientGone."""
        if self._started:
            await self._wait_aside()
            return
        assert self._encoder is not None
        if not self._encoder.streams:
            self._encoder.start(model)
            return
        await self._open(self._encoder)
        if data := self._encoder.start(model):
            await self.write(data)

    async def write(self, data: bytes) -> None:
        """Send one batch, and return when the server accepts more.

        Raises ClientGone if the server reports a disconnect.
        """
        life, pulse = self._life, self._life.pulse
        if not life.has_reader:
            return
        pulse.written_at = self._loop.time()
        if self._push is not None and self._push(data):
            return
        pulse.writing = True
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except OSError:
            self._lose()
        except asyncio.CancelledError:
            if not self._letting_go or life.state is not State.DETACHED:
                raise
            self._letting_go = False
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        finally:
            pulse.writing = False

    @property
    def push(self) -> Callable[[bytes], bool] | None:
        """See Sink. Not stored: the function refers to this object, and the garbage collector rarely runs."""
        return None if self._push is None else self._offer

    def _offer(self, data: bytes) -> bool:
        assert self._push is not None
        return not self._life.has_reader or self._push(data)

    async def finish(self, data: bytes) -> None:
        """Send the last bytes, or the whole answer, and end it. Ignores a client that has disconnected."""
        if not self._life.has_reader:
            return
        pulse = self._life.pulse
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

    async def fail(self, error: ChatError, quotas: Quotas | None = None, number: int = 0) -> None:
        """End with a status if nothing was sent, else with an error event, with this number if the answer is kept.

        For a failure that may have been billed a stream is opened: clients retry some statuses, but not an error event.
        """
        if not self._life.has_reader:
            return
        if quotas is not None:
            self._quotas = quotas
        if error.billed and self._encoder is not None and self._encoder.streams:
            try:
                await self.start(self._model)
            except ClientGone:
                return
        if self._opened and not self._started:  # it has waited: the error is an event, and some formats need a start
            try:
                await self.start(self._model)
            except ClientGone:
                return
        if self._started and self._encoder is not None:
            data = self._encoder.fail(error)
            await self.finish(self._encoder.number(data, number) if number else data)
            return
        self._started = True
        refusal = self._dialect.refuse(error, self._life.id)
        waits = error_headers(error, longest_wait(self._dialect))
        await respond(self._send, refusal, [*self._headers, *self._quota_headers(), *waits])

    def close(self) -> None:
        """Stop the clocks. Nothing is sent afterwards."""
        if self._timer is not None:
            self._timer.cancel()
        if self._aside is not None:
            self._aside.cancel()

    def _begin(self, encoder: Encoder) -> None:
        pulse = self._life.pulse
        self._encoder = encoder
        self._asked_at = pulse.read_at = pulse.written_at = self._loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._watch()

    async def _open(self, encoder: Encoder) -> None:
        self._started = True
        await self._send_head(encoder)

    async def _send_head(self, encoder: Encoder) -> None:
        if self._opened or not self._life.has_reader:
            return
        self._opened = True
        self._life.pulse.written_at = self._loop.time()
        headers = [*self._headers, *encoder.headers, *self._quota_headers()]
        try:
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        except OSError:
            self._lose()

    def _lose(self) -> None:
        """Handle a disconnect reported by the server: raise ClientGone, unless the answer goes on without a reader."""
        self._life.leave(ClientGone())
        if self._life.state is not State.DETACHED:
            raise ClientGone from None

    def _quota_headers(self) -> list[tuple[bytes, bytes]]:
        headers = quota_headers(self._quotas.lines, self._quotas.known)
        if offers(self._dialect, HasQuotaHeaders):
            headers += self._dialect.quota_headers(self._quotas.known)
        if self._quotas.ladder_below is not None:
            headers.append((b"x-ladder-below", b"%g" % self._quotas.ladder_below))
        return [*headers, (b"idempotency-replayed", b"true")] if self._replayed else headers

    # The one timer.

    def _watch(self) -> None:
        """End what has timed out, send what is due, and set the timer for the next check."""
        now, limits, life, pulse = self._loop.time(), self._timeouts, self._life, self._life.pulse
        wake = now + min(limits.write, limits.idle, limits.heartbeat)
        if life.has_reader and pulse.writing:
            if pulse.written_at + limits.write <= now:
                self._drop()
            else:
                wake = min(wake, pulse.written_at + limits.write)
        if self._deadlines is not None:
            wake = min(wake, self._deadlines.check(now))
        if life.state in (State.ARRIVED, State.SERVING):
            wake = min(wake, self._speak(now))
        self._timer = self._loop.call_at(max(wake, now + 0.001), self._watch)

    def _drop(self) -> None:
        """Drop a reader that does not read. If the answer goes on without it, the blocked write is cancelled."""
        self._life.leave(SlowReader())
        if self._life.state is not State.DETACHED:
            return
        if self._abort is not None:
            self._abort()
        else:
            self._letting_go = True
            self._life.interrupt()

    def _speak(self, now: float) -> float:
        """Open the stream if the provider is slow, and ping after a long silence. Returns when to check again."""
        if self._encoder is None or not self._encoder.streams or self._waits:
            return now + self._timeouts.heartbeat
        idle_aside = self._aside is None or self._aside.done()
        if not self._started:
            at = self._asked_at + self._timeouts.commit
            if at > now:
                return at
            self._aside = self._loop.create_task(self._alone(self.start(self._model)))
        pulse = self._life.pulse
        at = pulse.written_at + self._timeouts.heartbeat
        if at <= now and idle_aside and not pulse.writing:
            pulse.written_at = now
            self._aside = self._loop.create_task(self._alone(self.write(self._encoder.heartbeat())))
            at = now + self._timeouts.heartbeat
        return at if at > now else now + self._timeouts.heartbeat

    async def _alone(self, sending: Coroutine[Any, Any, None]) -> None:
        try:
            await sending
        except ClientGone as gone:
            self._life.lose(gone)

    async def _wait_aside(self) -> None:
        aside = self._aside
        if aside is not None and not aside.done() and aside is not asyncio.current_task():
            await asyncio.wait([aside])
