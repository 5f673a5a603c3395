"""The Protocols that an application can implement: providers, stores, dialects, observers, run logs, identification."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable
from zoneinfo import ZoneInfo

from msgspec import Struct

from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line, Quota, Refused, Standing, Unit
from chat_nest.core.controls import Act, Control, Snapshot
from chat_nest.core.deltas import Batch, FinishReason
from chat_nest.core.errors import ChatError
from chat_nest.core.messages import NO_OPTIONS, Caller, ChatRequest, Message, Options, Tool
from chat_nest.core.records import By, Record, UsageRow
from chat_nest.core.steps import Steps
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Source, Usage

Scope = MutableMapping[str, Any]
"""An ASGI HTTP connection scope."""

Now = Callable[[], float]
"""Unix time in seconds; tests pass their own clock."""

Identify = Callable[[Scope], Caller | Awaitable[Caller]]
"""Return the caller. Raises Unauthorized or Forbidden to refuse. Must never trust the body."""


@runtime_checkable
class CheckableIdentity(Protocol):
    """An Identify that /readyz can check: that the callers' keys are readable."""

    async def check(self) -> None:
        """Raise any exception if no caller can be identified now."""
        ...


@runtime_checkable
class TakesCredentials(Protocol):
    """An Identify that reads a key or a token: see identity.bearer for the headers."""

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]: ...

    def claims(self, credential: str) -> bool:
        """Return whether a credential has the form of this way's own, valid or not."""
        ...


@runtime_checkable
class TakesHeader(Protocol):
    """An Identify that reads a header of its own, which only some requests have."""

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]: ...

    def presented(self, scope: Scope) -> bool:
        """Return whether the request has that header, valid or not."""
        ...


@runtime_checkable
class AcceptsStrangers(Protocol):
    """An Identify that also accepts requests without any credential: by IP address, for example."""

    def is_stranger(self, scope: Scope) -> bool:
        """Return whether the request presents no credential, so that any program could have sent it."""
        ...


class Prompt(Struct, frozen=True, kw_only=True):
    """What one attempt sends to a provider. `model` is the provider's own name for it."""

    model: str
    messages: tuple[Message, ...]
    max_output_tokens: int
    temperature: float | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or `tool:NAME`."""
    options: Options = NO_OPTIONS


class Provider(Protocol):
    """A source of model output: one method.

    Each further ability of a provider is a Protocol: BillsAborts, Checkable, Choosy, Closable, HasContext, SendsKey,
    TakesImages.
    """

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """Start a stream; entering returns once the provider accepted the request.

        Leaving the context closes the provider's connection, at once and on every path. The iterator ends only after
        the provider's own completion signal. Raises UpstreamError.
        """
        ...


@runtime_checkable
class BillsAborts(Protocol):
    """A Provider that states what an abandoned stream costs. For any other, it is "unknown"."""

    @property
    def abort_bills(self) -> str:
        """What an abandoned stream costs: "stops" (what was produced), "full" or "unknown" (the whole hold)."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A Provider that can be checked without spending anything."""

    async def check(self) -> frozenset[str] | None:
        """Return the names of the models that it lists (empty or None: unknown). Raises UpstreamError."""
        ...


class KeyRest(Struct, frozen=True):
    """A key of a provider that is not used for a while. It does not say which key."""

    model: str
    """The model for which it rests; empty for every model."""
    seconds: float
    """How long it still rests."""
    reason: str
    """The code of the error that the key got."""


@runtime_checkable
class PoolsKeys(Protocol):
    """A Provider with several API keys, each of which may rest after a refusal."""

    def key_rests(self) -> tuple[int, Sequence[KeyRest]]:
        """Return the number of keys, and the longest rest of each key that rests, the first to end first."""
        ...


@runtime_checkable
class Choosy(Protocol):
    """A Provider that supports a part of what a prompt may contain. Others lack format, stop and parallel_calls."""

    def lacks(self, prompt: Prompt) -> Sequence[str]:
        """Return the prompt's fields that it lacks and that must not be dropped (`format`, `tool_choice` ...)."""
        ...


@runtime_checkable
class TakesImages(Protocol):
    """A Provider that accepts more than text. Any other is sent text only."""

    def takes(self, model: str) -> frozenset[str]:
        """Return what it accepts: `images`, `files` (PDF), and `image_urls` and `file_urls`, which it fetches."""
        ...


@runtime_checkable
class HasContext(Protocol):
    """A Provider whose models all have one context size: the built-in profiles are fitted to it. None: unknown."""

    @property
    def context_tokens(self) -> int | None: ...


