"""Rows in which a proxy matters: `chat-nest serve` behind nginx as docs/embedding.md configures it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet import nginx
from processes import until
from raw_client import HELLO, JSON, Cut, ask, connect, settled
from scripted_provider import (
    DONE,
    HANG,
    Connection,
    Script,
    ScriptedProvider,
    answer,
    chunk,
    finish,
    head,
    piece,
    stream,
    usage,
)
from serve_command import Command, command

CONFIG = """
[server]
trusted_proxies = ["127.0.0.1"]
[store]
url = "memory://"
[timeouts]
write = 1
heartbeat = 0.2
[hard_caps]
max_output_tokens = 1_000_000_000
tokens_per_day = 10_000_000_000
tokens_per_request = 10_000_000_000
[profiles.balanced]
max_output_tokens = 1_000_000_000
tokens_per_day = 10_000_000_000
tokens_per_request = 10_000_000_000
"""


@dataclass
class Bench:
    served: Command
    provider: ScriptedProvider
    port: int
    """nginx's."""


@asynccontextmanager
async def behind(folder: Path, script: Script) -> AsyncIterator[Bench]:
    """What hangs is ended after 30 s, while everything can still be closed."""
    (folder / "chat.toml").write_text(CONFIG)
    async with (
        ScriptedProvider(script) as provider,
        command(folder, provider.url, "sk-served", "--config", "chat.toml") as served,
        nginx(folder / "nginx", served.port) as port,
        asyncio.timeout(240),
    ):
        yield Bench(served, provider, port)


async def used_by(port: int, source: str) -> int:
    """Tokens of the day of who asks from this address."""
    async with connect(port, source=source) as client:
        limits = (await (await client.request("GET", "/api/usage")).json())["limits"]
    return next(limit["used"] for limit in limits if limit["name"] == "tokens_per_day")


async def endless(connection: Connection) -> None:
    await connection.send(head())
    whole = piece(chunk("0123456789abcdef" * 256))
    while True:
        await connection.send(whole)


async def test_row8_a_reader_who_never_reads_is_dropped(tmp_path) -> None:
    async with behind(tmp_path, endless) as bench:
        async with connect(bench.port, receive_buffer=4_096) as client:
            client.send("POST", "/api/chat", HELLO, JSON)
            await bench.provider.closed(0)
            await until(lambda: b"error=slow_reader" in bench.served.said)
            with pytest.raises(Cut):
                await (await client.reply()).events()
        assert (await settled(bench.port))["tokens_per_day"]["used"] > 0


async def test_row10_a_body_that_is_too_large_gets_a_json_error(tmp_path) -> None:
    async with behind(tmp_path, answer("x")) as bench:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 300_000}]}).encode()
        reply = await ask(bench.port, body)
        told = json.loads(reply.raw)
        assert (reply.status, told["code"], reply.headers["content-type"]) == (
            413,
            "body_too_large",
            "application/json",
        )
        async with connect(bench.port) as client:
            client.send("POST", "/api/chat", None, {**JSON, "transfer-encoding": "chunked"})
            client.write(piece(body) + b"0\r\n\r\n")
            chunked = await client.reply()
            assert (chunked.status, (await chunked.json())["code"]) == (413, "body_too_large")
        assert bench.provider.requests == []
        assert (await ask(bench.port)).status == 200, "and nginx goes on"


async def test_row21_forwarding_headers_are_trusted_from_nginx_and_ignored_from_clients(tmp_path) -> None:
    async with behind(tmp_path, answer("x", input_tokens=5, output_tokens=1)) as bench:

        async def chat(port: int, source: str, **fields: str) -> None:
            async with connect(port, source=source) as client:
                reply = await client.post(headers={**JSON, **{name.replace("_", "-"): fields[name] for name in fields}})
                assert reply.status == 200
                await reply.until("done")

        await chat(bench.port, "127.0.0.2", x_forwarded_for="203.0.113.1")
        await chat(bench.port, "127.0.0.2", x_forwarded_for="203.0.113.2, 127.0.0.1")
        await chat(
            bench.port, "127.0.0.2", x_forwarded_for="127.0.0.3", forwarded="for=127.0.0.3", x_real_ip="127.0.0.3"
        )
        await chat(bench.served.port, "127.0.0.4", x_forwarded_for="127.0.0.3")
        assert await used_by(bench.port, "127.0.0.2") == 18
        assert await used_by(bench.port, "127.0.0.3") == 0
        assert await used_by(bench.served.port, "127.0.0.4") == 6, "past the proxy, nobody's header counts"


async def test_row34_a_ping_passes_as_soon_as_it_is_sent(tmp_path) -> None:
    async with behind(tmp_path, stream(chunk("one"), HANG)) as bench, connect(bench.port) as client:
        reply = await client.post()
        await reply.until("token")
        for _ in range(3):
            await reply.until("ping")


@pytest.mark.parametrize("way", ["reset", "finish"])
@pytest.mark.parametrize("script", [[HANG], stream(HANG), stream(chunk("one"), HANG)], ids=["asked", "begun", "said"])
async def test_row41_a_client_that_leaves_closes_the_provider(tmp_path, script, way) -> None:
    async with behind(tmp_path, script) as bench:
        async with connect(bench.port) as client:
            client.send("POST", "/api/chat", HELLO, JSON)
            await bench.provider.request(0)
            if script[0] != HANG:
                await (await client.reply()).until("token" if len(script) > 2 else "start")
            getattr(client, way)()
            await bench.provider.closed(0)
        assert (await settled(bench.port))["tokens_per_day"]["used"] > 0
        await until(lambda: b"error=client_gone" in bench.served.said)
        assert len(bench.provider.requests) == 1


async def test_row47_a_drain_completes_running_answers_and_refuses_new_requests(tmp_path) -> None:
    release = asyncio.Event()
    script = stream(chunk("one"), release, chunk("two"), finish(), usage(5, 2), DONE)
    async with behind(tmp_path, script) as bench, connect(bench.port) as client:
        reply = await client.post()
        await reply.until("token")
        bench.served.process.send_signal(signal.SIGTERM)
        await until(lambda: b"waiting for 1 answers to end" in bench.served.said)
        refused = await ask(bench.port)
        assert (refused.status, json.loads(refused.raw)["code"]) == (503, "shutdown")
        release.set()
        assert [event.name for event in await reply.events() if event.name != "ping"] == ["token", "done"]
        assert await bench.served.ended() == 0
        assert (await ask(bench.port)).status == 502, "nginx's own"
        assert len(bench.provider.requests) == 1
