"""What several dialects write: JSON text, the headers of a stream, and the wish not to be asked again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from chat_nest.deltas import Batch, TextDelta
from chat_nest.errors import ChatError, LimitExceeded
from chat_nest.usage import NANO

EVENT_STREAM = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
JSON = ((b"content-type", b"application/json"),)
PING = b": ping\n"
"""A comment with one LF: the official Python client of OpenAI takes a blank line behind it for an empty event."""

_encode = msgspec.json.Encoder().encode


def as_json(value: Any) -> bytes:
    """JSON in one line. Half of a surrogate pair, which UTF-8 has not, is escaped."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def run_of_texts(batch: Batch, head: bytes, tail: bytes) -> bytes:
    """An event for each piece of a batch that is nothing but text, which nearly all are; else nothing.

    `head` and `tail` stand around the JSON text of each piece. For a batch of several: one is done sooner without.
    """
    texts = [delta.text for delta in batch if type(delta) is TextDelta]
    if len(texts) != len(batch):
        return b""
    try:
        return head + (tail + head).join(map(_encode, texts)) + tail
    except UnicodeEncodeError:
        return head + (tail + head).join(map(as_json, texts)) + tail


def data(value: Any) -> bytes:
    """An event without a name."""
    return b"data: %b\n\n" % as_json(value)


def in_dollars(remaining: Mapping[str, int]) -> dict[str, float]:
    """What is left of each limit, by name, with those of money in dollars."""
    return {name: left / NANO if name.startswith("usd_") else left for name, left in remaining.items()}


def retry_headers(error: ChatError) -> tuple[tuple[bytes, bytes], ...]:
    """What keeps the official clients of OpenAI and Anthropic from asking again at once, three times in all.

    They do so after a 429 or a 5xx; here a limit is one for a minute or a day, and says itself how long to wait.
    """
    if isinstance(error, LimitExceeded) or not error.retryable:
        return ((b"x-should-retry", b"false"),)
    return ()
