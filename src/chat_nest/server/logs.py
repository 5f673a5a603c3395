"""Log lines of `chat-nest serve`: one a record on standard error, with nothing in them that steers a terminal."""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime

LEVELS = ("debug", "info", "warning", "error")

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_COLORS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}


class LineFormatter(logging.Formatter):
    """Time in UTC, level, logger, message. Control characters are escaped; only a traceback may have line breaks."""

    def __init__(self, *, color: bool = False) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback on lines of its own."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message = escape(record.getMessage()).replace("\n", "\\n").replace("\t", "\\t")
        line = f"{at} {record.levelname} {record.name}: {message}"
        if color := _COLORS.get(record.levelno) if self._color else None:
            line = f"\x1b[{color}m{line}\x1b[0m"
        return f"{line}\n{escape(self.formatException(record.exc_info))}" if record.exc_info else line


def escape(text: str) -> str:
    """The text with control characters, except line feed and tab, written as in a Python literal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def configure(level: str, *, color: bool, access_log: bool) -> None:
    """Send every logger's records to standard error; `level` is one of LEVELS."""
    # What no line says need not be found out for each of them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(color=color))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("chat_nest").setLevel(level.upper())
    logging.getLogger("uvicorn.access").setLevel(logging.INFO if access_log else logging.CRITICAL)
