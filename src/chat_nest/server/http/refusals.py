"""Refusals that no application sees: an invalid request, a slow one, a connection over the limits."""

from __future__ import annotations

import logging
from secrets import token_hex

import msgspec

from chat_nest.asgi.response import error_headers
from chat_nest.core.errors import BadRequest, ChatError
from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.response_head import fields, response_head
from chat_nest.server.http.sockets import HostPort

log = logging.getLogger("chat_nest")
_json = msgspec.json.Encoder().encode


def refusal(error: ChatError, context: ServerContext, client: HostPort | None) -> bytes:
    """Log the refusal with a new request id, and return the complete response, which closes the connection."""
    id = token_hex(12)
    caller = context.name_of(client)
    log.info("refused id=%s%s error=%s", id, caller and f" caller={caller}", error.code)
    details = {"field": error.field, "detail": error.message} if isinstance(error, BadRequest) else {}
    text = error.text if details else error.message
    body = _json({"error": text, "code": error.code, "request_id": id, **details})
    headers = [
        (b"x-request-id", id.encode("ascii")),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
        *error_headers(error),
    ]
    return response_head(error.status, [context.date(), *fields(headers)]) + body
