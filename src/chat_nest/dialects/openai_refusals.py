"""Refusals of OpenAI's two formats, and their headers for limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from chat_nest.core.claims import OWN, Quota
from chat_nest.core.errors import (
    BadRequest,
    BudgetExceeded,
    ChallengeRequired,
    ChatError,
    ContentFiltered,
    ContextLengthExceeded,
    Forbidden,
    InvalidSession,
    LimitExceeded,
    RequestTooLarge,
    Unauthorized,
)
from chat_nest.core.protocols import Answer
from chat_nest.dialects.frames import (
    FAILED_DEPENDENCY,
    JSON,
    BudgetStatus,
    as_json,
    limit_status,
    reset_date,
    reset_text,
    retry_headers,
)

PAYMENT_REQUIRED = 402
QUOTA = "insufficient_quota"
TOO_LONG = (
    "This model's maximum context length is {limit} tokens{here}. However, your messages resulted in {tokens} tokens."
)
"""OpenAI's own text. LiteLLM, LangChain, aider and qwen-code search for it to shorten a conversation."""


def refusal(error: ChatError, budget_status: BudgetStatus, *, param: str | None = None) -> Answer:
    """Return the refusal of a request; `param` is the error's field if no field is at fault."""
    too_large = isinstance(error, RequestTooLarge)
    status = FAILED_DEPENDENCY if error.billed else 400 if too_large else limit_status(error, budget_status)
    body = error_body(error)
    if body["error"]["param"] is None:
        body["error"]["param"] = param
    if status == PAYMENT_REQUIRED:
        body["error"] |= {"type": QUOTA, "code": QUOTA}  # opencode repeats any refusal with `rate_limit` in its body
    if isinstance(error, ChallengeRequired):
        body["error"]["challenge"] = error.challenge
    if date := reset_date(error):
        body["error"]["message"] += reset_text(date)
        body["error"]["resets_at"] = date
    return Answer(status=status, body=as_json(body), headers=(*JSON, *retry_headers(error)))


def error_body(error: ChatError) -> dict[str, Any]:
    message, kind, code, param = error.message, "invalid_request_error", error.code, None
    if isinstance(error, BudgetExceeded):
        kind = code = QUOTA
    elif isinstance(error, RequestTooLarge):
        code = "context_length_exceeded"
        if error.tokens > error.most > 0:
            message += f" {TOO_LONG.format(limit=error.most, here=' here', tokens=error.tokens)}"
    elif isinstance(error, ContextLengthExceeded):
        message, param = _too_long(error), "messages"
    elif isinstance(error, ContentFiltered):
        code = "content_filter"
    elif isinstance(error, LimitExceeded):
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    elif isinstance(error, BadRequest):
        param = error.field or None
        code = "model_not_found" if param == "model" else code
        message = f"{param}: {message}" if param else message
    elif isinstance(error, Unauthorized):
        kind, code = "authentication_error", code if isinstance(error, InvalidSession) else "invalid_api_key"
    elif isinstance(error, Forbidden):
        kind = "permission_error"
    elif error.status >= 500:
        kind = "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _too_long(error: ContextLengthExceeded) -> str:
    """Return the text of a prompt that the provider refused."""
    if error.tokens is None:
        return "This model's maximum context length was exceeded. Please reduce the length of the messages."
    return f"{TOO_LONG.format(limit=error.limit, here='', tokens=error.tokens)} Please reduce their length."


def quota_headers(quotas: Sequence[Quota]) -> list[tuple[bytes, bytes]]:
    """Return the caller's tightest limit of requests and of tokens, in OpenAI's headers."""
    headers: list[tuple[bytes, bytes]] = []
    for unit in ("requests", "tokens"):
        of_unit = [each for each in quotas if each.line.unit == unit and each.line.kind != "request"]
        tightest = min((each for each in of_unit if each.line.scope in OWN), key=_room, default=None)
        if tightest is not None:
            told = {"limit": str(tightest.line.limit), "remaining": str(tightest.room)}
            told["reset"] = _duration(tightest.resets_in)
            headers += [(f"x-ratelimit-{name}-{unit}".encode(), said.encode()) for name, said in told.items()]
    return headers


def _room(quota: Quota) -> int:
    return quota.room


def _duration(seconds: float) -> str:
    """Format a time as OpenAI does: 120ms, 7.5s, 6m0s, 23h59m59s."""
    if not 0 < seconds < math.inf:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1_000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 1_000) / 1_000, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}h" * (hours > 0) + f"{minutes}m" * (hours + minutes > 0) + f"{round(rest, 3):g}s"