@runtime_checkable
class HasBaseUrl(Protocol):
    """A Provider with a base URL, by which its models' prices are found."""

    @property
    def base_url(self) -> str: ...


@runtime_checkable
class SendsKey(Protocol):
    """A Provider that reports whether its key crosses a public network unencrypted, which is logged at start."""

    @property
    def key_in_clear(self) -> bool: ...


@runtime_checkable
class Closable(Protocol):
    """A part with open resources. The handler closes it."""

    async def aclose(self) -> None: ...


PassOn = Callable[[Callable[[Batch], bool]], Awaitable[bool]]
"""`await pass_on(take)`: see PushSource."""


@runtime_checkable
class PushSource(Protocol):
    """An iterator of batches that can call `take` with each, in the read that brings it: no task wakes for it."""

    async def pass_on(self, take: Callable[[Batch], bool]) -> bool:
        """Call `take` with each batch while it returns True, instead of waiting for requests for the next one.

        Returns True once `take` has returned False, after which it may be called again, and False at the end; raises
        what the iterator would raise, and what `take` does.
        """
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """An iterator of batches that may have read more than it was asked for, or have stopped reading its provider."""

    def drop(self, count: Callable[[Batch], None]) -> bool:
        """Pass what came and was not taken to `count`, and keep nothing of it; True if more may have been produced.

        Called once, after the stream's context is left. It waits for nothing, and reads nothing from the provider.
        """
        ...


class TokenCounter(Protocol):
    """Counts tokens of text. Never too low: it guards money. `exact` is True for the model's own tokenizer."""

    @property
    def exact(self) -> bool: ...

    def count(self, text: str) -> int: ...


class Ending(Struct, frozen=True, kw_only=True):
    """How an admitted request ended and what it used: for the final event and for observers."""

    id: str
    caller: str
    """The hash of the caller's id."""
    profile: str
    model: str
    reason: FinishReason | None
    """None if `error` has the reason."""
    error: ChatError | None
    usage: Usage
    cost: int | None = None
    """Nano-dollars; None if the model's price is unknown."""
    source: Source
    seconds: float
    first_token_seconds: float | None
    remaining: Mapping[str, int]
    """The room left on each of the caller's own limits, by name; limits in dollars as nano-dollars."""
    group: str = ""
    dropped_messages: int = 0
    """The number of oldest messages that did not fit and were not sent."""
    signature: str = ""
    """Of the whole answer's text, if the profile has `signed_turns`."""
    dropped_images: int = 0
    """The number of images and files replaced by a short text: they did not fit, or the model can't read them."""


class Finale(Struct, frozen=True, kw_only=True):
    """How a run ended, for readers who follow it: an ending, or an error's code and message."""

    ending: Ending | None = None
    code: str = ""
    message: str = ""
    retryable: bool = False


class RunLog(Protocol):
    """The writer's end of one run. No call waits."""

    @property
    def readers(self) -> int:
        """The number of its readers, as far as this process knows."""
        ...

    @property
    def left_at(self) -> float:
        """When the last reader left, in the event loop's seconds; 0 before the first reader."""
        ...

    def append(self, batch: Batch) -> int:
        """Keep a batch; return its number, counted from 1."""
        ...

    def end(self, finale: Finale) -> int:
        """Keep the ending; return the number after the last batch."""
        ...


class FollowedRun(Protocol):
    """The readers' end of a run. `owner` is its caller's key: no other caller may follow it."""

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
        """Yield the batches after number `after`, as they come, with their numbers, until the run ends.

        Raises LookupError if they are no longer kept, RunsUnavailable if the log does not answer.
        """
        ...


class RunLogs(Protocol):
    """The runs that are kept for readers who reconnect."""

    def begin(self, id: str, owner: str, model: str, names: Sequence[str] = ()) -> RunLog:
        """Keep a new run, which can also be found by `names`; the newest run of a name counts."""
        ...

    def ended(self, id: str, names: Sequence[str] = ()) -> None:
        """Mark the run as over: it is forgotten after a while."""
        ...

    async def find(self, name: str) -> FollowedRun | None:
        """Return the run with this id or name; None if it never existed or is forgotten. Raises RunsUnavailable."""
        ...

    def listen(self, stop: Callable[[str, str], bool]) -> None:
        """Call `stop(name, owner)` when another process stops a run that may be here; True if it was here."""
        ...

    def attend(self) -> None:
        """Be reachable for other processes from now on. Called in the event loop before each run; it never waits."""
        ...

    async def stop(self, name: str, owner: str) -> bool:
        """Stop a run of another process; False if no process has it. Raises RunsUnavailable."""
        ...

    async def forget(self, id: str, owner: str) -> bool:
        """Forget a run that has ended; False if this owner has none. Raises RunsUnavailable."""
        ...

    async def aclose(self) -> None: ...


