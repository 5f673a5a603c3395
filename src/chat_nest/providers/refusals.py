"""Map a provider's error to an UpstreamError, for every provider: a status that is not 200, or an error in a stream.

The file is long because it has the table of every provider's errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

import msgspec

from chat_nest.core.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    UpstreamAuth,
    UpstreamError,
    UpstreamForbidden,
    UpstreamModelNotFound,
    UpstreamOverloaded,
    UpstreamProtocol,
    UpstreamQuota,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from chat_nest.providers.loose import field

MAX_RETRY_AFTER: Final = 60.0
LONGEST_RESET: Final = 3_600.0
"""Seconds. The longest rest of a provider's key, whatever the provider asks for."""
_PASSING: Final = frozenset({500, 502, 503, 504, 529})
"""Statuses after which the same request may succeed a moment later. 529 is Anthropic's `overloaded_error`."""
_UNCERTAIN: Final = frozenset({408, 504, *range(520, 528)})
"""Statuses of a gateway that gave up, or of Cloudflare for an invalid response: the model may have been at work."""
_NO_MODEL: Final = frozenset({"model_not_found", "invalid_model", "model_decommissioned", "DeploymentNotFound"})
"""OpenAI's and Groq's code, Mistral's type, Groq's code for a retired model, Azure's code."""
_MODEL = re.compile(r"\bmodels?\b", re.IGNORECASE)
_MODEL_UNKNOWN = re.compile(
    r"\bmodel (?:does )?not exist|\bunknown model\b|\binvalid model name\b|\bmodel identifier is invalid", re.IGNORECASE
)
"""The texts of a 400 without a code for it: DeepSeek's and SiliconFlow's, Z.ai's, LiteLLM's, Bedrock's."""
_KINDS: Final[Mapping[type[UpstreamError], tuple[tuple[str, ...], str]]] = {
    ContextLengthExceeded: (
        (
            *("context_length_exceeded", "exceed_context_size_error", "context_window_exceeded", "1261"),
            *("model_max_prompt_tokens_exceeded", "tokens_limit_reached"),
        ),
        (
            r"(?:maximum|available|model'?s) context|context (?:length|window|size) (?:is |was )?exceed"
            r"|exceed(?:s|ed)? (?:the |this )?(?:model'?s? |available |maximum |max )*context (?:length|window|size)"
            r"|exceed context limit"
            r"|(?:greater|longer) than the (?:model'?s |maximum )?(?:context|model) length|with context length of only"
            r"|(?:prompt|input|request) (?:(?:is|was) )?too long|(?:input|prompt) token count|input tokens exceed"
            r"|number of input tokens exceeds|tokens? limit exceeded|exceed(?:s|ed) (?:the )?(?:model )?token limit"
            r"|maximum (?:prompt|model|allowed input) length|prompt exceeds max length|range of input length should be"
            r"|inputs` tokens \+ `max_new_tokens` must be|total number of tokens in the prompt"
            r"|too large for model|reduce the length of the messages"
        ),
    ),
    UpstreamQuota: (
        (
            *("insufficient_quota", "insufficient_user_quota", "exceeded_current_quota_error", "quota_exceeded"),
            *("insufficient_balance", "insufficient_credits", "credits_exhausted", "arrearage", "1113"),
            *("billing_hard_limit_reached", "billing_error"),
        ),
        r"credit balance|insufficient (?:account )?(?:balance|credits?|funds)|out of credits",
    ),
    ContentFiltered: (
        (
            *("content_filter", "content_filtered", "content_policy_violation", "responsibleaipolicyviolation"),
            *("data_inspection_failed", "datainspectionfailed", "sensitive_words_detected", "invalid_prompt", "1301"),
        ),
        r"content (?:management|moderation|safety)|content[ _]policy|usage policy|was flagged",
    ),
    UpstreamOverloaded: (
        ("overloaded_error", "overloaded", "engine_overloaded", "engine_overloaded_error", "server_overloaded"),
        r"\boverloaded\b|(?:at|over|exceeds?) capacity",
    ),
}
"""Errors that a client or an operator can act on, by the codes and types of several providers and by their texts."""
_TEXTS: Final = {kind: re.compile(said, re.IGNORECASE) for kind, (_, said) in _KINDS.items()}
_EVENTS: Final[dict[str, type[UpstreamError]]] = {
    **dict.fromkeys(
        ("api_error", "timeout_error", "unavailable", "internal", "deadline_exceeded"), UpstreamUnavailable
    ),
    **dict.fromkeys(("rate_limit_error", "rate_limit_exceeded", "resource_exhausted"), UpstreamRateLimited),
}
"""Errors in a stream, by code, type or status, in lower case: Anthropic's, OpenAI's and Google's."""
_DURATION = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_NUMBER = re.compile(r"(?<![\w.,-])\d{3,9}(?![\w-])")
"""A number of tokens in a provider's text."""
_WORD = re.compile(r"[A-Za-z]+(?:[_.-][A-Za-z]+)*|[0-9]{1,5}")
"""A provider's code or type that may be logged. A key has digits among its letters, and a prompt has blanks."""


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, now: float, secrets: Sequence[str] = ()
) -> UpstreamError:
    """Return the error for a response whose status is not 200. `now` is Unix time.

    Of the provider's text only the code and type are kept, as `detail`, and only if they look like identifiers and are
    part of none of the `secrets`.
    """
    problem = _problem(body)
    error = _refusal(status, headers, problem, now)
    error.spent_nothing = error.spent_nothing or status not in _UNCERTAIN
    if isinstance(error, UpstreamRateLimited):
        said = resets_after(headers, now)
        error.resets_after = _delay(problem, LONGEST_RESET) if said is None else said
    words = [word for word in _words(problem) if not any(word in secret for secret in secrets)]
    error.detail = ", ".join((f"HTTP {status}", *words))
    return error


