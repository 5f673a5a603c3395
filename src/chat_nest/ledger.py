"""Reserve before spending, settle after: every reservation ends exactly once, whatever ends its request.

A request's own task never runs the ending. Leaving the reservation starts a task for it without awaiting anything, so
no cancellation can come in between; the request then waits for that task a bounded time, and may itself be cancelled
while it waits. An ending that the store does not take is tried again until it lands (see `landing`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace

from chat_nest.errors import ChatError, InProgress, KeyReused, LimiterUnavailable
from chat_nest.journal import Entry
from chat_nest.landing import LONGEST_RETRY, Landing
from chat_nest.limits import MAX_AMOUNT, Claim, Conflict, Duplicate, Granted, Line, Quota, Refused, Standing, Unit
from chat_nest.parts import KnownBugs, PartMisused, kind_of, part_name
from chat_nest.protocols import Store
from chat_nest.records import Record
from chat_nest.tokens import OutputMeter
from chat_nest.turns import Turn, Turns
from chat_nest.usage import Source, Usage

log = logging.getLogger("chat_nest.ledger")

LEASE_SECONDS = 60.0
MOST_TRIES = 10
"""How often one Idempotency-Key may be used again after an attempt that spent nothing."""


class AlreadyEnded(ChatError):
    """The claim's id was used before, and its request is over. `record` says how; None where that is not known."""

    def __init__(self, record: Record | None) -> None:
        super().__init__()
        self.record = record


class Reservation:
    """What one admitted request may spend, and what is known of what it has spent."""

    __slots__ = (
        "abort_bills",
        "asked",
        "claim",
        "countable",
        "counted_at_report",
        "finished",
        "granted",
        "input_tokens",
        "lost",
        "meter",
        "model",
        "reported",
        "spent_nothing",
    )

    def __init__(self, claim: Claim, granted: Granted, input_tokens: int) -> None:
        self.claim = claim
        self.granted = granted
        self.input_tokens = input_tokens
        self.lost: tuple[str, Usage] | None = None
        """The model of an attempt whose prompt may have been billed besides, and that prompt: part of the input."""
        self.meter: OutputMeter | None = None
        self.model = ""
        self.abort_bills = "unknown"
        self.countable = True
        """False where the model reasons out of sight: what it produced can't be counted."""
        self.asked = False
        """A provider was asked: from here on the request has cost something, unless the provider refused it."""
        self.spent_nothing = False
        self.finished = False
        """The provider's own completion signal came."""
        self.reported: Usage | None = None
        self.counted_at_report: int | None = None
        """What had been counted when a usage came that was not the last word; None when it was."""

    def report(self, usage: Usage, *, last: bool) -> None:
        """Take what the provider reports. What streams after a report that is not the `last` one is counted on top."""
        self.reported = usage
        self.counted_at_report = None if last or self.meter is None else self.meter.produced()

    def spent(self) -> tuple[Usage, Source]:
        """What the request has cost by now, and who says so. Never low: it is what gets charged."""
        if not self.asked or self.spent_nothing:
            return Usage(), "reported"
        if self.reported is not None and (self.finished or self.counted_at_report is None):
            return self.reported, "reported"
        usage = self.reported or Usage(input_tokens=self.input_tokens)
        output = usage.output_tokens + self._produced() - (self.counted_at_report or 0)
        if self.countable and (self.finished or self.abort_bills == "stops"):
            return replace(usage, output_tokens=output), "estimated"
        return replace(usage, output_tokens=max(output, self.granted.output_tokens)), "assumed"

    def _produced(self) -> int:
        """The output so far. A count in bytes is only a bound, and the provider was asked for no more than granted."""
        if self.meter is None:
            return 0
        produced = self.meter.produced()
        return produced if self.meter.exact else min(produced, self.granted.output_tokens)

    def quotas(self, now: float) -> list[Quota]:
        """What is left on each line behind this hold. `now` is Unix time."""
        return [
            Quota(line, room, _until_whole(line, room, now))
            for line, room in zip(self.claim.lines, self.granted.room, strict=True)
        ]

    def remaining(self, usage: Usage, cost: int | None) -> Mapping[str, int]:
        """What is left of each of the caller's own limits once this is settled, by name, in the line's unit."""
        actual = actual_of(usage, cost)
        left: dict[str, int] = {}
        for line, room in zip(self.claim.lines, self.granted.room, strict=True):
            if line.scope == "caller" and line.kind in ("window", "rate"):
                held = line.amount(self.granted.output_tokens)
                left[line.name] = max(0, room + held - actual.get(line.unit, held))
        return left


