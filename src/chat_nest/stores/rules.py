"""The rules of budgets: how reserving and settling change counters. The stores here save what a Book changes.

All amounts are integers in the line's unit, all times are Unix microseconds, and nothing here waits or fails half-way:
everything is computed before anything is changed.
The file is long because one Book has every rule, and its steps share the counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line, LineKind, Refused, Standing
from chat_nest.core.limits import Unit
from chat_nest.core.records import Record
from chat_nest.core.usage import Source
from chat_nest.limits.windows import US, gcra_cost, gcra_drawn_at, gcra_give, gcra_room, gcra_seen, gcra_take, gcra_wait

ReservationState = Literal["open", "settled", "expired", "released"]

KEPT_US = 25 * 3_600 * US
"""The least time that a window is kept after its end, so that a clock which is a day wrong and then right finds it."""
SET_BACK_US = 60 * US
"""A lease that was given more than this in the future was given by a clock that has been set back since."""


class Counter(Struct, array_like=True, gc=False):
    """The state of one line. A window has `used` and `held`, a gauge `held`, a rate `tat`."""

    key: str
    kind: LineKind
    used: int = 0
    held: int = 0
    tat: int = 0
    ends_at: int = 0
    """The end of a window, or the last change of a rate's `tat`; 0 for a gauge."""

    def seen(self, now_us: int) -> int:
        """Return a rate's tat by this clock."""
        return gcra_seen(self.tat, self.ends_at, now_us)

    def move(self, tat: int, now_us: int) -> None:
        """Set a rate's tat."""
        self.tat = tat
        self.ends_at = gcra_drawn_at(self.ends_at, now_us)


class Hold(Struct, omit_defaults=True, gc=False):
    """One reservation's hold on one line, and its actual amount. The last three fields are for rates only."""

    name: str
    key: str
    unit: Unit
    kind: LineKind
    held: int
    actual: int | None = None
    limit: int = 0
    period: int = 0
    until: int = 0
    """The time at which the hold has drained."""


class StoredClaim(Struct, array_like=True, gc=False):
    """One claim that was granted, or released before the store saw it."""

    id: str
    fingerprint: str
    state: ReservationState
    output: int
    leased_at: int
    """When its lease was given, or renewed last."""
    expires_at: int
    finished_at: int | None
    source: Source | None
    holds: Sequence[Hold]
    record: Record | None = None
    """The request's record: the claim's until it is settled."""
    owner: str = ""


