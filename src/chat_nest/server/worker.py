"""A worker process: serve the application until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Generator
from typing import Protocol

from msgspec import Struct

from chat_nest.identity.peer import PeerAddress
from chat_nest.server.admin.app import AdminApp
from chat_nest.server.admin.page import operator_files
from chat_nest.server.admin.table import ROUTES
from chat_nest.server.app import Prepared, ServerApp, build
from chat_nest.server.config.caller_names import names_by_address
from chat_nest.server.config.provider import Secret
from chat_nest.server.config.settings import Config
from chat_nest.server.heap import Trimmer
from chat_nest.server.http.connection_limits import ConnectionLimits
from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.lifespan import StartFailed
from chat_nest.server.http.server import HttpServer
from chat_nest.server.http_settings import address_of, deadlines_of, max_files, most_per_address
from chat_nest.server.listeners import Listeners
from chat_nest.server.reload import ReloadOutcome
from chat_nest.server.watchdog import Watchdog

log = logging.getLogger("chat_nest.server")

CANT_START = 3
"""The exit code of a worker that can't start."""
EXPECT_SECONDS = 1.0
"""Seconds that a drain waits for the requests of new connections, if others come to the next process."""
MOST_OPERATORS = 64
"""Connections of the operators' listener, of each worker."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """The settings of a worker.

    They reach other processes through a pipe, never as arguments or environment variables.
    """

    config: Config
    caller_secret: Secret = Secret("")
    """The secret of the log's names for callers. Empty: they have no secret."""
    log_level: str = "info"
    access_log: bool = False
    log_format: str = "text"
    color: bool = False
    metrics_folder: str = ""
    """Where the workers count together; empty: this process counts alone, or not at all."""


class Overseer(Protocol):
    """The supervision of a worker: it reloads it. Its methods run on the worker's event loop."""

    def serving(self, worker: Worker) -> None:
        """Note that the worker serves."""

    def stopping(self) -> None:
        """Note that the worker drains."""

    def ended(self) -> None:
        """Note that the worker has ended."""

    async def reload(self) -> ReloadOutcome:
        """Read the configuration again, in all workers."""
        ...