class BatchEncoder(Protocol):
    """The part of an Encoder that a relay needs."""

    def encode(self, batch: Batch) -> bytes: ...
    def number(self, data: bytes, number: int) -> bytes: ...


class Encoder(Protocol):
    """One answer's bytes. Each batch gives one write; b"" writes nothing.

    If `streams` is False, `finish` returns the whole body; nothing is sent before it, so a failure is a status.
    """

    @property
    def streams(self) -> bool: ...
    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    def start(self, model: str) -> bytes: ...
    def encode(self, batch: Batch) -> bytes: ...
    def number(self, data: bytes, number: int) -> bytes:
        """Return the output of `encode` with the number from which a reader can resume, in formats that have one."""
        ...

    def heartbeat(self) -> bytes: ...
    def fail(self, error: ChatError) -> bytes: ...
    def finish(self, ending: Ending) -> bytes: ...


@runtime_checkable
class TellsInput(Protocol):
    """An Encoder whose first event states the number of input tokens."""

    def expect_input(self, tokens: int) -> None:
        """Take the input count before `start`: the provider's own, else our bound."""
        ...


@runtime_checkable
class TellsPosition(Protocol):
    """An Encoder with an event for a request that waits. Others send a comment of Server-Sent Events."""

    def queued(self, position: int, estimate: int | None) -> bytes:
        """Encode the position in the queue, from 1, and the estimated seconds until its turn; None if unknown."""
        ...


@runtime_checkable
class Recallable(Protocol):
    """An Encoder whose answer later requests may refer to."""

    def asked(self) -> str:
        """Return what is kept with the answer, once; nothing if it must not be kept."""
        ...


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer that is not a stream. `headers` join those of every answer, and include the content type."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)


class Route(Struct, frozen=True, kw_only=True):
    """What a dialect serves at one method and path: by default a chat whose request is the body."""

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
    """A Dialect whose `parse` accepts a HeldBody, with images beside the JSON: see `held_text`."""

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
    """A Dialect whose clients sleep for the whole Retry-After: a longer value than this, in seconds, is not sent."""

    @property
    def longest_wait(self) -> float: ...


@runtime_checkable
class Resumable(Protocol):
    """A Dialect with another encoder for a reader who reconnects."""

    def follower(self, run_id: str) -> Encoder: ...


@runtime_checkable
class RefersToAnswers(Protocol):
    """A Dialect whose requests may continue kept answers: its `parse` then also takes these, by their runs."""

    def earlier(self, body: bytes) -> Sequence[str]:
        """Return the runs of the answers that the body refers to."""
        ...


class Store(Protocol):
    """Counters that reserve and settle. Every call is atomic; all but peek and sweep are idempotent by the claim's id.

    A store that can't answer raises LimiterUnavailable or any other exception: nothing new is then spent.
    """

    async def reserve(self, claim: Claim, lease: float) -> Granted | Refused | Duplicate | Conflict:
        """Hold every line of the claim, or none, for `lease` seconds. First charges leases that have expired.

        An id is a Duplicate for as long as the store remembers it. There is one exception: another owner had the id and
        spent nothing (released, or settled with a record that states it). Then this claim takes its place. An id has
        one memory, which lasts until the retention after the end of its last claim.
        """
        ...

    async def extend(self, claims: Sequence[Claim], lease: float) -> frozenset[str]:
        """Renew the leases of claims that are open or expired; return their ids.

        An expired claim is held again as it was, even if that fills a line over its limit: its request still runs. The
        charge of its expiry is reversed.
        """
        ...

    async def settle(
        self, claim: Claim, actual: Mapping[Unit, int] | None, source: Source, record: Record | None = None
    ) -> bool:
        """Replace the hold by what was used, by unit; a missing unit, or None, charges the whole hold.

        Use above the hold is charged too. An expired claim is corrected to the actual use. Returns False if nothing was
        left to settle. `record` is kept in the same step.
        """
        ...

    async def release(self, claim: Claim) -> bool:
        """Give back an open hold of which nothing was spent, and return whether there was one.

        The owner can't reserve an unseen id afterwards. An expired claim stays charged: settling it with nothing
        corrects that.
        """
        ...

    async def peek(self, lines: Sequence[Line]) -> tuple[Standing, ...]:
        """Return how the lines stand; changes nothing."""
        ...

    async def sweep(self) -> int:
        """Charge expired leases in full, marked assumed; return their number."""
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...

    async def aclose(self) -> None: ...


