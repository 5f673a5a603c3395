"""What clients send ahead, and readers who leave or read nothing, at the server of `chat-nest serve`."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import pytest
from asgi_servers import serve_http
from scripted_provider import HANG, ScriptedProvider, chunk, stream

from msgspec.structs import replace

from chat_nest import BALANCED, HardCaps, Timeouts, create_chat_handler
from chat_nest.server.http.protocol import MOST_PIPELINED_BYTES

BODY = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()


def post(body: bytes = BODY, length: int | None = None) -> bytes:
    head = b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (len(body) if length is None else length) + body


def handler_for(provider: ScriptedProvider, **timeouts: float):
    return create_chat_handler(
        api_key="k", base_url=provider.url, model="m", timeouts=Timeouts(**timeouts), max_body_bytes=10_000_000
    )


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def leave(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    writer.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_request_waiting_behind_a_silent_stream_does_not_hide_that_the_client_left(reset: bool) -> None:
    async with ScriptedProvider(stream(chunk("a"), HANG)) as provider:
        async with serve_http(handler_for(provider)) as (port, _):
            reader, writer = await connected(port)
            writer.write(post())
            await reader.readuntil(b'data: "a"\n\n')
            writer.write(post())
            await writer.drain()
            await asyncio.sleep(0.05)  # the second request must have arrived
            await leave(writer, reset=reset)
            await asyncio.wait_for(provider.closed(0), 240)
        assert provider.active == 0


@pytest.mark.parametrize(
    "flood",
    [
        post() * (MOST_PIPELINED_BYTES // len(post()) + 2),
        post(b"x" * 2 * MOST_PIPELINED_BYTES, 4 * MOST_PIPELINED_BYTES),
    ],
)
async def test_a_client_that_piles_up_requests_behind_a_stream_is_dropped(flood: bytes) -> None:
    async with ScriptedProvider(stream(chunk("a"), HANG)) as provider:
        async with serve_http(handler_for(provider)) as (port, _):
            reader, writer = await connected(port)
            writer.write(post())
            await reader.readuntil(b'data: "a"\n\n')
            writer.write(flood)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1_000_000), 240)
            writer.close()
            await asyncio.wait_for(provider.closed(0), 240)


async def test_row8_the_connection_of_a_reader_who_never_reads_is_reset() -> None:
    flood = stream(*[chunk("x" * 1_000)] * 20_000, HANG)
    async with ScriptedProvider(flood) as provider:
        profile = replace(BALANCED, model="openai:m", max_output_tokens=2**30, tokens_per_request=None)
        handler = create_chat_handler(
            api_key="k",
            base_url=provider.url,
            profiles={"balanced": replace(profile, tokens_per_day=2**40)},
            hard_caps=HardCaps(max_output_tokens=2**30, tokens_per_day=2**40, tokens_per_request=2**40),
            timeouts=Timeouts(write=0.5),
        )
        async with serve_http(handler) as (port, _):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, post())
            await asyncio.wait_for(provider.closed(0), 240)
            await asyncio.sleep(1.5)
            with pytest.raises(ConnectionError):
                while await loop.sock_recv(sock, 65_536):
                    pass
            sock.close()
