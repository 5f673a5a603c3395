"""Runs the drivers in tests/clients: real clients of each format, in a process of their own, and what they saw.

@EVERY                                    # or @parametrize_client([...]), with some of DRIVERS
async def test_it_streams(client):        # all tests of a client run in turn, and its process is started once
    events = await drive(client, port)

A module that does so imports the fixture `client`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).parent / "clients"

DRIVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("openai.mjs", {}),
    "openai-python": ("openai_client.py", {}),
    "responses": ("responses.mjs", {}),
    "responses-python": ("responses_client.py", {}),
    "ai-openai": ("ai_openai.mjs", {}),
    "openai-agents": ("openai_agents.py", {}),
    "anthropic": ("anthropic.mjs", {}),
    "anthropic-python": ("anthropic_client.py", {}),
    "ai5": ("ai_sdk.mjs", {"package": "ai5"}),
    "ai6": ("ai_sdk.mjs", {"package": "ai6"}),
    "ai7": ("ai_sdk.mjs", {"package": "ai7"}),
    "openai-compatible": ("openai_compatible.mjs", {}),
    "ag-ui": ("ag_ui.mjs", {}),
    "eventsource": ("eventsource.mjs", {}),
    "eventsource-parser": ("eventsource_parser.mjs", {}),
    "fetch-event-source": ("fetch_event_source.mjs", {}),
    "httpx-sse": ("httpx_sse_client.py", {}),
}
Events = list[dict[str, Any]]
RUNNING: dict[str, Driver] = {}


class Watched:
    """An application, and what was asked of it: `asked` counts requests by path, `pings` those that were sent."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.asked: Counter[str] = Counter()
        self.pings = 0
        self.pinged = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.asked[f"{scope['method']} {scope['path']}"] += 1

        async def watch(message: Any) -> None:
            await send(message)
            if b"ping" in message.get("body", b""):
                self.pings += 1
                if self.pings >= 3:
                    self.pinged.set()

        await self._app(scope, receive, watch)


def find_node() -> str | None:
    """The node that scripts/setup put beside our Python because the system's is missing or too old, or the system's."""
    return shutil.which("node", path=str(Path(sys.executable).parent)) or shutil.which("node")


def find_command(file: str) -> list[str]:
    """What runs a driver's cases."""
    if file.endswith(".py"):
        return [sys.executable, str(CLIENTS / "cases.py"), str(CLIENTS / file)]
    node = find_node()
    if node is None or not (CLIENTS / "node_modules/.setup-clients").exists():
        if os.environ.get("CI"):
            pytest.fail("the clients in JavaScript are not installed: scripts/setup clients")
        pytest.skip("the clients in JavaScript are not installed: scripts/setup clients")
    return [node, str(CLIENTS / "cases.mjs"), file]


class Driver:
    """A client's process. Its first case starts it, and so does the next one after it failed."""

    def __init__(self, client: str, folder: Path) -> None:
        file, self._own = DRIVERS[client]
        self._command = find_command(file)
        self._complaints = folder / "complaints.txt"
        self._process: subprocess.Popen[str] | None = None

    def run(self, url: str, options: dict[str, Any]) -> Events:
        """Run a case to its end. Raises AssertionError for a driver that fails or complains."""
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([url, {**self._own, **options}]) + "\n")
        process.stdin.flush()
        events: Events = []
        while line := process.stdout.readline():
            event = json.loads(line)
            if event == {"event": "over"}:
                break
            events.append(event)
        else:
            self.stop()
        complained = self._complaints.read_text()
        os.truncate(self._complaints, 0)
        assert not complained, complained
        assert self._process, "the driver ended"
        return events

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        with self._complaints.open("a") as complaints:
            self._process = subprocess.Popen(
                self._command,
                env={
                    **environment(),
                    "NO_PROXY": "127.0.0.1",
                    "SUPPRESS_TRANSFORMATION_WARNINGS": "true",
                    "OPENAI_AGENTS_DISABLE_TRACING": "1",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        return self._process


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a client, whose driver runs as long as tests of this module use it."""
    RUNNING[request.param] = driver = Driver(request.param, tmp_path_factory.mktemp("driver"))
    yield request.param
    driver.stop()
    del RUNNING[request.param]


def parametrize_client(clients: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("client", clients, indirect=True)


EVERY = parametrize_client(DRIVERS)


async def drive(client: str, port: int, **options: Any) -> Events:
    """Let a client ask once, and return what it told. Raises where its driver failed."""
    driver = RUNNING[client]
    try:
        return await asyncio.to_thread(driver.run, f"http://127.0.0.1:{port}", options)
    except BaseException:
        driver.stop()  # or its thread would wait for ever
        raise


def environment() -> dict[str, str]:
    """Ours, without keys of ours, and with compiled modules: the official clients are large."""
    left_out = ("OPENAI_", "ANTHROPIC_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
