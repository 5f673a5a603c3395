"""A worker's link to its parent, which sends a configuration in two steps: all workers adopt it, or none does.

A message is a tuple, and its first item is its kind. From the parent: `prepare` with a number and a Config; `adopt` or
`forget` with the same number; `outcome` with the id of a reload that this worker requested, and its Outcome; `note`
with the changes of a reload by a signal. To the parent: `serving`; `prepared` with the number and a problem, or an
empty string; `adopted`; `reload` with an id.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from itertools import count
from typing import Any

from chat_nest.server.app import Prepared
from chat_nest.server.reload import DRAINING, FAILED, ReloadOutcome, refused
from chat_nest.server.sole import note_signal, prepare
from chat_nest.server.worker import Worker

log = logging.getLogger("chat_nest.server")

NO_PARENT = "the parent process does not answer"


class ParentLink:
    """The oversight of a worker by its parent, over a Connection (on Windows of another class).

    A thread reads it, and builds what a configuration sets: the event loop only puts it in force.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._ids = count()
        self._asked: dict[int, asyncio.Future[ReloadOutcome]] = {}

    def serving(self, worker: Worker) -> None:
        """Report that the worker serves, and listen to the parent."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(worker, loop), name="chat-nest-parent", daemon=True).start()
        if not self._send("serving"):
            log.warning("the parent process does not hear that this worker serves")

    def stopping(self) -> None:
        """See Overseer."""

    def ended(self) -> None:
        """Answer the requests that still wait for a reload."""
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_result(refused((DRAINING,), FAILED))

    async def reload(self) -> ReloadOutcome:
        """Ask the parent for a reload, and return its outcome."""
        id = next(self._ids)
        self._asked[id] = asyncio.get_running_loop().create_future()
        try:
            return await self._asked[id] if self._send("reload", id) else refused((NO_PARENT,), FAILED)
        finally:
            del self._asked[id]

    def _send(self, *message: object) -> bool:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            return False
        return True

    def _listen(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        prepared: Prepared | None = None
        while True:
            try:
                message: tuple[Any, ...] = self._connection.recv()
            except (EOFError, OSError):
                return  # the parent has ended
            try:
                match message:
                    case ("prepare", number, config):
                        found = prepare(worker.app, config)
                        prepared = None if isinstance(found, str) else found
                        self._send("prepared", number, found if isinstance(found, str) else "")
                    case ("adopt", number) if prepared is not None:
                        loop.call_soon_threadsafe(self._adopt, worker, prepared, number)
                        prepared = None
                    case ("outcome", id, outcome):
                        loop.call_soon_threadsafe(self._answer, id, outcome)
                    case ("note", changed):
                        asyncio.run_coroutine_threadsafe(note_signal(worker.app, changed), loop)
                    case _:  # forget
                        prepared = None
            except RuntimeError:  # the loop was closed
                return

    def _adopt(self, worker: Worker, prepared: Prepared, number: int) -> None:
        worker.adopt(prepared)
        self._send("adopted", number)

    def _answer(self, id: int, outcome: ReloadOutcome) -> None:
        waiting = self._asked.get(id)
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome)
