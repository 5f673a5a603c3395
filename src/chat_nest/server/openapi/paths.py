"""GET /openapi.json: the paths of this server as configured (OpenAPI 3.1.1, https://spec.openapis.org/oas/v3.1.1).

Paths and methods come from the dialects' routes, statuses from the dialects' refusal of each error.
The file is long because each path lists every refusal that it can give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from chat_nest import __version__
from chat_nest.asgi.handler import ChatHandler
from chat_nest.asgi.session_routes import SESSION_PATHS
from chat_nest.asgi.usage_route import USAGE_PATHS
from chat_nest.asgi.visitor_routes import VISIT_PATH
from chat_nest.challenges.settings import PATH as CHALLENGE_PATH
from chat_nest.core.errors import (
    BadRequest,
    Blocked,
    BodyTooLarge,
    BudgetExceeded,
    ChallengeFailed,
    ChallengeRequired,
    ChallengeUnavailable,
    ChatError,
    Closed,
    ContentFiltered,
    ContextLengthExceeded,
    DeadlineExceeded,
    Forbidden,
    HostNotAllowed,
    ImagesNotSupported,
    InProgress,
    KeyReused,
    LimiterUnavailable,
    Lost,
    NotFound,
    OriginNotAllowed,
    Overloaded,
    Paused,
    RateLimited,
    RequestTooLarge,
    RunsUnavailable,
    Shutdown,
    Stopped,
    TooManyStreams,
    TurnNotSigned,
    Unauthorized,
    UnsupportedMediaType,
    UpstreamAuth,
    UpstreamError,
    UpstreamIdle,
    UpstreamModelNotFound,
    UpstreamNotStarted,
    UpstreamOverloaded,
    UpstreamPaused,
    UpstreamProtocol,
    UpstreamQuota,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
    UpstreamUnreachable,
)
from chat_nest.core.protocols import Dialect, Route
from chat_nest.dialects import DIALECTS as BUILT_IN
from chat_nest.dialects.schemas import CHALLENGE, TEXT, Schema
from chat_nest.server.openapi import answers
from chat_nest.server.openapi import sessions as session_parts
from chat_nest.server.openapi.parts import (
    CONNECTION,
    HEADERS,
    KEY,
    LAST_ID,
    MODEL_NAME,
    PAGE,
    READ,
    RUN_NAME,
    JsonObject,
    Told,
    ref,
    refusal,
    responses,
)

PATH = "/openapi.json"
STREAMED = "text/event-stream"

Errors = Sequence[type[ChatError]]

ANYBODY: Errors = (Forbidden, Blocked, HostNotAllowed, OriginNotAllowed)
CALLER: Errors = (Unauthorized, RateLimited, LimiterUnavailable, *ANYBODY)
CHAT: Errors = (
    *(BadRequest, ImagesNotSupported, TurnNotSigned, BodyTooLarge, UnsupportedMediaType, Closed),
    *(RateLimited, TooManyStreams, RequestTooLarge, BudgetExceeded, LimiterUnavailable, Overloaded, Paused, Shutdown),
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
    *(UpstreamOverloaded, UpstreamQuota, ContextLengthExceeded, ContentFiltered),
    *(UpstreamRejected, UpstreamModelNotFound, UpstreamProtocol),
    *(UpstreamTruncated, UpstreamTimeout, UpstreamIdle),
)
COUNT: Errors = (
    BadRequest,
    BodyTooLarge,
    UnsupportedMediaType,
    Closed,
    RateLimited,
    RunsUnavailable,
    Overloaded,
    Shutdown,
)
RUN: Errors = (NotFound, RunsUnavailable)
VISITOR: Errors = (ChallengeRequired,)
SOLUTION: Errors = (
    *(BadRequest, BodyTooLarge, UnsupportedMediaType, RateLimited, LimiterUnavailable),
    *(ChallengeFailed, ChallengeUnavailable),
)
KNOWN = ("x-request-id",)
LEFT = ("ratelimit", "ratelimit-policy")
TITLE = "Chat Nest"
ABOUT = """A streaming chat endpoint with budgets that hold, in the wire formats that this server has switched on.

