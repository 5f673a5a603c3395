"""What a provider's answer means when its status is not 200: the same for every provider that speaks HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

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
_PASSING: Final = frozenset({500, 502, 503, 504, 529})
"""The failures that the same request may survive a moment later; 529 is Anthropic's `overloaded_error`."""
_UNCERTAIN: Final = frozenset({408, 504, *range(520, 528)})
"""A gateway gave up, or Cloudflare could not make sense of what it got: the model may have been at work."""


def refusal(status: int, headers: Mapping[str, str], body: bytes, now: float) -> UpstreamError:
    """The error for an answer that is not 200. Nothing of the provider's text gets into it. `now` is Unix time."""
    wait = retry_after(headers.get("Retry-After"), now)
    if status in (401, 403):
        return UpstreamAuth(spent_nothing=True)
    if status == 429:
        problem = _problem(body)
        limited = UpstreamRateLimited(spent_nothing=True, retry_after=wait if wait is not None else _delay(problem))
        if "insufficient_quota" in (problem.code, problem.type):  # OpenAI's account without credit; others copy it
            limited.retryable = False  # type: ignore[misc]  # the same class and code, but it does not pass by itself
            limited.retry_after = None
        return limited
    if status in (408, 409) or status >= 500:
        unavailable = UpstreamUnavailable(spent_nothing=status not in _UNCERTAIN, retry_after=wait)
        unavailable.retryable = status in _PASSING  # type: ignore[misc]  # as above
        return unavailable
    if status == 400 and "API_KEY_INVALID" in _reasons(_problem(body)):  # Gemini's 401
        return UpstreamAuth(spent_nothing=True)
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


class _Problem(msgspec.Struct):
    code: Any = None
    type: Any = None
    details: Any = None


class _Body(msgspec.Struct):
    error: _Problem | None = None


def _problem(body: bytes) -> _Problem:
    """What an error body says, in OpenAI's or Google's form; empty where it says nothing that is understood."""
    try:
        return msgspec.json.decode(body, type=_Body).error or _Problem()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Problem()


def _details(problem: _Problem, name: str) -> list[str]:
    """The texts called `name` in Google's list of details."""
    details = cast("list[object]", problem.details) if isinstance(problem.details, list) else []
    objects = [cast("dict[str, object]", detail) for detail in details if isinstance(detail, dict)]
    return [value for detail in objects if isinstance(value := detail.get(name), str)]


def _reasons(problem: _Problem) -> list[str]:
    return _details(problem, "reason")


def _delay(problem: _Problem) -> float | None:
    """Google's way to say Retry-After: a duration such as "34.07s"."""
    delays = [retry_after(delay.removesuffix("s"), 0.0) for delay in _details(problem, "retryDelay")]
    return next((delay for delay in delays if delay is not None), None)
