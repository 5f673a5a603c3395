"""What the log lines of one HTTP request share: its id, and what its one last line holds.

It is in the request's context, so the tasks that a request starts have it too. Only configured names go in, and nothing
that a client wrote.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar

Value = str | int | float | None

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+{}-]+")


class RequestLog:
    """The facts of one request for the log."""

    __slots__ = ("event", "id", "joined", "level", "route", "values")

    def __init__(self, *, joined: bool = False) -> None:
        self.id = ""
        """The `x-request-id` of the answer; empty before it is known."""
        self.route = ""
        """The path as it is configured, with `{id}` in place of a run's id; empty if there is none."""
        self.event = "request"
        self.level = logging.INFO
        self.values: Mapping[str, Value] = {}
        self.joined = joined
        """Whether the HTTP server writes the request's line at its end."""

    def join(self, event: str, level: int, values: Mapping[str, Value]) -> bool:
        """Leave these values to the line that the HTTP server writes at the request's end; False if there is none."""
        if not self.joined:
            return False
        self.event, self.level, self.values = event, level, values
        return True

    def close(self) -> None:
        """Note that the HTTP server writes its line now: an answer that goes on without a reader has its own."""
        self.joined = False


CURRENT: ContextVar[RequestLog | None] = ContextVar("chat_nest_request_log", default=None)
"""Of the request in whose context the code runs; None outside of requests."""


class EventLine:
    """An event of a request with its values, as the message of a log record: its text is made when it is formatted.

    `as_json` makes that text one JSON object, else it is `EVENT key=value` (logfmt).
    """

    __slots__ = ("as_json", "event", "values")

    def __init__(self, event: str, values: Mapping[str, Value], *, as_json: bool = False) -> None:
        self.event, self.values, self.as_json = event, values, as_json

    def __str__(self) -> str:
        """Return the text; control characters and quotes are escaped."""
        if self.as_json:
            return json.dumps({"event": self.event, **self.values})
        pairs = [f"{name}={_quoted(str(value))}" for name, value in self.values.items()]
        return " ".join((self.event, *pairs))


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
