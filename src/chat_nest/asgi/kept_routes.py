"""Routes of a kept answer by its own id: its caller can read, follow, cancel and delete it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from msgspec import Struct

from chat_nest.asgi.request import Receive, Send, query_fields
from chat_nest.asgi.response import Headers, respond
from chat_nest.asgi.run_routes import METHODS, AskedRun, RunRoutes
from chat_nest.core.errors import BadRequest, NotFound, RunsUnavailable, Stopped
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Answer, Dialect, Encoder, Finale, Scope
from chat_nest.pipeline.chat import Chat
from chat_nest.runs.kept import Kept, recall

KEPT_METHODS = {"": "GET, DELETE, OPTIONS", "cancel": "POST, OPTIONS", "input_items": "GET, OPTIONS", **METHODS}
MAX_PAGE = 100
"""The most input items in one response."""


class KeepsAnswers(Protocol):
    """The further methods of a dialect with a `kept` route: see dialects.responses.Responses."""

    def run_of(self, response_id: str) -> str: ...
    def whole(self, kept: Kept) -> Answer: ...
    def input_items(self, kept: Kept, *, newest_first: bool, limit: int, after: str) -> Answer: ...
    def deleted(self, response_id: str) -> Answer: ...
    def follower(self, run_id: str, after: int = -1) -> Encoder: ...


class AskedKept(Struct, frozen=True):
    """ID, ID/cancel, ID/input_items, ID/stream or ID/stop. ID is the format's own id of an answer."""

    name: str
    wanted: str

    @property
    def methods(self) -> str:
        return KEPT_METHODS[self.wanted]


def asked_kept(below: str) -> AskedKept | None:
    """Return the kept answer that a path names; `below` is the part after the path of kept answers."""
    name, _, wanted = below.partition("/")
    return AskedKept(name, wanted) if name and wanted in KEPT_METHODS else None


class KeptRoutes:
    """Serves the routes of kept answers."""

    def __init__(self, chat: Chat, runs: RunRoutes) -> None:
        self._chat = chat
        self._runs = runs

    async def serve(
        self, asked: AskedKept, dialect: Dialect, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request for a kept answer. Raises NotFound if it is not kept or has another caller.

        Raises the same as RunRoutes.serve, too.
        """
        keeper = cast("KeepsAnswers", dialect)
        run_id = keeper.run_of(asked.name)
        if asked.wanted in METHODS:
            await self._runs.serve(AskedRun("", run_id, asked.wanted), dialect, headers, scope, receive, send)
            return
        caller = await self._chat.callers.identify(scope)
        if asked.wanted == "cancel":
            await respond(send, await self._cancel(keeper, run_id, caller), headers)
            return
        self._chat.callers.count_follower(caller)
        query = query_fields(scope)
        if scope["method"] == "GET" and not asked.wanted and query.get("stream", "").lower() in ("true", "1"):
            followed = await self._runs.find((run_id,), caller)
            encoder = keeper.follower(run_id, _number(query, "starting_after", -1))
            await self._runs.follow(caller, followed, dialect, 0, headers, scope, receive, send, encoder)
        elif scope["method"] == "DELETE":
            await self._forget(run_id, caller)
            await respond(send, keeper.deleted(asked.name), headers)
        else:
            kept = await recall(self._chat.logs, run_id, caller.key)
            answer = _page(keeper, kept, query) if asked.wanted else keeper.whole(kept)
            await respond(send, answer, headers)

    async def _forget(self, run_id: str, caller: Caller) -> None:
        logs = self._chat.logs
        if await logs.forget(run_id, caller.key):
            return
        kept = await recall(logs, run_id, caller.key)
        if kept.finale is None:
            raise BadRequest("must have ended: cancel it first", field="response_id")
        if not await logs.forget(run_id, caller.key):  # the end was still being written to the log
            raise RunsUnavailable

    async def _cancel(self, keeper: KeepsAnswers, run_id: str, caller: Caller) -> Answer:
        """Stop the answer, unless it has ended, and return what it has so far."""
        stopped = await self._runs.stop((run_id,), caller)
        try:
            return keeper.whole(await recall(self._chat.logs, run_id, caller.key))
        except NotFound:
            if not stopped:
                raise
            finale = Finale(code=Stopped.code, message=Stopped.text)  # an answer that is not kept
            return keeper.whole(Kept(id=run_id, model="", asked="", finale=finale))


def _page(keeper: KeepsAnswers, kept: Kept, query: Mapping[str, str]) -> Answer:
    limit = min(max(1, _number(query, "limit", 20)), MAX_PAGE)
    newest_first = query.get("order", "desc") != "asc"
    return keeper.input_items(kept, newest_first=newest_first, limit=limit, after=query.get("after", ""))


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    value = query.get(name, "")
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise BadRequest("must be a number", field=name)
    return int(value)
