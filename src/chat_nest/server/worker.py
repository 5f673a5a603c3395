"""Run the application in uvicorn: in this process, or in several that share one socket."""

from __future__ import annotations

import asyncio
import contextlib
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
    context = multiprocessing.get_context("spawn")
    stopping = threading.Event()
    workers: list[SpawnProcess] = []

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()
        for worker in workers:
            worker.terminate()

    def start() -> None:
        worker = context.Process(target=_work, args=(settings, listener), name="chat-nest-worker")
        worker.start()
        workers.append(worker)
        if stopping.is_set():  # the signal came before this one was in the list
            worker.terminate()

    for number in SIGNALS:
        signal.signal(number, stop)
    for _ in range(count):
        start()
    on_started()
    code = 0
    while workers:
        wait([worker.sentinel for worker in workers])
        for worker in [worker for worker in workers if not worker.is_alive()]:
            workers.remove(worker)
            if stopping.is_set():
                continue
            if worker.exitcode == 1:
                code = 1
                stop(0, None)
            else:
                log.warning("worker %s ended (%s); another one takes its place", worker.pid, worker.exitcode)
                stopping.wait(RESTART_SECONDS)
                start()
    return code


def _work(settings: Settings, listener: socket.socket) -> None:
    """A worker's whole life. The terminal's Ctrl+C reaches every process: the parent passes it on, as SIGTERM."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logs.configure(settings.log_level, color=settings.color, access_log=settings.access_log)
    sys.exit(_run(settings, listener, lambda: None, frozenset({signal.SIGINT})))


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
