"""The log formats of `chat-nest serve`: one record a line on standard error, without terminal control characters."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

from chat_nest.core.request_log import CURRENT, EventLine, Value

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_COLORS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}


class LineFormatter(logging.Formatter):
    """Formats time in UTC, level, logger, message, and the id of the request that the record belongs to.

    Escapes control characters; only a traceback may have line breaks.
    """

    def __init__(self, *, color: bool = False) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback on further lines."""
        at = _time(record)
        message = escape(record.getMessage()).replace("\n", "\\n").replace("\t", "\\t")
        id = _request_id()
        line = f"{at} {record.levelname} {record.name}: {message}{f' id={id}' if id and id not in message else ''}"
        if color := _COLORS.get(record.levelno) if self._color else None:
            line = f"\x1b[{color}m{line}\x1b[0m"
        return f"{line}\n{escape(self.formatException(record.exc_info))}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, id of the request, and an event's values."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Line breaks and control characters are escaped, as JSON has it."""
        fields: dict[str, Value] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        if isinstance(record.msg, EventLine):
            fields |= {"message": record.msg.event, **record.msg.values}
        else:
            fields["message"] = record.getMessage()
        if id := _request_id():
            fields["id"] = id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _request_id() -> str:
    facts = CURRENT.get()
    return "" if facts is None else facts.id


def escape(text: str) -> str:
    """Return the text with control characters, except line feed and tab, written as in a Python literal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def configure(level: str, *, color: bool, access_log: bool, style: str = "text") -> None:
    """Send every logger's records to standard error; `level` is one of LEVELS, `style` one of FORMATS."""
    # Skip data that no line has.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else LineFormatter(color=color))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("chat_nest").setLevel(level.upper())
    logging.getLogger("chat_nest.access").setLevel(logging.INFO if access_log else logging.CRITICAL)
