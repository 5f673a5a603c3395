"""One log line for each request: caller (as a hash), usage and ending; never a prompt or a key."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import blake2b
from typing import Literal

from chat_nest.core.errors import ChatError
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Ending
from chat_nest.core.request_log import CURRENT, EventLine, Value
from chat_nest.core.usage import NANO


class LogObserver:
    """Writes to the logger `chat_nest`: INFO, or WARNING for a fault on the server's side (5xx).

    `style` is "text" for the event's name and `key=value` pairs (logfmt), or "json" for one object a line. Values are
    escaped, so that no name can forge a line or move a terminal's cursor. Times are in seconds. With a `secret` the
    caller is a keyed hash of its key, which hides the IP address or name from anyone without the secret. The record's
    message is an EventLine. If `chat-nest serve` logs every HTTP request, the values go into that line instead.
    """

    def __init__(
        self,
        style: Literal["text", "json"] = "text",
        logger: logging.Logger | None = None,
        *,
        secret: str | bytes = b"",
    ) -> None:
        self._secret = secret.encode() if isinstance(secret, str) else secret
        self._as_json = style == "json"
        self._log = logger or logging.getLogger("chat_nest")

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None:
        """Log nothing: the request's one line comes at its end."""

    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None:
        """Log a request that was not admitted: nothing was spent on it."""
        limit = getattr(error, "limit", "") or None
        self._write(
            "refused",
            error,
            {"id": id, "caller": self._name(caller.key) if caller else None, "error": error.code, "limit": limit},
        )

    def finished(self, ending: Ending) -> None:
        """Log an admitted request, however it ended."""
        error, facts = ending.error, CURRENT.get()
        level = logging.INFO if error is None else logging.WARNING
        if not self._log.isEnabledFor(level) and (facts is None or not facts.joined):
            return  # before any value is computed
        values: dict[str, Value] = {
            "id": ending.id,
            "caller": self._name(ending.caller),
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

    def _name(self, key: str) -> str:
        return log_name(self._secret, key) if self._secret and key else key

    def _write(self, event: str, error: ChatError | None, values: Mapping[str, Value]) -> None:
        level = logging.WARNING if error is not None and error.status >= 500 else logging.INFO
        known = {name: value for name, value in values.items() if value is not None}
        facts = CURRENT.get()
        if facts is not None and facts.join(event, level, known):
            return
        if self._log.isEnabledFor(level):
            self._log.log(level, EventLine(event, known, as_json=self._as_json))


def log_name(secret: bytes, key: str) -> str:
    """Return the log's name for the caller with this `Caller.key`, if there is a secret: 16 hex digits.

    It is BLAKE2b with a key (RFC 7693), which costs a third of an HMAC.
    """
    if len(secret) > blake2b.MAX_KEY_SIZE:
        secret = blake2b(secret).digest()
    return blake2b(key.encode("ascii"), digest_size=8, key=secret).hexdigest()
