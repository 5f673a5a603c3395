"""Two hundred chats at once through a real server to a real model: nothing lost, nothing leaked, all of it settled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from asgi_servers import Served, serve_process
from llama import MODEL, llama
from raw_client import connect, settled

CHATS = 200
OUTPUT = 30
"""Tokens of an answer."""


class Chat(NamedTuple):
    text: str
    usage: dict[str, int] | None
    """None if the reader left."""


class Load:
    def __init__(self, served: Served, provider_port: int) -> None:
        self.served = served
        self.port = served.port
        self._provider_port = provider_port

    async def used(self) -> int:
        """The tokens charged to us, once nothing is held."""
        return (await settled(self.port))["tokens_per_day"]["used"]

    async def resources(self) -> tuple[int, int]:
        """The server's tasks, and its open files that are not connections to the provider, which are kept alive."""
        async with connect(self.port) as client:
            tasks = int(await (await client.request("GET", "/tasks")).body())
        pid = self.served.process.pid
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return tasks, files - established(pid, self._provider_port)

    async def busy(self) -> int:
        """How many answers the model is generating."""
        async with connect(self._provider_port) as client:
            slots = await (await client.request("GET", "/slots")).json()
        return sum(slot["is_processing"] for slot in slots)


def established(pid: int, port: int) -> int:
    """The connections of a process to this local port."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[9] in inodes and int(row[2].split(":")[1], 16) == port for row in rows)


@pytest.fixture
async def load(tmp_path: Path) -> AsyncIterator[Load]:
    async with llama(tmp_path) as base_url:
        env = {
            "OPENAI_BASE_URL": base_url,
            "MODEL": MODEL,
            "MAX_OUTPUT_TOKENS": str(OUTPUT),
            "STORE": f"sqlite:///{tmp_path / 'load.db'}",
        }
        async with serve_process("uvicorn", "served_app:app", tmp_path, env) as served:
            port = urlsplit(base_url).port
            assert port is not None
            yield Load(served, port)
            await served.stop()
            assert "Traceback" not in served.log.read_text()


async def one(port: int, number: int, leave_after: int | None = None) -> Chat:
    """A chat of its own; the reader may leave after some tokens."""
    text: list[str] = []
    async with connect(port) as client:
        reply = await client.post({"messages": [{"role": "user", "content": f"Chat number {number}, please."}]})
        assert reply.status == 200, await reply.body()
        while (event := await reply.event()) is not None:
            if event.name == "token":
                text.append(event.json())
                if len(text) == leave_after:
                    client.reset()
                    return Chat("".join(text), None)
            elif event.name == "done":
                assert await reply.event() is None, "done is the last event"
                answered: dict[str, Any] = event.json()
                assert answered["source"] == "reported"
                assert answered["finish_reason"] in ("stop", "length")
                return Chat("".join(text), answered["usage"])
            else:
                assert event.name in ("start", "ping"), event
    raise AssertionError("the answer ended without done")


async def test_two_hundred_at_once_and_then_a_third_of_them_leave(load):
    await one(load.port, 0)
    used = await load.used()
    before = await load.resources()

    chats = await asyncio.gather(*(one(load.port, number) for number in range(CHATS)))
    totals = [chat.usage["total_tokens"] for chat in chats if chat.usage]
    assert len(totals) == CHATS, "nothing lost"
    assert all(chat.text for chat in chats)
    assert all(0 < chat.usage["output_tokens"] <= OUTPUT for chat in chats if chat.usage)
    assert await load.used() - used == sum(totals), "the ledger has what the provider reported"
    await back_to(load, before)

    used = await load.used()
    chats = await asyncio.gather(
        *(one(load.port, number, leave_after=5 if number % 3 == 0 else None) for number in range(CHATS))
    )
    totals = [chat.usage["total_tokens"] for chat in chats if chat.usage]
    left = CHATS - len(totals)
    assert left == (CHATS + 2) // 3
    assert sum(totals) + left * 5 <= await load.used() - used, "who leaves pays for what was produced"
    await back_to(load, before)


async def back_to(load: Load, before: tuple[int, int]) -> None:
    """Wait for the tasks and files of before, and for a model that has nothing to do."""
    async with asyncio.timeout(240):
        while (now := (*await load.resources(), await load.busy())) != (*before, 0):
            print("not yet:", now)
            await asyncio.sleep(0.1)
