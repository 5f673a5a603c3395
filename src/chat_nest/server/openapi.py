"""GET /openapi.json: what this server answers, as it is configured (OpenAPI 3.1.1, https://spec.openapis.org/oas/v3.1.1).

Paths and methods come from the dialects' routes, statuses from what the dialects make of each error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from chat_nest import __version__
from chat_nest.asgi.handler import USAGE_PATHS, ChatHandler
from chat_nest.dialects.built_in import DIALECTS as BUILT_IN
from chat_nest.errors import (
    BadRequest,
    BodyTooLarge,
    BudgetExceeded,
    ChatError,
    DeadlineExceeded,
    Forbidden,
    InProgress,
    KeyReused,
    LimiterUnavailable,
    Lost,
    NotFound,
    Overloaded,
    RateLimited,
    RequestTooLarge,
    RunsUnavailable,
    Shutdown,
    Stopped,
    TooManyStreams,
    Unauthorized,
    UnsupportedMediaType,
    UpstreamAuth,
    UpstreamError,
    UpstreamIdle,
    UpstreamModelNotFound,
    UpstreamNotStarted,
    UpstreamPaused,
    UpstreamProtocol,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
    UpstreamUnreachable,
)
from chat_nest.protocols import Dialect, Route
from chat_nest.server import answer_schemas as answers
from chat_nest.server.openapi_parts import (
    CONNECTION,
    HEADERS,
    KEY,
    LAST_ID,
    MODEL_NAME,
    RUN_NAME,
    Found,
    Told,
    ref,
    refusal,
    responses,
)
from chat_nest.server.request_schemas import EXAMPLES, REQUESTS
from chat_nest.server.schema_words import Schema

PATH = "/openapi.json"

Errors = Sequence[type[ChatError]]

CALLER: Errors = (Unauthorized, Forbidden)
CHAT: Errors = (
    *(BadRequest, BodyTooLarge, UnsupportedMediaType),
    *(RateLimited, TooManyStreams, RequestTooLarge, BudgetExceeded, LimiterUnavailable, Overloaded, Shutdown),
    *(InProgress, KeyReused, Lost, RunsUnavailable, Stopped, DeadlineExceeded),
    *(
        UpstreamError,
        UpstreamUnavailable,
        UpstreamPaused,
        UpstreamUnreachable,
        UpstreamNotStarted,
        UpstreamRateLimited,
        UpstreamAuth,
    ),
    *(UpstreamRejected, UpstreamModelNotFound, UpstreamProtocol),
    *(UpstreamTruncated, UpstreamTimeout, UpstreamIdle),
)
RUN: Errors = (NotFound, RunsUnavailable)
KNOWN = ("x-request-id",)
LEFT = ("ratelimit", "ratelimit-policy")
TITLE = "Chat Nest"
ABOUT = """A streaming chat endpoint with budgets that hold, in the wire formats that this server has switched on.

