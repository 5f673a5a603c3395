"""What goes out as one write when an answer begins, and that nothing of it is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chat_nest.asgi.request import GONE, PUSH
from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.protocol import ServerConnection

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class NoSocket:
    def fileno(self) -> int:
        return -1


class Wire(asyncio.Transport):
    """A socket that takes everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2), "socket": NoSocket()})
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing


async def asked(app: Any, request: bytes = GET) -> tuple[ServerConnection, Wire]:
    """A connection with one request, before its application has run."""
    protocol, wire = ServerConnection(ServerContext(app)), Wire()
    protocol.connection_made(wire)
    protocol.data_received(request)
    return protocol, wire


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_head_and_the_first_bytes_of_an_answer_are_one_write() -> None:
    more = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"start", "more_body": True})
        assert scope["extensions"][PUSH](b"first")
        await more.wait()
        assert scope["extensions"][PUSH](b"second")
        protocol.pause_writing()
        pushed.append(scope["extensions"][PUSH](b"to a client that does not read"))
        protocol.resume_writing()
        await send({"type": "http.response.body", "body": b"third", "more_body": False})
        pushed.append(scope["extensions"][PUSH](b"too late"))

    pushed: list[bool] = []
    protocol, wire = await asked(app)
    await settle()
    (begun,) = wire.written
    assert begun.startswith(b"HTTP/1.1 200 OK\r\n")
    assert begun.endswith(b"\r\n\r\n5\r\nstart\r\n5\r\nfirst\r\n")
    more.set()
    await settle()
    assert wire.written[1:] == [b"6\r\nsecond\r\n", b"5\r\nthird\r\n0\r\n\r\n"]
    assert pushed == [False, False]


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    assert not scope["extensions"][PUSH](b"too early")
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"2")]})
    assert not scope["extensions"][PUSH](b"not chunked")
    await send({"type": "http.response.body", "body": b"no", "more_body": False})
    assert not scope["extensions"][PUSH](b"too late")


async def test_a_short_answer_is_one_write_and_the_next_request_is_answered_after_it() -> None:
    _, wire = await asked(refuse, GET + GET)
    await settle()
    await settle()
    assert len(wire.written) == 2
    for answer in wire.written:
        assert answer.startswith(b"HTTP/1.1 404")
        assert answer.endswith(b"\r\n\r\nno")


async def test_an_answer_that_closes_its_connection_is_written_first() -> None:
    _, wire = await asked(refuse, GET.replace(b"host: x", b"host: x\r\nconnection: close"))
    await settle()
    assert b"".join(wire.written).endswith(b"\r\n\r\nno")
    assert wire.closing


async def test_a_shutdown_in_the_same_turn_loses_nothing() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await refuse(scope, receive, send)
        protocol.drain()

    protocol, wire = await asked(app)
    await settle()
    assert b"".join(wire.written).endswith(b"\r\n\r\nno")
    assert wire.closing


async def test_nothing_is_written_to_a_connection_that_was_dropped() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        wire.abort()

    _, wire = await asked(app)
    await settle()
    assert not wire.written


async def told(*, wants: bool, slow: bool = False) -> list[tuple[str, bool]]:
    """What a request whose client leaves hears of it, where it `wants` to know, and when it asks too late."""
    heard: list[tuple[str, bool]] = []
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tell = scope["extensions"][GONE]
        tell(lambda slow: heard.append(("left", slow)))
        if not wants:
            tell(None)
        await left.wait()
        tell(lambda slow: heard.append(("left before", slow)))

    protocol, _ = await asked(app)
    await settle()
    if slow:
        protocol.drop(slow=True)
    protocol.connection_lost(None)
    left.set()
    await settle()
    return heard


async def test_a_request_is_notified_once_that_its_client_has_left_and_why() -> None:
    assert await told(wants=True) == [("left", False), ("left before", False)]
    assert await told(wants=True, slow=True) == [("left", True), ("left before", True)]
    assert await told(wants=False) == [("left before", False)]


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"])
async def test_no_header_of_an_application_can_forge_another_one(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", value)]})

    _, wire = await asked(app)
    await settle()
    assert b"set-cookie" not in b"".join(wire.written)
    assert "a header of the answer holds a line end or NUL" in caplog.text


async def fails(scope: Any, receive: Any, send: Any) -> None:
    raise ZeroDivisionError


async def says_nothing(scope: Any, receive: Any, send: Any) -> None:
    pass


@pytest.mark.parametrize("app", [fails, says_nothing])
async def test_an_application_that_does_not_answer_is_a_500_and_closes(app: Any) -> None:
    _, wire = await asked(app)
    await settle()
    assert b"".join(wire.written).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"\r\nconnection: close\r\n" in b"".join(wire.written)
    assert wire.closing


async def too_short(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ab"})


async def too_long(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
    await send({"type": "http.response.body", "body": b"ab"})


async def no_end(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ab", "more_body": True})


@pytest.mark.parametrize("app", [too_short, too_long, no_end])
async def test_an_answer_that_is_not_whole_never_looks_whole(app: Any) -> None:
    _, wire = await asked(app)
    await settle()
    assert wire.closing
    assert not b"".join(wire.written).endswith((b"ab", b"0\r\n\r\n"))


async def test_100_continue_is_sent_only_when_the_application_reads_the_body() -> None:
    read: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    request = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    protocol, wire = await asked(app, request)
    assert not wire.written
    await settle()
    assert wire.written == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    protocol.data_received(b"ok")
    await settle()
    assert read == [b"ok"]
    assert wire.written[-1].startswith(b"HTTP/1.1 204")
    _, wire = await asked(app, request + b"ok")
    await settle()
    assert wire.written[0].startswith(b"HTTP/1.1 204"), "its body is here already"


async def test_no_body_follows_the_answer_to_head() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    protocol, wire = await asked(app, GET.replace(b"GET", b"HEAD"))
    await settle()
    assert b"".join(wire.written).endswith(b"\r\ncontent-length: 2\r\n\r\n")
    assert not wire.closing
