"""Run the application in uvicorn: in this process, or in several that share one socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType

import uvicorn
from msgspec import Struct

from chat_nest.server import logs
from chat_nest.server.app import build
from chat_nest.server.config import Config
from chat_nest.server.listen import BACKLOG
from chat_nest.server.protocol import AbortableProtocol

log = logging.getLogger("chat_nest.server")

DRAIN_SECONDS = 30.0
"""How long running answers may go on after SIGTERM."""
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

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None], *, ignored: frozenset[int]) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._ignored = ignored

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        # What is loaded by now stays, and a stream makes no cycles: the collector need not look at either so often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let the running answers end for a while, then end the application."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        connections = self.server_state.connections
        for connection in list(connections):
            connection.shutdown()
        if connections:
            log.info("waiting for %d connections to end; a second signal ends them now", len(connections))
        until = time.monotonic() + DRAIN_SECONDS
        while connections and not self.force_exit and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # uvicorn has no event for its last connection
        await self.lifespan.shutdown()


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
            ready = wait([*(worker.sentinel for worker in self._running), self._told])
            if self._told in ready:
                os.read(self._told, 1)
                self._stop()
            for worker in [worker for worker in self._running if worker.sentinel in ready]:
                self._running.remove(worker)
                worker.join()
                if worker.exitcode == CANT_START:
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
        self._stopping = True
        self._listener.close()  # else the kernel would go on to take connections that nobody serves
        for worker in self._running:
            worker.terminate()


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
    config = uvicorn.Config(
        app,
        http=AbortableProtocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=settings.access_log,
        proxy_headers=False,  # who asks is chat_nest.identity's business; uvicorn would believe any local proxy
        server_header=False,
        backlog=BACKLOG,
    )
    server = Server(config, on_started, ignored=ignored)
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(server.serve(sockets=[listener]))
    except SystemExit:  # uvicorn's way to say that the application did not start; it was logged
        return 1
    return 0


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - not there on Windows
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
