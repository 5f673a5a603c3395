"""Output that several dialects share: JSON text, the headers of a stream, and headers against retries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from chat_nest.core.deltas import Batch, TextDelta
from chat_nest.core.errors import BudgetExceeded, ChatError, LimitExceeded
from chat_nest.core.usage import NANO

EVENT_STREAM = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
JSON = ((b"content-type", b"application/json"),)
PING = b": ping\n"
"""A comment with one LF: OpenAI's official Python client takes a blank line after it for an empty event."""

BudgetStatus = Literal[402, 429]
"""Every client takes 429 for a limit, and many repeat the request. No client repeats it after a 402, except aider."""

LONGEST_WAIT = 60.0
"""Seconds. The longest wait in Retry-After; for a longer wait the client gets the date."""

quick_json = msgspec.json.Encoder().encode
"""Encodes JSON in one line. Raises UnicodeEncodeError for half of a surrogate pair."""


def as_json(value: Any) -> bytes:
    """Encode JSON in one line. Half of a surrogate pair, which UTF-8 can't carry, is escaped."""
    try:
        return quick_json(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def template(head: bytes, tail: bytes) -> bytes:
    """Return an event with a place for one JSON text, between `head` and `tail`: see `texts`."""
    return b"%b%%b%b" % (head.replace(b"%", b"%%"), tail.replace(b"%", b"%%"))


def texts(batch: Batch, event: bytes) -> bytes:
    """Return an event for each piece of a batch that has only text, as most have; `event` is a template.

    Returns nothing for any other batch, and for half of a surrogate pair: see `as_json`. To fill a template costs less
    than to join bytes.
    """
    try:
        if len(batch) == 1:
            return event % quick_json(batch[0].text) if type(batch[0]) is TextDelta else b""
        pieces = tuple([quick_json(delta.text) for delta in batch if type(delta) is TextDelta])
    except UnicodeEncodeError:
        return b""
    return event * len(pieces) % pieces if len(pieces) == len(batch) else b""


def data(value: Any) -> bytes:
    """Return an event without a name."""
    return b"data: %b\n\n" % as_json(value)


def in_dollars(remaining: Mapping[str, int]) -> dict[str, float]:
    """Return what is left of each limit, by name; limits of money are in dollars."""
    return {name: left / NANO if name.startswith("usd_") else left for name, left in remaining.items()}


FAILED_DEPENDENCY = 424
"""For a failure that may have been billed, before a whole answer: clients retry after 408, 409, 429 and 5xx."""


def retry_headers(error: ChatError) -> tuple[tuple[bytes, bytes], ...]:
    """Return headers that stop the retries of OpenAI's and Anthropic's official clients.

    These clients try three times in all after a 429 or a 5xx. A limit here lasts for a minute or a day, and the
    response has the time to wait.
    """
    if isinstance(error, LimitExceeded) or not error.retryable or error.billed:
        return ((b"x-should-retry", b"false"),)
    return ()


def limit_status(error: ChatError, budget_status: BudgetStatus) -> int:
    """Return the error's status: `budget_status` for a budget, and for a limit that resets later than in a minute."""
    return budget_status if isinstance(error, BudgetExceeded) or reset_date(error) else error.status


def reset_date(error: ChatError) -> str:
    """Return when the limit that refused resets, if that is too late for Retry-After: RFC 3339, UTC; else nothing."""
    if not isinstance(error, LimitExceeded) or (error.retry_after or 0.0) <= LONGEST_WAIT or not error.resets_at:
        return ""
    return datetime.fromtimestamp(math.ceil(error.resets_at), UTC).isoformat().replace("+00:00", "Z")


def reset_text(date: str) -> str:
    """Return the sentence with the date. qwen-code and LangChain search a 429 for its words, and give up at once."""
    return f" Quota exceeded; it will reset at {date}."