OPTIONS works at every path except the server's own. HEAD works like GET if the GET generates nothing. Another method
gets a 405 with Allow, another path a 404. Paths are case-sensitive, except in the npm package's own dialect. The page
at `/` and its files are not listed.
"""
BODY = """At most {most} bytes of UTF-8 JSON, as `application/json` or `application/...+json`, plain or with
`content-encoding: gzip`; at most 128 levels deep, no key twice. Fields that are not listed are ignored."""
_json = msgspec.json.Encoder(order="deterministic").encode


def document(
    dialects: Mapping[str, Dialect],
    *,
    max_body_bytes: int,
    names_callers: bool,
    bearer: bool = False,
    strangers: bool = False,
    sessions: bool = False,
    visitors: bool = False,
    challenge: bool = False,
) -> bytes:
    """Return the document, as JSON. `dialects` are by name. If a header `names_callers`, a caller may be unknown.

    With `bearer`, that header is `Authorization: Bearer`, which `strangers` need not have. It may hold a session token
    if there are `sessions`. With `visitors` and `challenge`, their paths are listed.
    """
    caller = (*(CALLER if names_callers else ANYBODY), *(VISITOR if challenge else ()))
    paths, components = _described(dialects, max_body_bytes, caller, sessions=sessions)
    if visitors:
        paths |= visitor_paths(dialects, challenge=challenge)
    for operations in paths.values() if bearer else ():
        for each in operations.values():
            each["security"] = [{"bearer": []}, *([{}] if strangers else [])]
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
    """Add the chat's paths, below the `prefix` of its mount, and their components to an application's document.

    Changes the document and returns it. Your own dialects are left out. Raises ValueError, and changes nothing, if the
    document has another component or operation in the place of one of these.
    """
    names: dict[object, str] = {made: name for name, made in BUILT_IN.items()}
    dialects = {names[type(each)]: each for each in chat.dialects if type(each) in names}
    if dialects:
        paths, components = _described(dialects, chat.max_body_bytes, CALLER, sessions=chat.has_sessions)
        below = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
        known = document.get("components", {})
        _check_free("components", {kind: known.get(kind, {}) for kind in components}, components)
        found = document.get("paths", {})
        mounted = {below + path: operations for path, operations in paths.items()}
        _check_free("paths", {path: found.get(path, {}) for path in mounted}, mounted)
        for path, operations in mounted.items():
            document.setdefault("paths", {}).setdefault(path, {}).update(operations)
        for kind, parts in components.items():
            document.setdefault("components", {}).setdefault(kind, {}).update(parts)
    return document


def _check_free(where: str, known: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ValueError if something in `new` already exists and differs."""
    for group, parts in new.items():
        for name, part in parts.items():
            if name in known[group] and _json(known[group][name]) != _json(part):
                raise ValueError(f"the document has another {where}[{group!r}][{name!r}]: give that one another name")


def _described(
    dialects: Mapping[str, Dialect], max_body_bytes: int, caller: Errors, *, sessions: bool
) -> tuple[dict[str, JsonObject], JsonObject]:
    """Return the paths of the dialects, and the components that they refer to."""
    about = About(dialects, max_body_bytes, caller, sessions=sessions)
    paths: dict[str, JsonObject] = {}
    for name, dialect in dialects.items():
        for route in (each for each in dialect.routes if not each.header):
            for path, operations in about.route(name, route).items():
                paths.setdefault(path, {}).update(operations)
    for path in USAGE_PATHS:
        paths[path] = {"get": about.usage()}
    for path in SESSION_PATHS if sessions else ():
        paths[path] = {"post": about.session()}
        paths[f"{path}/{{session}}"] = {"delete": about.revocation()}
    known = {name: BUILT_IN[name].facts for name in dialects}
    schemas: dict[str, Schema] = {
        **{f"{name}_request": facts.request for name, facts in known.items()},
        **{f"{name}_error": facts.error for name, facts in known.items()},
        **{f"{name}_answer": facts.answer for name, facts in known.items() if facts.answer is not None},
        "refused": answers.REFUSED,
    }
    return paths, {"schemas": schemas, "headers": HEADERS}


