"""Every refusal or failure that a caller can see: a code, an HTTP status and a message fit for an end user.

A message never holds a value that the client sent, a provider's own text, or a key.
"""

from __future__ import annotations

from typing import ClassVar


class ChatError(Exception):
    """What chat_nest raises on purpose.

    `retry_after` is in seconds. `retryable` says whether the same request may succeed later.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    text: ClassVar[str] = "AI request failed"
    retryable: ClassVar[bool] = False

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


class Unauthorized(ChatError):
    """`challenge` is what WWW-Authenticate says, such as `Bearer`: how to ask instead (RFC 9110, section 11.6.1)."""

    code, status, text = "unauthorized", 401, "Authentication is required"

    def __init__(self, message: str = "", *, challenge: str = "") -> None:
        super().__init__(message)
        self.challenge = challenge


class Forbidden(ChatError):
    code, status, text = "forbidden", 403, "This is not allowed"


class NotFound(ChatError):
    code, status, text = "not_found", 404, "Not found"


class MethodNotAllowed(ChatError):
    """`allow` lists the methods that the path answers to."""

    code, status, text = "method_not_allowed", 405, "This method is not allowed here"

    def __init__(self, allow: str, hint: str = "") -> None:
        super().__init__(f"Use {allow} here{hint and f': {hint}'}")
        self.allow = allow


class BodyTooLarge(ChatError):
    code, status, text = "body_too_large", 413, "The request body is too large"


class HeadersTooLarge(ChatError):
    code, status, text = "headers_too_large", 431, "The request's header fields are too large"


class RequestTimeout(ChatError):
    """The request did not come in whole, in time."""

    code, status, text, retryable = "request_timeout", 408, "The request took too long to arrive", True


class UnsupportedMediaType(ChatError):
    code, status, text = "unsupported_media_type", 415, "Send application/json without a content encoding"


# What the caller may still spend.


class LimitExceeded(ChatError):
    """A limit refused the request. `limit` names it, as in a profile: `tokens_per_day`.

    `scope` says whose it is (caller, group, all), and `room` what is left of it, in its unit.
    """

    code, status, retryable = "limit_exceeded", 429, True

    def __init__(self, message: str = "", *, limit: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.limit = limit
        self.scope = "caller"
        self.room = 0


class RateLimited(LimitExceeded):
    code, text = "rate_limited", "Rate limit exceeded. Please slow down."


class TooManyStreams(LimitExceeded):
    code, text = "too_many_streams", "Too many answers at once. Please wait for one to end."


class RequestTooLarge(LimitExceeded):
    code, text, retryable = "request_too_large", "Request too large. Please shorten your message.", False


class BudgetExceeded(LimitExceeded):
    code, text, retryable = "budget_exceeded", "Daily AI budget exceeded. Try again tomorrow.", False


class LimiterUnavailable(ChatError):
    """The store did not answer in time, so nothing was reserved and nothing was sent."""

    code, status, text, retryable = "limiter_unavailable", 503, "The service is busy. Please try again.", True


class Overloaded(ChatError):
    """The server has as many answers or connections as it may have at once."""

    code, status, text, retryable = "overloaded", 503, "The service is busy. Please try again.", True


# A request that came before, by its Idempotency-Key.


class InProgress(ChatError):
    """The first request with this key is still being answered."""

    code, status, retryable = "request_in_progress", 409, True
    text = "The first request with this Idempotency-Key is still being answered"

    def __init__(self, claim: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(retry_after=retry_after)
        self.claim = claim
        """The id that its claim has in the store."""


class KeyReused(ChatError):
    code, status, text = "idempotency_key_reused", 409, "This Idempotency-Key was used for another request"


class Lost(ChatError):
    """The process that served the run died; what it had reserved is charged in full."""

    code, status, text = "lost", 502, "The answer was lost"


# A run that is asked for again.


class RunsUnavailable(ChatError):
    """Who keeps the run, or may keep it, did not answer in time."""

    code, status, retryable = "runs_unavailable", 503, True
    text = "The answer can't be reached right now. Please try again."


# The provider.


class UpstreamError(ChatError):
    """The provider failed.

    `spent_nothing` is True only where it is certain that the provider produced and billed nothing.
    """

    code, status, text = "upstream_error", 502, "The model provider failed"

    def __init__(self, message: str = "", *, spent_nothing: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.spent_nothing = spent_nothing
        self.detail = ""
        """The provider's HTTP status, and its own code and type: for the log, never for clients."""


class UpstreamUnavailable(UpstreamError):
    """A 5xx before anything was produced."""

    code, status, retryable = "upstream_unavailable", 502, True
    text = "The model provider is unavailable. Please try again."


class UpstreamPaused(UpstreamUnavailable):
    """The provider failed again and again, so it is left alone for `retry_after` seconds: it was not asked."""

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


class UpstreamAuth(UpstreamError):
    code, text = "upstream_auth", "The model provider refused this server's credentials"


class UpstreamRejected(UpstreamError):
    """Another 4xx: the provider does not accept the request (a parameter, its size)."""

    code, text = "upstream_rejected", "The model provider rejected the request"


class UpstreamModelNotFound(UpstreamRejected):
    """The provider has no such model, or not for this server's key."""

    code, text = "upstream_model_not_found", "The model is not available at the model provider"


class UpstreamProtocol(UpstreamError):
    code, text = "upstream_protocol", "The model provider's answer could not be understood"


class UpstreamTruncated(UpstreamError):
    code, text = "upstream_truncated", "The model provider's answer ended too early"


class UpstreamTimeout(UpstreamError):
    code, status, text, retryable = "upstream_timeout", 504, "The model provider took too long to answer", True


class UpstreamIdle(UpstreamError):
    code, status, text = "upstream_idle", 504, "The model provider stopped answering"


# How a run can end from this side.


class DeadlineExceeded(ChatError):
    code, status, text = "deadline_exceeded", 504, "The answer took too long"


class SlowReader(ChatError):
    """The client read nothing for `Timeouts.write` seconds; it can't be told."""

    code, status, text = "slow_reader", 408, "The client reads too slowly"


class ClientGone(ChatError):
    """The client left; it can't be told."""

    code, status, text = "client_gone", 499, "The client left"


class Stopped(ChatError):
    """Its owner asked for the end."""

    code, status, text = "stopped", 409, "The answer was stopped"


class Shutdown(ChatError):
    code, status, text, retryable = "shutdown", 503, "The server is shutting down. Please try again.", True


def by_code(code: str) -> ChatError:
    """The error with this code; a plain ChatError where there is none."""
    kinds: list[type[ChatError]] = [ChatError]
    for kind in kinds:
        if kind.code == code:
            return MethodNotAllowed("") if kind is MethodNotAllowed else kind()
        kinds.extend(kind.__subclasses__())
    return ChatError()
