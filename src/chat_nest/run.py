"""One request while it is served: what is known of it, how it can be ended, and what is told of it when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, get_args

from msgspec.structs import replace

from chat_nest.deltas import FinishReason
from chat_nest.errors import ChatError, ClientGone, Lost, Shutdown, SlowReader, UpstreamTruncated, by_code
from chat_nest.ledger import Reservation
from chat_nest.limits import MAX_AMOUNT, Line, Profile, Quota
from chat_nest.messages import Caller
from chat_nest.prices import Prices
from chat_nest.protocols import Encoder, Ending, Finale, FollowedRun, RunLog, Sink
from chat_nest.records import Record
from chat_nest.relay import Pulse
from chat_nest.usage import Usage


class Run:
    """One request while it is served: what is known of it, and the one way to end it early."""

    __slots__ = (
        "attached",
        "began_at",
        "body",
        "caller",
        "closing",
        "detached",
        "dropped_messages",
        "encoder",
        "ended_at",
        "ended_by",
        "grace",
        "held",
        "id",
        "key",
        "last",
        "lines",
        "log",
        "lost_reader",
        "names",
        "over",
        "profile",
        "pulse",
        "quotas",
        "reason",
        "record",
        "replayed",
        "started_at",
        "task",
    )

    def __init__(self, id: str, now: float) -> None:
        self.id = id
        self.key: str | None = None
        """The request's Idempotency-Key."""
        self.began_at = now
        self.started_at = 0.0
        """Unix time at which it was admitted."""
        self.body = b""
        """The request's body, until it is parsed."""
        self.pulse = Pulse(now)
        self.task: asyncio.Task[None] | None = None
        self.caller: Caller | None = None
        self.profile: Profile | None = None
        self.dropped_messages = 0
        self.encoder: Encoder | None = None
        self.lines: Sequence[Line] = ()
        """What it draws on, once its caller is known."""
        self.quotas: Sequence[Quota] = ()
        """How these lines stand, where that is known."""
        self.held: Reservation | None = None
        self.record: Record | None = None
        self.replayed = False
        """It repeats a request that has ended, and is told how that one ended."""
        self.reason: FinishReason | None = None
        self.ended_by: ChatError | None = None
        self.ended_at = 0.0
        self.lost_reader = False
        self.closing = False
        self.attached: FollowedRun | None = None
        """The run that it asks for again, to be followed in its place."""
        self.last = 0
        """The number of its final event there."""
        self.log: RunLog | None = None
        """Where it is kept for readers who come back, if its profile wants that."""
        self.names: list[str] = []
        """What else it is found by there."""
        self.over: asyncio.Future[None] | None = None
        """Done once there is no more to do for its first reader: it has ended, or goes on without him."""
        self.detached = False
        """Its first reader has left, and it goes on."""
        self.grace: asyncio.TimerHandle | None = None

    def end(self, why: ChatError) -> None:
        """End the run because of `why`: the first reason counts.

        Its task is cancelled at most twice: once to end the story, and once more if the reader is lost while the last
        bytes are being written.
        """
        if self.task is None or self.task.done():
            return
        lost = isinstance(why, ClientGone | SlowReader) and not self.lost_reader
        first = self.ended_by is None and not self.closing
        if first:
            self.ended_by = why
            self.ended_at = self.task.get_loop().time()
        if lost:
            self.lost_reader = True
        if first or lost:
            self.task.cancel()

    def leave(self, why: ChatError) -> None:
        """Its reader has left, because of `why`: what then happens is the profile's policy."""
        if self.log is None or self.profile is None or self.task is None:
            self.end(why)
        elif not self.detached:
            self.detached = True
            self.be_over()
            if self.profile.on_disconnect == "grace":
                loop = self.task.get_loop()
                self._wait_for_readers(loop, loop.time(), self.log, self.profile.grace_seconds, why)

    def be_over(self) -> None:
        """Let go whoever waits for `over`."""
        if self.over is not None and not self.over.done():
            self.over.set_result(None)

    def _wait_for_readers(
        self, loop: asyncio.AbstractEventLoop, alone_at: float, log: RunLog, grace: float, why: ChatError
    ) -> None:
        """End the run once nobody has followed it for `grace` seconds; `alone_at` is since when nobody does."""
        alone_at = loop.time() if log.readers else max(alone_at, log.left_at)
        if loop.time() >= alone_at + grace:
            self.end(why)
        else:
            args = (loop, alone_at, log, grace, why)
            self.grace = loop.call_at(alone_at + grace, self._wait_for_readers, *args)

    def why(self, failure: BaseException | None) -> ChatError | None:
        """Why it ended, where it did not end well; `failure` is what came out of its story."""
        if isinstance(failure, ChatError):
            return failure
        if isinstance(failure, asyncio.CancelledError):
            return None if self.reason is not None and not self.lost_reader else self.ended_by or Shutdown()
        if failure is not None:
            return ChatError()
        # A provider that swallows what went wrong must not turn it into a finished answer.
        return None if self.reason is not None else self.ended_by or UpstreamTruncated()