def event_failure(error: object) -> UpstreamError:
    """Return the error for an error event in a stream. What came before it may have been billed.

    Of the provider's text only the code and type are kept, as in `refusal`.
    """
    try:
        problem = _Problem(message=error) if isinstance(error, str) else msgspec.convert(error, _Problem)
    except msgspec.ValidationError:
        problem = _Problem()
    kind = _kind(problem)
    if kind is None:
        known = [_EVENTS[word] for word in _lower(problem) if word in _EVENTS]
        kind = known[0] if known else UpstreamError
    failure = _with_counts(kind(), problem)
    failure.detail = ", ".join(_words(problem))
    return failure


def identifiers(words: Sequence[object]) -> list[str]:
    """Return the words of a provider that may be logged, each once: identifiers and short numbers."""
    texts = [str(word) for word in words if type(word) in (str, int)]
    return list(dict.fromkeys(text for text in texts if len(text) <= 64 and _WORD.fullmatch(text)))


def _kind(problem: _Problem, *, text: bool = True) -> type[UpstreamError] | None:
    """Return the kind of error by the problem's codes, else by its `text`; None if nothing is known."""
    words = set(_lower(problem))
    for kind, (codes, _) in _KINDS.items():
        if words.intersection(codes):
            return kind
    said = problem.message if text and isinstance(problem.message, str) else ""
    return next((kind for kind, pattern in _TEXTS.items() if pattern.search(said)), None)


def _with_counts(error: UpstreamError, problem: _Problem) -> UpstreamError:
    """Add the tokens that the provider counted, and its maximum: the two largest numbers in its text."""
    if isinstance(error, ContextLengthExceeded) and isinstance(problem.message, str):
        numbers = sorted({int(number) for number in _NUMBER.findall(problem.message)}, reverse=True)
        if len(numbers) > 1:
            error.tokens, error.limit = numbers[:2]
    return error


def _lower(problem: _Problem) -> list[str]:
    words = (problem.code, problem.type, problem.status, field(problem.innererror, "code"))
    return [str(word).lower() for word in words if type(word) in (str, int)]


def _refusal(status: int, headers: Mapping[str, str], problem: _Problem, now: float) -> UpstreamError:
    wait = retry_after(headers.get("Retry-After"), now)
    kind = UpstreamQuota if status == 402 else _kind(problem, text=status not in (401, 429))
    if kind is UpstreamQuota and status < 500:
        return UpstreamQuota()
    if kind in (ContextLengthExceeded, ContentFiltered) and status in (400, 403, 413, 422, 500):
        return _with_counts(kind(), problem)
    if status == 529 or (kind is UpstreamOverloaded and (status == 429 or status >= 500)):
        return UpstreamOverloaded(retry_after=wait)
    if status in (401, 403):
        return UpstreamAuth() if status == 401 else UpstreamForbidden()
    if status == 429:
        return UpstreamRateLimited(retry_after=wait if wait is not None else _delay(problem))
    if status in (408, 409) or status >= 500:
        unavailable = UpstreamUnavailable(retry_after=wait)
        unavailable.retryable = status in _PASSING  # type: ignore[misc]  # the same class and code, but it stays
        return unavailable
    if status == 400 and ("API_KEY_INVALID" in _reasons(problem) or _is_bad_key(problem)):  # the 401 of Gemini and xAI
        return UpstreamAuth()
    if _is_unknown_model(status, problem):
        return UpstreamModelNotFound()
    return UpstreamRejected() if status >= 400 else UpstreamProtocol()