class About:
    """Describes the operations of dialects."""

    def __init__(self, dialects: Mapping[str, Dialect], max_body_bytes: int, caller: Errors, *, sessions: bool) -> None:
        self._dialects = dialects
        self._first = next(iter(dialects))
        self._most = max_body_bytes
        self._sessions = sessions
        self._caller = (*caller, *session_parts.CHECKED) if sessions else caller

    def route(self, name: str, route: Route) -> dict[str, JsonObject]:
        """Return the operations at and below a route, by path and method."""
        path = "/" + quote(route.path.strip("/"), safe="/!$&'()*+,;=:@~")
        if route.models is not None:
            one = self._models(name, answers.MODEL, NotFound)
            return {
                path: {"get": self._models(name, answers.MODELS)},
                f"{path}/{{model}}": {"get": {**one, "parameters": [MODEL_NAME]}},
            }
        if route.kept:
            return self._kept(name, path)
        if route.count is not None:
            return {path: {"post": self._count(name)}}
        chat = self._chat(name) if route.body is None else self._asked_by_get(name)
        return {
            path: {route.method.lower(): chat},
            f"{path}/{{run}}/stream": {"get": self._stream(name)},
            f"{path}/{{run}}/stop": {"post": self._stop(name)},
        }

    def _kept(self, name: str, path: str) -> dict[str, JsonObject]:
        """Return the operations of kept answers."""

        def one(summary: str, schema: Schema, *more: Told, errors: Errors = RUN, **parameters: Any) -> JsonObject:
            told = Told(status=200, text=summary, schema=schema, headers=KNOWN)
            found = operation(summary, name, told, *more, *self._refusals(name, *errors))
            return {**found, "parameters": [RUN_NAME, *parameters.values()]}

        object = ref(f"{name}_answer")
        stream = Told(
            status=200,
            text="With `stream`: the events, as far as they are kept",
            schema=BUILT_IN[name].facts.event,
            media_type="text/event-stream",
            headers=KNOWN,
        )
        asked: Errors = (*RUN, BadRequest)
        return {
            f"{path}/{{run}}": {
                "get": one("Read a response", object, stream, errors=asked, **READ),
                "delete": one("Delete a response", answers.DELETED, errors=asked),
            },
            f"{path}/{{run}}/cancel": {"post": one("Cancel a response", object)},
            f"{path}/{{run}}/input_items": {
                "get": one("List the input items", answers.INPUT_ITEMS, errors=asked, **PAGE)
            },
        }

    def usage(self) -> JsonObject:
        """Return GET for what the caller's limits have left."""
        left = Told(status=200, text="What the limits have left", schema=answers.USAGE, headers=(*KNOWN, *LEFT))
        found = operation("What is left", "server", left, *self._refusals(self._first, LimiterUnavailable, BadRequest))
        return {**found, "parameters": [{"name": "profile", "in": "query", "schema": TEXT}]}

    def session(self) -> JsonObject:
        """Return POST for a session token."""
        refused = self._refusals(self._first, *session_parts.MINTING)
        found = operation("Make a session", "server", session_parts.MADE, *refused)
        return {**found, "requestBody": session_parts.BODY}

    def revocation(self) -> JsonObject:
        """Return DELETE for a session."""
        refused = self._refusals(self._first, *session_parts.REVOKING)
        found = operation("Revoke a session", "server", session_parts.GONE, *refused)
        return {**found, "parameters": [session_parts.ID]}

    def _chat(self, name: str) -> JsonObject:
        errors = (*CHAT, NotFound) if hasattr(self._dialects[name], "earlier") else CHAT
        chat = operation("Chat", name, *self._told(name), *self._refusals(name, *errors))
        return {**chat, "parameters": [KEY], "requestBody": self._body(name)}

    def _body(self, name: str) -> JsonObject:
        content = {"schema": ref(f"{name}_request"), "examples": {"hello": {"value": BUILT_IN[name].facts.example}}}
        return {
            "required": True,
            "description": BODY.format(most=self._most),
            "content": {"application/json": content},
        }

    def _count(self, name: str) -> JsonObject:
        told = Told(status=200, text="The tokens of the input", schema=answers.COUNTED, headers=KNOWN)
        refused = self._refusals(name, *COUNT, *((NotFound,) if hasattr(self._dialects[name], "earlier") else ()))
        return {**operation("Count tokens", name, told, *refused), "requestBody": self._body(name)}

    def _asked_by_get(self, name: str) -> JsonObject:
        schema = BUILT_IN[name].facts.request["properties"]["message"]
        message = {"name": "message", "in": "query", "required": True, "schema": schema, "example": "Hello"}
        over = Told(status=204, text="An EventSource reconnects after its answer is over", headers=KNOWN)
        errors = [error for error in CHAT if error not in (BodyTooLarge, UnsupportedMediaType)]
        chat = operation("Chat", name, over, *self._told(name), *self._refusals(name, *errors))
        return {**chat, "parameters": [KEY, LAST_ID, message]}

    def _told(self, name: str) -> list[Told]:
        """Return the responses of a chat: a stream, or a whole answer if the format has that."""
        headers = (*KNOWN, *LEFT, "idempotency-replayed")
        told = [
            Told(
                status=200,
                text=BUILT_IN[name].facts.stream,
                schema=BUILT_IN[name].facts.event,
                media_type=STREAMED,
                headers=headers,
            )
        ]
        if BUILT_IN[name].facts.answer is not None:
            schema = ref(f"{name}_answer")
            told.append(Told(status=200, text="Whole, without `stream`", schema=schema, headers=headers))
            text = "Without `stream`, for an `upstream_...` failure that may have been billed: do not repeat it"
            error = ref(f"{name}_error")
            told.append(Told(status=424, text=text, schema=error, headers=(*KNOWN, *LEFT, "x-should-retry")))
        return told

    def _stream(self, name: str) -> JsonObject:
        over = Told(status=204, text="It is over, and the reader has all of it", headers=KNOWN)
        stream = Told(
            status=200,
            text=BUILT_IN[name].facts.stream,
            schema=BUILT_IN[name].facts.event,
            media_type=STREAMED,
            headers=KNOWN,
        )
        follow = operation("Follow a run", name, stream, over, *self._refusals(name, *RUN))
        query = [session_parts.READ_TOKEN] if self._sessions else []
        return {**follow, "parameters": [RUN_NAME, LAST_ID, *query]}

    def _stop(self, name: str) -> JsonObject:
        stopped = Told(status=204, text="It is stopped, or was over", headers=KNOWN)
        return {**operation("Stop a run", name, stopped, *self._refusals(name, *RUN)), "parameters": [RUN_NAME]}

    def _models(self, name: str, schema: Schema, *errors: type[ChatError]) -> JsonObject:
        told = Told(status=200, text="What the caller may name as a model", schema=schema, headers=KNOWN)
        return operation("Models", name, told, *self._refusals(name, *errors))

    def _refusals(self, name: str, *errors: type[ChatError]) -> list[Told]:
        """Return the dialect's responses for these errors, and for those of callers."""
        kinds = (*self._caller, *errors)
        told = [refusal(f"{name}_error", kind, self._dialects[name].refuse(kind(), "")) for kind in kinds]
        told = [
            replace(each, schema=BUILT_IN[name].facts.event) if each.media_type == STREAMED else each for each in told
        ]
        if NotFound in errors:  # some names give a path of no dialect: the first one refuses it
            told.append(refusal(f"{self._first}_error", NotFound, self._dialects[self._first].refuse(NotFound(), "")))
        return told


