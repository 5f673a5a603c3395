"""Every refusal or failure that a client can see: a code, an HTTP status and a message for an end user.

A message never holds a value that the client sent, a provider's own text, or a key.
The file is long because it is one table.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

ChallengeKind = Literal["proof_of_work", "turnstile", "hcaptcha", "recaptcha"]
"""What a visitor may have to solve."""


def failure_name(error: BaseException) -> str:
    """Return a failed connection's text for the log: the exception's class or a phrase, never its message."""
    return "its host name can't be resolved" if isinstance(error, socket.gaierror) else type(error).__name__


class ChatError(Exception):
    """The base of every error that chat_nest raises on purpose.

    `retry_after` is in seconds. `retryable` is True if the same request may succeed later.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    text: ClassVar[str] = "AI request failed"
    retryable: ClassVar[bool] = False

    billed: bool = False
    """True if the attempt may have been billed, so the client must not retry by itself: see docs/api.md."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        self.message = message or self.text
        self.retry_after = retry_after
        super().__init__(self.message)


# The request itself.


class BadRequest(ChatError):
    """A field broke a rule. `field` is a path such as `messages[2].role`; the message states the rule."""

    code, status, text = "bad_request", 400, "Invalid request"

    def __init__(self, message: str = "", *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ImagesNotSupported(BadRequest):
    """The newest message has an image or a file, and the profile or the model accepts none."""

    code = "images_not_supported"


class TurnNotSigned(BadRequest):
    """The history has an answer without a valid signature, and the profile requires one."""

    code = "turn_not_signed"


class Unauthorized(ChatError):
    """`challenge` is the value of WWW-Authenticate, such as `Bearer` (RFC 9110, section 11.6.1)."""

    code, status, text = "unauthorized", 401, "Authentication is required"

    def __init__(self, message: str = "", *, challenge: str = "") -> None:
        super().__init__(message)
        self.challenge = challenge


class InvalidSession(Unauthorized):
    """A session token that this deployment did not sign, or in a place where it does not belong."""

    code, text = "invalid_session", "This session is not valid here"

    def __init__(self, message: str = "", *, challenge: str = "Bearer") -> None:
        super().__init__(message, challenge=challenge)


class SessionExpired(InvalidSession):
    code, text = "session_expired", "This session has expired. Please begin a new one."


class SessionRevoked(InvalidSession):
    """The session was revoked. It ends a running answer, too."""

    code, text = "session_revoked", "This session was ended. Please begin a new one."


class Forbidden(ChatError):
    code, status, text = "forbidden", 403, "This is not allowed"


class Closed(ChatError):
    """The operator set a limit of the caller's profile, its group or all callers to 0: no request is admitted."""

    code, status, text = "closed", 403, "This chat is closed."


class Blocked(Forbidden):
    """The operator blocked the caller, or its network."""

    code, text = "blocked", "This caller is blocked."


class HostNotAllowed(Forbidden):
    """The request's Host is not in `allowed_hosts`."""

    code = "host_not_allowed"
    text = "This server does not answer to the host name of this request: see allowed_hosts in its configuration"


class OriginNotAllowed(Forbidden):
    """A page of another origin, or a program without a credential, sent a request that spends or stops something."""

    code = "origin_not_allowed"
    text = "Pages of this origin may not ask here: see origins in the server's configuration"


