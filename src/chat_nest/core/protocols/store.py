"""The Protocols of a store: counters that reserve and settle, and what else it may be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable
from zoneinfo import ZoneInfo

from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing
from chat_nest.core.limits import Unit
from chat_nest.core.records import By, Record, UsageRow
from chat_nest.core.usage import Source


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
class BatchesCalls(Protocol):
    """A Store that sends waiting calls together, so that many may be under way."""

    @property
    def calls_at_once(self) -> int:
        """The most calls that a ledger starts before the first of them is answered."""
        ...


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