def operation(summary: str, tag: str, *told: Told) -> JsonObject:
    return {"summary": summary, "tags": [tag], "responses": responses((*told, *CONNECTION))}


def visitor_paths(dialects: Mapping[str, Dialect], *, challenge: bool) -> dict[str, JsonObject]:
    """Return the paths of visitors. Their refusals are in the format of the first dialect."""
    name, dialect = next(iter(dialects.items()))

    def one(summary: str, schema: Schema, *errors: type[ChatError]) -> JsonObject:
        told = Told(status=200, text=summary, schema=schema, headers=(*KNOWN, "set-cookie"))
        kinds: Errors = tuple(dict.fromkeys((*CALLER, Overloaded, Shutdown, *errors)))
        return operation(
            summary, "visitors", told, *(refusal(f"{name}_error", kind, dialect.refuse(kind(), "")) for kind in kinds)
        )

    paths = {VISIT_PATH: {"post": one("Get a visitor's token", answers.VISIT)}}
    if challenge:
        solve = one("Send the solution of a challenge", answers.PASSED, *SOLUTION)
        body = {"required": True, "content": {"application/json": {"schema": answers.SOLUTION}}}
        challenge_path = {"get": one("Get a challenge", CHALLENGE), "post": {**solve, "requestBody": body}}
        paths[CHALLENGE_PATH] = challenge_path
    return paths


def own_paths() -> dict[str, JsonObject]:
    """Return the paths of the server itself, without a dialect."""
    alive = Told(status=200, text="The process is alive", schema=answers.ALIVE)
    ready = Told(status=200, text="They can", schema=answers.READY)
    not_ready = Told(status=503, text="They can't, or the server is ending", schema=answers.NOT_READY)
    version = Told(status=200, text="The version of the server", schema=answers.VERSION)
    info = Told(status=200, text="The model, and what holds for it", schema=answers.INFO)
    this = Told(status=200, text="OpenAPI 3.1", schema={"type": "object"}, headers=("etag",))
    known = Told(status=304, text="The asker has it: If-None-Match names its etag", headers=("etag",))
    operations = {
        "/healthz": operation("Whether the server is alive", "server", alive),
        "/readyz": operation("Whether chats can be answered now", "server", ready, not_ready),
        "/version": operation("The server's version", "server", version),
        "/api/info": operation("What the page wants to know", "server", info),
        PATH: operation("This document", "server", this, known),
    }
    return {path: {"get": each} for path, each in operations.items()}
