"""The chat endpoint of many blogs: one message in; `chunk` events, then `done` or `error`, out.

With `get` it also serves the browser's own EventSource: `GET PATH?message=...`. Any page that a user visits can cause a
GET, and a GET here spends money, so it is off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qs

from chat_nest.core import header_fields
from chat_nest.core.deltas import Batch, TextDelta
from chat_nest.core.errors import BadRequest, ChallengeRequired, ChatError, Forbidden
from chat_nest.core.messages import ChatRequest, Message
from chat_nest.core.protocols import Answer, Ending, Route, Scope
from chat_nest.core.sse import event
from chat_nest.dialects import fields as read
from chat_nest.dialects.facts import Facts
from chat_nest.dialects.fields import OWN_CONNECTION
from chat_nest.dialects.frames import EVENT_STREAM, PING, as_json, texts
from chat_nest.dialects.schemas import (
    REQUEST_ID,
    REQUIRED_CHALLENGE,
    STRING,
    TEXT,
    described,
    event_schema,
    refusing,
    table,
    whole,
)

FAILED = 429
"""From this status on the request itself was valid: a limit, this server or the provider refused it."""

_TOKEN = b'event: chunk\ndata: {"text":%b}\n\n'


REQUEST = refusing(OWN_CONNECTION, table({"message": described({**TEXT, "minLength": 1}, "Not blank")}, "message"))

FACTS = Facts(
    path="/chat",
    is_on=False,
    request=REQUEST,
    example={"message": "Hello"},
    event=event_schema("chunk", "done", "error", id=described(STRING, "Of the first one: the run's")),
    stream="`chunk` with `text`, then one `done` or `error`",
    error=whole({"error": STRING, "code": STRING, "request_id": REQUEST_ID}, challenge=REQUIRED_CHALLENGE),
)


class Blog:
    """The dialect of blogs' chats, at `path`. `get` enables GET."""

    facts: ClassVar[Facts] = FACTS

    def __init__(self, path: str = "/chat", *, get: bool = False) -> None:
        routes = [Route(path=path)]
        if get:
            routes.append(Route(path=path, method="GET", body=_from_query))
        self.routes: Sequence[Route] = tuple(routes)

    def parse(self, body: bytes) -> ChatRequest:
        """Parse a body.

        Raises BadRequest, which names the field and the rule, never the value. Ignores unknown fields.
        """
        fields = read.parse_fields(body, read.OWN_CONNECTION)
        said = read.text(fields.get("message"), "message")
        if not said.strip():
            raise BadRequest("must not be blank", field="message")
        return ChatRequest(messages=(Message(role="user", content=said),))

    def encoder(self, request: ChatRequest, run_id: str) -> BlogEncoder:  # noqa: ARG002 - nothing depends on it
        return BlogEncoder(run_id)

    def refuse(self, error: ChatError, request_id: str) -> Answer:
        """Return an error event for a valid request that failed: pages of this format show events, and no status.

        The id of the event stops the retries of an EventSource.
        """
        body = {**_error(error), "request_id": request_id}
        if error.status < FAILED:
            return Answer(status=error.status, body=as_json(body))
        told = b"event: error\n%bdata: %b\n\n" % (_id_line(request_id), as_json(body))
        return Answer(status=200, body=told, headers=EVENT_STREAM[:1])


class BlogEncoder:
    """Encodes one answer as chunks. Reasoning and tools are not sent."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._id = b""
        """The line with the id that the next event must have."""

    def start(self, model: str) -> bytes:  # noqa: ARG002 - the format has no place for it
        """Encode the first event. Its id is sent by an EventSource that reconnects: see `_from_query`."""
        self._id = _id_line(self._run_id)
        return b""

    def encode(self, batch: Batch) -> bytes:
        pieces = texts(batch, _TOKEN) or b"".join(
            [_TOKEN % as_json(delta.text) for delta in batch if type(delta) is TextDelta]
        )
        return self._first(pieces) if self._id else pieces

    def number(self, data: bytes, number: int) -> bytes:  # noqa: ARG002 - the format has no numbers
        return data

    def heartbeat(self) -> bytes:
        return PING

    def fail(self, error: ChatError) -> bytes:
        return self._first(event(b"error", as_json(_error(error))))

    def finish(self, ending: Ending) -> bytes:  # noqa: ARG002 - nothing of it is sent
        return self._first(event(b"done", b"{}"))

    def _first(self, events: bytes) -> bytes:
        """Put the id into the first event, after its name: some readers expect the name first."""
        name, newline, rest = events.partition(b"\n")
        if not newline:
            return events
        told, self._id = self._id, b""
        return b"%b\n%b%b" % (name, told, rest)


def _id_line(id: str) -> bytes:
    return b"id: %b\n" % id.encode()


def _error(error: ChatError) -> dict[str, Any]:
    said = f"{error.field} {error.message}" if isinstance(error, BadRequest) and error.field else error.message
    details = {"challenge": error.challenge} if isinstance(error, ChallengeRequired) else {}
    return {"error": said, "code": error.code, **details}


def _from_query(scope: Scope) -> bytes | None:
    """Return the body of the equivalent POST.

    An EventSource reconnects whenever a connection ends, even after a complete answer, and then sends the last id it
    got. That is never a new question, and 204 ends it. A request that a browser makes for an image, a frame or a
    script, on any page, spends nothing.
    """
    if header_fields.value(scope, b"last-event-id") is not None:
        return None
    if (header_fields.value(scope, b"sec-fetch-dest") or b"empty") != b"empty":
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
