"""The chat endpoint as an ASGI application.

The file is long because one class has the routes and the life of the handler: each request depends on both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from msgspec.structs import replace

from chat_nest.asgi.cors import PROGRAM
from chat_nest.asgi.figures import HandlerFigures
from chat_nest.asgi.kept_routes import KeptRoutes, asked_kept
from chat_nest.asgi.parts import Parts, make_parts
from chat_nest.asgi.reader import attend
from chat_nest.asgi.request import Receive, Send, idempotency_key, read_json_body
from chat_nest.asgi.response import Headers, error_headers, longest_wait, respond
from chat_nest.asgi.response_stream import ResponseStream
from chat_nest.asgi.routing import Found, is_literal, relative_path
from chat_nest.asgi.run_routes import RunRoutes, asked_run
from chat_nest.asgi.session_routes import SessionRoutes, asked_session, check_grant, follows
from chat_nest.asgi.settings import CAN_CHANGE, ChangeableSettings, takes_some_fields_of
from chat_nest.asgi.stopping import Stopping
from chat_nest.asgi.usage_route import USAGE_METHODS, USAGE_PATHS, usage
from chat_nest.asgi.visitor_routes import METHODS, VisitorRoutes
from chat_nest.controls.gate import Address
from chat_nest.controls.grants import Grants
from chat_nest.controls.live import LiveControls
from chat_nest.core.claims import Line, Standing
from chat_nest.core.errors import (
    ChatError,
    ClientGone,
    MethodNotAllowed,
    NotFound,
    OriginNotAllowed,
    Overloaded,
    Shutdown,
)
from chat_nest.core.messages import Caller
from chat_nest.core.parts import offers
from chat_nest.core.protocols import Answer, Dialect, ReadsHeld, Route, Scope
from chat_nest.core.request_log import CURRENT, RequestLog
from chat_nest.dialects import name_of
from chat_nest.identity.sessions import Sessions
from chat_nest.identity.visitors import ANSWER_HEADERS
from chat_nest.ledger.ledger import Ledger
from chat_nest.pipeline.admission import Arrival
from chat_nest.pipeline.chat import Chat
from chat_nest.pipeline.lifecycle import Lifecycle
from chat_nest.pipeline.terms import close

RETRY_SECONDS = 2.0
"""Retry-After of a server that is full or shuts down; another server may have room at once."""

log = logging.getLogger("chat_nest.asgi")


class ChatHandler:
    """An ASGI application that answers chats. Make one with `create_chat_handler`.

    When it is mounted, it answers at the mount point itself and at each dialect's path below it; `GET usage` returns
    what the caller has left. An ASGI lifespan or `async with` starts and closes it. Without either it starts at the
    first request, logs a warning, and `aclose()` closes it.
    """

    def __init__(
        self,
        chat: Chat,
        ledger: Ledger,
        parts: Parts,
        controls: LiveControls,
        grants: Grants,
    ) -> None:
        self.store = ledger.store
        self.controls = controls
        """What every process must know within a second: pauses, blocks, grants."""
        self.figures = HandlerFigures(ledger, chat.queue, chat.terms, grants, lambda: self.running, parts.settings.now)
        """What it has to do now, and how the shared limits stand."""
        self._chat = chat
        self._ledger = ledger
        self._timeouts = parts.settings.timeouts
        self._counters = parts.counters
        self._closing_gates: set[asyncio.Task[None]] = set()
        self._callers = chat.callers
        self._started = False
        self._use(parts)
        self._runs: dict[str, Lifecycle] = {}
        self._stopping = Stopping(chat.gate, self._runs)
        self._run_routes = RunRoutes(chat, self._runs, self._timeouts, self._admit_reader, self._refused_reader)
        self._kept_routes = KeptRoutes(chat, self._run_routes)
        chat.queue.limit_worker(self._streams_of_worker)
        self._closing = False
        controls.listen(self._obey)

    @takes_some_fields_of(ChangeableSettings)
    def reload(self, changes: Mapping[str, Any]) -> None:
        """Replace arguments of `create_chat_handler` from the next request on; those that are not given stay.

        Example: `handler.reload(profiles=..., limits=...)`. Call it on the event loop of the handler. Running answers
        go on, and settle under the profiles and prices with which they began; budgets keep their counts. The handler
        owns new providers; a provider that is no longer among them is closed when its last answer has ended.

        Raises what `create_chat_handler` raises, and TypeError for an argument that can't change; then nothing changes.
        """
        self.adopt(self.prepare(**changes))

    @takes_some_fields_of(ChangeableSettings)
    def prepare(self, changes: Mapping[str, Any]) -> Parts:
        """Build what `adopt` puts in force; it may take a while, so another thread may call it.

        Raises the same as `reload`.
        """
        if fixed := sorted(set(changes) - CAN_CHANGE):
            raise TypeError(f"{fixed[0]} can't change while the handler runs; {', '.join(sorted(CAN_CHANGE))} can")
        if "profiles" in changes:
            changes = {"model": None, "preset": "default", **changes}
        if "origins" in changes:
            changes = {"cors_origins": None, **changes}
        elif "cors_origins" in changes:
            changes = {"origins": None, **changes}
        if "providers" in changes:
            changes = {"api_key": None, "base_url": None, **changes}
        return make_parts(replace(self.parts.settings, **changes), self.parts)

    def adopt(self, parts: Parts) -> None:
        """Put the parts that `prepare` returned in force. Never fails."""
        self._counters.become(parts.counters)
        self._callers.adopt(parts.callers)
        self._chat.terms.replace(parts.terms)
        if (gate := self.parts.visitor_gate) is not None:
            closing = asyncio.get_running_loop().create_task(close(gate))
            self._closing_gates.add(closing)
            closing.add_done_callback(self._closing_gates.discard)
        self._use(parts)

    def _use(self, parts: Parts) -> None:
        settings, uploads = parts.settings, parts.uploads
        self.parts = parts
        self.providers = parts.providers
        self.dialects = parts.dialects
        self.max_body_bytes = settings.max_body_bytes
        self.max_upload_bytes = max(self.max_body_bytes, 0 if uploads is None else uploads.most)
        self._routes = parts.routes
        self._uploads = uploads
        self._cors = parts.cors
        self._hosts = parts.hosts
        self._max_streams = settings.max_streams
        self._chat.queue.adjust(settings.provider_streams or {}, settings.queue)
        self._sessions = sessions = parts.sessions
        rules = parts.terms.profiles
        self._session_routes = None if sessions is None else SessionRoutes(sessions, self._callers, rules)
        if sessions is not None:
            sessions.bind(lambda grant: check_grant(grant, rules), self.controls)
            if self._started:
                self.controls.start()
        visitors, gate = settings.visitors, parts.visitor_gate
        self._visitor_routes = None if visitors is None else VisitorRoutes(visitors, gate, self._callers)
        if gate is not None:
            gate.attach(self._peek_shared, self.controls.first)

    async def _peek_shared(self) -> list[tuple[Line, Standing]]:
        """Return the limits for all callers, and their state."""
        lines = self.parts.terms.profiles.shared_lines(self.parts.settings.now())
        return list(zip(lines, await self._ledger.peek(lines), strict=True))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            msg = f"chat_nest answers HTTP, not {scope['type']}"
            raise RuntimeError(msg)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. The function is long because the order of these steps is what matters."""
        if not self._started:
            self._warn_of_no_lifespan()
        path = relative_path(scope)
        found = self._routes.find(path)
        id = token_hex(12)
        facts = _log_facts(id)
        headers = [(b"x-request-id", id.encode()), *self._cors.headers(scope)]
        scope[ANSWER_HEADERS] = headers
        try:
            self._hosts.check(scope)
            if found is not None:
                facts.route = path.removesuffix(found.below).lower() + ("/{id}" if found.below else "")
                found = found.chosen(scope)
                if not is_literal(scope, path.removesuffix(found.below)):
                    raise NotFound
                await self._answer(id, found, headers, scope, receive, send)
            elif asked := asked_run(path):
                found = self._routes.exactly(asked.base)
                facts.route = "" if found is None else f"{asked.base}/{{id}}"
                if found is None or not is_literal(scope, asked.base):
                    raise NotFound
                if not await self._preflight(scope, send, id, asked.methods):
                    self._cors.check(scope)
                    if scope["method"] == "GET" and self._sessions is not None:
                        scope = follows(scope)
                    await self._run_routes.serve(asked, found.dialect, headers, scope, receive, send)
            elif self._session_routes is not None and (session := asked_session(path)) and is_literal(scope, path):
                facts.route = path.removesuffix(session.id) + ("{id}" if session.id else "")
                if not await self._preflight(scope, send, id, session.methods):
                    self._cors.check(scope)
                    await respond(send, await self._session_routes.serve(session, scope, receive), headers)
            elif path in USAGE_PATHS and is_literal(scope, path):
                facts.route = path
                if not await self._preflight(scope, send, id, USAGE_METHODS):
                    body, quotas = await usage(self._callers, scope)
                    await respond(send, Answer(status=200, body=body), [*headers, *quotas])
            elif self._visitor_routes is not None and path in METHODS and is_literal(scope, path):
                if not await self._preflight(scope, send, id, METHODS[path]):
                    self._admit()
                    self._cors.check(scope)
                    await self._visitor_routes.serve(path, headers, scope, receive, send)
            else:
                below = " below the path where it is mounted" if scope.get("root_path") else ""
                raise NotFound(f"Nothing is here. The chat answers {self._routes.shown} and GET /api/usage{below}.")
        except ClientGone:
            return
        except ChatError as error:
            dialect = found.dialect if found else self._routes.nearest(path)
            await respond(send, dialect.refuse(error, id), [*headers, *error_headers(error, longest_wait(dialect))])

    async def _answer(
        self, id: str, found: Found, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if found.below and found.is_kept:
            await self._kept(id, found, headers, scope, receive, send)
            return
        route = found.of(scope["method"])
        if route is None:
            hint = "a chat is a POST with a JSON body" if "POST" in found.methods else ""
            await self._preflight(scope, send, id, found.allow, hint)
            return
        dialect, what = route
        if what.models is not None:
            answer = what.models(await self._callers.models(scope), found.below)
            await respond(send, answer, headers)
        elif what.count is not None:
            self._gate(scope)
            self._admit()
            caller = await self._callers.identify(scope)
            body = await self._body(dialect, scope, receive)
            tokens, exact = await self._chat.count(dialect, body, caller)
            await respond(send, what.count(tokens, exact=exact), headers)
        else:
            self._gate(scope)
            await self._serve(id, dialect, what, headers, scope, receive, send)

    async def _kept(self, id: str, found: Found, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer below a path of kept answers. Raises NotFound for any other path."""
        asked = asked_kept(found.below)
        if asked is None:
            raise NotFound
        if not await self._preflight(scope, send, id, asked.methods):
            self._cors.check(scope)
            await self._kept_routes.serve(asked, found.dialect, headers, scope, receive, send)

    async def _preflight(self, scope: Scope, send: Send, id: str, methods: str, hint: str = "") -> bool:
        """Answer OPTIONS and return True. Raise MethodNotAllowed for a method that is not among `methods`."""
        if scope["method"] == "OPTIONS":
            request_id = (b"x-request-id", id.encode())
            preflight = self._cors.preflight(scope, methods.encode())
            await respond(send, Answer(status=204, body=b""), [request_id, *preflight])
            return True
        if scope["method"] not in methods.split(", "):
            raise MethodNotAllowed(methods, hint)
        return False

    async def _serve(
        self,
        id: str,
        dialect: Dialect,
        route: Route,
        headers: Headers,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        name, began_at = name_of(dialect), asyncio.get_running_loop().time()
        self._chat.observing.arrived(id, name, scope)
        try:
            self._admit()
            arrival = Arrival(id=id, dialect=dialect, name=name, scope=scope, key=idempotency_key(scope))
            body = await self._body(dialect, scope, receive) if route.body is None else route.body(scope)
            self._admit()  # again, since that may have taken a while
        except ChatError as error:
            self._chat.observing.turned_away(id, name, error, began_at)
            raise
        if body is None:
            await respond(send, Answer(status=204, body=b""), headers)
            return
        life = Lifecycle(id)
        extensions: Mapping[str, Any] = scope.get("extensions") or {}
        stream = ResponseStream(send, life, dialect, headers, self._timeouts, extensions)
        self._chat.logs.attend()
        self._runs[id] = life
        story = life.begin(self._chat.serve(arrival, body, stream, life), partial(self._forget, life, stream))
        del body  # only the pipeline holds it, until it is parsed
        attached = await attend(life, story, extensions, receive)
        if attached is not None and not life.lost:
            await self._run_routes.attach(attached, dialect, headers, scope, receive, send)

    async def _body(self, dialect: Dialect, scope: Scope, receive: Receive) -> bytes:
        uploads = self._uploads if offers(dialect, ReadsHeld) and dialect.takes_images else None
        return await read_json_body(scope, receive, self.max_body_bytes, uploads)

    def _gate(self, scope: Scope) -> None:
        """Raise OriginNotAllowed for a page, or a program without a credential, that may not spend anything here."""
        self._cors.check(scope)
        if self._cors.needs_credential(scope) and self._callers.is_stranger(scope):
            raise OriginNotAllowed(PROGRAM)

    def _admit(self) -> None:
        """Raise Shutdown or Overloaded before the request has cost anything. With a queue, some requests may wait."""
        if self._closing:
            raise Shutdown(retry_after=RETRY_SECONDS)
        self._admit_reader(self._chat.queue.length)

    def _admit_reader(self, waiting: int = 0) -> None:
        """Raise Overloaded if `max_streams` answers are running or followed, and `waiting` more requests wait."""
        most = None if self._max_streams is None else self._max_streams + waiting
        if most is not None and len(self._runs) + self._run_routes.followers >= most:
            raise Overloaded(retry_after=RETRY_SECONDS)

    def _streams_of_worker(self) -> int | None:
        """Return the most answers that may run; None if nothing waits for one."""
        if self._max_streams is None or not self._chat.queue.length:
            return None
        return self._max_streams - self._run_routes.followers

    def drain(self) -> None:
        """Refuse new answers, and those that wait, with `shutdown` from now on. Running answers go on."""
        self._closing = True
        self._chat.queue.drain()

    @property
    def has_sessions(self) -> bool:
        """Whether this chat accepts session tokens."""
        return self._sessions is not None

    @property
    def sessions(self) -> Sessions:
        """The sessions that this chat accepts. Raises RuntimeError if it was made without any."""
        if self._sessions is None:
            raise RuntimeError("this chat has no sessions: pass sessions=chat_nest.Sessions([secret])")
        return self._sessions

    @property
    def running(self) -> int:
        """The number of running answers, with or without a reader."""
        return len(self._runs)

    @property
    def draws_on_allowance(self) -> bool:
        """Whether chats can be answered while the store is down, from the allowance of `degraded`."""
        return self._ledger.draws_on_allowance

    def _obey(self) -> None:
        """End the answers, and readers of others, that an operator stopped, and those of revoked keys and sessions."""
        self._stopping.obey(self._sessions)
        self._run_routes.obey()

    def _refused_reader(self, caller: Caller, address: Address | None) -> ChatError | None:
        return self._stopping.refused_reader(caller, address, self._sessions)

    def _forget(self, life: Lifecycle, stream: ResponseStream) -> None:
        stream.close()
        del self._runs[life.id]
        if life.log is not None and life.admission is not None:
            self._chat.logs.ended(life.id, life.admission.names)

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
        """Provide a lifespan for a host application: `FastAPI(lifespan=handler.lifespan)`."""
        async with self:
            yield

    async def __aenter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start what the first request would start: keep leases, and settle the requests of crashed processes."""
        self._started = True
        self._closing = False
        self._chat.queue.open()
        self._ledger.start()
        self.controls.start()

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
        """End running requests with a `shutdown` error, settle them, and close providers and store.

        Safe to call twice.
        """
        self._closing = True
        running = list(self._runs.values())
        for life in running:
            life.end(Shutdown())
        if running:
            await asyncio.wait([life.finished for life in running], timeout=self._timeouts.write)
        await self._chat.queue.aclose()
        await self.controls.aclose()
        await self._ledger.aclose()
        await self._chat.terms.aclose()
        for part in (self.parts.visitor_gate, self.store, self._chat.logs):
            await close(part)


def _log_facts(id: str) -> RequestLog:
    """Give the request's id to every log line in its context; return what its last line holds."""
    facts = CURRENT.get()
    if facts is None or facts.id:  # else it is the HTTP server's, which writes the line
        facts = RequestLog()
        CURRENT.set(facts)
    facts.id = id
    return facts