class Worker:
    """One serving process. A first signal drains it and ends it with exit code 0; a second one ends it at once.

    In both cases the application's shutdown runs. It ends the remaining answers with a typed event, and settles them.
    """

    def __init__(
        self,
        context: ServerContext,
        app: ServerApp,
        settings: WorkerSettings,
        overseer: Overseer,
        *,
        ignored: frozenset[int],
        admin: AdminApp | None = None,
    ) -> None:
        self.app = app
        self._context = context
        self._server = HttpServer(context)
        self._admin = admin
        self._operators = None if admin is None else HttpServer(_operators(admin, settings))
        self._secret = settings.caller_secret.reveal().encode()
        self._overseer = overseer
        self._drain_seconds = settings.config.server.drain_seconds
        self._watchdog = Watchdog(settings.config.server.blocked_seconds)
        self._trimmer = Trimmer()
        self._ignored = ignored
        self._ending = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._expect_until = 0.0

    @property
    def ending(self) -> bool:
        """Whether a signal has come: running answers go on."""
        return self._ending.is_set()

    def adopt(self, prepared: Prepared) -> None:
        """Put a configuration in force, from the next request and the next connection on."""
        server = prepared.config.server
        peers = PeerAddress(server.trusted_proxies)
        self.app.adopt(prepared)
        self._drain_seconds = server.drain_seconds
        self._context.deadlines = deadlines_of(prepared.config)
        self._context.caller_of = names_by_address(self._secret, peers) if self._secret else None
        self._context.limits.adopt(
            max_connections=server.max_connections,
            max_per_address=most_per_address(server),
            address_of=address_of(peers),
        )

    async def run(self, listeners: Listeners, on_started: Callable[[], None]) -> None:
        """Serve until a signal ends the process. Raises StartFailed."""
        with self._signals():
            if not await self._started(listeners.public):
                return
            # What is loaded by now stays, and a stream makes no cycles, so the garbage collector can run less often.
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 20, 50)
            self._watchdog.start()
            self._trimmer.start()
            self.app.reload = self._overseer.reload
            if self._operators is not None and listeners.operators is not None:
                await self._operators.start(listeners.operators)
            self._overseer.serving(self)
            on_started()
            await self._ending.wait()
            self._overseer.stopping()
            await self._drain(hands_over=listeners.outlives)
            if self._operators is not None and self._admin is not None:
                self._admin.live.close()
                self._operators.drain()
                await self._operators.stop()
            await self._server.stop()
            self._watchdog.stop()
            self._trimmer.stop()
            self._overseer.ended()

    async def _started(self, listener: socket.socket) -> bool:
        """Start the application; return False if a signal came first: the store may take seconds to answer.

        Raises StartFailed.
        """
        starting, ending = asyncio.create_task(self._server.start(listener)), asyncio.create_task(self._ending.wait())
        await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            return False
        starting.result()
        return True

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        """Handle SIGINT and SIGTERM.

        With a handler of the loop, uvloop would see a signal twice that this process raises.
        """
        loop = asyncio.get_running_loop()

        def handle(number: int, _frame: object) -> None:
            loop.call_soon_threadsafe(self._on_signal, number)

        before = {number: signal.signal(number, handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int) -> None:
        """Drain at the first signal; end at once at the second."""
        if number not in self._ignored:
            if self._ending.is_set():
                self._hurrying.set()
            self._ending.set()

    async def _drain(self, *, hands_over: bool) -> None:
        """Wait for the running answers, for a limited time.

        New connections wait for the next process if it takes over the listening socket. Else this one still listens, so
        that their requests get a refusal instead of nothing.
        """
        self.app.drain(refuse=not hands_over)
        if hands_over:
            await self._server.stop_accepting()
            self._expect_until = time.monotonic() + EXPECT_SECONDS
        else:
            self._server.drain()
        if waiting := self._answering():
            log.info("waiting for %d answers to end; a second signal ends them now", waiting)
        until = time.monotonic() + self._drain_seconds
        while self._busy() and not self._hurrying.is_set() and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurrying.wait(), 0.05)  # an answer without a reader ends without an event

    def _busy(self) -> int:
        """Return the number of answers, and of operators' requests: one that stops the last answer gets its own.

        A page that is open does not count.
        """
        busy = self._answering() + (self._server.expecting if time.monotonic() < self._expect_until else 0)
        if self._operators is None or self._admin is None:
            return busy
        return busy + self._operators.answering - self._admin.live.streams

    def _answering(self) -> int:
        """Return the number of answers, also those without a reader, and of requests that are still coming in."""
        return max(self._server.answering, self.app.running)


def run_server(
    settings: WorkerSettings,
    listeners: Listeners,
    overseer: Overseer,
    on_started: Callable[[], None],
    ignored: frozenset[int] = frozenset(),
) -> int:
    """Serve until a signal that is not in `ignored` ends it. Returns the exit code, 1 if it can't start."""
    secret = settings.caller_secret.reveal().encode()
    try:
        app = build(settings.config, secret)
    except (OSError, ValueError) as error:
        log.error("can't start: %s", error)  # noqa: TRY400 - the message has all details
        return 1
    server = settings.config.server
    peers = PeerAddress(server.trusted_proxies)
    context = ServerContext(
        app,
        deadlines_of(settings.config),
        ConnectionLimits(
            max_connections=server.max_connections,
            max_files=max_files(),
            max_per_address=most_per_address(server),
            address_of=address_of(peers),
        ),
        caller_of=names_by_address(secret, peers) if secret else None,
        access_log=settings.access_log,
    )

    async def run() -> None:
        admin = AdminApp(app, ROUTES, operator_files()) if listeners.operators is not None else None
        worker = Worker(context, app, settings, overseer, ignored=ignored, admin=admin)
        await worker.run(listeners, on_started)

    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(run())
    except StartFailed:  # the reason was logged
        return 1
    return 0


def _operators(admin: AdminApp, settings: WorkerSettings) -> ServerContext:
    """Return the context of the operators' listener."""
    limits = ConnectionLimits(max_connections=MOST_OPERATORS, max_files=max_files())
    return ServerContext(admin, deadlines_of(settings.config), limits, access_log=settings.access_log)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - not there on Windows
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
