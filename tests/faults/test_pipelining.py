"""Requests sent ahead, at the server of `chat-nest serve`: one at a time, so many and no more, whatever a write holds."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgi_servers import serve_http
from raw_client import HELLO, Client, Reply, connect

from chat_nest.server.http.protocol import MOST_PIPELINED, MOST_PIPELINED_BYTES, ServerConnection
from chat_nest.server.http.request_parser import RequestParser

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
WRITE = 262_144
MOST_CALLS = 200
"""Of functions, for 256 KiB that are read."""


class Counting:
    """An application that answers at once, and counts."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.paths.append(scope["path"])
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of heads that were parsed."""
    parsed = [0]
    complete = RequestParser.on_headers_complete

    def counting(self: RequestParser) -> None:
        parsed[0] += 1
        complete(self)

    monkeypatch.setattr(RequestParser, "on_headers_complete", counting)
    return parsed


async def replies(client: Client) -> list[Reply]:
    """The answers that come whole before the connection ends."""
    found: list[Reply] = []
    try:
        while True:
            found.append(await client.reply("GET"))
            await found[-1].body()
    except Exception:
        return found


@pytest.mark.parametrize("again", range(2))
async def test_a_write_full_of_requests_costs_no_more_than_a_few(heads: list[int], again: int) -> None:
    app = Counting()
    async with serve_http(app) as (port, context):
        async with connect(port) as client:
            client.write(GET * (WRITE // len(GET)))
            await replies(client)
        while context.connections:
            await asyncio.sleep(0)
    assert len(app.paths) <= 1 + MOST_PIPELINED
    assert heads[0] <= 1 + MOST_PIPELINED


async def test_pipelined_requests_are_answered_up_to_the_limit_and_the_last_answer_closes(heads: list[int]) -> None:
    app = Counting()
    async with serve_http(app) as (port, _):
        async with connect(port) as client:
            client.write(GET * (MOST_PIPELINED_BYTES // len(GET)))
            answers = await replies(client)
    assert [reply.headers.get("connection") for reply in answers] == [None] * MOST_PIPELINED + ["close"]
    assert len(app.paths) == heads[0] == 1 + MOST_PIPELINED


async def test_requests_that_wait_for_the_answer_before_are_as_many_as_one_likes() -> None:
    app = Counting()
    async with serve_http(app) as (port, _), connect(port) as client:
        for _ in range(3 * MOST_PIPELINED):
            assert (await (await client.request("GET", "/")).body()) == b"ok"


async def test_other_clients_have_their_turn_between_two_requests_of_a_flood() -> None:
    app = Counting()
    async with serve_http(app) as (port, context):
        flooder, other = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
        with flooder, other:
            while len(context.connections) < 2:
                await asyncio.sleep(0)
            flooder.sendall(GET * 6)  # while nothing is read
            other.sendall(GET.replace(b"/ ", b"/other "))
            while len(app.paths) < 7:
                await asyncio.sleep(0)
    assert app.paths.index("/other") <= 2


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n"])
async def test_bytes_after_a_chunked_body_in_one_write_are_not_read_and_the_connection_closes(end: bytes) -> None:
    app = Counting()
    chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n"
    async with serve_http(app) as (port, _), connect(port) as client:
        client.write(chunked + end + GET)
        assert [reply.headers["connection"] for reply in await replies(client)] == ["close"]
    assert len(app.paths) == 1


@asynccontextmanager
async def stalled() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A server whose answers begin, and end when the event is set."""
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"b"})

    async with serve_http(app) as (port, _):
        yield port, go_on


async def test_a_request_behind_a_stream_is_kept_whole_until_its_turn() -> None:
    async with stalled() as (port, go_on), connect(port) as client:
        first = await client.request("GET", "/")
        await first.piece()
        for part in (GET[:5], GET[5:], GET):
            client.write(part)
            await asyncio.sleep(0)
        go_on.set()
        assert await first.body() == b"ab"
        for _ in range(2):
            assert await (await client.reply("GET")).body() == b"ab"


def body_of_chunks(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (size // 6)


@pytest.mark.parametrize(
    "flood",
    [
        GET * (WRITE // len(GET)),
        b"\r\n" * (WRITE // 2),
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * (WRITE // 6),
        b"GET /" + b"a" * WRITE,
        b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * WRITE,
        body_of_chunks(WRITE),
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n\r\n" + b"x" * WRITE,
        json.dumps(HELLO).encode() * 5_000,
    ],
    ids=["requests", "lines", "fields", "target", "field", "chunks", "body", "junk"],
)
async def test_no_write_of_any_shape_calls_more_than_a_few_functions(
    flood: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are the calls of Python functions while the bytes are read."""
    calls = read = 0
    received = ServerConnection.data_received

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    def counted(self: ServerConnection, data: bytes) -> None:
        nonlocal read
        read += len(data)
        sys.setprofile(count)
        try:
            received(self, data)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(ServerConnection, "data_received", counted)
    async with serve_http(Counting()) as (port, context):
        async with connect(port) as client:
            client.write(flood)
            reading = asyncio.create_task(replies(client))
            while not context.connections:
                await asyncio.sleep(0)
            while context.connections and read < len(flood):
                await asyncio.sleep(0)
            client.finish()
            await reading
        while context.connections:
            await asyncio.sleep(0)
    assert 0 < calls <= MOST_CALLS
