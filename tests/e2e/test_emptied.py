"""`chat-nest serve` whose store is emptied: what its users and its operator see, until the operator accepts the loss."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
from pathlib import Path

import forked_command
import pytest
from raw_client import HELLO, connect
from redis_servers import RedisServer
from scripted_provider import ScriptedProvider, answer
from serve_command import command

ACCEPT = "chat-nest store accept-empty --config 'my chat.toml'"
BUSY = 503, "limiter_unavailable"


@pytest.fixture
def redis():
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture(params=["redis", "sqlite"])
def store(request, tmp_path):
    """(URL, what empties the store)."""
    if request.param == "sqlite":
        return "sqlite:///chat-nest.db", lambda: [path.unlink() for path in tmp_path.glob("chat-nest.db*")]
    server = request.getfixturevalue("redis")
    return server.url, lambda: server.ask("FLUSHALL")


async def ask(port: int) -> tuple[int, str]:
    async with connect(port) as client:
        reply = await client.post(HELLO)
        if reply.status != 200:
            return reply.status, (await reply.json())["code"]
        return 200, (await reply.events())[-1].name


async def run(folder: Path, *arguments: str) -> tuple[int | None, str]:
    """The exit code of a command, and all that it wrote."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await forked_command.run(
        *arguments, cwd=folder, env=clean, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_row45_a_store_that_is_emptied_is_closed_until_the_named_command_accepts_it(tmp_path, store) -> None:
    url, empty = store
    config = ("--config", "my chat.toml")
    async with ScriptedProvider(answer("Hello", 3)) as provider:
        (tmp_path / "my chat.toml").write_text(
            f'[store]\nurl = "{url}"\n[providers.p]\nbase_url = "{provider.url}"\n[profiles.balanced]\nmodel = "p:m"\n'
        )
        serving = (tmp_path, provider.url, "sk-x", "--workers", "2", *config)
        async with command(*serving) as served:
            assert await ask(served.port) == (200, "done")
            assert (await run(tmp_path, "check", *config))[0] == 0
            served.process.send_signal(signal.SIGTERM)
            assert await served.ended() == 0
        empty()
        async with command(*serving) as served:
            await served.until(ACCEPT.encode())
            assert [await ask(served.port) for _ in range(4)] == [BUSY] * 4
            async with connect(served.port) as client:
                ready = await client.request("GET", "/readyz")
                assert (ready.status, ACCEPT in (await ready.json())["store"]["advice"]) == (503, True)
            code, said = await run(tmp_path, "check", *config)
            assert (code, ACCEPT in said) == (1, True)
            code, said = await run(tmp_path, *shlex.split(ACCEPT)[1:])
            assert (code, "is used as it is from now on" in said) == (0, True)
            assert [await ask(served.port) for _ in range(4)] == [(200, "done")] * 4
            assert (await run(tmp_path, "check", *config))[0] == 0
            code, said = await run(tmp_path, *shlex.split(ACCEPT)[1:])
            assert (code, "was not emptied" in said) == (0, True)
            code, said = await run(tmp_path, "audit", "--json", *config)
            assert [(act["act"], act["target"]) for act in json.loads(said)] == [("accept_empty", "store")]
            served.process.send_signal(signal.SIGTERM)
            assert await served.ended() == 0
    assert len(provider.requests) == 5
