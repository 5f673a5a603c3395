"""One log line for each request: who asked (as a hash), what it used and how it ended; never a prompt or a key."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Literal

from chat_nest.errors import ChatError
from chat_nest.messages import Caller
from chat_nest.protocols import Ending
from chat_nest.usage import NANO

Value = str | int | float | None

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+-]+")


class LogObserver:
    """Writes to the logger `chat_nest`: INFO, or WARNING where the fault is on our side of the wire (5xx).

    `style` is "text" for `key=value` pairs (logfmt) behind the name of what happened, or "json" for an object a line.
    Values are escaped, so that no name can forge a line or move a terminal's cursor. Times are in seconds.
    """

    def __init__(self, style: Literal["text", "json"] = "text", logger: logging.Logger | None = None) -> None:
        self._line = _as_json if style == "json" else _as_text
        self._log = logger or logging.getLogger("chat_nest")

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None:
        """Nothing: the request's one line comes at its end."""

    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None:
        """Log a request that was not admitted: nothing was spent on it."""
        limit = getattr(error, "limit", "") or None
        self._write(
            "refused",
            error,
            {"id": id, "caller": caller.key if caller else None, "error": error.code, "limit": limit},
        )

    def finished(self, ending: Ending) -> None:
        """Log an admitted request, however it ended."""
        error = ending.error
        if not self._log.isEnabledFor(logging.INFO if error is None else logging.WARNING):
            return  # before anything is made for it
        values: dict[str, Value] = {
            "id": ending.id,
            "caller": ending.caller,
            "group": ending.group or None,
            "profile": ending.profile,
            "model": ending.model,
            "reason": ending.reason,
            "error": error.code if error else None,
            "input_tokens": ending.usage.input_tokens,
            "output_tokens": ending.usage.output_tokens,
            "cost_usd": None if ending.cost is None else f"{ending.cost / NANO:.9f}",
            "source": ending.source,
            "seconds": round(ending.seconds, 3),
            "first_token": None if ending.first_token_seconds is None else round(ending.first_token_seconds, 3),
        }
        self._write("finished", error, values)

    def _write(self, event: str, error: ChatError | None, values: dict[str, Value]) -> None:
        level = logging.WARNING if error is not None and error.status >= 500 else logging.INFO
        if self._log.isEnabledFor(level):
            known = {name: value for name, value in values.items() if value is not None}
            self._log.log(level, "%s", self._line(event, known))


def _as_text(event: str, values: Mapping[str, Value]) -> str:
    pairs = [
        f"{name}={text if _PLAIN.fullmatch(text := str(value)) else json.dumps(text)}" for name, value in values.items()
    ]
    return " ".join((event, *pairs))


def _as_json(event: str, values: Mapping[str, Value]) -> str:
    return json.dumps({"event": event, **values})
