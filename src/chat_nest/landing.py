"""Endings on their way to the store: each is tried until it lands, and kept in the journal while it does not.

Nothing here runs in a request's own task, and a happy ending touches no file.
"""

from __future__ import annotations

import asyncio
import logging

from chat_nest.journal import Entry, Journal
from chat_nest.parts import KnownBugs
from chat_nest.protocols import Store

log = logging.getLogger("chat_nest.landing")

FIRST_RETRY = 0.05
LONGEST_RETRY = 5.0
"""Seconds between two tries."""
POST_LEASE = 60.0
MOST_RELEASES = 10_000
"""Endings on their way, above which no more releases are kept: in a long outage every refused request makes one, and
what it may have reserved all the same runs out with its lease."""


class Landing:
    """Lands endings on `store`. `patience` is how many seconds one try may take.

    Without a journal an ending that has not landed is lost with the process: then the lease decides.
    """

    def __init__(self, store: Store, *, journal: Journal | None = None, patience: float = 1.0) -> None:
        self._store = store
        self._journal = journal
        self._patience = patience
        self._tasks: set[asyncio.Task[None]] = set()
        self._bugs = KnownBugs()

    def land(self, entry: Entry, via: Store | None = None) -> asyncio.Task[None]:
        """Start to land the entry, on the store or on what stands in front of it."""
        if entry.ending == "release" and len(self._tasks) >= MOST_RELEASES:
            return asyncio.create_task(asyncio.sleep(0))
        return self._start(entry, self._store if via is None else via, kept=False)

    async def adopt(self) -> None:
        """Land what processes that died have left in the journal."""
        if self._journal is None:
            return
        try:
            left = await asyncio.to_thread(self._journal.adopt)
        except OSError as failure:
            log.error("the journal in %s can't be read: %s", self._journal.directory, type(failure).__name__)  # noqa: TRY400
            return
        for entry in left:
            self._start(entry, self._store, kept=True)

    async def aclose(self, grace: float) -> None:
        """Wait up to `grace` seconds for what has not landed; then leave it to the journal, or to the leases."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        left = list(self._tasks)
        for task in left:
            task.cancel()  # it then keeps its entry
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

    def _start(self, entry: Entry, store: Store, *, kept: bool) -> asyncio.Task[None]:
        task = asyncio.create_task(self._retry(entry, store, kept=kept))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _retry(self, entry: Entry, store: Store, *, kept: bool) -> None:
        pause = FIRST_RETRY
        try:
            while not await self._try(entry, store):
                if not kept and self._journal is not None:
                    kept = await self._keep(entry, self._journal)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_RETRY)
        except asyncio.CancelledError:
            if not kept and self._journal is not None:
                _add(entry, self._journal)  # blocks, but a loop that ends may not wait for us
            raise
        if kept and self._journal is not None:
            try:
                await asyncio.to_thread(self._journal.land, entry.key)
            except OSError as failure:
                log.error("a landed ending can't be marked, and will land twice: %s", type(failure).__name__)  # noqa: TRY400

    async def _try(self, entry: Entry, store: Store) -> bool:
        try:
            async with asyncio.timeout(self._patience):
                await _apply(entry, store)
        except ValueError:
            log.error("the store refused a settlement: its lease will expire and the whole hold is charged")  # noqa: TRY400
        except Exception as failure:
            log.warning("the store failed to settle, trying again: %s", self._bugs.explain(store, failure))
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
        await store.release(claim)
        return
    if entry.ending == "post":
        await store.reserve(claim, POST_LEASE)  # a second time it is a Duplicate, and settling goes on from there
    await store.settle(claim, entry.actual, entry.source, entry.record)
