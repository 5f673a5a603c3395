"""Row 42 at `chat-nest serve`: a client whose packets are dropped, and ours to it, is noticed by what it no longer acknowledges."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from raw_client import HELLO, JSON, connect, settled
from scripted_provider import HANG, ScriptedProvider, Step, chunk, head, piece, stream
from serve_command import command

from chat_nest import Timeouts
from chat_nest.server.http.dead_peers import LONGEST_LOOK_SECONDS
from chat_nest.server.http.sockets import bound_the_kernel

PATIENCE = 30
"""Seconds after which what hangs is ended, while everything can still be closed."""
WRITE = 2
SHORT = {
    "CHAT_NEST_TIMEOUTS_WRITE": str(WRITE),
    "CHAT_NEST_SERVER_TRUSTED_PROXIES": "127.0.0.1",
    "CHAT_NEST_STORE_URL": "memory://",
}
GONE, THERE = ({**JSON, "x-forwarded-for": address} for address in ("192.0.2.1", "192.0.2.2"))


def flowing() -> Iterator[Step]:
    yield head()
    while True:
        yield piece(chunk("x"))
        yield 0.1


def silent() -> list[Step]:
    return stream(chunk("x"), HANG)


async def vanish_and_wait(port: int, provider: ScriptedProvider, body: object, path: str) -> None:
    """Ask, see the provider asked, vanish, and return when the provider's connection was closed."""
    number = len(provider.requests)
    async with connect(port) as client:
        client.send("POST", path, body, GONE)
        await provider.request(number)
        if path == "/api/chat":
            await (await client.reply()).until("token")
        client.vanish()
        await provider.closed(number)


@pytest.mark.parametrize(
    ("script", "path", "heartbeat"),
    [
        (flowing, "/api/chat", 60),
        (silent, "/api/chat", 0.5),
        (silent, "/v1/chat/completions", 60),
    ],
    ids=["tokens", "heartbeats", "nothing_sent"],
)
async def test_row42_a_client_that_vanished_without_a_packet_is_noticed(tmp_path, script, path, heartbeat) -> None:
    """In time only if the server looks, for the kernel goes on for 15 minutes and more."""
    short = {**SHORT, "CHAT_NEST_TIMEOUTS_HEARTBEAT": str(heartbeat)}
    async with (
        ScriptedProvider() as provider,
        command(tmp_path, provider.url, **short) as served,
        asyncio.timeout(PATIENCE),
    ):
        provider.scripts = [script()]
        await vanish_and_wait(served.port, provider, HELLO, path)
        limits = await settled(served.port, headers=GONE)
        assert 0 < limits["tokens_per_day"]["used"] < 2_000
        assert len(provider.requests) == 1
    assert served.said.count(b"error=client_gone") == 1


async def test_row42_a_client_that_is_there_is_left_alone_however_long_nothing_is_sent(tmp_path) -> None:
    quiet = {**SHORT, "CHAT_NEST_TIMEOUTS_HEARTBEAT": "60"}
    async with (
        ScriptedProvider() as provider,
        command(tmp_path, provider.url, **quiet) as served,
        asyncio.timeout(PATIENCE),
    ):
        async with connect(served.port) as client:
            go_on = asyncio.Event()
            provider.scripts = [stream(chunk("x"), go_on, chunk("y"), HANG), silent()]
            reply = await client.post(headers=THERE)
            await reply.until("token")
            await vanish_and_wait(served.port, provider, HELLO, "/v1/chat/completions")
            go_on.set()
            await reply.until("token")


def test_row42_with_the_defaults_the_kernel_and_the_look_are_in_time() -> None:
    seconds = Timeouts().write
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bound_the_kernel(listener, seconds)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, pause, times = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
    assert idle + pause * times <= 45
    assert seconds + LONGEST_LOOK_SECONDS <= 45
