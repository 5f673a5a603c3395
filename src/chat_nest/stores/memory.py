"""Counters in this process's memory: the default of an embedded handler, and the model for the other stores."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from chat_nest.controls.memory import MemoryControls
from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.limits import Unit
from chat_nest.core.protocols import Now
from chat_nest.core.records import Record
from chat_nest.core.usage import Source
from chat_nest.limits.windows import US
from chat_nest.stores.checks import check_actual, check_claim, check_line, check_record, lease_us
from chat_nest.stores.rules import KEPT_US, SET_BACK_US, Book, Counter, StoredClaim, newest_first

_STEPS = 32
"""The most claims or counters that one reserve forgets: more than it adds, so memory shrinks under load too."""


class MemoryStore:
    """A Store for one process and one event loop; its data ends with the process.

    No call waits, so every call is atomic. A finished claim is remembered for `retention` seconds: for that time its id
    is a Duplicate, and a late settlement can correct it. A rate is kept that long after it has drained, and a window
    for at least 25 hours after its end: a clock that is a day wrong, and then right, finds it still there. With
    `max_keys` live counters or remembered claims, windows that ended longer ago than `retention` are forgotten; if none
    has, a claim that needs one more raises LimiterUnavailable. A claim, line, amount or lease that breaks a rule raises
    ValueError.
    """

    def __init__(self, now: Now = time.time, max_keys: int = 1_000_000, *, retention: float = 3_600.0) -> None:
        self._now = now
        self._max_keys = max_keys
        self._retention_us = int(retention * US)
        self._kept_us = max(KEPT_US, self._retention_us)
        self._book = Book({}, {}, self._soonest)
        self._leases: list[tuple[int, str]] = []
        self._finished: deque[tuple[int, str]] = deque()
        self._dying: list[tuple[int, str]] = []
        self._streams: dict[str, set[str]] = {}
        """The ids that hold a gauge, by its key."""
        self.controls = MemoryControls(now)

    place = "the store in this process's memory"

    def __len__(self) -> int:
        """Return the number of live counters."""
        return len(self._book.counters)

    async def reserve(self, claim: Claim, lease: float) -> Granted | Refused | Duplicate | Conflict:
        check_claim(claim)
        us = lease_us(lease)
        now_us = self._charge_overdue()
        self._forget(now_us, _STEPS)
        if claim.id not in self._book.reservations:
            self._make_room_for_claim()
            self._make_room_for_counters(claim, now_us)
        answer = self._book.reserve(claim, us, now_us)
        self._note_changes()
        return answer

    async def extend(self, claims: Sequence[Claim], lease: float) -> frozenset[str]:
        us, now_us, known = lease_us(lease), self._charge_overdue(), self._book.reservations
        later = {claim.id for claim in claims if claim.id in known and known[claim.id].expires_at > now_us + us}
        live = self._book.extend(claims, us, now_us)
        self._note_changes()
        for reservation in self._book.extended:  # else the old entry in _leases comes up first and finds the new time
            if reservation.id in later:
                heappush(self._leases, (reservation.expires_at, reservation.id))
        self._book.extended.clear()
        return live

    async def settle(
        self, claim: Claim, actual: Mapping[Unit, int] | None, source: Source, record: Record | None = None
    ) -> bool:
        check_actual(actual)
        check_record(record)
        settled = self._book.settle(claim, actual, source, record, self._charge_overdue())
        self._note_changes()
        return settled

    async def release(self, claim: Claim) -> bool:
        check_claim(claim)
        now_us = self._charge_overdue()
        if claim.id not in self._book.reservations:
            self._make_room_for_claim()
        released = self._book.release(claim, now_us)
        self._note_changes()
        return released

    async def peek(self, lines: Sequence[Line]) -> tuple[Standing, ...]:
        for index, line in enumerate(lines):
            check_line(line, index)
        now_us = int(self._now() * US)
        overdue = self._take_overdue(now_us)
        for reservation in overdue:
            heappush(self._leases, (reservation.expires_at, reservation.id))
        return self._book.peek(lines, overdue, now_us)

    async def sweep(self) -> int:
        now_us = int(self._now() * US)
        overdue = self._take_overdue(now_us)
        self._book.expire(overdue, now_us)
        self._shorten_leases(now_us)
        self._note_changes()
        self._forget(now_us, 100 * _STEPS)
        return len(overdue)

    async def running(self, most: int) -> Sequence[Record]:
        """See ListsRunning."""
        now_us = int(self._now() * US)
        found = [
            each.record
            for each in self._book.reservations.values()
            if each.state == "open" and each.record is not None and each.expires_at > now_us
        ]
        return newest_first(found, most)

    async def ping(self) -> None:
        return

    async def aclose(self) -> None:
        return

    def _charge_overdue(self) -> int:
        """Charge the leases that have run out, and return the time in microseconds."""
        now_us = int(self._now() * US)
        if self._leases and self._leases[0][0] <= now_us:
            self._book.expire(self._take_overdue(now_us), now_us)
            self._note_changes()
        return now_us

    def _take_overdue(self, now_us: int) -> list[StoredClaim]:
        """Take the open reservations with expired leases from the heap; drop outdated entries."""
        leases, reservations = self._leases, self._book.reservations
        overdue: dict[str, StoredClaim] = {}
        while leases and leases[0][0] <= now_us:
            reservation = reservations.get(heappop(leases)[1])
            if reservation is None or reservation.state != "open":
                continue
            if reservation.expires_at > now_us:
                heappush(leases, (reservation.expires_at, reservation.id))
            else:
                overdue[reservation.id] = reservation
        return list(overdue.values())

    def _shorten_leases(self, now_us: int) -> None:
        """Let leases that a clock ahead of this one has given last as long from now as they were to last then."""
        for id in {id for ends, id in self._leases if ends > now_us + SET_BACK_US}:
            reservation = self._book.reservations.get(id)
            ahead = 0 if reservation is None or reservation.state != "open" else reservation.leased_at - now_us
            if reservation is not None and ahead > SET_BACK_US:
                reservation.leased_at = now_us
                reservation.expires_at -= ahead
                heappush(self._leases, (reservation.expires_at, id))

    def _note_changes(self) -> None:
        book = self._book
        for reservation in book.changed:
            if reservation.state == "open":
                heappush(self._leases, (reservation.expires_at, reservation.id))
                for hold in reservation.holds:
                    if hold.kind == "gauge":
                        self._streams.setdefault(hold.key, set()).add(reservation.id)
            else:
                self._note_finished(reservation)
        book.changed.clear()
        for counter in book.created:
            if counter.kind != "gauge":
                heappush(self._dying, (self._dies_at(counter), counter.key))
        book.created.clear()
        book.revived.clear()
        book.set_back.clear()

    def _note_finished(self, reservation: StoredClaim) -> None:
        self._finished.append((reservation.finished_at or 0, reservation.id))
        for hold in reservation.holds:
            if hold.kind == "gauge" and hold.key in self._streams:
                streams = self._streams[hold.key]
                streams.discard(reservation.id)
                if not streams:
                    del self._streams[hold.key], self._book.counters[hold.key]
        if reservation.state != "expired":
            reservation.holds = ()  # only an expired claim can still be corrected

    def _soonest(self, key: str) -> int | None:
        reservations = self._book.reservations
        return min((reservations[id].expires_at for id in self._streams.get(key, ())), default=None)

    def _make_room_for_claim(self) -> None:
        while len(self._book.reservations) >= self._max_keys:
            if not self._finished:
                raise LimiterUnavailable
            self._forget_first()

    def _make_room_for_counters(self, claim: Claim, now_us: int) -> None:
        counters = self._book.counters
        if len(counters) + len(claim.lines) <= self._max_keys:
            return
        self._forget(now_us, 100 * _STEPS)
        new = sum(line.kind != "request" and line.key not in counters for line in claim.lines)
        if len(counters) + new > self._max_keys:
            self._forget_early(now_us)
        if len(counters) + new > self._max_keys:
            raise LimiterUnavailable

    def _forget(self, now_us: int, steps: int) -> None:
        """Forget finished claims, and obsolete windows and rates, oldest first, a few at a time."""
        before = now_us - self._retention_us
        for _ in range(steps):
            if not self._finished or self._finished[0][0] > before:
                break
            self._forget_first()
        for _ in range(steps):
            if not self._dying or self._dying[0][0] > now_us:
                break
            self._forget_counter(heappop(self._dying)[1], now_us)
        if len(self._leases) > 2 * len(self._book.reservations) + 1_000:  # long leases of claims long forgotten
            self._leases = [entry for entry in self._leases if entry[1] in self._book.reservations]
            heapify(self._leases)

    def _forget_first(self) -> None:
        """Forget the claim that finished first, unless it was settled late and comes up again."""
        finished_at, id = self._finished.popleft()
        reservation = self._book.reservations.get(id)
        if reservation is not None and reservation.finished_at == finished_at:
            del self._book.reservations[id]

    def _forget_counter(self, key: str, now_us: int) -> None:
        counter = self._book.counters[key]
        dies_at = self._dies_at(counter)
        if counter.held:
            heappush(self._dying, (now_us + self._retention_us, key))
        elif dies_at > now_us:
            heappush(self._dying, (dies_at, key))
        else:
            del self._book.counters[key]

    def _forget_early(self, now_us: int) -> None:
        """Forget windows that ended longer ago than `retention`: without room that matters more than a wrong clock."""
        counters, others = self._book.counters, list[tuple[int, str]]()
        for _ in range(100 * _STEPS):
            if not self._dying or self._dying[0][0] > now_us - self._retention_us + self._kept_us:
                break
            entry = heappop(self._dying)
            counter = counters[entry[1]]
            if counter.kind == "window" and not counter.held and counter.ends_at <= now_us - self._retention_us:
                del counters[counter.key]
            else:
                others.append(entry)
        for entry in others:
            heappush(self._dying, entry)

    def _dies_at(self, counter: Counter) -> int:
        if counter.kind == "window":
            return counter.ends_at + self._kept_us
        return max(counter.tat, counter.ends_at) + self._retention_us
