"""A store that is frozen while a server or a command starts, and goes on: they wait. One that is wrong ends them."""

from __future__ import annotations

import os
import re
import signal
from asyncio.subprocess import PIPE, STDOUT
from contextlib import asynccontextmanager

import forked_command
import pytest
from ports import free_port
from postgres_server import PostgresServer, new_database
from raw_client import HELLO, connect
from redis_servers import RedisServer
from scripted_provider import ScriptedProvider, answer


class Redis:
    def __init__(self) -> None:
        self.server = RedisServer()
        self.url = self.server.url

    def signal(self, number: int) -> None:
        self.server.signal(number)

    def remove(self) -> None:
        self.server.stop()


class Postgres:
    def __init__(self) -> None:
        self.server = PostgresServer()
        self.url, _ = new_database(self.server.url)

    def signal(self, number: int) -> None:
        self.server.signal_all(number)

    def remove(self) -> None:
        self.server.remove()


@pytest.fixture(params=[Redis, Postgres])
def store(request):
    server = request.param()
    yield server
    server.signal(signal.SIGCONT)
    server.remove()


@asynccontextmanager
async def started(folder, store: str, *words: str):
    """A command on this store, with its outputs together."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ = clean | {"OPENAI_API_KEY": "sk-canary", "CHAT_NEST_STORE_URL": store}
    process = await forked_command.run(*words, cwd=folder, env=environ, stdout=PIPE, stderr=STDOUT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(process, wanted: bytes) -> bytes:
    """What it has written, when that contains this."""
    said = b""
    while not re.search(wanted, said):
        piece = await process.stdout.read(4_096)
        assert piece, said.decode()
        said += piece
    return said


async def test_a_server_waits_for_a_frozen_store_and_serves(tmp_path, store) -> None:
    async with ScriptedProvider(answer("Hello", 3)) as provider:
        (tmp_path / "chat-nest.toml").write_text(f'[providers.openai]\nbase_url = "{provider.url}"\n')
        store.signal(signal.SIGSTOP)
        async with started(tmp_path, store.url, "serve", "--port", "0", "--config", "chat-nest.toml") as process:
            said = await until(process, rb"does not answer yet \(\w+\): trying again for 10 s")
            assert b"listening" not in said
            store.signal(signal.SIGCONT)
            said += await until(process, rb"listening on http://127\.0\.0\.1:\d+\n")
            port = int(re.search(rb"listening on http://127\.0\.0\.1:(\d+)", said)[1])
            async with connect(port) as client:
                assert [event.name for event in await (await client.post(HELLO)).events()][-1] == "done"


async def test_a_command_waits_for_a_frozen_store_and_acts(tmp_path, store) -> None:
    store.signal(signal.SIGSTOP)
    async with started(tmp_path, store.url, "pause", "--all", "--reason", "test") as process:
        await until(process, rb"does not answer yet \(\w+\): trying again for 10 s")
        store.signal(signal.SIGCONT)
        await until(process, rb"chat-nest: paused: all")
        assert await process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_server_that_waits_for_its_store(tmp_path, store, number) -> None:
    store.signal(signal.SIGSTOP)
    async with started(tmp_path, store.url, "serve", "--port", "0") as process:
        await until(process, rb"trying again for 10 s")
        process.send_signal(number)
        said, _ = await process.communicate()
        assert process.returncode == 0, said
        assert b"can't be used" not in said


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://127.0.0.1:{port}", "the Redis store at 127.0.0.1:{port}: ConnectionRefusedError: "),
        ("postgresql://x@127.0.0.1:{port}/x", "the PostgreSQL store at 127.0.0.1:{port}: OperationalError: "),
    ],
)
@pytest.mark.parametrize("words", [("serve", "--port", "0"), ("pause", "--all")])
async def test_an_unreachable_store_is_an_error_with_a_remedy(tmp_path, words, url, named) -> None:
    port = free_port()
    async with started(tmp_path, url.format(port=port), *words) as process:
        said = (await process.communicate())[0].decode()
        assert process.returncode == 1, said
    assert said.count("trying again") == 1
    assert named.format(port=port) in said.splitlines()[-1]
    assert "redis-server" in said.splitlines()[-1] or "store" in said.splitlines()[-1]


async def test_a_wrong_password_is_an_error_at_once(tmp_path) -> None:
    server = RedisServer()
    server.ask("CONFIG", "SET", "requirepass", "right")
    try:
        async with started(tmp_path, server.url.replace("//", "//:canary-wrong@"), "serve", "--port", "0") as process:
            said = (await process.communicate())[0].decode()
            assert process.returncode == 1, said
    finally:
        server.stop()
    assert "trying again" not in said
    assert "canary" not in said