class ChallengeRequired(Forbidden):
    """The visitor must solve a challenge first. `challenge` is what a page needs for it: see docs/visitors.md."""

    code = "challenge_required"
    text = "Please confirm that you are not a robot, then send this again."

    def __init__(self, challenge: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.challenge = challenge or {}


class ChallengeFailed(Forbidden):
    """The solution is wrong, too old, used before, or was made for something else."""

    code = "challenge_failed"
    text = "The solution is not correct: get another challenge"


class ChallengeUnavailable(ChatError):
    """The service that checks solutions did not answer in time."""

    code, status, retryable = "challenge_unavailable", 503, True
    text = "The solution can't be checked right now. Please try again."


class NotFound(ChatError):
    code, status, text = "not_found", 404, "Not found"


class MethodNotAllowed(ChatError):
    """`allow` lists the methods that the path supports."""

    code, status, text = "method_not_allowed", 405, "This method is not allowed here"

    def __init__(self, allow: str, hint: str = "") -> None:
        super().__init__(f"Use {allow} here{hint and f': {hint}'}")
        self.allow = allow


class BodyTooLarge(ChatError):
    """`size` is a lower bound of the body's bytes, and `most` their limit, if these are known."""

    code, status, text = "body_too_large", 413, "The request body is too large"

    def __init__(self, message: str = "", *, retry_after: float | None = None, size: int = 0, most: int = 0) -> None:
        super().__init__(message, retry_after=retry_after)
        self.size = size
        self.most = most


class HeadersTooLarge(ChatError):
    code, status, text = "headers_too_large", 431, "The request's header fields are too large"


class RequestTimeout(ChatError):
    """The whole request did not arrive in time."""

    code, status, text, retryable = "request_timeout", 408, "The request took too long to arrive", True


class UnsupportedMediaType(ChatError):
    code, status, text = "unsupported_media_type", 415, "Send content-type: application/json, plain or gzip"


# What the caller may still spend.


class LimitExceeded(ChatError):
    """A limit refused the request. `limit` is its name in a profile: `tokens_per_day`.

    `scope` is its owner (caller, group, all), and `room` what is left of it, in `unit`. `needed` is what the request
    needs of a budget, if a shorter request may fit, else 0. `resets_at` is the end of its window in Unix seconds; 0 if
    it has none.
    """

    code, status, retryable = "limit_exceeded", 429, True

    def __init__(self, message: str = "", *, limit: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.limit = limit
        self.scope = "caller"
        self.unit = "tokens"
        self.room = 0
        self.needed = 0
        self.resets_at = 0.0


class RateLimited(LimitExceeded):
    code, text = "rate_limited", "Rate limit exceeded. Please slow down."


class TooManyStreams(LimitExceeded):
    code, text = "too_many_streams", "Too many answers at once. Please wait for one to end."


class RequestTooLarge(LimitExceeded):
    """`tokens` is the size of the prompt, and `most` its limit, if the limit counts tokens."""

    code, text, retryable = "request_too_large", "Request too large. Please shorten your message.", False

    tokens = 0
    most = 0


class BudgetExceeded(LimitExceeded):
    code, text, retryable = "budget_exceeded", "Daily AI budget exceeded. Try again tomorrow.", False


class LimiterUnavailable(ChatError):
    """The store did not answer in time, so nothing was reserved and nothing was sent."""

    code, status, text, retryable = "limiter_unavailable", 503, "The service is busy. Please try again.", True


class StoreEmptied(LimiterUnavailable):
    """The store lost its data, or another store answers at its URL. `advice` is for the operator."""

    def __init__(self, advice: str) -> None:
        super().__init__()
        self.advice = advice


class Overloaded(ChatError):
    """The server has as many answers or connections as its limit allows."""

    code, status, text, retryable = "overloaded", 503, "The service is busy. Please try again.", True


class Paused(ChatError):
    """The operator paused all chats, or those of the caller, its group, a profile, a model or a provider.

    Nothing was reserved. `retry_after` is the time to the end of the pause, if that is known and near.
    """

    code, status, text, retryable = "paused", 503, "This chat is paused. Please try again later.", True


# A repeated Idempotency-Key.


class InProgress(ChatError):
    """The first request with this key is still being answered."""

    code, status, retryable = "request_in_progress", 409, True
    text = "The first request with this Idempotency-Key is still being answered"

    def __init__(self, claim: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(retry_after=retry_after)
        self.claim = claim
        """The id of its claim in the store."""


class KeyReused(ChatError):
    code, status, text = "idempotency_key_reused", 409, "This Idempotency-Key was used for another request"


class Lost(ChatError):
    """The process that served the run died; its whole reservation is charged."""

    code, status, text = "lost", 502, "The answer was lost"


# Readers of a kept run.


class Forgotten(ChatError):
    """The run's beginning is no longer kept, so a reader can't get all of it."""

    code, status, text = "forgotten", 410, "The beginning of this answer is not kept any more"


class RunsUnavailable(ChatError):
    """The process or the Redis that keeps the run, or may keep it, did not answer in time."""

    code, status, retryable = "runs_unavailable", 503, True
    text = "The answer can't be reached right now. Please try again."


# The provider.


class UpstreamError(ChatError):
    """The provider failed.

    `spent_nothing` is True only if it is certain that the provider produced and billed nothing.
    """

    code, status, text = "upstream_error", 502, "The model provider failed"

    def __init__(self, message: str = "", *, spent_nothing: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.spent_nothing = spent_nothing
        self.detail = ""
        """The provider's HTTP status, and its own code and type: for the log, never for clients."""
        self.resets_after: float | None = None
        """The seconds until the provider accepts this key again, as it reports; unlike `retry_after` up to an hour."""
        self.of_key = False
        """True if the error concerns one of the provider's several keys, and not the provider."""


class UpstreamUnavailable(UpstreamError):
    """A 5xx before any output."""

    code, status, retryable = "upstream_unavailable", 502, True
    text = "The model provider is unavailable. Please try again."


class UpstreamOverloaded(UpstreamUnavailable):
    """The provider reports that it is overloaded."""

    code, status, text = "upstream_overloaded", 503, "The model provider is overloaded. Please try again later."


class UpstreamPaused(UpstreamUnavailable):
    """The provider failed repeatedly, so no request goes to it for `retry_after` seconds. This one was not sent."""

    status = 503


class UpstreamUnreachable(UpstreamError):
    """Name resolution, connection or TLS failed: the request was never sent."""

    code, retryable, text = "upstream_unreachable", True, "The model provider can't be reached"


class UpstreamNotStarted(UpstreamUnreachable):
    """A model that this server runs itself does not start, and retries within one request are useless.

    `advice` is the reason, for /readyz: it holds no path and no command. `retry_after` is the time to the next start.
    """

    retryable = False
    text = "The model on this server can't start"

    def __init__(self, advice: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(spent_nothing=True, retry_after=retry_after)
        self.advice = advice


class UpstreamRateLimited(UpstreamError):
    """The provider limits this server, not this caller."""

    code, status, retryable = "upstream_rate_limited", 503, True
    text = "The model provider is busy. Please try again later."


class UpstreamQuota(UpstreamRateLimited):
    """The account of this server's key has no credit left, or used up a quota that does not refill soon."""

    code, retryable, text = "upstream_quota", False, "This server's account at the model provider is exhausted"


class UpstreamAuth(UpstreamError):
    code, text = "upstream_auth", "The model provider refused this server's credentials"


class UpstreamForbidden(UpstreamAuth):
    """The key is valid but lacks this permission (403): it may be allowed to use another model."""


class UpstreamRejected(UpstreamError):
    """Another 4xx: the provider does not accept the request (a parameter, its size)."""

    code, text = "upstream_rejected", "The model provider rejected the request"


class ContextLengthExceeded(UpstreamRejected):
    """The prompt and the requested answer together exceed the model's context.

    `tokens` is the provider's count and `limit` its maximum; None if it does not report them.
    """

    code, status = "context_length_exceeded", 400
    text = "The conversation is too long for the model. Please shorten it."
    tokens: int | None = None
    limit: int | None = None


class ContentFiltered(UpstreamRejected):
    """The provider's content filter refused the prompt. A filter that stops an answer is a finish reason."""

    code, status, text = "content_filtered", 400, "The model provider's content filter refused the request"


class UpstreamModelNotFound(UpstreamRejected):
    """The provider does not have this model, or does not offer it to this server's key."""

    code, text = "upstream_model_not_found", "The model is not available at the model provider"


class UpstreamProtocol(UpstreamError):
    code, text = "upstream_protocol", "The model provider's answer could not be understood"


class UpstreamTruncated(UpstreamError):
    code, text = "upstream_truncated", "The model provider's answer ended too early"


class UpstreamTimeout(UpstreamError):
    code, status, text, retryable = "upstream_timeout", 504, "The model provider took too long to answer", True


class UpstreamIdle(UpstreamError):
    code, status, text = "upstream_idle", 504, "The model provider stopped answering"


# How this server can end a run.


class DeadlineExceeded(ChatError):
    code, status, text = "deadline_exceeded", 504, "The answer took too long"


class SlowReader(ChatError):
    """The client read nothing for `Timeouts.write` seconds, so it can't receive this error."""

    code, status, text = "slow_reader", 408, "The client reads too slowly"


class ClientGone(ChatError):
    """The client left, so it can't receive this error."""

    code, status, text = "client_gone", 499, "The client left"


class Stopped(ChatError):
    """The run's owner or the operator stopped it."""

    code, status, text = "stopped", 409, "The answer was stopped"


class Shutdown(ChatError):
    code, status, text, retryable = "shutdown", 503, "The server is shutting down. Please try again.", True


KINDS: Final[tuple[type[ChatError], ...]] = (
    ChatError, BadRequest, ImagesNotSupported, TurnNotSigned, Unauthorized, InvalidSession, SessionExpired,
    SessionRevoked, Forbidden, Closed, Blocked, HostNotAllowed, OriginNotAllowed, ChallengeRequired,
    ChallengeFailed, ChallengeUnavailable, NotFound, MethodNotAllowed,
    BodyTooLarge, HeadersTooLarge, RequestTimeout, UnsupportedMediaType,
    LimitExceeded, RateLimited, TooManyStreams, RequestTooLarge, BudgetExceeded, LimiterUnavailable, Overloaded, Paused,
    InProgress, KeyReused, Lost, Forgotten, RunsUnavailable, UpstreamError, UpstreamUnavailable, UpstreamOverloaded,
    UpstreamUnreachable, UpstreamRateLimited, UpstreamQuota, UpstreamAuth, UpstreamRejected, ContextLengthExceeded,
    ContentFiltered, UpstreamModelNotFound, UpstreamProtocol, UpstreamTruncated, UpstreamTimeout, UpstreamIdle,
    DeadlineExceeded, SlowReader, ClientGone, Stopped, Shutdown,
)  # fmt: skip
"""One error for each code."""

_BY_CODE: Final[dict[str, type[ChatError]]] = {kind.code: kind for kind in KINDS}


def by_code(code: str) -> ChatError:
    """Return the error with this code; a plain ChatError for an unknown code."""
    if code == MethodNotAllowed.code:
        return MethodNotAllowed("")
    return _BY_CODE.get(code, ChatError)()
