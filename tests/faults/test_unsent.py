"""Readers who take nothing, at the server of `chat-nest serve`: what is held for them is little, and not held for long.

What the kernel holds counts as well: an answer that was written whole, and a stream that never fills a buffer of ours.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import sys
from typing import Any

import pytest
from asgi_servers import serve_http
from raw_client import HELLO, JSON, connect, settled
from scripted_provider import HANG, ScriptedProvider, chunk, stream

from chat_nest.asgi.request import GONE
from chat_nest import Profile, Timeouts, create_chat_handler
from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.deadlines import ConnectionDeadlines
from chat_nest.server.http.protocol import ServerConnection
from chat_nest.server.http.sockets import SEND_BUFFER_BYTES
from chat_nest.core.protocols import Ending

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a socket holds")

SIOCOUTQ = 0x5411
"""See tcp(7): bytes that were written and not acknowledged."""
PATIENCE = 30
"""Seconds after which what hangs is ended. Nothing here takes as long as the idle deadline, 65 s."""
QUICK = ConnectionDeadlines(write=0.5, grace=0.2, linger=0.2)
BIG = b"x" * 160_000


class Endings:
    """An observer that lets a test wait for a request to be settled."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Ending] = asyncio.Queue()

    def started(self, *_: object) -> None: ...
    def refused(self, *_: object) -> None: ...

    def finished(self, ending: Ending) -> None:
        self.queue.put_nowait(ending)


def held(connection: ServerConnection) -> int:
    """Bytes for the client, in the process and in the kernel."""
    socket = connection.transport.get_extra_info("socket")
    queued = fcntl.ioctl(socket.fileno(), SIOCOUTQ, b"\0" * 4) if socket.fileno() >= 0 else b"\0" * 4
    return connection.transport.get_write_buffer_size() + int(struct.unpack("i", queued)[0])


async def until_gone(context: ServerContext) -> int:
    """Wait until there is no connection; return the most that was held for one."""
    most = 0
    async with asyncio.timeout(PATIENCE):
        while context.connections:
            most = max([most, *(held(each) for each in context.connections if isinstance(each, ServerConnection))])
            await asyncio.sleep(0.01)
    return most


class App:
    """Answers with `body`, whole."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.asked += 1
        length = (b"content-length", b"%d" % len(self.body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": self.body})


async def test_eight_big_pipelined_answers_without_a_reader_are_one_and_soon_dropped() -> None:
    app = App(BIG)
    async with serve_http(app, deadlines=QUICK) as (port, context):
        async with connect(port, receive_buffer=4_096) as client:
            client.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 8)
            await client.reply("GET")
            assert await until_gone(context) <= len(BIG)
    assert app.asked == 1


async def test_an_answer_that_the_kernel_holds_whole_is_dropped_long_before_its_connection_is_idle() -> None:
    app = App(b"x" * 30_000)
    async with serve_http(app, deadlines=QUICK) as (port, context):
        async with connect(port, receive_buffer=4_096) as client:
            client.send("GET", "/")
            await client.reply("GET")
            assert await until_gone(context) <= len(app.body) + 200


async def test_an_endless_answer_takes_no_more_of_the_kernel_than_is_configured() -> None:
    written = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal written
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.Event()
        scope["extensions"][GONE](lambda _: gone.set())
        while not gone.is_set():
            await send({"type": "http.response.body", "body": b"x" * 4_096, "more_body": True})
            written += 4_096

    async with serve_http(app, deadlines=QUICK) as (port, context):
        async with connect(port, receive_buffer=4_096) as client:
            client.send("GET", "/")
            await client.reply("GET")
            assert 0 < await until_gone(context) <= SEND_BUFFER_BYTES
    assert written < 2 * SEND_BUFFER_BYTES


def paced() -> list[Any]:
    """Forty kilobytes in a second, and then nothing: too little for any buffer of ours to be full."""
    return stream(*[step for _ in range(40) for step in (chunk("x" * 500), 0.02)], HANG)


@pytest.mark.parametrize("policy", ["cancel", "finish"])
async def test_row08_a_client_that_reads_nothing_of_a_slow_stream_is_noticed(policy: str) -> None:
    endings = Endings()
    async with ScriptedProvider(paced()) as provider:
        handler = create_chat_handler(
            base_url=provider.url,
            profiles={"balanced": Profile(model="openai:m", on_disconnect=policy)},
            timeouts=Timeouts(write=60, heartbeat=60, idle=60),  # so that only the server can notice
            observers=[endings],
        )
        async with serve_http(handler, deadlines=QUICK) as (port, context):
            async with connect(port, receive_buffer=4_096) as client:
                client.send("POST", "/api/chat", HELLO, JSON)
                await provider.request(0)
                await until_gone(context)
                if policy == "cancel":
                    await asyncio.wait_for(provider.closed(0), PATIENCE)
                    ending = await asyncio.wait_for(endings.queue.get(), PATIENCE)
                    assert ending.error is not None
                    assert ending.error.code == "slow_reader"
                    assert 0 < (await settled(port))["tokens_per_day"]["used"]
                else:
                    assert provider.active == 1, "the answer goes on without its reader"
                    await handler.aclose()
