"""The Protocols of the logs of runs, for readers who reconnect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from chat_nest.core.deltas import Batch
from chat_nest.core.protocols.ending import Finale


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