class Book:
    """Counters and reservations, by key and by id, and the atomic steps on them. A key belongs to one kind of line.

    The store reads and clears what the steps collect: `changed` are reservations whose holds a step changed, `extended`
    those that only got a longer lease, `revived` those that were lost and are open again; `created` are the new
    counters, and `set_back` rates that a refused claim found with a clock ahead of this one. Before each step but
    `peek` the store calls `expire` with every reservation whose lease has ended. `soonest(key)` returns when the first
    lease on a gauge ends; it is only called for full gauges.
    """

    def __init__(
        self,
        counters: dict[str, Counter],
        reservations: dict[str, StoredClaim],
        soonest: Callable[[str], int | None],
    ) -> None:
        self.counters = counters
        self.reservations = reservations
        self.changed: list[StoredClaim] = []
        self.extended: list[StoredClaim] = []
        self.created: list[Counter] = []
        self.revived: list[StoredClaim] = []
        self.set_back: list[Counter] = []
        self._soonest = soonest

    def reserve(self, claim: Claim, lease_us: int, now_us: int) -> Granted | Refused | Duplicate | Conflict:
        known = self.reservations.get(claim.id)
        if known is not None:
            if known.fingerprint != claim.fingerprint:
                return Conflict()
            if not _is_free(known, claim):
                return _duplicate(known)
        output = claim.max_output_tokens
        for index, line in enumerate(claim.lines):
            room = self._room(line, now_us)
            fits = line.affordable(room)
            if fits is not None and fits < output:
                if fits < claim.min_output_tokens:
                    return Refused(line=index, room=room, retry_after=self._retry_after(line, claim, now_us))
                output = fits
        holds: list[Hold] = []
        left = [self._hold(line, line.amount(output), holds, now_us) for line in claim.lines]
        reservation = StoredClaim(
            claim.id,
            claim.fingerprint,
            "open",
            output,
            now_us,
            now_us + lease_us,
            None,
            None,
            holds,
            claim.record,
            claim.owner,
        )
        self.reservations[claim.id] = reservation
        self.changed.append(reservation)
        return Granted(output_tokens=output, room=tuple(left))

    def extend(self, claims: Iterable[Claim], lease_us: int, now_us: int) -> frozenset[str]:
        live: set[str] = set()
        for claim in claims:
            reservation = self._of(claim)
            if reservation is None or reservation.state not in {"open", "expired"}:
                continue
            if reservation.state == "expired":
                self._revive(reservation)
            reservation.leased_at, reservation.expires_at = now_us, now_us + lease_us
            self.extended.append(reservation)
            live.add(claim.id)
        return frozenset(live)

    def settle(
        self, claim: Claim, actual: Mapping[Unit, int] | None, source: Source, record: Record | None, now_us: int
    ) -> bool:
        reservation = self._of(claim)
        if reservation is None or reservation.state not in {"open", "expired"}:
            return False
        spent = actual or {}
        amounts = [spent.get(hold.unit, hold.held) for hold in reservation.holds]
        self._finish(reservation, "settled", source, amounts, now_us)
        if record is not None:
            reservation.record = _corrected(reservation.record, record)
        return True

    def release(self, claim: Claim, now_us: int) -> bool:
        known = self.reservations.get(claim.id)
        if known is None or (known.fingerprint == claim.fingerprint and _is_free(known, claim)):
            unseen = StoredClaim(
                claim.id, claim.fingerprint, "released", 0, now_us, now_us, now_us, None, (), None, claim.owner
            )
            self.reservations[claim.id] = unseen
            self.changed.append(unseen)
            return False
        reservation = self._of(claim)
        if reservation is None or reservation.state != "open":
            return False
        self._finish(reservation, "released", None, [0] * len(reservation.holds), now_us)
        reservation.record = None
        return True

    def expire(self, overdue: Iterable[StoredClaim], now_us: int) -> None:
        for reservation in overdue:
            amounts = [hold.held for hold in reservation.holds]
            self._finish(reservation, "expired", "assumed", amounts, now_us)
            reservation.record = _lost(reservation)

    def peek(self, lines: Iterable[Line], overdue: Sequence[StoredClaim], now_us: int) -> tuple[Standing, ...]:
        """Return how the lines stand, as if the overdue leases had been charged."""
        return tuple(self._standing(line, overdue, now_us) for line in lines)

    def _of(self, claim: Claim) -> StoredClaim | None:
        reservation = self.reservations.get(claim.id)
        if reservation is None or (reservation.fingerprint, reservation.owner) != (claim.fingerprint, claim.owner):
            return None
        return reservation

    def _room(self, line: Line, now_us: int) -> int:
        counter = self.counters.get(line.key) if line.kind != "request" else None
        if counter is None:
            return line.limit
        if line.kind == "rate":
            tat = counter.seen(now_us)
            if tat != counter.tat:  # kept even if the claim is refused: it drains from now on
                counter.move(tat, now_us)
                self.set_back.append(counter)
            return gcra_room(tat, now_us, line.limit, line.period)
        return max(0, line.limit - counter.used - counter.held)

    def _hold(self, line: Line, amount: int, holds: list[Hold], now_us: int) -> int:
        """Take the amount and return what is left after it."""
        if line.kind == "request":
            return line.limit - amount
        counter = self.counters.get(line.key) or self._create(line.key, line.kind)
        if line.kind == "rate":
            counter.move(gcra_take(counter.seen(now_us), now_us, gcra_cost(amount, line.limit, line.period)), now_us)
            holds.append(
                Hold(line.name, line.key, line.unit, "rate", amount, None, line.limit, line.period, counter.tat)
            )
            return gcra_room(counter.tat, now_us, line.limit, line.period)
        if line.kind == "window":
            counter.ends_at = max(counter.ends_at, int(line.resets_at * US))
        counter.held += amount
        holds.append(Hold(line.name, line.key, line.unit, line.kind, amount))
        return line.limit - counter.used - counter.held

    def _create(self, key: str, kind: LineKind) -> Counter:
        counter = self.counters[key] = Counter(key, kind)
        self.created.append(counter)
        return counter

    def _retry_after(self, line: Line, claim: Claim, now_us: int) -> float:
        if line.kind == "window":
            return max(0.0, line.resets_at - now_us / US)
        if line.kind == "rate":
            counter = self.counters.get(line.key)
            least = line.amount(claim.min_output_tokens)
            return gcra_wait(counter.seen(now_us) if counter else 0, now_us, least, line.limit, line.period)
        if line.kind == "gauge":
            soonest = self._soonest(line.key)
            return 1.0 if soonest is None else max(1.0, (soonest - now_us) / US)
        return 0.0

    def _finish(
        self,
        reservation: StoredClaim,
        state: ReservationState,
        source: Source | None,
        amounts: Sequence[int],
        now_us: int,
    ) -> None:
        """Turn the holds into `amounts`. An expired reservation was charged its whole hold already."""
        charged = reservation.state == "expired"
        for hold, amount in zip(reservation.holds, amounts, strict=True):
            hold.actual = amount
            counter = self.counters.get(hold.key)
            if hold.kind == "rate":
                self._drain(hold, amount, counter, now_us)
            elif counter is None:
                continue  # a window that ended so long ago that no request can draw on it
            elif charged:
                if hold.kind == "window":
                    counter.used += amount - hold.held
            else:
                counter.held -= hold.held
                if hold.kind == "window":
                    counter.used += amount
        reservation.state = state
        reservation.source = source
        reservation.finished_at = now_us
        self.changed.append(reservation)

    def _revive(self, reservation: StoredClaim) -> None:
        """Hold again what was charged when the lease of a running request ended, even if its gauges are full."""
        for hold in reservation.holds:
            hold.actual = None
            counter = self.counters.get(hold.key)
            if hold.kind == "gauge":
                counter = counter or self._create(hold.key, "gauge")
                counter.held += hold.held
            elif hold.kind == "window" and counter is not None:
                counter.used -= hold.held
                counter.held += hold.held
        reservation.state, reservation.source, reservation.finished_at = "open", None, None
        self.changed.append(reservation)
        self.revived.append(reservation)

    def _drain(self, hold: Hold, amount: int, counter: Counter | None, now_us: int) -> None:
        """Correct a rate's hold to the amount: a rate holds by draining, and a missing counter had drained."""
        if amount > hold.held:
            counter = counter or self._create(hold.key, "rate")
            extra = gcra_cost(amount - hold.held, hold.limit, hold.period)
            counter.move(gcra_take(counter.seen(now_us), now_us, extra), now_us)
        elif amount < hold.held and counter is not None:
            spare = gcra_cost(hold.held, hold.limit, hold.period) - gcra_cost(amount, hold.limit, hold.period)
            counter.move(gcra_give(counter.seen(now_us), now_us, spare, hold.until), now_us)

    def _standing(self, line: Line, overdue: Sequence[StoredClaim], now_us: int) -> Standing:
        counter = self.counters.get(line.key) or Counter(line.key, line.kind)
        if line.kind == "rate":
            tat = counter.seen(now_us)
            room = gcra_room(tat, now_us, line.limit, line.period)
            return Standing(used=line.limit - room, held=0, room=room, resets_at=max(tat, now_us) / US)
        late = sum(hold.held for reservation in overdue for hold in reservation.holds if hold.key == line.key)
        used = counter.used + late if line.kind == "window" else 0
        held = counter.held - late
        resets_at = line.resets_at if line.kind == "window" else 0.0
        return Standing(used=used, held=held, room=max(0, line.limit - used - held), resets_at=resets_at)


