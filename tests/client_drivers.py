"""Runs the drivers in tests/clients: real clients of each format, in a process of their own, and what they saw."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).parent / "clients"

DRIVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("openai.mjs", {}),
    "openai-python": ("openai_client.py", {}),
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


def command(file: str) -> list[str]:
    if file.endswith(".py"):
        return [sys.executable, str(CLIENTS / file)]
    node = find_node()
    if node is None or not (CLIENTS / "node_modules/.setup-clients").exists():
        if os.environ.get("CI"):
            pytest.fail("the clients in JavaScript are not installed: scripts/setup clients")
        pytest.skip("the clients in JavaScript are not installed: scripts/setup clients")
    return [node, str(CLIENTS / file)]


async def drive(client: str, port: int, **options: Any) -> Events:
    """Let a client ask once, and return what it told. Raises where its driver failed."""
    file, own = DRIVERS[client]
    return await run(command(file), f"http://127.0.0.1:{port}", json.dumps({**own, **options}))


def environment() -> dict[str, str]:
    """Ours, without keys of ours, and with compiled modules: the official clients are large."""
    left_out = ("OPENAI_", "ANTHROPIC_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


async def run(command: list[str], *arguments: str) -> Events:
    process = await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        env={**environment(), "NO_PROXY": "127.0.0.1", "SUPPRESS_TRANSFORMATION_WARNINGS": "true"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complained = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, complained.decode()
    assert not complained, complained.decode()
    return [json.loads(line) for line in said.decode().split("\n") if line]
