"""What a provider's answer means when its status is not 200: the same for every provider that speaks HTTP."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

import msgspec

from chat_nest.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamModelNotFound,
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
_NO_MODEL: Final = frozenset({"model_not_found", "invalid_model", "model_decommissioned", "DeploymentNotFound"})
"""OpenAI's and Groq's code, Mistral's type, Groq's code for a retired model, Azure's code."""
_MODEL = re.compile(r"\bmodels?\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+(?:[_.-][A-Za-z]+)*|[0-9]{1,5}")
"""A provider's code or type as it may be logged. A key has digits among its letters, and a prompt has blanks."""


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, now: float, secrets: Sequence[str] = ()
) -> UpstreamError:
    """The error for an answer that is not 200. `now` is Unix time.

    Of the provider's text only its code and type get into it, as `detail`, and only where they look like identifiers
    and are part of none of the `secrets`.
    """
    problem = _problem(body)
    error = _refusal(status, headers, problem, now)
    words = [word for word in _words(problem) if not any(word in secret for secret in secrets)]
    error.detail = ", ".join((f"HTTP {status}", *words))
    return error


def _refusal(status: int, headers: Mapping[str, str], problem: _Problem, now: float) -> UpstreamError:
    wait = retry_after(headers.get("Retry-After"), now)
    if status in (401, 403):
        return UpstreamAuth(spent_nothing=True)
    if status == 429:
        limited = UpstreamRateLimited(spent_nothing=True, retry_after=wait if wait is not None else _delay(problem))
        if "insufficient_quota" in (problem.code, problem.type):  # OpenAI's account without credit; others copy it
            limited.retryable = False  # type: ignore[misc]  # the same class and code, but it does not pass by itself
            limited.retry_after = None
        return limited
    if status in (408, 409) or status >= 500:
        unavailable = UpstreamUnavailable(spent_nothing=status not in _UNCERTAIN, retry_after=wait)
        unavailable.retryable = status in _PASSING  # type: ignore[misc]  # as above
        return unavailable
    if status == 400 and "API_KEY_INVALID" in _reasons(problem):  # Gemini's 401
        return UpstreamAuth(spent_nothing=True)
    if _is_unknown_model(status, problem):
        return UpstreamModelNotFound(spent_nothing=True)
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
    status: Any = None
    details: Any = None
    message: Any = None


class _Body(_Problem):
    """vLLM and Mistral may leave out `error` and put its fields here; Ollama's `error` is the message."""

    error: _Problem | str | None = None


def _problem(body: bytes) -> _Problem:
    """What an error body says; empty where it says nothing that is understood."""
    try:
        whole = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Problem()
    if isinstance(whole.error, str):
        return _Problem(message=whole.error)
    return whole.error or whole


def _is_unknown_model(status: int, problem: _Problem) -> bool:
    """Whether the provider does not know the model. A 404 of a wrong base_url does not mention one."""
    if any(isinstance(word, str) and word in _NO_MODEL for word in (problem.code, problem.type)):
        return True
    text = problem.message if isinstance(problem.message, str) else ""
    # OpenRouter has only its text, with status 400.
    return (status == 404 and _MODEL.search(text) is not None) or text.endswith(" is not a valid model ID")


def _words(problem: _Problem) -> list[str]:
    words = [str(word) for word in (problem.code, problem.type, problem.status) if type(word) in (str, int)]
    return list(dict.fromkeys(word for word in words if len(word) <= 64 and _WORD.fullmatch(word)))


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
