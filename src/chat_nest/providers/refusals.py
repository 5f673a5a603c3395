"""What a provider's answer means when its status is not 200: the same for every provider that speaks HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from chat_nest.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamProtocol,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)

MAX_RETRY_AFTER: Final = 60.0


def refusal(status: int, headers: Mapping[str, str], body: bytes, now: float) -> UpstreamError:
    """The error for an answer that is not 200. Nothing of the provider's text gets into it. `now` is Unix time."""
    if status in (401, 403):
        return UpstreamAuth(spent_nothing=True)
    if status == 429:
        limited = UpstreamRateLimited(spent_nothing=True, retry_after=retry_after(headers.get("Retry-After"), now))
        if _out_of_money(body):
            limited.retryable = False  # type: ignore[misc]  # the same class and code, but it does not pass by itself
            limited.retry_after = None
        return limited
    if status in (408, 409) or status >= 500:
        # Behind a gateway's time-out the model may have been at work, and be paid for.
        certain = status not in (408, 504, 524)
        return UpstreamUnavailable(spent_nothing=certain, retry_after=retry_after(headers.get("Retry-After"), now))
    if status >= 400:
        return UpstreamRejected(spent_nothing=True)
    return UpstreamProtocol(spent_nothing=True)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a Retry-After header (RFC 9110, 10.2.3), within 0 and MAX_RETRY_AFTER; None if it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _out_of_money(body: bytes) -> bool:
    """OpenAI's 429 for an account without credit; other servers copy it."""
    try:
        problem = msgspec.json.decode(body, type=_Body).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return problem is not None and "insufficient_quota" in (problem.code, problem.type)


class _Problem(msgspec.Struct):
    code: Any = None
    type: Any = None


class _Body(msgspec.Struct):
    error: _Problem | None = None
