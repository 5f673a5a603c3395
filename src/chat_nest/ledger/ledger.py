"""Reserve before spending, settle after: every reservation ends exactly once, however its request ends.

A request's own task never runs the ending. Leaving the reservation starts a task for it without awaiting anything, so
no cancellation can come in between. The request then waits for that task for a bounded time, and may be cancelled while
it waits. An ending that the store does not take is retried until it lands (see `delivery`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing
from chat_nest.core.errors import ChatError, InProgress, KeyReused, LimiterUnavailable
from chat_nest.core.parts import KnownBugs, PartMisused, kind_of, part_name
from chat_nest.core.protocols import BatchesCalls, Store
from chat_nest.core.records import Record
from chat_nest.counting.reported import is_absurd
from chat_nest.ledger.degraded import DegradedMode
from chat_nest.ledger.delivery import Delivery
from chat_nest.ledger.journal import Entry
from chat_nest.ledger.learned import Learned
from chat_nest.ledger.reservation import Conclude, Reservation, actual_of
from chat_nest.ledger.store_queue import MOST, Turn, Turns

log = logging.getLogger("chat_nest.ledger")

LEASE_SECONDS = 60.0
_OFTEN = 60
"""How often a failed renewal is retried within a lease's time: each second."""


class AlreadyEnded(ChatError):
    """The claim's id was used before, and its request is over. `record` is its record; None if that is unknown."""

    def __init__(self, record: Record | None) -> None:
        super().__init__()
        self.record = record


