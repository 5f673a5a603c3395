"""Delivery of endings to the store: each is retried until the store has it, and is in the journal meanwhile.

Nothing here runs in a request's own task. An ending that is stored at the first attempt touches no file.
"""

from __future__ import annotations

import asyncio
import logging

from msgspec.structs import replace

from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.limits import Unit
from chat_nest.core.parts import KnownBugs
from chat_nest.core.protocols import Store
from chat_nest.core.usage import Usage
from chat_nest.ledger.journal import Entry, Journal

log = logging.getLogger("chat_nest.ledger")

FIRST_RETRY = 0.05
LONGEST_RETRY = 5.0
"""Seconds between two attempts."""
POST_LEASE = 60.0
MOST_RELEASES = 10_000
"""The number of undelivered endings above which further releases are dropped: in a long outage every refused request
makes one, and a reservation that it may have made ends with its lease."""


class Delivery:
    """Delivers endings to `store`. `patience` is the time limit of one attempt, in seconds.

    Without a journal, an undelivered ending is lost with the process: its lease then expires.
    """

    def __init__(self, store: Store, *, journal: Journal | None = None, patience: float = 1.0) -> None:
        self._store = store
        self._journal = journal
        self._patience = patience
        self._tasks: set[asyncio.Task[None]] = set()
        self._bugs = KnownBugs()

    @property
    def pending(self) -> int:
        """The number of endings that have not landed."""
        return len(self._tasks)

    def deliver(self, entry: Entry) -> asyncio.Task[None]:
        """Start to deliver the entry to the store; the task ends once it has landed."""
        if entry.ending == "release" and len(self._tasks) >= MOST_RELEASES:
            return asyncio.create_task(asyncio.sleep(0))
        return self._start(entry, kept=False)

    async def adopt(self) -> None:
        """Deliver the entries that dead processes left in the journal."""
        if self._journal is None:
            return
        try:
            left = await asyncio.to_thread(self._journal.adopt)
        except OSError as failure:
            log.error("the journal in %s can't be read: %s", self._journal.directory, type(failure).__name__)  # noqa: TRY400
            return
        for entry in left:
            self._start(entry, kept=True)

    async def aclose(self, grace: float) -> None:
        """Wait up to `grace` seconds for undelivered endings; then leave them to the journal, or to the leases."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        left = list(self._tasks)
        for task in left:
            task.cancel()  # it then keeps its entry in the journal
        if left:
            await asyncio.wait(left, timeout=self._patience)
        kept = 0
        if self._journal is not None:
            kept = await asyncio.to_thread(self._journal.close)
            if kept:
                log.error(
                    "%d endings did not land: they are in %s, and the next process that starts with this journal lands "
                    "them",
                    *(kept, self._journal.directory),
                )
        for _ in range(len(left) - kept):
            log.error("a settlement did not land: its lease will expire and the whole hold is charged")

    def _start(self, entry: Entry, *, kept: bool) -> asyncio.Task[None]:
        task = asyncio.create_task(self._retry(entry, kept=kept))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _retry(self, entry: Entry, *, kept: bool) -> None:
        pause = FIRST_RETRY
        try:
            while not await self._try(entry):
                if not kept and self._journal is not None:
                    kept = await self._keep(entry, self._journal)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_RETRY)
        except asyncio.CancelledError:
            if not kept and self._journal is not None:
                _add(entry, self._journal)  # blocks, but a closing loop may not wait for a thread
            raise
        if kept and self._journal is not None:
            try:
                await asyncio.to_thread(self._journal.land, entry.key)
            except OSError as failure:
                log.error("a landed ending can't be marked, and will land twice: %s", type(failure).__name__)  # noqa: TRY400

    async def _try(self, entry: Entry) -> bool:
        try:
            async with asyncio.timeout(self._patience):
                await _apply(entry, self._store)
        except ValueError:
            log.error("the store refused a settlement: its lease will expire and the whole hold is charged")  # noqa: TRY400
        except Exception as failure:
            log.warning("the store failed to settle, trying again: %s", self._bugs.explain(self._store, failure))
            return False
        return True

    async def _keep(self, entry: Entry, journal: Journal) -> bool:
        return await asyncio.to_thread(_add, entry, journal)


def _add(entry: Entry, journal: Journal) -> bool:
    try:
        journal.add(entry)
    except OSError as failure:
        why = failure.strerror or type(failure).__name__
        log.error("the journal in %s can't be written: %s", journal.directory, why)  # noqa: TRY400 - no trace needed
        return False
    return True


async def _apply(entry: Entry, store: Store) -> None:
    claim = entry.claim
    if entry.ending == "release":
        if not await store.release(claim):
            await _correct(entry, store)
        return
    if entry.ending == "post":
        await store.reserve(claim, POST_LEASE)  # a repeated reserve is a Duplicate, and the settlement goes on
    await store.settle(claim, entry.actual, entry.source, entry.record)


async def _correct(entry: Entry, store: Store) -> None:
    """Settle with nothing what could not be released, because its lease may have ended: then all of it was charged.

    Of a claim that did not expire the store then has nothing left to settle, and changes nothing.
    """
    claim = entry.claim
    nothing: dict[Unit, int] = dict.fromkeys((line.unit for line in claim.lines), 0)
    record = entry.record
    if record is None and claim.record is not None:
        record = replace(claim.record, ending=LimiterUnavailable.code)
    if record is not None:
        record = replace(record, usage=Usage(), cost=0, source="reported", spent_nothing=True)
    await store.settle(claim, nothing, "reported", record)