class Client(Sink, Protocol):
    """The reader's end, as the story needs it."""

    def expect(self, encoder: Encoder, model: str) -> None:
        """A provider is asked now: the stream may open before it answers, and its clocks run."""
        ...

    async def start(self, model: str) -> None:
        """Send the headers and the first event, unless that has happened already."""
        ...

    async def fail(self, error: ChatError) -> None:
        """End with an error: a status while nothing was sent, else an event; nothing where nobody is there."""
        ...

    async def finish(self, data: bytes) -> None:
        """Send the last bytes and end the answer."""
        ...


def make_record(run: Run, prices: Prices, held: Reservation, failure: BaseException | None) -> Record:
    """What is kept of a run that has ended, and what it is charged."""
    usage, source = held.spent()
    price = prices.of(held.model) if held.model else None
    error = run.why(failure)
    first_at = run.pulse.first_at
    run.record = Record(
        run=run.id,
        caller=run.caller.key if run.caller else "",
        group=(run.caller.group if run.caller else "") or "",
        profile=run.profile.name if run.profile else "",
        model=held.model,
        started_at=run.started_at,
        seconds=asyncio.get_running_loop().time() - run.began_at,
        first_token_seconds=None if first_at is None else first_at - run.began_at,
        usage=usage,
        cost=_cost(usage, held, prices),
        price="" if price is None else price.version,
        source=source,
        ending=error.code if error else run.reason or "other",
        spent_nothing=error is not None and held.spent_nothing,
    )
    return run.record


def _cost(usage: Usage, held: Reservation, prices: Prices) -> int | None:
    """Nano-dollars, each attempt at the price of its own model; None where one of them has no price."""
    price = prices.of(held.model) if held.model else None
    if price is None:
        return None
    if held.lost is None:
        return min(price.cost(usage), MAX_AMOUNT)
    model, lost = held.lost
    lost_price = prices.of(model)
    if lost_price is None:
        return None
    answered = replace(usage, input_tokens=max(0, usage.input_tokens - lost.input_tokens))
    return min(price.cost(answered) + lost_price.cost(lost), MAX_AMOUNT)


def make_ending(run: Run, record: Record, held: Reservation, error: ChatError | None) -> Ending:
    """What the final event and the observers are told."""
    ending = _ending(record, run.reason, error)
    remaining = held.remaining(record.usage, record.cost)
    return replace(ending, remaining=remaining, dropped_messages=run.dropped_messages)


def finale_of(ending: Ending) -> Finale:
    """What readers who follow the run are told at its end."""
    error = ending.error
    if error is None:
        return Finale(ending=ending)
    return Finale(code=error.code, message=error.message, retryable=error.retryable)


def followed_ending(finale: Finale | None) -> Ending | ChatError:
    """The ending of a run that was followed; the error where it was one."""
    if finale is not None and finale.ending is not None:
        return finale.ending
    error = Lost() if finale is None else by_code(finale.code)
    if finale is not None:
        error.message = finale.message
    return error


def replayed_ending(record: Record | None) -> Ending | ChatError:
    """How the request with this record ended, for one that repeats it; the error where it was one."""
    reason = _REASONS.get(record.ending) if record else None
    if record is not None and reason is not None:
        return _ending(record, reason, None)
    error = by_code(record.ending) if record else Lost()
    error.message = f"The first request with this Idempotency-Key ended without an answer ({error.code}): use a new key"
    error.retryable = False  # type: ignore[misc]  # of this key
    return error


_REASONS: dict[str, FinishReason] = {reason: reason for reason in get_args(FinishReason)}


def _ending(record: Record, reason: FinishReason | None, error: ChatError | None) -> Ending:
    return Ending(
        id=record.run,
        caller=record.caller,
        group=record.group,
        profile=record.profile,
        model=record.model,
        reason=reason,
        error=error,
        usage=record.usage,
        cost=record.cost,
        source=record.source,
        seconds=record.seconds,
        first_token_seconds=record.first_token_seconds,
        remaining={},
    )