class Controls(Protocol):
    """Small rows beside a store's counters that every process must know within a second: pauses, blocks, grants.

    A store that can't answer raises LimiterUnavailable or any other exception. So does an emptied one.
    """

    async def change(
        self, put: Sequence[Control] = (), remove: Sequence[tuple[str, str]] = (), act: Act | None = None
    ) -> None:
        """Remove rows by kind and name, then set or replace rows, and add the act to the trail: all of it or nothing.

        An empty name removes all rows of the kind. Raises ValueError for a row that breaks a rule.
        """
        ...

    async def watch(self, known: int) -> Snapshot | None:
        """Return all rows that have not expired; None if nothing has changed since the version `known`."""
        ...

    async def first(self, key: str, seconds: float, report: Sequence[Control] = ()) -> bool:
        """Return True for exactly one call with this key, of all processes, within `seconds`.

        The same step reports that call's rows, as `report` does: both are done, or neither. Raises ValueError.
        """
        ...

    async def acts(self, most: int) -> Sequence[Act]:
        """Return the newest acts, at most `most` of them, the newest first."""
        ...

    async def report(self, rows: Sequence[Control]) -> None:
        """Set or replace rows that `watch` does not return, each until it expires. Raises ValueError."""
        ...

    async def reports(self, kind: str, name: str = "") -> Sequence[Control]:
        """Return the reported row with this name, or a thousand rows of the kind, those that last longest."""
        ...


@runtime_checkable
class Swaps(Protocol):
    """Controls with a report that several processes change in turn: what they need to share a provider's streams."""

    async def swap(self, known: str, row: Control) -> str:
        """Set the report if its value is `known`, "" if there is none. Return its value afterwards.

        Raises ValueError.
        """
        ...


@runtime_checkable
class HasControls(Protocol):
    """A Store that keeps controls beside its counters. Those of any other store are this process's own."""

    @property
    def controls(self) -> Controls: ...


@runtime_checkable
class ListsRunning(Protocol):
    """A Store that lists the answers that run in any process."""

    async def running(self, most: int) -> Sequence[Record]:
        """Return the records of open claims, at most `most` of them, the newest first. Changes nothing."""
        ...


@runtime_checkable
class Located(Protocol):
    """A Store that names its place, without a login, for logs and /readyz."""

    @property
    def place(self) -> str: ...


@runtime_checkable
class HasRemedy(Protocol):
    """A Store that names what an operator checks when it fails, as the rest of a sentence."""

    @property
    def remedy(self) -> str: ...


class Reports(Protocol):
    """Reports of a store that keeps records for long: SQLite's and PostgreSQL's."""

    async def usage(
        self,
        since: float,
        until: float,
        by: Sequence[By],
        zone: ZoneInfo,
        caller: str | None = None,
        most: int | None = None,
    ) -> list[UsageRow]:
        """Sum the requests that started at `since` <= t < `until` (Unix seconds), grouped by the names in `by`.

        Days are the zone's. `caller`, the hash of a caller's id, selects that caller. `most` rows are returned, those
        of the highest cost; None: all of them. Days come in order; within one, the highest cost comes first. Changes
        nothing. Raises ValueError for impossible times or groupings, and LimiterUnavailable if the store does not
        answer.
        """
        ...


class Sink(Protocol):
    """The relay's output. `write` returns when the reader's side has room: that is the backpressure."""

    @property
    def push(self) -> Callable[[bytes], bool] | None:
        """Write at once, or return False if the write must wait; None if the server offers no such way."""
        ...

    async def write(self, data: bytes) -> None: ...


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
    """An Observer that also gets a Report of each request at its end: a third call a request."""

    def reported(self, report: Report) -> None: ...


@runtime_checkable
class FollowsSteps(Protocol):
    """An Observer that hears of a request when it arrives and when its provider is called, in the request's context.

    A report follows each arrival, unless the server cancels the request before its body was read.
    """

    def arrived(self, id: str, dialect: str, scope: Scope) -> None: ...
    def asking(self, id: str, model: str) -> None:
        """Note that PROVIDER:MODEL is about to be called: headers for it go into `core.trace_headers`."""
        ...


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