Conclude = Callable[[Reservation, BaseException | None], Record]
"""What is kept of a request that has ended: with the exception that ended it, if there was one."""


def actual_of(usage: Usage, cost: int | None) -> dict[Unit, int]:
    """What a request used, by unit. What is not known is left out, so that it is charged whole."""
    actual: dict[Unit, int] = {"tokens": min(usage.total_tokens, MAX_AMOUNT)}
    if cost is not None:
        actual["nanousd"] = min(cost, MAX_AMOUNT)
    return actual


def _until_whole(line: Line, room: int, now: float) -> float:
    if line.kind == "window":
        return max(0.0, line.resets_at - now)
    return line.period * max(0, line.limit - room) / line.limit if line.kind == "rate" else 0.0


class Ledger:
    """Reservations on a store. Times are in seconds.

    A live reservation's lease is renewed three times in its life, so that only a crash lets it expire. `landing` is how
    endings reach the store, where that is not plainly on `store` and without a journal.
    """

    def __init__(
        self,
        store: Store,
        refusal: Callable[[Line, Refused], ChatError],
        *,
        lease: float = LEASE_SECONDS,
        patience: float = 1.0,
        landing: Landing | None = None,
    ) -> None:
        self.store = store
        self._refusal = refusal
        self._lease = lease
        self._patience = patience
        self._turns = Turns(patience)
        self._live: dict[str, Claim] = {}
        self._landing = landing or Landing(store, patience=patience)
        self._keeper: asyncio.Task[None] | None = None
        self._bugs = KnownBugs()

    def turn(self) -> Turn:
        """A place in line at the store: enter it before the work that a reservation needs, and pass it to `reserve`."""
        return Turn(self._turns)

    @asynccontextmanager
    async def reserve(
        self, claim: Claim, input_tokens: int, conclude: Conclude | None = None, turn: Turn | None = None
    ) -> AsyncGenerator[Reservation, None]:
        """Hold the claim's lines while the context is open; settle what was spent when it is left.

        `turn` ends when the store has answered; without one this waits in line for its own. `conclude` is asked, when
        the context is left, what to keep of the request. Raises what `refusal` makes of a refused line; InProgress,
        AlreadyEnded or KeyReused for an id that was used before; LimiterUnavailable if the store does not answer in
        time.
        """
        self._keep_leases()
        async with turn or self.turn() as mine:
            claim, granted = await self._hold(claim, mine)
        held = Reservation(claim, granted, input_tokens)
        self._live[claim.id] = claim
        failure: BaseException | None = None
        try:
            yield held
        except BaseException as error:
            failure = error
            raise
        finally:
            del self._live[claim.id]
            ending = self._end(held, None if conclude is None else _concluded(conclude, held, failure))
            failure = None  # its traceback refers to this frame
            await asyncio.wait([ending], timeout=self._patience)

    async def _hold(self, claim: Claim, turn: Turn) -> tuple[Claim, Granted]:
        """Reserve the claim; under another id where the requests that had this one before spent nothing."""
        first = claim.id
        for tries in range(1, MOST_TRIES + 1):
            answer = await self._ask(claim, turn)
            if isinstance(answer, Granted):
                return claim, answer
            if isinstance(answer, Refused):
                raise self._refusal(claim.lines[answer.line], answer)
            if isinstance(answer, Conflict):
                raise KeyReused
            if answer.state == "open":
                raise InProgress(claim.id, retry_after=1.0)
            if answer.state != "released" and not (answer.record and answer.record.spent_nothing):
                raise AlreadyEnded(answer.record)
            claim = replace(claim, id=f"{first}.{tries}")
        raise InProgress(retry_after=LONGEST_RETRY)

    async def _ask(self, claim: Claim, turn: Turn) -> Granted | Refused | Duplicate | Conflict:
        try:
            async with asyncio.timeout_at(turn.deadline):
                answer = await self.store.reserve(claim, self._lease)
            turn.answered()
            return _checked_answer(answer, self.store)
        except BaseException as failure:
            if isinstance(failure, Exception):
                turn.failed()
            # The store may hold the claim, or come to hold it later: releasing an id forbids it from then on.
            self._land(Entry(ending="release", claim=claim))
            if isinstance(failure, ChatError) or not isinstance(failure, Exception):
                raise
            log.error("the store failed to reserve: %s", self._bugs.explain(self.store, failure))  # noqa: TRY400 - no values in logs
            raise LimiterUnavailable from None

    async def peek(self, lines: Sequence[Line]) -> Sequence[Standing]:
        """How the lines stand. Raises LimiterUnavailable if the store does not answer in time."""
        try:
            async with self.turn() as turn, asyncio.timeout_at(turn.deadline):
                standings = await self.store.peek(lines)
                turn.answered()
            return standings
        except ChatError:
            raise
        except Exception as failure:
            log.error("the store failed to peek: %s", self._bugs.explain(self.store, failure))  # noqa: TRY400 - no values in logs
            raise LimiterUnavailable from None

    def _end(self, held: Reservation, record: Record | None) -> asyncio.Task[None]:
        """Start the one ending of a reservation; it does not run in the request's task, nor awaits anything here."""
        claim = held.claim
        if not held.asked:
            return self._land(Entry(ending="release", claim=claim))
        usage, source = held.spent()
        if usage.total_tokens > held.input_tokens + held.granted.output_tokens:
            log.warning("request %s used more than it had reserved: the provider went past its limit", claim.id)
        actual = actual_of(usage, None if record is None else record.cost)
        return self._land(Entry(ending="settle", claim=claim, actual=actual, source=source, record=record))

    def _land(self, entry: Entry) -> asyncio.Task[None]:
        return self._landing.land(entry, self.store)

    def start(self) -> None:
        """Begin to renew leases, and to land what processes that died have left; the first reservation does it too."""
        self._keep_leases()

    def _keep_leases(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        while True:
            await self._landing.adopt()
            await asyncio.sleep(self._lease / 3)
            try:
                async with asyncio.timeout(self._lease / 3):
                    if self._live:
                        await self.store.extend(list(self._live.values()), self._lease)
                    await self.store.sweep()
            except Exception as failure:
                log.warning("the store failed to renew leases: %s", self._bugs.explain(self.store, failure))

    async def aclose(self, grace: float = 5.0) -> None:
        """Wait up to `grace` seconds for endings that have not landed. Start no reservation afterwards."""
        if self._keeper is not None:
            self._keeper.cancel()
        await self._landing.aclose(grace)


def _checked_answer(answer: object, store: Store) -> Granted | Refused | Duplicate | Conflict:
    if not isinstance(answer, Granted | Refused | Duplicate | Conflict):
        raise PartMisused(
            f"{part_name(store)}.reserve returned {kind_of(answer)}; return Granted, Refused, Duplicate or Conflict"
        )
    return answer


def _concluded(conclude: Conclude, held: Reservation, failure: BaseException | None) -> Record | None:
    try:
        return conclude(held, failure)
    except Exception as bug:  # what was spent is settled all the same
        log.error("a request's record could not be made: %s", type(bug).__name__)  # noqa: TRY400 - no values in logs
        return None
