"""The parts of operations in the OpenAPI document: parameters, headers, and responses by status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from chat_nest.core.errors import BadRequest, BodyTooLarge, ChatError, HeadersTooLarge, Overloaded, RequestTimeout
from chat_nest.core.protocols import Answer
from chat_nest.dialects.schemas import Schema

JsonObject = dict[str, Any]
"""An operation, its responses by status, or a path's operations by method."""

TEXT: Schema = {"type": "string"}
HEADERS: Mapping[str, Schema] = {
    "x-request-id": {"schema": TEXT, "description": "The request's id, as in the server's log"},
    "www-authenticate": {"schema": {"const": "Bearer"}, "description": "If callers need a key or a token"},
    "retry-after": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds to wait, if known"},
    "ratelimit": {"schema": TEXT, "description": "What the caller has left: draft-ietf-httpapi-ratelimit-headers-10"},
    "ratelimit-policy": {"schema": TEXT, "description": "The limits of `ratelimit`"},
    "idempotency-replayed": {"schema": {"const": "true"}, "description": "The first request's end, without its text"},
    "x-should-retry": {"schema": TEXT, "description": "`false` stops the retries of the official clients"},
    "etag": {"schema": TEXT},
    "set-cookie": {"schema": TEXT, "description": "The visitor's id, for a visitor that has none"},
}
RETRY: Mapping[int, tuple[str, ...]] = {
    401: ("www-authenticate",),
    402: ("ratelimit", "ratelimit-policy"),
    429: ("retry-after", "ratelimit", "ratelimit-policy"),
    **dict.fromkeys((409, 502, 503, 504), ("retry-after",)),
}
"""Headers that a refusal may have, by status."""
KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key again is the same request: it is answered and charged once",
    "schema": {"type": "string", "pattern": '^("[ -~]{1,255}"|[!-~]([ -~]{0,253}[!-~])?)$'},
}
LAST_ID: Schema = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The last id that the reader has, to go on behind it",
    "schema": TEXT,
}
RUN_NAME: Schema = {
    "name": "run",
    "in": "path",
    "required": True,
    "description": "The run's id, or the client's own id of the chat",
    "schema": {"type": "string", "pattern": "^[^/]+$"},
}
READ: Mapping[str, Schema] = {
    name: {"name": name, "in": "query", "description": text, "schema": schema}
    for name, text, schema in (
        ("stream", "`true` for the events, which go on until the answer ends", {"enum": ["true", "false"]}),
        ("starting_after", "The number of the last event that the reader has", {"type": "integer", "minimum": 0}),
    )
}
PAGE: Mapping[str, Schema] = {
    name: {"name": name, "in": "query", "schema": schema}
    for name, schema in (
        ("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
        ("order", {"enum": ["asc", "desc"]}),
        ("after", TEXT),
    )
}
MODEL_NAME: Schema = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


class Told(Struct, frozen=True, kw_only=True):
    """One kind of response. Without a schema it has no body."""

    status: int
    text: str
    schema: Schema | None = None
    media_type: str = "application/json"
    headers: tuple[str, ...] = ()


def ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def refusal(schema: str, error: type[ChatError], answer: Answer) -> Told:
    """Return the general form of `answer`, which a dialect made from an error of this class."""
    said = {name.decode(): value.decode() for name, value in answer.headers}
    media_type = said.pop("content-type").partition(";")[0]
    if media_type == "text/event-stream":  # a response in which the error is an event
        headers = RETRY.get(error.status, ())
    else:
        headers = (*said, *RETRY.get(answer.status, ()))
    text = f"`{error.code}`: {error.text}"
    return Told(
        status=answer.status,
        text=text,
        schema=ref(schema),
        media_type=media_type,
        headers=("x-request-id", *headers),
    )


CONNECTION = tuple(
    refusal("refused", error, Answer(status=error.status, body=b""))
    for error in (BadRequest, RequestTimeout, BodyTooLarge, HeadersTooLarge, Overloaded)
)
"""Refusals of a connection, for any path."""


def responses(told: Iterable[Told]) -> JsonObject:
    """Return the `responses` of an operation, by status."""
    found: dict[int, JsonObject] = {}
    schemas: dict[tuple[int, str], list[Schema]] = {}
    for each in told:
        response = found.setdefault(each.status, {"description": "", "headers": {}})
        if each.text not in response["description"].split("\n"):
            response["description"] += f"\n{each.text}" if response["description"] else each.text
        response["headers"] |= {name: {"$ref": f"#/components/headers/{name}"} for name in each.headers}
        if each.schema is not None:
            of_type = schemas.setdefault((each.status, each.media_type), [])
            of_type += [] if each.schema in of_type else [each.schema]
    for (status, media_type), any_of in schemas.items():
        schema = any_of[0] if len(any_of) == 1 else {"anyOf": any_of}
        found[status].setdefault("content", {})[media_type] = {"schema": schema}
    return {str(status): found[status] for status in sorted(found)}
