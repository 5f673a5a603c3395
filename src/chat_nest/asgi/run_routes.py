"""What can be asked of a run once it is there: to be followed from anywhere, and to be stopped, by its caller only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from chat_nest.asgi.follow import Follower, last_read
from chat_nest.asgi.request import ABORT, Receive, Send
from chat_nest.asgi.response import respond
from chat_nest.chat import Chat, chat_name
from chat_nest.errors import NotFound, RunsUnavailable, Stopped
from chat_nest.limits import Timeouts
from chat_nest.messages import Caller
from chat_nest.protocols import Answer, Dialect, FollowedRun, Scope
from chat_nest.run import Run

METHODS = {"stream": "GET, OPTIONS", "stop": "POST, OPTIONS"}

Headers = Sequence[tuple[bytes, bytes]]


class AskedRun(Struct, frozen=True):
    """DIALECT/NAME/stream and DIALECT/NAME/stop: NAME is the run's id, or the client's own id of the chat."""

    base: str
    name: str
    wanted: str

    @property
    def methods(self) -> str:
        return METHODS[self.wanted]


def asked_run(path: str, written: str) -> AskedRun | None:
    """The run that a path asks for. `written` is the path as it was written: a name keeps its case."""
    base, _, wanted = path.rpartition("/")
    base, _, name = base.rpartition("/")
    if wanted not in METHODS or not name:
        return None
    return AskedRun(base or "/", written.strip("/").split("/")[-2], wanted)


class RunRoutes:
    """Serves them. `runs` are those of this process, by id."""

    def __init__(self, chat: Chat, runs: Mapping[str, Run], timeouts: Timeouts) -> None:
        self._chat = chat
        self._runs = runs
        self._timeouts = timeouts
        chat.logs.listen(self._stop_here)

    async def serve(
        self, asked: AskedRun, dialect: Dialect, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Raises NotFound for a run that is not there, is forgotten, or is another caller's."""
        caller = await self._chat.who(scope)
        names = (asked.name, chat_name(caller, asked.name))
        if asked.wanted == "stop":
            if not await self._stop(names, caller) and (await self._find(names, caller)).finale is None:
                raise RunsUnavailable  # it runs somewhere, and nobody there could be told
            await respond(send, Answer(status=204, body=b""), headers)
            return
        followed = await self._find(names, caller)
        after = last_read(scope, followed.id)
        if followed.finale is not None and await self._has_it_all(followed, after, by_id=asked.name == followed.id):
            await respond(send, Answer(status=204, body=b""), headers)  # a browser's EventSource then stops asking
        else:
            await self.follow(followed, dialect, after, headers, scope, receive, send)

    async def follow(
        self,
        followed: FollowedRun,
        dialect: Dialect,
        after: int,
        headers: Headers,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer with what the run says behind batch number `after`."""
        extensions: dict[str, Any] = scope.get("extensions") or {}
        follower = Follower(send, receive, followed, dialect, headers, self._timeouts, extensions.get(ABORT))
        await follower.follow(after)

    async def _has_it_all(self, followed: FollowedRun, after: int, *, by_id: bool) -> bool:
        """Whether a client wants no more of a run that is over: it has the end, or asks whether its chat is idle."""
        if not by_id:
            return True
        last = 0
        try:
            async for number, _ in followed.read(0 if not after else after - 1):
                last = number
        except LookupError:
            return False
        return bool(after) and last < after

    async def _find(self, names: Sequence[str], caller: Caller) -> FollowedRun:
        """Both may be asked for at once: one name may have no answer while the other has."""
        finding = (self._chat.logs.find(name) for name in names)
        found = await asyncio.gather(*finding, return_exceptions=True)
        for followed in found:
            if not isinstance(followed, BaseException | None) and followed.owner == caller.key:
                return followed
        raise next((failure for failure in found if isinstance(failure, BaseException)), NotFound())

    async def _stop(self, names: Sequence[str], caller: Caller) -> bool:
        if any(self._stop_here(name, caller.key) for name in names):
            return True
        stopping = [asyncio.create_task(self._chat.logs.stop(name, caller.key)) for name in names]
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
            if name in (run.id, *run.names) and run.caller is not None and run.caller.key == owner:
                run.end(Stopped())
                return True
        return False
