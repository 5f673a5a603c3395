"""The end of a request: its record, and what its reader, its followers and the observers get."""

from __future__ import annotations

from typing import get_args

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.deltas import FinishReason
from chat_nest.core.errors import ChatError, Lost, by_code
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Ending, Finale
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.ledger.reservation import Reservation
from chat_nest.limits.prices import Prices
from chat_nest.pipeline.admission import Admission


class Outcome(Struct, frozen=True, kw_only=True):
    """The outcome of one request. Without `ending` it was refused with `error`.

    `caller` and `admission` are set if the request got that far.
    """

    caller: Caller | None = None
    admission: Admission | None = None
    ending: Ending | None = None
    error: ChatError | None = None


class Times(Struct, frozen=True):
    """When a request began, got its first delta (None: never) and ended, in the event loop's seconds."""

    began: float
    first: float | None
    ended: float


def make_record(
    admission: Admission,
    held: Reservation,
    reason: FinishReason | None,
    error: ChatError | None,
    times: Times,
    prices: Prices,
) -> Record:
    """Return the record of a request that has ended, and its charge."""
    usage, source = held.charged or held.spent()
    price = prices.of(held.model) if held.model else None
    return Record(
        run=admission.run,
        caller=admission.caller.key,
        group=admission.caller.group or "",
        profile=admission.profile.name,
        model=held.model,
        started_at=admission.started_at,
        seconds=times.ended - times.began,
        first_token_seconds=None if times.first is None else times.first - times.began,
        usage=usage,
        cost=cost_of(usage, held, prices),
        price="" if price is None else price.version,
        source=source,
        ending=error.code if error else reason or "other",
        spent_nothing=error is not None and held.spent_nothing,
    )


def cost_of(usage: Usage, held: Reservation, prices: Prices) -> int | None:
    """Return nano-dollars, each attempt at the price of its own model; None if one of them has no price."""
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


def make_ending(
    admission: Admission, held: Reservation, record: Record, reason: FinishReason | None, error: ChatError | None
) -> Ending:
    """Return the ending for the final event and the observers."""
    ending = _ending(record, reason, error)
    remaining = held.remaining(record.usage, record.cost)
    dropped = admission.dropped
    return replace(ending, remaining=remaining, dropped_messages=dropped.messages, dropped_images=dropped.images)


def finale_of(ending: Ending) -> Finale:
    """Return the end of a run for the readers that follow it."""
    error = ending.error
    if error is None:
        return Finale(ending=ending)
    return Finale(code=error.code, message=error.message, retryable=error.retryable)


def followed_ending(finale: Finale | None) -> Ending | ChatError:
    """Return the ending of a run that was followed, or its error."""
    if finale is not None and finale.ending is not None:
        return finale.ending
    error = Lost() if finale is None else by_code(finale.code)
    if finale is not None:
        error.message = finale.message
        error.retryable = finale.retryable  # type: ignore[misc]  # some failures of a code are, and some are not
    return error


def replayed_ending(record: Record | None) -> Ending | ChatError:
    """Return how the request with this record ended, for a request that repeats it; its error if it failed."""
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
