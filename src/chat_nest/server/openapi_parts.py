"""What the operations of the OpenAPI document are made of: parameters, headers, and answers by status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from chat_nest.errors import BadRequest, BodyTooLarge, ChatError, HeadersTooLarge, Overloaded, RequestTimeout
from chat_nest.protocols import Answer
from chat_nest.server.schema_words import Schema

Found = dict[str, Any]
"""An operation, its answers by status, or a path's operations by method."""

TEXT: Schema = {"type": "string"}
HEADERS: Mapping[str, Schema] = {
    "x-request-id": {"schema": TEXT, "description": "The request's id, as in the server's log"},
    "www-authenticate": {"schema": {"const": "Bearer"}, "description": "Where callers are told by a key or a token"},
    "retry-after": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds, where they are known"},
    "ratelimit": {"schema": TEXT, "description": "What is left: draft-ietf-httpapi-ratelimit-headers-10"},
    "ratelimit-policy": {"schema": TEXT, "description": "The limits that `ratelimit` is about"},
    "idempotency-replayed": {"schema": {"const": "true"}, "description": "The first request's end, without its text"},
    "x-should-retry": {"schema": TEXT, "description": "`false` keeps the official clients from asking again"},
    "etag": {"schema": TEXT},
}
RETRY: Mapping[int, tuple[str, ...]] = {
    401: ("www-authenticate",),
    429: ("retry-after", "ratelimit", "ratelimit-policy"),
    **dict.fromkeys((409, 502, 503, 504), ("retry-after",)),
}
"""What may come with a refusal, by status."""
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
MODEL_NAME: Schema = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


class Told(Struct, frozen=True, kw_only=True):
    """One way to answer. Without a schema it has no body."""

    status: int
    text: str
    schema: Schema | None = None
    media_type: str = "application/json"
    headers: tuple[str, ...] = ()


def ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def refusal(schema: str, error: type[ChatError], answer: Answer) -> Told:
    """What `answer`, which a dialect made of an error of this kind, tells in general."""
    said = {name.decode(): value.decode() for name, value in answer.headers}
    media_type = said.pop("content-type").partition(";")[0]
    headers = (*said, *RETRY[answer.status]) if answer.status in RETRY else tuple(said)
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
"""What a connection refuses before anybody looks at the path."""


def responses(told: Iterable[Told]) -> Found:
    """What may be answered, by status, in the words of an operation."""
    found: dict[int, Found] = {}
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
