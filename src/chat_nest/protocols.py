"""Every seam that you can implement, on one page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from msgspec import Struct

from chat_nest.deltas import Batch, FinishReason
from chat_nest.errors import ChatError
from chat_nest.limits import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing, Timeouts, Unit
from chat_nest.messages import Caller, ChatRequest, Message, Tool
from chat_nest.records import By, Record, UsageRow
from chat_nest.usage import Source, Usage

Scope = MutableMapping[str, Any]
"""An ASGI HTTP connection scope."""

Now = Callable[[], float]
"""Unix time in seconds; a test passes its own."""

Identify = Callable[[Scope], Caller | Awaitable[Caller]]
"""Who is asking. Raises Unauthorized or Forbidden to refuse; must never believe the body."""


class Prompt(Struct, frozen=True, kw_only=True):
    """What one attempt sends to a provider. `model` is the provider's own name for it."""

    model: str
    messages: tuple[Message, ...]
    max_output_tokens: int
    temperature: float | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or `tool:NAME`."""


class Provider(Protocol):
    """A source of model output: one method.

    Read where they exist: `abort_bills`, what an abandoned stream costs: "stops" (what was produced), "full" or
    "unknown" (the whole hold; the default); `async check()`, which spends nothing and returns the names of the models
    that the provider lists (empty or None: not known) if it can be reached and accepts our key, else raises
    UpstreamError; `async aclose()`.
    """

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """Start a stream; entering returns once the provider accepted the request.

        Leaving the context closes the provider's connection, at once and on every path. The iterator ends only after
        the provider's own completion signal. Raises UpstreamError.
        """
        ...


PassOn = Callable[[Callable[[Batch], bool]], Awaitable[bool]]
"""`await pass_on(take)`: an iterator's batches, given to `take` while it says True, instead of asked for one by one.

Returns True once `take` has said False, after which it may be called again, and False at the end; raises what the
iterator would raise, and what `take` does. An iterator may have it as a method: `take` is then called in the read that
brings a batch, and no task wakes for it.
"""


class TokenCounter(Protocol):
    """Counts tokens of text. Never low: it guards money. `exact` is True where it is the model's own tokenizer."""

    @property
    def exact(self) -> bool: ...

    def count(self, text: str) -> int: ...


class Ending(Struct, frozen=True, kw_only=True):
    """How an admitted request ended, and what it used: for the final event and for observers."""

    id: str
    caller: str
    """The hash of the caller's id."""
    profile: str
    model: str
    reason: FinishReason | None
    """None where `error` says why."""
    error: ChatError | None
    usage: Usage
    cost: int | None = None
    """Nano-dollars; None where the model's price is not known."""
    source: Source
    seconds: float
    first_token_seconds: float | None
    remaining: Mapping[str, int]
    """What is left of each of the caller's own limits, by name; those in dollars in nano-dollars."""
    group: str = ""
    dropped_messages: int = 0
    """How many of the oldest messages did not fit and were not sent."""


class Finale(Struct, frozen=True, kw_only=True):
    """How a run ended, for readers who follow it: an ending, or an error's code and what is told of it."""

    ending: Ending | None = None
    code: str = ""
    message: str = ""
    retryable: bool = False


class RunLog(Protocol):
    """What one run says, while it is written. Neither call waits."""

    @property
    def readers(self) -> int:
        """How many follow it now, as far as this process knows."""
        ...

    @property
    def left_at(self) -> float:
        """When the last of them left, in the event loop's seconds; 0 where nobody has followed it yet."""
        ...

    def append(self, batch: Batch) -> int:
        """Keep a batch; return its number, counted from 1."""
        ...

    def end(self, finale: Finale) -> int:
        """Keep how it ended; return the number behind the last batch."""
        ...


