"""Routes of a run: its caller can follow it from anywhere, and stop it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from secrets import token_hex
from typing import Any

from msgspec import Struct

from chat_nest.asgi.follow import follow, last_read
from chat_nest.asgi.reader import attend
from chat_nest.asgi.request import Receive, Send
from chat_nest.asgi.response import Headers, respond
from chat_nest.asgi.response_stream import ResponseStream
from chat_nest.controls.gate import Address
from chat_nest.core.errors import ChatError, ClientGone, NotFound, RunsUnavailable, Stopped, TooManyStreams
from chat_nest.core.messages import Caller, ChatRequest
from chat_nest.core.parts import offers
from chat_nest.core.protocols import Answer, Dialect, Encoder, FollowedRun, Resumable, Scope
from chat_nest.core.timeouts import Timeouts
from chat_nest.pipeline.admission import chat_name
from chat_nest.pipeline.chat import Chat
from chat_nest.pipeline.client import Attached
from chat_nest.pipeline.lifecycle import Lifecycle

METHODS = {"stream": "GET, OPTIONS", "stop": "POST, OPTIONS"}


class AskedRun(Struct, frozen=True):
    """DIALECT/NAME/stream or DIALECT/NAME/stop. NAME is the run's id, or the client's own id of the chat."""

    base: str
    name: str
    wanted: str

    @property
    def methods(self) -> str:
        return METHODS[self.wanted]


def asked_run(path: str) -> AskedRun | None:
    """Return the run that a path names; `path` is as `relative_path` returns it."""
    base, _, wanted = path.rpartition("/")
    base, _, name = base.rpartition("/")
    if wanted not in METHODS or not name:
        return None
    return AskedRun(base or "/", name, wanted)


class _Reader(Struct, frozen=True):
    """Who follows a run here: its own life, its caller and IP address."""

    life: Lifecycle
    caller: Caller
    address: Address | None


class RunRoutes:
    """Serves the routes of runs. `runs` holds those of this process, by id; `admit` raises Overloaded if it is full.

    `refused` returns why a caller may not read any more, if an operator or a revoked session ended that.
    """

    def __init__(
        self,
        chat: Chat,
        runs: Mapping[str, Lifecycle],
        timeouts: Timeouts,
        admit: Callable[[], None],
        refused: Callable[[Caller, Address | None], ChatError | None],
    ) -> None:
        self._logs = chat.logs
        self._callers = chat.callers
        self._runs = runs
        self._timeouts = timeouts
        self._admit = admit
        self._refused = refused
        self._readers: dict[str, _Reader] = {}
        self._followers: Counter[str] = Counter()
        """By the caller's key."""
        chat.logs.listen(self._stop_here)

    async def serve(
        self, asked: AskedRun, dialect: Dialect, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request for a run.

        Raises NotFound for a run that does not exist, has expired, or has another caller.

        Raises Overloaded, RateLimited and TooManyStreams if there are too many readers. A stop is never refused for
        that.
        """
        caller = await self._callers.identify(scope)
        names = (asked.name, chat_name(caller, asked.name))
        if asked.wanted == "stop":
            if not await self.stop(names, caller) and (await self.find(names, caller)).finale is None:
                raise RunsUnavailable  # it runs, but its process can't be reached
            await respond(send, Answer(status=204, body=b""), headers)
            return
        self._callers.count_follower(caller)
        followed = await self.find(names, caller)
        after = last_read(scope, followed.id)
        if followed.finale is not None and await self._has_it_all(followed, after, by_id=asked.name == followed.id):
            await respond(send, Answer(status=204, body=b""), headers)  # ends the retries of a browser's EventSource
        else:
            await self.follow(caller, followed, dialect, after, headers, scope, receive, send)

    async def attach(
        self,
        attached: Attached,
        dialect: Dialect,
        headers: Headers,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer a request with the run of an earlier one that had its Idempotency-Key, in this request's format.

        Raises the same as `serve`.
        """
        self._callers.count_follower(attached.caller)
        await self.follow(attached.caller, attached.followed, dialect, 0, headers, scope, receive, send)

    @property
    def followers(self) -> int:
        """Return the number of readers that follow runs, without those that began them."""
        return self._followers.total()

    async def follow(
        self,
        caller: Caller,
        followed: FollowedRun,
        dialect: Dialect,
        after: int,
        headers: Headers,
        scope: Scope,
        receive: Receive,
        send: Send,
        encoder: Encoder | None = None,
    ) -> None:
        """Answer with the run's batches after number `after`, with `encoder` if the reader needs its own.

        Raises Overloaded and TooManyStreams if there are too many readers.
        """
        self._admit()
        most = self._callers.most_followers(caller)
        if most is not None and self._followers[caller.key] >= most:
            raise TooManyStreams(limit="concurrent_streams")
        if encoder is None:
            encoder = _encoder_of(dialect, followed.id)
        life, address = Lifecycle(token_hex(12)), self._callers.address_of(scope)
        if (error := self._refused(caller, address)) is not None:  # since it was identified
            raise error
        extensions: Mapping[str, Any] = scope.get("extensions") or {}
        stream = ResponseStream(send, life, dialect, headers, self._timeouts, extensions)
        self._followers[caller.key] += 1
        self._readers[life.id] = _Reader(life, caller, address)
        try:
            story = _until_ended(life, stream, follow(stream, followed, encoder, after))
            await attend(life, life.begin(story), extensions, receive)
        finally:
            stream.close()
            del self._readers[life.id]
            self._followers[caller.key] -= 1
            if not self._followers[caller.key]:
                del self._followers[caller.key]

    def obey(self) -> None:
        """End the readers that may not read any more. The runs go on."""
        for reader in list(self._readers.values()):
            if (error := self._refused(reader.caller, reader.address)) is not None:
                reader.life.end(error)

    async def _has_it_all(self, followed: FollowedRun, after: int, *, by_id: bool) -> bool:
        """Return whether the client of a finished run needs no more: it has the end, or asks if its chat is idle."""
        if not by_id:
            return True
        last = 0
        try:
            async for number, _ in followed.read(0 if not after else after - 1):
                last = number
        except LookupError:
            return False
        return bool(after) and last < after

    async def find(self, names: Sequence[str], caller: Caller) -> FollowedRun:
        """Return the caller's run with one of these names. Raises NotFound and RunsUnavailable.

        All names are looked up at once: one look-up may fail while another succeeds.
        """
        finding = (self._logs.find(name) for name in names)
        found = await asyncio.gather(*finding, return_exceptions=True)
        for followed in found:
            if not isinstance(followed, BaseException | None) and followed.owner == caller.key:
                return followed
        raise next((failure for failure in found if isinstance(failure, BaseException)), NotFound())

    async def stop(self, names: Sequence[str], caller: Caller) -> bool:
        """Stop the caller's run with one of these names. Returns False if none runs. Raises RunsUnavailable."""
        if any(self._stop_here(name, caller.key) for name in names):
            return True
        stopping = [asyncio.create_task(self._logs.stop(name, caller.key)) for name in names]
        unavailable: RunsUnavailable | None = None
        try:
            for stopped in asyncio.as_completed(stopping):
                try:
                    if await stopped:
                        return True
                except RunsUnavailable as error:
                    unavailable = error
        finally:
            for task in stopping:
                task.cancel()
            await asyncio.gather(*stopping, return_exceptions=True)
        if unavailable is not None:
            raise unavailable
        return False

    def _stop_here(self, name: str, owner: str) -> bool:
        for run in self._runs.values():
            admission = run.admission
            if admission and admission.caller.key == owner and name in (run.id, *admission.names):
                run.end(Stopped())
                return True
        return False


async def _until_ended(life: Lifecycle, stream: ResponseStream, reading: Coroutine[Any, Any, None]) -> None:
    """Send a reader what it reads, and the error if it was ended from this side."""
    try:
        await reading
    except asyncio.CancelledError:
        if life.ended_by is None or life.lost:
            raise
        with contextlib.suppress(ClientGone):
            await stream.fail(life.ended_by)


def _encoder_of(dialect: Dialect, run: str) -> Encoder:
    """Return the encoder for a reader that reconnects."""
    return dialect.follower(run) if offers(dialect, Resumable) else dialect.encoder(ChatRequest(messages=()), run)
