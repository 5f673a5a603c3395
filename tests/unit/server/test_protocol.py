"""What goes out as one write when an answer begins, and that nothing of it is lost."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from chat_nest.asgi.request import GONE, PUSH
from chat_nest.server.protocol import AbortableProtocol

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Wire(asyncio.Transport):
    """A socket that takes everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
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

    def is_closing(self) -> bool:
        return self.closing


async def asked(app: Any, request: bytes = GET) -> tuple[AbortableProtocol, Wire]:
    """A connection with one request, before its application has run."""
    config = Config(app, ws="none", lifespan="off", log_config=None)
    config.load()
    protocol, wire = AbortableProtocol(config, ServerState(), {}, asyncio.get_running_loop()), Wire()
    protocol.connection_made(wire)
    protocol.data_received(request)
    return protocol, wire


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_there_when_an_answer_begins_is_one_write() -> None:
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
        protocol.shutdown()

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


async def told(*, wants: bool) -> list[str]:
    """What a request whose client leaves hears of it, where it `wants` to know, and when it asks too late."""
    heard: list[str] = []
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tell = scope["extensions"][GONE]
        tell(lambda: heard.append("left"))
        if not wants:
            tell(None)
        await left.wait()
        tell(lambda: heard.append("left before"))

    protocol, _ = await asked(app)
    await settle()
    protocol.connection_lost(None)
    left.set()
    await settle()
    return heard


async def test_whoever_asks_is_told_that_the_client_has_left() -> None:
    assert await told(wants=True) == ["left", "left before"]
    assert await told(wants=False) == ["left before"]
