"""The Protocols of a dialect: its routes, its parser, and what else it may be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from msgspec import Struct

from chat_nest.core.claims import Quota
from chat_nest.core.errors import ChatError
from chat_nest.core.messages import ChatRequest
from chat_nest.core.protocols.encoder import Encoder
from chat_nest.core.protocols.shared import Scope


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer that is not a stream. `headers` join those of every answer, and include the content type."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)


class Route(Struct, frozen=True, kw_only=True):
    """What a dialect serves at one method and path: by default a chat, with the request in the body."""

    path: str
    method: str = "POST"
    body: Callable[[Scope], bytes | None] | None = None
    """Builds the body of a chat that is elsewhere in the request; None if this chat is over (204)."""
    models: Callable[[Sequence[str], str], Answer] | None = None
    """Answers with the models that the caller may name. Takes these names, and the path below `path`, if any."""
    count: Callable[..., Answer] | None = None
    """Answers with an upper bound of a chat's input tokens; `exact` is True if the count of its texts is."""
    header: bytes = b""
    """The header, in lower case, that selects this route if another dialect has the same method and path."""
    any_case: bool = False
    """True if the case of the path's letters has no meaning."""
    kept: bool = False
    """The path below which kept answers are read, cancelled and deleted by their ids."""


class Dialect(Protocol):
    """One wire format: a parser and an encoder.

    Each further feature of a format is a Protocol: HasQuotaHeaders, NamesOptions, LimitsRetryAfter, Resumable,
    RefersToAnswers, ReadsHeld; with a route that is `kept` also `asgi.kept_routes.KeepsAnswers`.
    """

    @property
    def routes(self) -> Sequence[Route]: ...

    def parse(self, body: bytes) -> ChatRequest:
        """Parse the request. Raises BadRequest, which names the field and the rule and never the value."""
        ...

    def encoder(self, request: ChatRequest, run_id: str) -> Encoder: ...

    def refuse(self, error: ChatError, request_id: str) -> Answer:
        """Return the error's answer if there is no stream. The handler adds Retry-After and Allow."""
        ...


@runtime_checkable
class ReadsHeld(Protocol):
    """A Dialect with a `parse` that accepts a HeldBody, with images beside the JSON: see `held_text`."""

    @property
    def takes_images(self) -> bool: ...


@runtime_checkable
class HasQuotaHeaders(Protocol):
    """A Dialect with its own headers for the room left on the caller's limits."""

    def quota_headers(self, quotas: Sequence[Quota]) -> Sequence[tuple[bytes, bytes]]: ...


@runtime_checkable
class NamesOptions(Protocol):
    """A Dialect with its own names for the fields of Options, which a provider's refusal then uses."""

    @property
    def option_names(self) -> Mapping[str, str]: ...


@runtime_checkable
class LimitsRetryAfter(Protocol):
    """A Dialect of clients that sleep for the whole Retry-After: longer values than this, in seconds, are not sent."""

    @property
    def longest_wait(self) -> float: ...


@runtime_checkable
class Resumable(Protocol):
    """A Dialect with another encoder for a reader who reconnects."""

    def follower(self, run_id: str) -> Encoder: ...


@runtime_checkable
class RefersToAnswers(Protocol):
    """A Dialect with requests that continue kept answers: its `parse` then also takes these, by run."""

    def earlier(self, body: bytes) -> Sequence[str]:
        """Return the runs of the answers that the body refers to."""
        ...
