"""The chat endpoint as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

import msgspec

from chat_nest.asgi.cors import Cors
from chat_nest.asgi.quota_headers import quota_headers
from chat_nest.asgi.request import ABORT, GONE, PUSH, Receive, Send, idempotency_key, read_json_body
from chat_nest.asgi.response import error_headers, respond
from chat_nest.asgi.routes import Found, Routes, relative_path
from chat_nest.asgi.run_routes import RunRoutes, asked_run
from chat_nest.asgi.stream import EventStream
from chat_nest.chat import Chat
from chat_nest.errors import ChatError, ClientGone, MethodNotAllowed, NotFound, Overloaded, Shutdown
from chat_nest.ledger import Ledger
from chat_nest.limits import Quota, Timeouts
from chat_nest.protocols import Answer, Dialect, Now, Provider, Route, Scope
from chat_nest.run import Run
from chat_nest.stores.prefunded import Prefunded
from chat_nest.usage import NANO

Headers = Sequence[tuple[bytes, bytes]]

USAGE_METHODS = "GET, OPTIONS"
USAGE_PATHS = ("/api/usage", "/usage")

CLOSE_SECONDS = 10.0
RETRY_SECONDS = 2.0
"""For the Retry-After of a server that is full or ends; another one may have room at once."""

log = logging.getLogger("chat_nest.asgi")
_json = msgspec.json.Encoder().encode


class ChatHandler:
    """An ASGI application that answers chats; make one with `create_chat_handler`.

    Mounted somewhere, it answers at the mount point itself and at each dialect's path below it; `GET usage` tells a
    caller what is left. An ASGI lifespan or `async with` starts and closes it; without one it starts at the first
    request, logs a warning, and `aclose()` closes it.
    """

    def __init__(
        self,
        chat: Chat,
        ledger: Ledger,
        providers: Mapping[str, Provider],
        *,
        dialects: Sequence[Dialect],
        timeouts: Timeouts,
        cors: Cors,
        max_body_bytes: int,
        max_streams: int | None,
        now: Now,
    ) -> None:
        self.providers = providers
        self.store = ledger.store
        self._chat = chat
        self._ledger = ledger
        self._routes = Routes(dialects)
        self.dialects = dialects
        self.max_body_bytes = max_body_bytes
        self._first_dialect = dialects[0]
        self._timeouts = timeouts
        self._cors = cors
        self._max_streams = max_streams
        self._now = now
        self._runs: dict[str, Run] = {}
        self._run_routes = RunRoutes(chat, self._runs, timeouts)
        self._closing = False
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            msg = f"chat_nest answers HTTP, not {scope['type']}"
            raise RuntimeError(msg)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._started:
            self._warn_of_no_lifespan()
        path = relative_path(scope)
        found = self._routes.find(path)
        run = Run(token_hex(12), asyncio.get_running_loop().time())
        headers = [(b"x-request-id", run.id.encode()), *self._cors.headers(scope)]
        try:
            if found is not None:
                await self._answer(run, found, headers, scope, receive, send)
            elif asked := asked_run(path.lower(), scope["path"]):
                found = self._routes.find(asked.base)
                if found is None or found.below:
                    raise NotFound
                if not await self._preflight(scope, send, run, asked.methods):
                    await self._run_routes.serve(asked, found.dialect, headers, scope, receive, send)
            elif path.lower() in USAGE_PATHS:
                if not await self._preflight(scope, send, run, USAGE_METHODS):
                    body, quotas = await self._usage(scope)
                    await respond(send, Answer(status=200, body=body), [*headers, *quotas])
            else:
                below = " below the path where it is mounted" if scope.get("root_path") else ""
                raise NotFound(f"Nothing is here. The chat answers {self._routes.shown} and GET /api/usage{below}.")
        except ClientGone:
            return
        except ChatError as error:
            refusal = (found.dialect if found else self._first_dialect).refuse(error, run.id)
            await respond(send, refusal, [*headers, *error_headers(error)])

    async def _answer(
        self, run: Run, found: Found, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        hint = "a chat is a POST with a JSON body" if "POST" in found.methods else ""
        if await self._preflight(scope, send, run, found.allow, hint):
            return
        route = found.of(scope["method"])
        assert route is not None
        dialect, what = route
        if what.models is not None:
            answer = what.models(await self._chat.models(scope), found.below)
            await respond(send, answer, headers)
        else:
            await self._serve(run, dialect, what, headers, scope, receive, send)

    async def _preflight(self, scope: Scope, send: Send, run: Run, methods: str, hint: str = "") -> bool:
        """Answer OPTIONS and return True; raise MethodNotAllowed for a method that is not among `methods`."""
        if scope["method"] == "OPTIONS":
            request_id = (b"x-request-id", run.id.encode())
            preflight = self._cors.preflight(scope, methods.encode())
            await respond(send, Answer(status=204, body=b""), [request_id, *preflight])
            return True
        if scope["method"] not in methods.split(", "):
            raise MethodNotAllowed(methods, hint)
        return False

    async def _serve(
        self,
        run: Run,
        dialect: Dialect,
        route: Route,
        headers: Headers,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._admit()
        run.key = idempotency_key(scope)
        body = await read_json_body(scope, receive, self.max_body_bytes) if route.body is None else route.body(scope)
        if body is None:
            await respond(send, Answer(status=204, body=b""), headers)
            return
        run.body = body
        self._admit()  # again, since that may have taken a while
        extensions: dict[str, Any] = scope.get("extensions") or {}
        abort = extensions.get(ABORT)
        stream = EventStream(send, run, dialect, headers, self._timeouts, abort, extensions.get(PUSH))
        # The story has a task of its own: the server may cancel ours at any time and as often as it likes.
        run.task = asyncio.create_task(self._chat.serve(run, dialect, scope, stream))
        over = run.over = asyncio.get_running_loop().create_future()
        stop_watching = _watch(extensions, receive, run)
        self._chat.logs.attend()
        self._runs[run.id] = run
        run.task.add_done_callback(lambda _: self._forget(run, stream))
        try:
            await over
        except asyncio.CancelledError:
            run.leave(Shutdown())  # a server may cancel whoever has left
            if not run.detached:
                await asyncio.wait([run.task])
            raise
        finally:
            stop_watching()
        if run.lost_reader and abort is not None:
            abort()
        if run.attached is not None and not run.lost_reader:
            await self._run_routes.follow(run.attached, dialect, 0, headers, scope, receive, send)

    def _admit(self) -> None:
        """Raise Shutdown or Overloaded while it costs nothing yet."""
        if self._closing:
            raise Shutdown(retry_after=RETRY_SECONDS)
        if self._max_streams is not None and len(self._runs) >= self._max_streams:
            raise Overloaded(retry_after=RETRY_SECONDS)

    def drain(self) -> None:
        """Begin no new answers: from now on they are refused with `shutdown`. Those that run go on."""
        self._closing = True

    @property
    def running(self) -> int:
        """How many answers run, with a reader or without."""
        return len(self._runs)

    def _forget(self, run: Run, stream: EventStream) -> None:
        stream.close()
        run.be_over()
        del self._runs[run.id]
        if run.grace is not None:
            run.grace.cancel()
        if run.log is not None:
            self._chat.logs.ended(run.id, run.names)

    async def _usage(self, scope: Scope) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """What the caller's own limits have left, as JSON and as headers; dollars in dollars."""
        standings = await self._chat.standing(scope)
        limits: list[dict[str, object]] = []
        for line, standing in standings:
            amounts = {"limit": line.limit, "used": standing.used, "held": standing.held, "remaining": standing.room}
            in_usd = line.unit == "nanousd"
            limits.append(
                {
                    "name": line.name,
                    "unit": "usd" if in_usd else line.unit,
                    **({name: amount / NANO for name, amount in amounts.items()} if in_usd else amounts),
                    "resets_at": int(standing.resets_at) or None,
                }
            )
        now = self._now()
        quotas = [Quota(line, standing.room, max(0.0, standing.resets_at - now)) for line, standing in standings]
        return _json({"limits": limits}), quota_headers([line for line, _ in standings], quotas)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncGenerator[None, None]:
        """A lifespan for a host application: `FastAPI(lifespan=handler.lifespan)`."""
        async with self:
            yield

    async def __aenter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Do at once what the first request would start otherwise: keep leases, and settle what crashes have left."""
        self._started = True
        self._closing = False
        self._ledger.start()
        if isinstance(self.store, Prefunded):
            self.store.start()

    def _warn_of_no_lifespan(self) -> None:
        """Warn once, at the first request: a mount gets no lifespan events, so nothing would call `aclose`."""
        self._started = True
        if not self._closing:
            log.warning(
                "the chat was not started, so nothing settles its open answers when the server stops: pass "
                "lifespan=chat.lifespan to your application, or use `async with chat:` in its own lifespan"
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End what still runs with a `shutdown` error, settle it, and close providers and store. Safe to call twice."""
        self._closing = True
        running = [run.task for run in self._runs.values() if run.task is not None]
        for run in list(self._runs.values()):
            run.end(Shutdown())
        if running:
            await asyncio.wait(running, timeout=self._timeouts.write)
        if isinstance(self.store, Prefunded):
            await self.store.retire()
        await self._ledger.aclose()
        for part in (*self.providers.values(), self.store, self._chat.logs):
            if close := getattr(part, "aclose", None):
                try:
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await close()
                except Exception as failure:
                    log.error("%s did not close: %s", type(part).__name__, type(failure).__name__)  # noqa: TRY400


def _watch(extensions: Mapping[str, Any], receive: Receive, run: Run) -> Callable[[], object]:
    """Let the run know when its client leaves, until what is returned is called."""
    when_gone = extensions.get(GONE)
    if when_gone is None:
        return asyncio.create_task(_until_gone(receive, run)).cancel
    when_gone(partial(run.leave, ClientGone()))
    return partial(when_gone, None)


async def _until_gone(receive: Receive, run: Run) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception as failure:
        log.error("request %s: the server lost sight of its client: %s", run.id, type(failure).__name__)  # noqa: TRY400
    run.leave(ClientGone())