def retry_after(value: str | None, now: float, most: float = MAX_RETRY_AFTER) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3), from 0 to `most`; None if it has none."""
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
    return None if math.isnan(seconds) else min(max(seconds, 0.0), most)


def resets_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds until the provider takes requests again, from 0 to LONGEST_RESET; None if no header has them.

    They are in Retry-After, or in the headers of exhausted limits: `x-ratelimit-reset-tokens: 6m0s`
    (https://platform.openai.com/docs/guides/rate-limits), `anthropic-ratelimit-requests-reset` with a date
    (https://docs.anthropic.com/en/api/rate-limits), `x-ratelimit-reset` in Unix milliseconds (OpenRouter's).
    """
    waits = [retry_after(headers.get("retry-after"), now, LONGEST_RESET)]
    if (milliseconds := _seconds(headers.get("retry-after-ms", ""), now)) is not None:  # OpenAI's and Azure's
        waits = [milliseconds / 1_000]
    if waits == [None]:
        spent = [name for name, left in headers.items() if "ratelimit" in name and "remaining" in name and left == "0"]
        waits = [_seconds(headers.get(name.replace("remaining", "reset"), ""), now) for name in spent]
    return max((min(max(wait, 0.0), LONGEST_RESET) for wait in waits if wait is not None), default=None)


def _seconds(value: str, now: float) -> float | None:
    """Parse a provider's wait: seconds, a duration such as `1h2m0.5s` or `120ms`, a Unix time or a date."""
    if found := _DURATION.fullmatch(value):
        return sum(float(part or 0) * size for part, size in zip(found.groups(), (3_600, 60, 1, 0.001), strict=True))
    try:
        number = float(value)
    except ValueError:
        try:
            return datetime.fromisoformat(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    if math.isnan(number):
        return None
    return number if number < 1e9 else number - now if number < 1e12 else number / 1_000 - now


class _Problem(msgspec.Struct):
    code: Any = None
    type: Any = None
    status: Any = None
    details: Any = None
    message: Any = None
    innererror: Any = None


class _Body(_Problem):
    """An error body. vLLM and Mistral may put the fields of `error` here; Ollama's `error` is the message."""

    error: _Problem | str | None = None


_decode: Final[Callable[[bytes], _Body | list[_Body]]] = msgspec.json.Decoder(_Body | list[_Body]).decode
"""Vertex AI sends a list of one."""


def _problem(body: bytes) -> _Problem:
    """Return the error of a body; empty if nothing in it is understood."""
    try:
        found = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Problem()
    whole = found if isinstance(found, _Body) else next(iter(found), _Body())
    if isinstance(whole.error, str):
        return _Problem(message=whole.error, code=whole.code)
    return whole.error or whole


def _is_unknown_model(status: int, problem: _Problem) -> bool:
    """Return whether the provider does not know the model. The 404 of a wrong base_url does not mention a model."""
    if any(isinstance(word, str) and word in _NO_MODEL for word in (problem.code, problem.type)):
        return True
    text = problem.message if isinstance(problem.message, str) else ""
    if status == 404 and _MODEL.search(text) is not None:
        return True
    # OpenRouter has only a text, with status 400.
    return text.endswith(" is not a valid model ID") or (status == 400 and _MODEL_UNKNOWN.search(text) is not None)


def _is_bad_key(problem: _Problem) -> bool:
    """Return whether xAI refuses the key. Its 400 for other mistakes has the same code."""
    by_xai = problem.code == "Client specified an invalid argument"
    return by_xai and isinstance(problem.message, str) and problem.message.startswith("Incorrect API key provided")


def _words(problem: _Problem) -> list[str]:
    return identifiers((problem.code, problem.type, problem.status))


def _details(problem: _Problem, name: str) -> list[str]:
    """Return the texts called `name` in Google's list of details."""
    details = cast("list[object]", problem.details) if isinstance(problem.details, list) else []
    objects = [cast("dict[str, object]", detail) for detail in details if isinstance(detail, dict)]
    return [value for detail in objects if isinstance(value := detail.get(name), str)]


def _reasons(problem: _Problem) -> list[str]:
    return _details(problem, "reason")


def _delay(problem: _Problem, most: float = MAX_RETRY_AFTER) -> float | None:
    """Return Google's equivalent of Retry-After: a duration such as "34.07s"."""
    delays = [retry_after(delay.removesuffix("s"), 0.0, most) for delay in _details(problem, "retryDelay")]
    return next((delay for delay in delays if delay is not None), None)