OPTIONS is answered everywhere but at the server's own paths; where nothing is generated, HEAD is as GET. Another method
is a 405 with Allow, another path a 404. Paths are compared in lower case. The page at `/` and its files are not listed.
"""
BODY = """At most {most} bytes of UTF-8 JSON, as `application/json` or `application/...+json`, without a content
encoding; at most 32 levels deep, no key twice. What is not named is ignored."""
STREAM = {
    "native": "`start`, then `token` and `ping`, then one `done` or `error`",
    "openai": "`chat.completion.chunk` objects, then `[DONE]`; an object with `error` where it fails",
    "ai_sdk": "The UI message stream of the AI SDK, version 1",
    "ag_ui": "The events of AG-UI: `RUN_STARTED` to `RUN_FINISHED` or `RUN_ERROR`",
    "anthropic": "`message_start` to `message_stop`, or `error`",
    "blog": "`chunk` with `text`, then one `done` or `error`",
}
_json = msgspec.json.Encoder(order="deterministic").encode


def document(
    dialects: Mapping[str, Dialect], *, max_body_bytes: int, names_callers: bool, bearer: bool = False
) -> bytes:
    """The document, as JSON. `dialects` are by name; where a header `names_callers`, who asks may be unknown.

    With `bearer`, that header is `Authorization: Bearer`.
    """
    paths, components = _described(dialects, max_body_bytes, CALLER if names_callers else CALLER[1:])
    for operations in paths.values() if bearer else ():
        for each in operations.values():
            each["security"] = [{"bearer": []}]
    return _json(
        {
            "openapi": "3.1.1",
            "info": {"title": TITLE, "version": __version__, "description": ABOUT},
            "paths": {**paths, **own_paths()},
            "components": {
                **components,
                **({"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}} if bearer else {}),
            },
        }
    )


def add_chat(document: dict[str, Any], chat: ChatHandler, prefix: str = "") -> dict[str, Any]:
    """Add the chat's paths, below the `prefix` where it is mounted, and their components to an application's document.

    Changes the document and returns it. Dialects of your own are left out.
    """
    names: dict[object, str] = {made: name for name, made in BUILT_IN.items()}
    dialects = {names[type(each)]: each for each in chat.dialects if type(each) in names}
    if dialects:
        paths, components = _described(dialects, chat.max_body_bytes, CALLER)
        document.setdefault("paths", {}).update({prefix + path: operations for path, operations in paths.items()})
        for kind, parts in components.items():
            document.setdefault("components", {}).setdefault(kind, {}).update(parts)
    return document


def _described(dialects: Mapping[str, Dialect], max_body_bytes: int, caller: Errors) -> tuple[dict[str, Found], Found]:
    """The paths of the dialects, and the components that they refer to."""
    about = About(dialects, max_body_bytes, caller)
    paths: dict[str, Found] = {}
    for name, dialect in dialects.items():
        for route in dialect.routes:
            for path, operations in about.route(name, route).items():
                paths.setdefault(path, {}).update(operations)
    for path in USAGE_PATHS:
        paths[path] = {"get": about.usage()}
    schemas: dict[str, Schema] = {
        **{f"{name}_request": REQUESTS[name] for name in dialects},
        **{f"{name}_error": answers.ERRORS[name] for name in dialects},
        **{f"{name}_answer": schema for name, schema in answers.WHOLE.items() if name in dialects},
        "refused": answers.REFUSED,
    }
    return paths, {"schemas": schemas, "headers": HEADERS}


class About:
    """Describes the operations of dialects."""

    def __init__(self, dialects: Mapping[str, Dialect], max_body_bytes: int, caller: Errors) -> None:
        self._dialects = dialects
        self._first = next(iter(dialects))
        self._most = max_body_bytes
        self._caller = caller

    def route(self, name: str, route: Route) -> dict[str, Found]:
        """What is answered at and below a route, by path and method."""
        path = "/" + quote(route.path.strip("/"), safe="/!$&'()*+,;=:@~")
        if route.models is not None:
            one = self._models(name, answers.MODEL, NotFound)
            return {
                path: {"get": self._models(name, answers.MODELS)},
                f"{path}/{{model}}": {"get": {**one, "parameters": [MODEL_NAME]}},
            }
        chat = self._chat(name) if route.body is None else self._asked_by_get(name)
        return {
            path: {route.method.lower(): chat},
            f"{path}/{{run}}/stream": {"get": self._stream(name)},
            f"{path}/{{run}}/stop": {"post": self._stop(name)},
        }

    def usage(self) -> Found:
        """GET of what the caller's limits have left."""
        left = Told(status=200, text="What the limits have left", schema=answers.USAGE, headers=(*KNOWN, *LEFT))
        return operation("What is left", "server", left, *self._refusals(self._first, LimiterUnavailable))

    def _chat(self, name: str) -> Found:
        content = {"schema": ref(f"{name}_request"), "examples": {"hello": {"value": EXAMPLES[name]}}}
        body = {
            "required": True,
            "description": BODY.format(most=self._most),
            "content": {"application/json": content},
        }
        chat = operation("Chat", name, *self._told(name), *self._refusals(name, *CHAT))
        return {**chat, "parameters": [KEY], "requestBody": body}

    def _asked_by_get(self, name: str) -> Found:
        schema = REQUESTS[name]["properties"]["message"]
        message = {"name": "message", "in": "query", "required": True, "schema": schema, "example": "Hello"}
        over = Told(status=204, text="An EventSource asks again: its answer is over", headers=KNOWN)
        errors = [error for error in CHAT if error not in (BodyTooLarge, UnsupportedMediaType)]
        chat = operation("Chat", name, over, *self._told(name), *self._refusals(name, *errors))
        return {**chat, "parameters": [KEY, LAST_ID, message]}

    def _told(self, name: str) -> list[Told]:
        """How a chat is answered: as a stream, or whole where the format has that."""
        headers = (*KNOWN, *LEFT, "idempotency-replayed")
        told = [
            Told(
                status=200,
                text=STREAM[name],
                schema=answers.EVENTS[name],
                media_type="text/event-stream",
                headers=headers,
            )
        ]
        if name in answers.WHOLE:
            schema = ref(f"{name}_answer")
            told.append(Told(status=200, text="Whole, without `stream`", schema=schema, headers=headers))
        return told

    def _stream(self, name: str) -> Found:
        over = Told(status=204, text="It is over, and the reader has all of it", headers=KNOWN)
        stream = Told(
            status=200, text=STREAM[name], schema=answers.EVENTS[name], media_type="text/event-stream", headers=KNOWN
        )
        follow = operation("Follow a run", name, stream, over, *self._refusals(name, *RUN))
        return {**follow, "parameters": [RUN_NAME, LAST_ID]}

    def _stop(self, name: str) -> Found:
        stopped = Told(status=204, text="It is stopped, or was over", headers=KNOWN)
        return {**operation("Stop a run", name, stopped, *self._refusals(name, *RUN)), "parameters": [RUN_NAME]}

    def _models(self, name: str, schema: Schema, *errors: type[ChatError]) -> Found:
        told = Told(status=200, text="What the caller may name as a model", schema=schema, headers=KNOWN)
        return operation("Models", name, told, *self._refusals(name, *errors))

    def _refusals(self, name: str, *errors: type[ChatError]) -> list[Told]:
        """How the dialect tells these errors, and those of callers."""
        kinds = (*self._caller, *errors)
        told = [refusal(f"{name}_error", kind, self._dialects[name].refuse(kind(), "")) for kind in kinds]
        if NotFound in errors:  # a name may make it a path that nobody has: the first dialect says so
            told.append(refusal(f"{self._first}_error", NotFound, self._dialects[self._first].refuse(NotFound(), "")))
        return told


def operation(summary: str, tag: str, *told: Told) -> Found:
    return {"summary": summary, "tags": [tag], "responses": responses((*told, *CONNECTION))}


def own_paths() -> dict[str, Found]:
    """What the server itself answers, without a dialect."""
    alive = Told(status=200, text="The process is alive", schema=answers.ALIVE)
    ready = Told(status=200, text="They can", schema=answers.READY)
    not_ready = Told(status=503, text="They can't, or the server is ending", schema=answers.NOT_READY)
    info = Told(status=200, text="The model, and what holds for it", schema=answers.INFO)
    this = Told(status=200, text="OpenAPI 3.1", schema={"type": "object"}, headers=("etag",))
    known = Told(status=304, text="The asker has it: If-None-Match names its etag", headers=("etag",))
    operations = {
        "/healthz": operation("Whether the server is alive", "server", alive),
        "/readyz": operation("Whether chats can be answered now", "server", ready, not_ready),
        "/api/info": operation("What the page wants to know", "server", info),
        PATH: operation("This document", "server", this, known),
    }
    return {path: {"get": each} for path, each in operations.items()}
