"""Run the application in uvicorn: in this process, or in several that share one socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import cast

import uvicorn
from msgspec import Struct

from chat_nest.server import logs
from chat_nest.server.app import build
from chat_nest.server.config import Config
from chat_nest.server.connection import Connection
from chat_nest.server.edge import Deadlines, Edge
from chat_nest.server.heap import Trimmer
from chat_nest.server.listen import BACKLOG
from chat_nest.server.vanished import Vanished, ask_the_silent
from chat_nest.server.watchdog import Watchdog

log = logging.getLogger("chat_nest.server")

GRACE_SECONDS = 5.0
"""A worker that has not ended so long after its drain and its last writes is killed."""
RESTART_SECONDS = 1.0
"""Between the end of a worker and the start of the one that takes its place."""
CANT_START = 3
"""A worker's exit code: another one would not start either."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Settings(Struct, frozen=True, kw_only=True):
    """What a worker needs to run; it travels to other processes in a pipe, never in arguments or the environment."""

    config: Config
    log_level: str = "info"
    access_log: bool = False
    color: bool = False


class Server(uvicorn.Server):
    """uvicorn, with a drain of our own: a signal is an orderly end with exit code 0, and a second one ends at once.

    Either way the application's shutdown runs, which ends what is left with a typed event and settles it. uvicorn
    would raise the signal again after its shutdown, and skip the application's when it is in a hurry.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], None],
        on_drain: Callable[[], None],
        running: Callable[[], int],
        *,
        drain_seconds: float,
        blocked_seconds: float,
        write_seconds: float,
        ignored: frozenset[int],
    ) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._on_drain = on_drain
        self._running = running
        self._drain_seconds = drain_seconds
        self._watchdog = Watchdog(blocked_seconds)
        self._vanished = Vanished(write_seconds, lambda: cast("set[Connection]", self.server_state.connections))
        self._trimmer = Trimmer()
        self._ignored = ignored

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        # What is loaded by now stays, and a stream makes no cycles: the collector need not look at either so often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        self._watchdog.start()
        self._vanished.start()
        self._trimmer.start()
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handle SIGINT and SIGTERM while serving."""
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Drain; when asked again, leave at once."""
        if sig not in self._ignored:
            self.force_exit = self.should_exit
            self.should_exit = True
            self._on_drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the running answers end for a while, then stop listening and end the application.

        Until then it listens, so that whoever asks is told that it drains.
        """
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if waiting := self._answering():
            log.info("waiting for %d answers to end; a second signal ends them now", waiting)
        until = time.monotonic() + self._drain_seconds
        while self._answering() and not self.force_exit and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # uvicorn has no event for its last answer
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        await self.lifespan.shutdown()
        self._watchdog.stop()
        self._vanished.stop()
        self._trimmer.stop()

    def _answering(self) -> int:
        """Answers, among them those without a reader, and requests that still come in."""
        connections = cast("set[Connection]", self.server_state.connections)
        read = sum(connection.answering for connection in connections)
        return max(read, self._running())


def serve(settings: Settings, listener: socket.socket, on_started: Callable[[], None]) -> int:
    """Serve in this process until a signal ends it; return the exit code."""
    return _run(settings, listener, on_started, frozenset())


def serve_with_workers(settings: Settings, listener: socket.socket, count: int, on_started: Callable[[], None]) -> int:
    """Serve in `count` processes until a signal ends them; return the exit code.

    A worker that dies is replaced, unless it could not start.
    """
    return Workers(settings, listener).run(count, on_started)


class Workers:
    """The processes that serve, and the one that watches them. A signal ends them all, and a second one at once."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._running: list[SpawnProcess] = []
        self._stopping = False
        self._kill_at: float | None = None
        self._told, self._tell = os.pipe()

    def run(self, count: int, on_started: Callable[[], None]) -> int:
        """Return the exit code when all have ended."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        for _ in range(count):
            self._start()
        on_started()
        code = 0
        while self._running:
            patience = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
            ready = wait([*(worker.sentinel for worker in self._running), self._told], patience)
            if not ready:
                self._kill()
            if self._told in ready:
                os.read(self._told, 1)
                self._stop()
            for worker in [worker for worker in self._running if worker.sentinel in ready]:
                self._running.remove(worker)
                worker.join()
                if worker.exitcode == -signal.SIGKILL and self._stopping:
                    code = 1
                elif worker.exitcode == CANT_START:
                    code = 1
                    self._stop()
                elif not self._stopping:
                    log.warning("worker %s ended (%s); another one takes its place", worker.pid, worker.exitcode)
                    if not wait([self._told], RESTART_SECONDS):
                        self._start()
        return code

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        os.write(self._tell, b".")

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        worker = context.Process(target=_work, args=(self._settings, self._listener), name="chat-nest-worker")
        worker.start()
        self._running.append(worker)

    def _stop(self) -> None:
        config = self._settings.config
        drain = 0.0 if self._stopping else config.server.drain_seconds
        self._kill_at = time.monotonic() + drain + config.timeouts.write + GRACE_SECONDS
        self._stopping = True
        self._listener.close()  # else the kernel would go on to take connections that nobody serves
        for worker in self._running:
            worker.terminate()

    def _kill(self) -> None:
        self._kill_at = None
        for worker in self._running:
            log.error("worker %s does not end: killed; what it had reserved is charged when its lease ends", worker.pid)
            worker.kill()


def _work(settings: Settings, listener: socket.socket) -> None:
    """A worker's whole life. The terminal's Ctrl+C reaches every process: the parent passes it on, as SIGTERM."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logs.configure(settings.log_level, color=settings.color, access_log=settings.access_log)
    if _run(settings, listener, lambda: None, frozenset({signal.SIGINT})):
        sys.exit(CANT_START)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _run(settings: Settings, listener: socket.socket, on_started: Callable[[], None], ignored: frozenset[int]) -> int:
    try:
        app = build(settings.config)
    except (OSError, ValueError) as error:
        log.error("can't start: %s", error)  # noqa: TRY400 - the message says all
        return 1
    server = settings.config.server
    ask_the_silent(listener, settings.config.timeouts.write)
    edge = Edge(
        Deadlines(
            header=server.header_seconds,
            body=server.body_seconds,
            idle=server.idle_seconds,
            write=settings.config.timeouts.write,
        ),
        max_connections=server.max_connections,
        max_files=_max_files(),
    )

    def drain() -> None:
        edge.draining = True
        app.drain()

    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(Connection, edge)),
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=settings.access_log,
        proxy_headers=False,  # who asks is chat_nest.identity's business; uvicorn would believe any local proxy
        server_header=False,
        backlog=BACKLOG,
    )
    uvicorn_server = Server(
        config,
        on_started,
        drain,
        lambda: app.running,
        drain_seconds=server.drain_seconds,
        blocked_seconds=server.blocked_seconds,
        write_seconds=settings.config.timeouts.write,
        ignored=ignored,
    )
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(uvicorn_server.serve(sockets=[listener]))
    except SystemExit:  # uvicorn's way to say that the application did not start; it was logged
        return 1
    return 0


def _max_files() -> float:
    """How many files the process may open, after asking for as many as it may have."""
    try:
        import resource  # noqa: PLC0415 - not there on Windows
    except ImportError:
        return math.inf
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - not there on Windows
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
