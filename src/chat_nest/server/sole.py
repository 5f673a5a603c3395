"""The oversight of a server of one process: it reloads itself, and reports to systemd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from zoneinfo import ZoneInfo

from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.parts import failure_text
from chat_nest.core.protocols import HasControls
from chat_nest.server.app import Prepared, ServerApp
from chat_nest.server.config.settings import Config
from chat_nest.server.config.sources import ConfigError
from chat_nest.server.control import ControlSocket
from chat_nest.server.hangup import Hangup
from chat_nest.server.operator import Operator
from chat_nest.server.reload import (
    DRAINING,
    FAILED,
    UNNOTED,
    WRONG,
    ConfigSource,
    ReloadOutcome,
    log_outcome,
    outcome_of,
    refused,
)
from chat_nest.server.systemd import READY, STOPPING, WATCHDOG, notify, notify_reloading, watchdog_seconds
from chat_nest.server.worker import Worker

log = logging.getLogger("chat_nest.server")


class Sole:
    """Reloads the worker of this process: at SIGHUP, on its control socket, and when its application asks."""

    def __init__(self, source: ConfigSource, hangup: Hangup, control: ControlSocket) -> None:
        self._source = source
        self._hangup = hangup
        self._control = control
        self._worker: Worker | None = None
        self._next: asyncio.Task[ReloadOutcome] | None = None
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[object]] = set()
        self._ping: asyncio.TimerHandle | None = None

    def serving(self, worker: Worker) -> None:
        """Begin to listen for reloads."""
        loop = asyncio.get_running_loop()
        self._worker = worker
        self._hangup.reload_with(lambda: loop.call_soon_threadsafe(self._on_hangup, worker.app))
        if self._control.listener is not None:
            self._keep(loop.create_task(self._listen()))
        notify(READY)
        self._watch()

    def stopping(self) -> None:
        """Note that the worker drains: it adopts nothing any more."""
        notify(STOPPING)

    def ended(self) -> None:
        """Stop what `serving` has started."""
        self._control.close()
        if self._ping is not None:
            self._ping.cancel()
        for task in self._tasks:
            task.cancel()

    async def reload(self) -> ReloadOutcome:
        """Read the configuration again. Callers that come while it is read share the next reading."""
        return await asyncio.shield(self._begin())

    def _on_hangup(self, app: ServerApp) -> None:
        async def reload() -> None:
            if (outcome := await self.reload()).adopted:
                await note_signal(app, outcome.changed)

        self._keep(asyncio.get_running_loop().create_task(reload()))

    def _begin(self) -> asyncio.Task[ReloadOutcome]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._after_the_current_one())
            self._keep(self._next)
        return self._next

    async def _after_the_current_one(self) -> ReloadOutcome:
        async with self._lock:
            self._next = None
            notify_reloading()
            outcome = await self._reload()
            log_outcome(outcome)
            notify(READY)
            return outcome

    async def _reload(self) -> ReloadOutcome:
        worker = self._worker
        if worker is None or worker.ending:
            return refused((DRAINING,), FAILED)
        try:
            changes, config = await asyncio.to_thread(self._source.read)
        except ConfigError as error:
            return refused(error.problems, WRONG)
        prepared = await asyncio.to_thread(prepare, worker.app, config)
        if isinstance(prepared, str):
            return refused((prepared,), FAILED)
        if worker.ending:
            return refused((DRAINING,), FAILED)
        worker.adopt(prepared)
        self._source.adopted(changes)
        return outcome_of(changes)

    async def _listen(self) -> None:
        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            outcome = await self.reload()
            with contextlib.suppress(OSError):
                writer.write(outcome.body())
                await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(answer, sock=self._control.listener) as server:
            await server.serve_forever()

    def _watch(self) -> None:
        if (seconds := watchdog_seconds()) is not None:
            notify(WATCHDOG)
            self._ping = asyncio.get_running_loop().call_later(seconds, self._watch)

    def _keep(self, task: asyncio.Task[ReloadOutcome] | asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def note_signal(app: ServerApp, changed: Sequence[str]) -> None:
    """Note in the audit trail that a signal has put the configuration in force; without the store, only in the log."""
    store = app.handler.store
    if not isinstance(store, HasControls):
        return
    try:
        await Operator(store, ZoneInfo(app.config.server.time_zone), by="signal").reloaded(changed)
    except LimiterUnavailable:
        log.error("the reload by SIGHUP is %s", UNNOTED)  # noqa: TRY400 - the store logs why


def prepare(app: ServerApp, config: Config) -> Prepared | str:
    """Return all that the configuration sets, ready to be adopted; or why it can't be."""
    try:
        return app.prepare(config)
    except (OSError, ValueError) as error:
        return str(error)
    except Exception as bug:
        log.error("reload: %s", failure_text(bug))  # noqa: TRY400 - no values in logs
        return f"the configuration can't be used: {type(bug).__name__}, and the log has where"
