"""The endpoint of many a blog's chat: one message in; `chunk` events, then `done` or `error`, out.

With `get` it answers the browser's own EventSource, too: `GET PATH?message=...`. A GET that spends money can be caused
by any page that a user visits, so it is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qs

from chat_nest.deltas import Batch, TextDelta
from chat_nest.dialects import fields as read
from chat_nest.dialects.frames import EVENT_STREAM, PING, as_json
from chat_nest.errors import BadRequest, ChatError, Forbidden
from chat_nest.messages import ChatRequest, Message
from chat_nest.protocols import Answer, Ending, Route, Scope
from chat_nest.sse import event


class Blog:
    """`path` is where it answers; `get` switches GET on."""

    def __init__(self, path: str = "/chat", *, get: bool = False) -> None:
        routes = [Route(path=path)]
        if get:
            routes.append(Route(path=path, method="GET", body=_from_query))
        self.routes: Sequence[Route] = tuple(routes)

    def parse(self, body: bytes) -> ChatRequest:
        """Raises BadRequest, which names the field and the rule and never the value. Unknown fields are ignored."""
        fields = read.parse_fields(body, read.OWN_CONNECTION)
        said = read.text(fields.get("message"), "message")
        if not said.strip():
            raise BadRequest("must not be blank", field="message")
        return ChatRequest(messages=(Message(role="user", content=said),))

    def encoder(self, request: ChatRequest, run_id: str) -> BlogEncoder:  # noqa: ARG002 - nothing depends on it
        return BlogEncoder(run_id)

    def refuse(self, error: ChatError, request_id: str) -> Answer:
        return Answer(status=error.status, body=as_json({**_error(error), "request_id": request_id}))


class BlogEncoder:
    """One answer as chunks. Reasoning and tools are not sent."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def start(self, model: str) -> bytes:  # noqa: ARG002 - the format has no place for it
        """The first event's id, which an EventSource sends when it connects again: see `_from_query`."""
        return b"id: %b\n" % self._run_id.encode()

    def encode(self, batch: Batch) -> bytes:
        pieces = [
            b'event: chunk\ndata: {"text":%b}\n\n' % as_json(delta.text) for delta in batch if type(delta) is TextDelta
        ]
        return b"".join(pieces)

    def number(self, data: bytes, number: int) -> bytes:  # noqa: ARG002 - the format has no numbers
        return data

    def heartbeat(self) -> bytes:
        return PING

    def fail(self, error: ChatError) -> bytes:
        return event(b"error", as_json(_error(error)))

    def finish(self, ending: Ending) -> bytes:  # noqa: ARG002 - nothing of it is told
        return event(b"done", b"{}")


def _error(error: ChatError) -> dict[str, str]:
    said = f"{error.field} {error.message}" if isinstance(error, BadRequest) and error.field else error.message
    return {"error": said, "code": error.code}


def _from_query(scope: Scope) -> bytes | None:
    """The body of the POST that would ask the same.

    An EventSource asks again whenever a connection ends, an answer's own end too, and then sends the last id it had:
    that never is a new question, and 204 makes it stop. What a browser fetches for an image, a frame or a script, on
    any page, spends nothing.
    """
    headers = {bytes(key).lower(): bytes(value) for key, value in scope["headers"]}
    if b"last-event-id" in headers:
        return None
    if headers.get(b"sec-fetch-dest", b"empty") != b"empty":
        raise Forbidden("Only an EventSource or a fetch may ask here")
    try:
        given = parse_qs(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20
        )
    except ValueError:
        raise BadRequest("must be percent-encoded UTF-8", field="message") from None
    said = given.get("message", [])
    if len(said) != 1:
        raise BadRequest("must be given once", field="message")
    return as_json({"message": said[0]})