def _is_free(known: StoredClaim, claim: Claim) -> bool:
    """Return whether another owner's request had this id, and ended without spending anything."""
    spent_nothing = known.record is not None and known.record.spent_nothing
    return known.owner != claim.owner and (known.state == "released" or (known.state == "settled" and spent_nothing))


def _duplicate(known: StoredClaim) -> Duplicate:
    if known.state == "released":
        return Duplicate(output_tokens=0, state="released")
    return Duplicate(
        output_tokens=known.output, state=known.state, record=None if known.state == "open" else known.record
    )


def _lost(reservation: StoredClaim) -> Record | None:
    """Return the record of a request that was never settled: the whole hold was charged."""
    record = reservation.record
    if record is None:
        return None
    usage = replace(record.usage, output_tokens=reservation.output)
    cost = next((hold.held for hold in reservation.holds if hold.unit == "nanousd"), None)
    return replace(record, usage=usage, cost=cost)


def _corrected(known: Record | None, record: Record) -> Record:
    """Return the final record of a request. It keeps its start time, by which stores find the earlier one."""
    if known is None or known.started_at == record.started_at:
        return record
    return replace(record, started_at=known.started_at)


def newest_first(records: Iterable[Record], most: int) -> list[Record]:
    """Return at most `most` records, those of the newest requests first."""
    return sorted(records, key=lambda record: record.started_at, reverse=True)[:most]