class Ledger:
    """Reservations on a store. Times are in seconds.

    A live reservation's lease is renewed three times in its life, so it expires only after a crash or a longer outage
    of the store. After such an outage a process first holds its live reservations again, gives other processes the time
    to do the same, and only then admits new requests. `delivery` brings endings to the store, if they need a journal.
    `degraded` admits requests while the store is down; the ledger starts and closes it. `learned` is exchanged with the
    store as often as leases are renewed.
    """

    def __init__(
        self,
        store: Store,
        refusal: Callable[[Claim, Refused], ChatError],
        *,
        lease: float = LEASE_SECONDS,
        patience: float = 1.0,
        delivery: Delivery | None = None,
        degraded: DegradedMode | None = None,
        learned: Learned | None = None,
    ) -> None:
        self.store = store
        self._refusal = refusal
        self._lease = lease
        self._patience = patience
        self._turns = Turns(patience, store.calls_at_once if isinstance(store, BatchesCalls) else MOST)
        self._live: dict[str, Claim] = {}
        self._delivery = delivery or Delivery(store, patience=patience)
        self._degraded = degraded
        self._learned = learned
        self._front = degraded or store
        self._keeper: asyncio.Task[None] | None = None
        self._renewed_at = 0.0
        self._lapsed = False
        """True if the store was away for so long that leases have ended which it must hold again first."""
        self._let_in_at = 0.0
        self.expired = 0
        """Expired leases that this process found and charged."""
        self._bugs = KnownBugs()

    def turn(self) -> Turn:
        """Return a place in the store's queue: enter it before preparing a reservation, and pass it to `reserve`."""
        return Turn(self._turns)

    def reserve(
        self, claim: Claim, input_tokens: int, conclude: Conclude | None = None, turn: Turn | None = None
    ) -> AbstractAsyncContextManager[Reservation]:
        """Hold the claim's lines while the context is open; settle what was spent when it is left.

        `turn` ends when the store has answered; without one this call queues for its own. When the context is left,
        `conclude` returns the record to keep. Raises what `refusal` makes of a refused line; InProgress, AlreadyEnded
        or KeyReused for an id that was used before; LimiterUnavailable if the store does not answer in time.
        """
        return _Reserving(self, claim, input_tokens, conclude, turn)

    async def begin(self, claim: Claim, input_tokens: int, turn: Turn | None) -> Reservation:
        """See `reserve`, whose context calls it first, and `end` in any case if this has returned."""
        self.start()
        async with turn or self.turn() as mine:
            granted = await self._hold(claim, mine)
        self._live[claim.id] = claim
        return Reservation(claim, granted, input_tokens)

    async def end(self, held: Reservation, conclude: Conclude | None, failure: BaseException | None) -> None:
        """Start the one ending of a reservation before anything is awaited, then wait for it for a bounded time."""
        del self._live[held.claim.id]
        held.charged = held.spent()
        held.record = None if conclude is None else _concluded(conclude, held, failure)
        await asyncio.wait([self._end(held)], timeout=self._patience)

    async def _hold(self, claim: Claim, turn: Turn) -> Granted:
        answer = await self._ask(claim, turn)
        if isinstance(answer, Granted):
            return answer
        if isinstance(answer, Refused):
            raise self._refusal(claim, answer)
        if isinstance(answer, Conflict):
            raise KeyReused
        free = answer.state == "released" or (answer.record is not None and answer.record.spent_nothing)
        if answer.state == "open" or free:  # a store that still keeps it, though nothing was spent, frees it soon
            raise InProgress(claim.id, retry_after=1.0)
        raise AlreadyEnded(answer.record)

    async def _ask(self, claim: Claim, turn: Turn) -> Granted | Refused | Duplicate | Conflict:
        catching_up = self._lapsed or asyncio.get_running_loop().time() < self._let_in_at
        if catching_up and not self.is_down:  # while it is down, an allowance may answer
            raise LimiterUnavailable
        try:
            async with asyncio.timeout_at(turn.deadline):
                answer = await self._front.reserve(claim, self._lease)
            turn.answered()
            return _checked_answer(answer, self.store)
        except BaseException as failure:
            if isinstance(failure, Exception):
                turn.failed()
            # The store may hold the claim, or come to hold it later: releasing an id forbids it from then on.
            self._deliver(Entry(ending="release", claim=claim))
            if isinstance(failure, ChatError) or not isinstance(failure, Exception):
                raise
            log.error("the store failed to reserve: %s", self._bugs.explain(self.store, failure))  # noqa: TRY400 - no values in logs
            raise LimiterUnavailable from None

    async def peek(self, lines: Sequence[Line], turn: Turn | None = None) -> Sequence[Standing]:
        """Return how the lines stand, within `turn` or in a turn of its own.

        Raises LimiterUnavailable if the store does not answer in time.
        """
        try:
            if turn is None:
                async with self.turn() as mine:
                    return await self._peek(lines, mine)
            return await self._peek(lines, turn)
        except ChatError:
            raise
        except Exception as failure:
            log.error("the store failed to peek: %s", self._bugs.explain(self.store, failure))  # noqa: TRY400 - no values in logs
            raise LimiterUnavailable from None

    async def _peek(self, lines: Sequence[Line], turn: Turn) -> Sequence[Standing]:
        async with asyncio.timeout_at(turn.deadline):
            standings = await self._front.peek(lines)
        turn.answered()
        return standings

    def _end(self, held: Reservation) -> asyncio.Task[None]:
        """Start the one ending of a reservation; it does not run in the request's task, and awaits nothing here."""
        claim, record = held.claim, held.record
        if not held.asked:
            return self._deliver(Entry(ending="release", claim=claim, record=record))
        usage, source = held.charged or held.spent()
        if held.reported is not None:
            if is_absurd(held.reported):
                log.error("request %s: the provider reported more than 2**50 tokens: 2**50 are charged", claim.id)
            if held.meter is not None and held.lost is None:
                held.meter.learn(held.input_tokens, held.reported.input_tokens)
        if usage.total_tokens > held.input_tokens + held.granted.output_tokens:
            log.warning("request %s used more than it had reserved: the provider went past its limit", claim.id)
        actual = actual_of(usage, None if record is None else record.cost)
        return self._deliver(Entry(ending="settle", claim=claim, actual=actual, source=source, record=record))

    def _deliver(self, entry: Entry) -> asyncio.Task[None]:
        """Start the ending on the allowance if that admitted the claim, else in the store."""
        drawn = None if self._degraded is None else self._degraded.end(entry)
        return drawn or self._delivery.deliver(entry)

    @property
    def queued(self) -> int:
        """Return how many requests wait for their turn at the store."""
        return self._turns.waiting

    @property
    def unsettled(self) -> int:
        """Return how many endings the store has not confirmed."""
        return self._delivery.pending

    @property
    def is_down(self) -> bool:
        """Return whether the store is known to be down, so that only an allowance can admit requests."""
        return self._degraded is not None and self._degraded.is_down

    @property
    def draws_on_allowance(self) -> bool:
        """Return whether requests could be admitted now without the store."""
        return self._degraded is not None and self._degraded.can_admit

    def start(self) -> None:
        """Start to renew leases, to hold an allowance, and to deliver what dead processes have left.

        The first reservation does it too.
        """
        self._keep_leases()
        if self._degraded is not None:
            self._degraded.start()

    def _keep_leases(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._renewed_at = asyncio.get_running_loop().time()
            self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        failing = False
        while True:
            if not failing:
                await self._delivery.adopt()
                if self._learned is not None:
                    await self._learned.exchange(self._patience)
            await asyncio.sleep(self._lease / (_OFTEN if failing else 3))
            try:
                await self._renew()
            except Exception as failure:
                if not failing:
                    log.warning("the store failed to renew leases: %s", self._bugs.explain(self.store, failure))
                failing = True
                self._lapsed = loop.time() - self._renewed_at > self._lease
            else:
                if loop.time() - self._renewed_at > self._lease:
                    self._let_in_at = loop.time() + 2 * self._lease / _OFTEN
                failing = self._lapsed = False
                self._renewed_at = loop.time()

    async def _renew(self) -> None:
        async with asyncio.timeout(self._lease / 3):
            if self._live:
                await self._front.extend(list(self._live.values()), self._lease)
            self.expired += await self._front.sweep() or 0  # of a store that returns nothing

    async def aclose(self, grace: float = 5.0) -> None:
        """Wait up to `grace` seconds for undelivered endings. No reservation is possible afterwards."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._degraded is not None:
            await self._degraded.aclose(grace)
        await self._delivery.aclose(grace)


class _Reserving:
    """The context of `Ledger.reserve`: a class, since a generator costs more steps, and 500 bytes while it streams."""

    __slots__ = ("_claim", "_conclude", "_held", "_input_tokens", "_ledger", "_turn")

    def __init__(
        self, ledger: Ledger, claim: Claim, input_tokens: int, conclude: Conclude | None, turn: Turn | None
    ) -> None:
        self._ledger, self._claim, self._input_tokens = ledger, claim, input_tokens
        self._conclude, self._turn = conclude, turn

    async def __aenter__(self) -> Reservation:
        self._held = held = await self._ledger.begin(self._claim, self._input_tokens, self._turn)
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._ledger.end(self._held, self._conclude, failure)


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
