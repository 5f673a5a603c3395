"""The one log line of an HTTP request, with the ending of its chat, if it was one."""

from __future__ import annotations

import logging

from chat_nest.core.request_log import EventLine, RequestLog, Value
from chat_nest.server.http.request_parser import Request
from chat_nest.server.http.sockets import HostPort

log = logging.getLogger("chat_nest.access")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""The methods that are named: any other word is the client's."""


def write_line(
    facts: RequestLog, request: Request, client: HostPort | None, status: int | None, seconds: float
) -> None:
    """Log the request. It has the configured path, never the one that the client wrote.

    Without a `status`, the client left before the response began.
    """
    facts.close()
    values: dict[str, Value] = {
        "peer": f"{client[0]}:{client[1]}" if client else None,
        "method": request.method if request.method in METHODS else "other",
        "route": facts.route or "other",
        "http": request.version,
        "status": status,
        "total": round(seconds, 3),
        "id": facts.id or None,
        **facts.values,
    }
    known = {name: value for name, value in values.items() if value is not None}
    log.log(facts.level, EventLine(facts.event, known))
