"""The Protocols of an observer, and of the handler that it watches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from msgspec import Struct

from chat_nest.core.claims import Line, Standing
from chat_nest.core.errors import ChatError
from chat_nest.core.messages import Caller
from chat_nest.core.protocols.ending import Ending
from chat_nest.core.protocols.shared import Scope
from chat_nest.core.steps import Steps


@runtime_checkable
class Observer(Protocol):
    """Receives at most two calls a request, none a token. Must not block; its exceptions are logged and dropped."""

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None: ...
    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None: ...
    def finished(self, ending: Ending) -> None: ...


class Report(Struct, frozen=True, kw_only=True):
    """How one request of a chat went, with the times of its steps. It holds no text of the client's."""

    id: str
    dialect: str
    """A built-in dialect's name, or the class of another one."""
    code: str
    """`ok`, an error's code, `replayed` (the end of an earlier request) or `followed` (a request that still runs)."""
    steps: Steps
    profile: str = ""
    """Empty if it was refused before its profile was known."""
    ending: Ending | None = None
    """None if it was not admitted."""
    error: ChatError | None = None


@runtime_checkable
class Reported(Protocol):
    """An observer that gets a Report of each request at its end."""

    def reported(self, report: Report) -> None: ...


@runtime_checkable
class FollowsSteps(Protocol):
    """An observer that hears of a request when it arrives and when its provider is called, in the request's context.

    A report follows each arrival, unless the server cancels the request before its body was read.
    """

    def arrived(self, id: str, dialect: str, scope: Scope) -> None: ...
    def asking(self, id: str, model: str) -> None:
        """Note that PROVIDER:MODEL is about to be called: headers for it go into `core.trace_headers`."""
        ...


AnyObserver: TypeAlias = Observer | Reported | FollowsSteps
"""What `create_chat_handler(observers=[...])` takes. One object can be several of them."""


class Figures(Struct, frozen=True, kw_only=True):
    """What one handler has to do at this moment."""

    streams: int
    """Running answers."""
    queued: int
    """Requests that wait for a free stream of a provider, or for their turn at the store."""
    unsettled: int
    """Endings that the store has not confirmed."""
    expired: int
    """Expired leases that were found since the start."""
    breakers: Mapping[str, str]
    """`closed`, `probing` or `open`, by provider."""


class Budget(Struct, frozen=True):
    """How a shared limit stands: that of all callers, or of the configured `group`."""

    line: Line
    standing: Standing
    group: str = ""


class HasFigures(Protocol):
    """A handler, as an observer reads it."""

    @property
    def store_kind(self) -> str:
        """`memory`, `sqlite`, `postgres`, `redis`, or the class of another store."""
        ...

    def figures(self) -> Figures: ...
    async def budgets(self) -> Sequence[Budget]:
        """Return how the shared limits stand. Raises LimiterUnavailable."""
        ...


@runtime_checkable
class Watches(Protocol):
    """An Observer that reads the figures of its handler whenever it likes."""

    def watch(self, handler: HasFigures) -> None: ...
