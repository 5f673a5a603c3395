"""The Protocols of controls: small rows beside a store's counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from chat_nest.core.controls import Act, Control, Snapshot


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
        """Return all rows, also those that ended in the last 25 hours; None if nothing changed since version `known`.

        Whoever reads them decides by its own clock which are in force.
        """
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
