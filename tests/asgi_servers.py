"""Real ASGI servers around an application, in this process or in one of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import uvicorn
from ports import free_port

from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.server import HttpServer, stop_listening

TESTS = Path(__file__).parent
SERVERS = ("uvicorn", "granian", "hypercorn")
PYTHON = os.environ.get("SERVERS_PYTHON", sys.executable)
"""The interpreter that has the servers: scripts/lowest-servers has others than the tests."""


class InProcess(uvicorn.Server):
    """Leaves the signals to the test runner, and stops as soon as it is asked to, not at the next tenth of a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    def capture_signals(self) -> Any:
        return nullcontext()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await stop_listening(self.servers)
        for sock in sockets or []:
            sock.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(0.001)
        await self.lifespan.shutdown()


@asynccontextmanager
async def serve(app: Any, **options: Any) -> AsyncIterator[int]:
    """Run uvicorn around `app` on this loop; yields the port. Options are uvicorn's."""
    # With the protocol named, asyncio sets TCP_NODELAY on what is accepted, as it does on sockets that it makes itself.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", **{"lifespan": "on", "loop": "none", **options})
        server = InProcess(config)
        running = asyncio.create_task(server.serve([listening]))
        while not server.started:
            if running.done():
                await running
                raise RuntimeError("the application did not start")
            await asyncio.sleep(0.001)
        try:
            yield listening.getsockname()[1]
        finally:
            server.stop.set()
            await running


@asynccontextmanager
async def serve_http(app: Any, **context: Any) -> AsyncIterator[tuple[int, ServerContext]]:
    """Run the server of `chat-nest serve` around `app` on this loop; yields the port and what connections share."""
    shared = ServerContext(app, **context)
    server = HttpServer(shared)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        await server.start(listening)
        try:
            yield listening.getsockname()[1], shared
        finally:
            server.drain()
            while shared.connections or shared.running:
                await asyncio.sleep(0.001)
            await server.stop()


def command(server: str, app: str, port: int) -> list[str]:
    """How each server is started around `app`, MODULE:NAME."""
    python = [PYTHON, "-m"]
    match server:
        case "uvicorn":
            return [*python, "uvicorn", app, "--port", str(port), "--timeout-graceful-shutdown", "1"]
        case "granian":
            return [*python, "granian", "--interface", "asgi", app, "--port", str(port)]
        case "hypercorn":
            return [*python, "hypercorn", app, "--bind", f"127.0.0.1:{port}", "--graceful-timeout", "1"]
        case _:
            raise ValueError(server)


class Served:
    """An application in a process of its own."""

    def __init__(self, process: Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Signal the server and wait for its end; return its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(how)
        return await self.process.wait()


@asynccontextmanager
async def serve_process(
    server: str, app: str, tmp_path: Path, env: Mapping[str, str] | None = None, cwd: Path = TESTS
) -> AsyncIterator[Served]:
    """Start a real server around `app` in `cwd` and wait until it accepts connections."""
    port = free_port()
    log = tmp_path / f"{server}.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "CHAT_NEST_"))}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command(server, app, port),
            cwd=cwd,
            env={**clean, "PYTHONPATH": f"{cwd}{os.pathsep}{TESTS}", **(env or {})},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    served = Served(process, port, log)
    try:
        await _accepting(served)
        yield served
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # granian's workers outlive their parent
        await process.wait()


async def _accepting(served: Served) -> None:
    async with asyncio.timeout(240):
        while True:
            if served.process.returncode is not None:
                raise RuntimeError(served.log.read_text())
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return
