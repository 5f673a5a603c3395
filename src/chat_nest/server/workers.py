"""The worker processes and their supervisor: a worker that ends is replaced, after growing pauses.

The file is long because the supervisor is one state machine of all workers.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext
from multiprocessing.process import BaseProcess
from typing import Any

from msgspec.structs import replace

from chat_nest.server import logs
from chat_nest.server.config.settings import Config
from chat_nest.server.control import ControlSocket
from chat_nest.server.forking import become_worker, load_shared, signals_held, worker_context
from chat_nest.server.hangup import Hangup, leave_hangup_to_parent
from chat_nest.server.listeners import Listeners
from chat_nest.server.parent_link import ParentLink
from chat_nest.server.reload import DRAINING, FAILED, UNNOTED, ConfigSource, ReloadOutcome, log_outcome, refused
from chat_nest.server.rollout import Rollouts, TellOutcome
from chat_nest.server.shared_metrics import join, leave
from chat_nest.server.systemd import READY, STOPPING, WATCHDOG, notify, watchdog_seconds
from chat_nest.server.worker import CANT_START, SIGNALS, WorkerSettings, run_server
from chat_nest.server.worker_place import WorkerSlot

log = logging.getLogger("chat_nest.server")

STOP, RELOAD = b"s", b"r"
"""What a signal handler writes to wake the supervisor."""
GRACE_SECONDS = 5.0
"""Seconds after its drain and last writes until a worker that has not ended is killed."""


def serve_with_workers(
    settings: WorkerSettings,
    listeners: Listeners,
    count: int,
    on_started: Callable[[], None],
    source: ConfigSource,
    hangup: Hangup,
    control: ControlSocket,
) -> int:
    """Serve in `count` processes until a signal ends them; return the exit code.

    A worker that ends, or can't start, is replaced, and the others go on. Only if no worker has ever served, and all
    have ended, this ends too, with 1.
    """
    return Workers(settings, listeners, count, source, hangup, control).run(on_started)


_NAME = "chat-nest-worker"


class Workers:
    """The supervisor of the worker processes. A first signal drains all workers, a second one ends them at once."""

    def __init__(
        self,
        settings: WorkerSettings,
        listeners: Listeners,
        count: int,
        source: ConfigSource,
        hangup: Hangup,
        control: ControlSocket,
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._places = [WorkerSlot(number) for number in range(count)]
        self._have_served = False
        self._stopping = False
        self._kill_at: float | None = None
        self._code = 0
        self._told, self._tell = os.pipe()
        self._hangup = hangup
        self._control = control
        self._rollouts = Rollouts(source, self._running, self._put_in_force)
        self._watchdog = watchdog_seconds()
        self._watchdog_at = 0.0

    def run(self, on_started: Callable[[], None]) -> int:
        """Run until all workers have ended; return the exit code."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        self._hangup.reload_with(lambda: os.write(self._tell, RELOAD))
        load_shared(self._settings.config)
        for place in self._places:
            self._start(place)
        on_started()
        while self._running() or not self._stopping:
            self._wait()
        self._control.close()
        return self._code

    def _wait(self) -> None:
        """Wait for the next event, and act on it."""
        links = {place.link: place for place in self._running() if place.link is not None}
        ended = {place.process.sentinel: place for place in self._running() if place.process is not None}
        listening = [] if self._control.listener is None else [self._control.listener]
        ready = wait([*ended, *links, *listening, self._told], self._patience())
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill()
        if self._told in ready:
            self._on_told(os.read(self._told, 64))
        for listener in listening:
            if listener in ready:
                self._accept(listener)
        for link in [link for link in links if link in ready]:
            self._hear(links[link])
        for sentinel in [sentinel for sentinel in ended if sentinel in ready]:
            self._ended(ended[sentinel])
        self._start_due()
        self._rollouts.expire()
        self._keep_alive()

    def _running(self) -> list[WorkerSlot]:
        return [place for place in self._places if place.process is not None]

    def _patience(self) -> float | None:
        """Return the seconds until something is due that no process reports."""
        due = [each for each in (self._rollouts.due, self._kill_at) if each is not None]
        if self._watchdog is not None:
            due.append(self._watchdog_at)
        if self._have_served and not self._stopping:
            due += [place.start_at for place in self._places if place.process is None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _on_signal(self, _signal: int, _frame: object) -> None:
        os.write(self._tell, STOP)

    def _on_told(self, signals: bytes) -> None:
        for _ in range(signals.count(STOP)):
            self._stop()
        if RELOAD in signals:
            self._reload(self._note)

    def _reload(self, reply: TellOutcome) -> None:
        if self._stopping:
            outcome = refused((DRAINING,), FAILED)
            log_outcome(outcome)
            reply(outcome)
        else:
            self._rollouts.ask(reply)

    def _note(self, outcome: ReloadOutcome) -> None:
        """Let a worker note a reload by a signal in the audit trail: the parent has no store."""
        if outcome.adopted and not any(place.send("note", outcome.changed) for place in self._running()):
            log.error("the reload by SIGHUP is %s", UNNOTED)

    def _put_in_force(self, config: Config) -> None:
        self._settings = replace(self._settings, config=config)

    def _accept(self, listener: socket.socket) -> None:
        """Reload for a client of the control socket. The outcome fits into the socket's buffer."""
        try:
            client, _ = listener.accept()
        except OSError:
            return

        def reply(outcome: ReloadOutcome) -> None:
            with client, contextlib.suppress(OSError):
                client.setblocking(False)
                client.sendall(outcome.body())

        self._reload(reply)

    def _hear(self, place: WorkerSlot) -> None:
        """Read one message of a worker. At the end of its pipe the worker has ended, or soon will."""
        try:
            message: tuple[Any, ...] = place.link.recv()
        except (EOFError, OSError):
            place.link.close()
            place.link = None
            return
        match message:
            case ("serving",):
                place.served_from = time.monotonic()
                if not self._have_served:
                    notify(READY)
                self._have_served = True
            case ("prepared", number, problem):
                self._rollouts.prepared(place, number, problem)
            case ("adopted", number):
                self._rollouts.adopted(place, number)
            case ("reload", id):
                self._reload(partial(place.answer, id))
            case _:
                log.error("worker %s sent what its parent does not know", place.name)

    def _keep_alive(self) -> None:
        if self._watchdog is not None and time.monotonic() >= self._watchdog_at:
            self._watchdog_at = time.monotonic() + self._watchdog
            notify(WATCHDOG)

    def _start(self, place: WorkerSlot) -> None:
        context = worker_context()
        try:
            place.link, theirs = context.Pipe()
            with theirs:
                worker: BaseProcess
                common = (self._settings, self._listeners, theirs, place.number)
                if isinstance(context, ForkContext):
                    worker = context.Process(target=self._begin, args=(os.getpid(), *common), name=_NAME)
                    with signals_held():
                        worker.start()
                else:  # a new program would never release them
                    worker = context.Process(target=_work, args=common, name=_NAME)
                    worker.start()
        except OSError as error:  # too many processes or files, no memory
            pause = place.vacate(time.monotonic())
            log.error("a worker can't be started (%s); another try in %g s", error.strerror, pause)  # noqa: TRY400
            self._give_up_if_none_serves()
        else:
            place.process = worker
            self._rollouts.joined(place)

    def _begin(self, parent: int, settings: WorkerSettings, listeners: Listeners, link: Connection, place: int) -> None:
        """Run a worker in a copy of this process."""
        become_worker(parent, self._close_inherited)
        _work(settings, listeners, link, place)

    def _close_inherited(self) -> None:
        os.close(self._told)
        os.close(self._tell)
        if self._control.listener is not None:
            self._control.listener.close()
        for place in self._places:
            if place.link is not None:
                place.link.close()

    def _start_due(self) -> None:
        if self._have_served and not self._stopping:
            now = time.monotonic()
            for place in self._places:
                if place.process is None and place.start_at <= now:
                    self._start(place)

    def _ended(self, place: WorkerSlot) -> None:
        worker = place.process
        assert worker is not None
        worker.join()
        if self._settings.metrics_folder:
            leave(self._settings.metrics_folder, place.number)
        pause = place.vacate(time.monotonic())
        self._rollouts.left(place)
        if self._stopping:
            if worker.exitcode == -signal.SIGKILL:
                self._code = 1
        elif not self._have_served:
            self._give_up_if_none_serves()
        elif worker.exitcode == CANT_START:
            log.error("worker %s could not start; another try in %g s", worker.pid, pause)
        else:
            log.warning("worker %s ended (%s); another one takes its place in %g s", worker.pid, worker.exitcode, pause)

    def _give_up_if_none_serves(self) -> None:
        if not self._have_served and not self._running():
            self._code = 1
            self._stop()

    def _stop(self) -> None:
        config = self._settings.config
        drain = 0.0 if self._stopping else config.server.drain_seconds
        self._kill_at = time.monotonic() + drain + config.timeouts.write + GRACE_SECONDS
        if not self._stopping:
            notify(STOPPING)
        self._stopping = True
        self._rollouts.stop(DRAINING)
        self._listeners.close()  # else the kernel would still accept connections that no process serves
        for place in self._running():
            if place.process is not None:
                place.process.terminate()

    def _kill(self) -> None:
        self._kill_at = None
        for place in self._running():
            if place.process is not None:
                log.error(
                    "worker %s does not end: killed; its reservations are charged when their lease ends",
                    place.process.pid,
                )
                place.process.kill()


def _work(settings: WorkerSettings, listeners: Listeners, link: Connection, place: int) -> None:
    """Run a worker. The terminal's Ctrl+C reaches every process: workers ignore it, and the parent sends SIGTERM."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    leave_hangup_to_parent()
    logs.configure(settings.log_level, color=settings.color, access_log=settings.access_log, style=settings.log_format)
    if settings.metrics_folder:
        try:
            join(settings.metrics_folder, place)
        except OSError as error:
            log.error("can't start: no room for the metrics in %s: %s", settings.metrics_folder, error.strerror)  # noqa: TRY400
            raise SystemExit(CANT_START) from None
    if run_server(settings, listeners, ParentLink(link), lambda: None, frozenset({signal.SIGINT})):
        raise SystemExit(CANT_START)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