class FollowedRun(Protocol):
    """A run as a reader finds it. `owner` is its caller's key: nobody else may follow it."""

    @property
    def id(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def finale(self) -> Finale | None:
        """Known once `read` has ended."""
        ...

    def read(self, after: int) -> AsyncGenerator[tuple[int, Batch], None]:
        """Yield the batches behind number `after`, as they come, with their numbers, until the run ends.

        Raises LookupError where they are not kept any more, RunsUnavailable where nobody answers.
        """
        ...


class RunLogs(Protocol):
    """Where runs are kept for readers who come back."""

    def begin(self, id: str, owner: str, model: str, names: Sequence[str] = ()) -> RunLog:
        """Keep a new run, which is also found by `names`; the newest of a name counts."""
        ...

    def ended(self, id: str, names: Sequence[str] = ()) -> None:
        """The run is over: forget it after a while."""
        ...

    async def find(self, name: str) -> FollowedRun | None:
        """The run with this id or name; None for one that never was, or is forgotten. Raises RunsUnavailable."""
        ...

    def listen(self, stop: Callable[[str, str], bool]) -> None:
        """Call `stop(name, owner)` when another process is asked to stop a run that may be here; True if it was."""
        ...

    def attend(self) -> None:
        """Be there for other processes from now on: called in the event loop, before each run; it never waits."""
        ...

    async def stop(self, name: str, owner: str) -> bool:
        """Stop a run that is in another process; False where none has it. Raises RunsUnavailable."""
        ...

    async def aclose(self) -> None: ...


class Encoder(Protocol):
    """One answer's bytes. A batch in, one write out; b"" writes nothing.

    Where `streams` is False, `finish` returns the whole body; nothing is sent before it, so a failure is a status.
    """

    @property
    def streams(self) -> bool: ...
    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    def start(self, model: str) -> bytes: ...
    def encode(self, batch: Batch) -> bytes: ...
    def number(self, data: bytes, number: int) -> bytes:
        """What `encode` gave, with the number behind which a reader can go on; unchanged in formats without one."""
        ...

    def heartbeat(self) -> bytes: ...
    def fail(self, error: ChatError) -> bytes: ...
    def finish(self, ending: Ending) -> bytes: ...


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer that is not a stream. `headers` go with what every answer has, and say the content type."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)


class Route(Struct, frozen=True, kw_only=True):
    """What a dialect answers at one method and path: a chat whose request is the body, if nothing else is said."""

    path: str
    method: str = "POST"
    body: Callable[[Scope], bytes | None] | None = None
    """Makes the body of a chat that stands elsewhere in the request; None where this chat is over (204)."""
    models: Callable[[Sequence[str], str], Answer] | None = None
    """Answers with what the caller may name as a model. Takes these names, and the path below `path`, if any."""


class Dialect(Protocol):
    """One wire format: a parse and an encoder.

    Read where it exists: `quota_headers(quotas)`, the format's own headers for what the caller has left.
    """

    @property
    def routes(self) -> Sequence[Route]: ...

    def parse(self, body: bytes) -> ChatRequest:
        """Raises BadRequest, which names the field and the rule and never the value."""
        ...

    def encoder(self, request: ChatRequest, run_id: str) -> Encoder: ...

    def refuse(self, error: ChatError, request_id: str) -> Answer:
        """The answer where there is no stream; Retry-After and Allow are not its business."""
        ...


class Store(Protocol):
    """Counters that reserve and settle. Every call is atomic; all but peek and sweep are idempotent by the claim's id.

    A store that can't answer raises LimiterUnavailable or any other exception: nothing new is then spent.
    """

    async def reserve(self, claim: Claim, lease: float) -> Granted | Refused | Duplicate | Conflict:
        """Hold every line of the claim, or none, for `lease` seconds. First charges leases that have expired."""
        ...

    async def extend(self, claims: Sequence[Claim], lease: float) -> frozenset[str]:
        """Renew the leases of live claims; return the ids that were live. Never resurrects an expired one."""
        ...

    async def settle(
        self, claim: Claim, actual: Mapping[Unit, int] | None, source: Source, record: Record | None = None
    ) -> bool:
        """Turn the hold into what was used, by unit; a unit left out, or None, charges the whole hold.

        More than was held is charged all the same. A claim that had expired is corrected to the actual.
        Returns False where there was nothing left to settle. `record` is kept in the same step.
        """
        ...

    async def release(self, claim: Claim) -> bool:
        """Give back a hold of which nothing was spent. An id not seen before can't be reserved afterwards."""
        ...

    async def peek(self, lines: Sequence[Line]) -> tuple[Standing, ...]:
        """How the lines stand; changes nothing."""
        ...

    async def sweep(self) -> int:
        """Charge expired leases in full, marked assumed; return how many."""
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...

    async def aclose(self) -> None: ...


class Reports(Protocol):
    """What a store that keeps records for long can tell of them: SQLite's and PostgreSQL's can."""

    async def usage(
        self, since: float, until: float, by: Sequence[By], zone: ZoneInfo, caller: str | None = None
    ) -> list[UsageRow]:
        """Sum the requests that started at `since` <= t < `until` (Unix seconds), grouped by what `by` names.

        Days are the zone's. With `caller`, the hash of a caller's id, only that one's. Days come in order; within one,
        what cost the most comes first. Changes nothing. Raises ValueError for times or groupings that can't be, and
        LimiterUnavailable where the store does not answer.
        """
        ...


class Sink(Protocol):
    """Where the relay writes. `write` returns when the reader's side has room: that is the backpressure."""

    @property
    def push(self) -> Callable[[bytes], bool] | None:
        """Write at once, or say False where that must be waited for; None where the server has no such way."""
        ...

    async def write(self, data: bytes) -> None: ...


class Observer(Protocol):
    """Called at most twice a request, never once a token. Must not block; what it raises is logged and dropped."""

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None: ...
    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None: ...
    def finished(self, ending: Ending) -> None: ...
