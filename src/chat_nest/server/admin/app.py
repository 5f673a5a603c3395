"""The ASGI application of the operators' listener: the key, the route, and errors as JSON. No text of a chat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial

from chat_nest.asgi.request import Receive, Send, query_fields, read_json_body
from chat_nest.asgi.response import error_headers, respond
from chat_nest.core import header_fields
from chat_nest.core.errors import (
    BadRequest,
    ChatError,
    ClientGone,
    LimiterUnavailable,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    StoreEmptied,
    Unauthorized,
)
from chat_nest.core.parts import failure_text
from chat_nest.core.protocols import Answer, Scope
from chat_nest.dialects.strict_json import parse_object
from chat_nest.server.admin.keys import OperatorKeys
from chat_nest.server.admin.live import STREAM_HEADERS, Live
from chat_nest.server.admin.routes import AdminRequest, AdminRoute, Reply, checked, json
from chat_nest.server.admin.spend import Spend
from chat_nest.server.app import ServerApp
from chat_nest.server.operator import Rejected
from chat_nest.server.page_files import PageFile
from chat_nest.stores.places import place_of, remedy_of, sentence

log = logging.getLogger("chat_nest.server")

MAX_BYTES = 16_384
SECONDS = 60.0
"""The longest that an answer may take: a reload of many workers."""
METRICS_OFF = "The metrics are off: set enabled = true in [metrics]"


class AdminApp:
    """Answers operators who send one of the keys in force. `/healthz` and the page's files need none."""

    def __init__(self, app: ServerApp, routes: Sequence[AdminRoute], files: Mapping[str, PageFile]) -> None:
        self._app = app
        self._routes = routes
        self._files = files
        self._spend = Spend(app)
        self.live = Live()
        """The streams of the page."""
        self._keys = OperatorKeys(lambda: app.config.admin_keys, lambda: app.operators)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # nothing to start or end: the application of the chat does that
        try:
            await self._answer(scope, receive, send)
        except ClientGone:
            return
        except ChatError as error:
            await self._refuse(send, error)
        except Exception as bug:
            log.error("the operators' listener failed: %s", failure_text(bug))  # noqa: TRY400 - no values in logs
            await self._refuse(send, ChatError("It failed: see the log of the server"))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], "GET" if scope["method"] == "HEAD" else scope["method"]
        if (file := self._files.get(path)) is not None:
            if method != "GET":
                raise MethodNotAllowed("GET, HEAD")
            await file.serve(scope, send)
            return
        found = [(route, id) for route in self._routes if (id := route.match(path)) is not None]
        by = "" if any(not route.needs_key for route, _ in found) else await self._keys.check(scope)
        if not found:
            raise NotFound("There is nothing at this path: see /openapi.json")
        fitting = [(route, id) for route, id in found if route.method == method]
        if not fitting:
            raise MethodNotAllowed(", ".join("GET, HEAD" if each.method == "GET" else each.method for each, _ in found))
        [(route, id)] = fitting
        if route.streams:
            asked = AdminRequest(app=self._app, spend=self._spend, by=by, fields={})
            await self._stream(scope, receive, send, asked)
            return
        if route.serve is None:
            if self._app.metrics is None:
                raise NotFound(METRICS_OFF)
            await self._app.metrics(scope, receive, send)
            return
        fields = query_fields(scope) if method == "GET" else await _body(scope, receive)
        asked = AdminRequest(app=self._app, spend=self._spend, by=by, fields=checked(fields, route.fields), id=id)
        reply = await self._serve(route, asked)
        await respond(send, Answer(status=reply.status, body=reply.body))

    async def _stream(self, scope: Scope, receive: Receive, send: Send, asked: AdminRequest) -> None:
        """Send events until the client leaves, its key is removed, or the process ends."""
        gone = asyncio.create_task(_disconnect(receive))
        try:
            async with aclosing(self.live.stream(asked, partial(self._still_right, scope))) as events:
                data = await anext(events, b"")  # it may be refused, before the head is sent
                await send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS]})
                while data and not gone.done() and scope["method"] == "GET":
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    data = await anext(events, b"")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            await asyncio.wait([gone])

    async def _still_right(self, scope: Scope) -> bool:
        """Return whether the key of a stream is still in force, or can't be checked now."""
        try:
            await self._keys.check(scope)
        except (Unauthorized, RateLimited):
            return False
        except LimiterUnavailable:
            return True
        return True

    async def _serve(self, route: AdminRoute, asked: AdminRequest) -> Reply:
        assert route.serve is not None
        try:
            async with asyncio.timeout(SECONDS):
                return await route.serve(asked)
        except Rejected as error:
            raise BadRequest(str(error), field=error.field) from None
        except StoreEmptied as error:
            store = self._app.handler.store
            raise LimiterUnavailable(f"{sentence(place_of(store))}: {error.advice}") from None
        except (LimiterUnavailable, TimeoutError):
            store = self._app.handler.store
            raise LimiterUnavailable(f"{sentence(place_of(store))} does not answer: {remedy_of(store)}") from None

    async def _refuse(self, send: Send, error: ChatError) -> None:
        field = error.field if isinstance(error, BadRequest) else ""
        message = f"{field} {error.message}" if field else error.message
        body = json({"error": message, "code": error.code, **({"field": field} if field else {})})
        await respond(send, Answer(status=error.status, body=body), error_headers(error))


async def _disconnect(receive: Receive) -> None:
    """Return once the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(scope: Scope, receive: Receive) -> dict[str, object]:
    """Return the fields of the body; none if it is empty. Raises what reading and parsing it raises."""
    if header_fields.value(scope, b"content-type") is None and not _has_body(scope):
        return {}
    return parse_object(await read_json_body(scope, receive, MAX_BYTES))


def _has_body(scope: Scope) -> bool:
    length = header_fields.value(scope, b"content-length")
    return header_fields.value(scope, b"transfer-encoding") is not None or length not in (None, b"0")
