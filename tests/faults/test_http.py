"""The edge of `chat-nest serve`, over raw sockets: requests that can be read in two ways, floods, and slowness."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgi_servers import serve_http
from raw_client import HELLO, JSON, Client, Cut, Reply, ask, connect, settled, standing
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, finish, stream, usage
from serve_command import command

from chat_nest import create_chat_handler
from chat_nest.identity.peer import PeerAddress
from chat_nest.limits.numbers import MAX_BODY_BYTES
from chat_nest.server.http.connection_limits import MOST_REFUSED, ConnectionLimits
from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.deadlines import ConnectionDeadlines
from chat_nest.server.http.framing import MOST_FIELDS, MOST_HEAD_BYTES
from chat_nest.server.http.refusal_rates import REFUSED_PER_MINUTE, RefusalRates

BODY = json.dumps(HELLO).encode()
START = b"POST /api/chat HTTP/1.1\r\n"
HOST = b"host: x\r\n"
TYPE = b"content-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
QUICK = ConnectionDeadlines(header=0.4, body=1.0, idle=0.6, write=0.5, grace=0.2, linger=0.2)


def post(*fields: bytes, body: bytes = BODY, start: bytes = START) -> bytes:
    return b"".join([start, *(fields or (HOST, TYPE, LENGTH)), b"\r\n", body])


class Setup:
    def __init__(self, port: int, provider: ScriptedProvider, context: ServerContext) -> None:
        self.port = port
        self.provider = provider
        self.context = context

    async def used(self) -> int:
        return (await settled(self.port))["tokens_per_day"]["used"]


@asynccontextmanager
async def running(
    *scripts: Any, deadlines: ConnectionDeadlines | None = None, limits: ConnectionLimits | None = None, **options: Any
) -> AsyncIterator[Setup]:
    async with ScriptedProvider(*scripts or [answer("x", 3)]) as provider:
        handler = create_chat_handler(api_key="k", base_url=provider.url, model="m", **options)
        async with serve_http(handler, deadlines=deadlines, limits=limits) as (port, context):
            yield Setup(port, provider, context)
        assert context.limits.connections == 0


async def refusal(port: int, request: bytes) -> tuple[Reply, dict[str, Any]]:
    """The one answer to these bytes, after which the server closes."""
    async with connect(port) as client:
        client.write(request)
        reply = await client.reply()
        body = await reply.json()
        assert await client._reader.read() == b"", "and nothing follows"
    assert reply.headers["connection"] == "close"
    assert reply.headers["x-request-id"] == body["request_id"]
    return reply, body


async def refused(request: bytes, status: int, code: str) -> dict[str, Any]:
    """Sent to a server, this is refused; no provider is asked and nothing is charged."""
    async with running() as setup:
        reply, body = await refusal(setup.port, request)
        assert (reply.status, body["code"]) == (status, code)
        assert setup.provider.requests == []
        assert await setup.used() == 0
    return body


# A flood of bad requests.


MANY = "1.1.1.1"
"""The address of every client of this test; addresses of this machine are not counted."""


@asynccontextmanager
async def counting(**more: Any) -> AsyncIterator[Setup]:
    """A server on which time stands still for the rate of bad requests, and 127.0.0.1 stands for a public address."""
    limits = ConnectionLimits(address_of=lambda host: MANY if host == "127.0.0.1" else host, **more.pop("limits", {}))
    async with running(limits=limits, **more) as setup:
        setup.context.refusals = RefusalRates(lambda: 0.0)
        yield setup


async def test_bad_requests_of_an_address_over_its_rate_get_no_answer_and_good_ones_do(caplog) -> None:
    caplog.set_level("INFO")
    bad = (b"GET / HTTP/9\r\n\r\n", START + b"x: " + b"a" * MOST_HEAD_BYTES, post(HOST, HOST, TYPE, LENGTH))
    async with counting() as setup:
        for number in range(REFUSED_PER_MINUTE):
            async with connect(setup.port) as client:
                client.write(bad[number % len(bad)])
                assert (await client.reply()).status in (400, 431)
        logged = caplog.text.count("refused id=")
        for request in bad:
            async with connect(setup.port) as client:
                client.write(request)
                with pytest.raises(Cut):
                    await client.reply()
        assert caplog.text.count("refused id=") == logged
        assert caplog.text.count("more than 300 bad requests a minute") == 1
        assert (await ask(setup.port)).status == 200  # somebody else at this address
        async with connect(setup.port, source="127.0.0.2") as other:  # this machine's: perhaps a proxy
            other.write(bad[0])
            assert (await other.reply()).status == 400
        assert all(setup.context.refusals.count("127.0.0.2", str) for _ in range(REFUSED_PER_MINUTE + 1))


async def test_slow_requests_count_on_the_rate_of_bad_ones() -> None:
    async with counting(deadlines=QUICK) as setup:
        for _ in range(REFUSED_PER_MINUTE - 1):
            setup.context.refusals.count(MANY, str)
        async with connect(setup.port) as first:
            first.write(START)
            assert (await first.reply()).status == 408
        async with connect(setup.port) as second:
            second.write(START)
            with pytest.raises(Cut):
                await second.reply()


async def test_a_connection_that_finds_no_place_is_no_bad_request() -> None:
    async with counting(limits={"max_connections": 1}) as setup, connect(setup.port) as first:
        reply = await first.post()
        assert reply.status == 200
        async with connect(setup.port) as other:
            other.write(post())
            assert (await other.reply()).status == 503
        await reply.body()
        assert all(setup.context.refusals.count(MANY, str) for _ in range(REFUSED_PER_MINUTE))


# Rows 1 to 6: framing.


@pytest.mark.parametrize(
    "length",
    [
        LENGTH + CHUNKED,
        CHUNKED + LENGTH,
        LENGTH + LENGTH,
        b"content-length: 4, 4\r\n",
        b"content-length: +4\r\n",
        b"content-length: 0x4\r\n",
        b"content-length: -1\r\n",
        b"content-length:\r\n",
        b"content-length: 99999999999999999999999999\r\n",
    ],
)
async def test_row01_a_length_that_can_be_read_in_two_ways(length: bytes) -> None:
    await refused(post(HOST, TYPE, length), 400, "bad_request")


@pytest.mark.parametrize(
    "fields",
    [
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        LENGTH + b"x: one\r\n two\r\n",
        LENGTH + b"x: one\r\n\ttwo\r\n",
        LENGTH + b"x: a\0b\r\n",
        LENGTH + b"x\0: a\r\n",
        LENGTH + b"x: a\rb\r\n",
        LENGTH + b"x: a\nb: c\r\n",
        LENGTH + b"x : a\r\n",
        LENGTH + b"x\r\n",
    ],
)
async def test_row02_a_head_that_can_be_read_in_two_ways(fields: bytes) -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if b"chunked" in fields else BODY
    await refused(post(HOST, TYPE, fields, body=body), 400, "bad_request")


@pytest.mark.parametrize(
    "body", [b"1\n{\r\n", b"1\r\n{\n", b"0x1\r\n{\r\n", b"1 \r\n{\r\n", b"-1\r\n{\r\n", b"{", b"1;a\nb\r\n{\r\n"]
)
async def test_row02_a_chunk_that_can_be_read_in_two_ways(body: bytes) -> None:
    await refused(post(HOST, TYPE, CHUNKED, body=body), 400, "bad_request")


async def test_row02_a_broken_chunk_after_the_request_has_reached_the_application() -> None:
    async with running() as setup, connect(setup.port) as client:
        client.write(post(HOST, TYPE, CHUNKED, body=b"1\r\n{\r\n"))
        await asyncio.sleep(0.1)  # the application waits for the rest by now
        client.write(b"1\n{")
        reply = await client.reply()
        assert (reply.status, (await reply.json())["code"]) == (400, "bad_request")
        with pytest.raises(Cut):
            await client.reply()
        assert await setup.used() == 0


class Seen:
    """An application that keeps the headers of its requests, as they stand when the body has come."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        self.headers = scope["headers"]
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


async def test_row02_no_application_sees_a_trailer() -> None:
    """It would pass for a header that a proxy in front has set, or taken away."""
    seen = Seen()
    async with serve_http(seen) as (port, _):
        async with connect(port) as client:
            client.write(post(HOST, CHUNKED, body=b"0\r\nx-user: admin\r\n\r\n"))
            assert (await client.reply()).status == 204
    assert [name for name, _ in seen.headers] == [b"host", b"transfer-encoding"]


async def test_row03_a_hundred_thousand_chunks_of_a_byte_while_tokens_go_on() -> None:
    go_on = asyncio.Event()
    script = stream(chunk("one"), go_on, *[chunk("more")] * 3, finish(), usage(5, 4), DONE)
    async with running(script) as setup, connect(setup.port) as reader, connect(setup.port) as flooder:
        reply = await reader.post()
        await reply.until("token")
        flooder.write(post(HOST, TYPE, CHUNKED, body=b""))
        flooder.write(b"1\r\n \r\n" * 100_000)
        refusal = await flooder.reply()
        assert refusal.status == 413
        assert (await refusal.json())["code"] == "body_too_large"
        go_on.set()
        assert (await reply.until("done")).json()["finish_reason"] == "stop"
        assert len(setup.provider.requests) == 1


@pytest.mark.parametrize(
    "host",
    [
        b"",
        HOST * 2,
        b"host:\r\n",
        b"host: a b\r\n",
        b"host: a/b\r\n",
        b"host: a:b\r\n",
        b"host: u@a\r\n",
        b"host: [::1\r\n",
    ],
)
async def test_row04_a_host_that_is_none(host: bytes) -> None:
    body = await refused(post(host, TYPE, LENGTH), 400, "bad_request")
    assert body["field"] == "Host"


@pytest.mark.parametrize("host", [b"a", b"a:80", b"A.b-c.example", b"127.0.0.1:", b"[::1]:8000"])
async def test_row04_a_host_that_is_one(host: bytes) -> None:
    async with running() as setup, connect(setup.port) as client:
        client.write(post(b"host: %b\r\n" % host, TYPE, LENGTH))
        assert (await client.reply()).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        b"x: y\r\n" * (MOST_FIELDS + 1),
        b"x: " + b"y" * MOST_HEAD_BYTES + b"\r\n",
        (b"x: " + b"y" * 4_000 + b"\r\n") * 5,
        b"x: " + b"y" * 600_000,  # which never ends
    ],
)
async def test_row05_a_head_that_is_too_large(fields: bytes) -> None:
    await refused(post(HOST, TYPE, LENGTH, fields), 431, "headers_too_large")


async def test_row05_a_target_that_is_too_large() -> None:
    start = b"POST /api/chat?" + b"x" * MOST_HEAD_BYTES + b" HTTP/1.1\r\n"
    await refused(post(start=start), 431, "headers_too_large")


async def test_row05_a_head_of_just_the_size_is_taken() -> None:
    async with running() as setup, connect(setup.port) as client:
        client.write(post(HOST, TYPE, LENGTH, *[b"x: y\r\n"] * (MOST_FIELDS - 3)))
        assert (await client.reply()).status == 200


@pytest.mark.parametrize("host", [b"", HOST])
async def test_row06_http_1_0_gets_events_until_the_connection_closes(host: bytes) -> None:
    async with running() as setup, connect(setup.port) as client:
        client.write(post(host, TYPE, LENGTH, start=b"POST /api/chat HTTP/1.0\r\n"))
        reply = await client.reply()
        assert "transfer-encoding" not in reply.headers
        assert "content-length" not in reply.headers
        assert reply.headers["connection"] == "close"
        assert [event.name for event in await reply.events()] == ["start", "token", "token", "token", "done"]


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/9.9"])
async def test_row06_another_version(version: bytes) -> None:
    await refused(post(start=b"POST /api/chat %b\r\n" % version), 400, "bad_request")


async def test_row06_http_1_0_knows_no_chunks() -> None:
    await refused(post(HOST, TYPE, CHUNKED, start=b"POST /api/chat HTTP/1.0\r\n"), 400, "bad_request")


@pytest.mark.parametrize("method", [b"HEAD", b"GET", b"PUT", b"DELETE", b"PROPFIND"])
async def test_row06_a_method_that_is_not_for_chats(method: bytes) -> None:
    async with running() as setup, connect(setup.port) as client:
        client.write(post(HOST, start=b"%b /api/chat HTTP/1.1\r\n" % method, body=b""))
        reply = await client.reply(method.decode())
        assert (reply.status, reply.headers["allow"]) == (405, "POST, OPTIONS")
        assert setup.provider.requests == []


async def test_row06_an_unknown_method() -> None:
    await refused(post(start=b"BREW /api/chat HTTP/1.1\r\n"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10, b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n"]
)
async def test_row06_bytes_that_are_no_request(junk: bytes) -> None:
    await refused(junk, 400, "bad_request")


async def test_row06_pipelined_chats_are_answered_in_order_and_charged_once_each() -> None:
    scripts = [answer(word, 1, input_tokens=9) for word in ("first", "second", "third")]
    async with running(*scripts) as setup, connect(setup.port) as client:
        client.write(post() * 3)
        for word in ("first", "second", "third"):
            reply = await client.reply()
            assert json.loads((await reply.until("token")).data) == word
            await reply.events()
        assert len(setup.provider.requests) == 3
        assert await setup.used() == 3 * 10


async def test_row06_an_offer_to_upgrade_is_declined() -> None:
    offer = b"connection: upgrade\r\nupgrade: h2c\r\n"
    async with running() as setup, connect(setup.port) as client:
        client.write(post(HOST, offer, start=b"GET /api/usage HTTP/1.1\r\n", body=b"PRI * HTTP/2.0\r\n\r\n"))
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        await reply.body()
        assert await client._reader.read() == b""
    body = await refused(post(HOST, TYPE, LENGTH, offer), 400, "bad_request")
    assert body["field"] == "Upgrade"


async def test_a_broken_request_behind_a_good_one_does_not_disturb_its_answer() -> None:
    go_on = asyncio.Event()
    script = stream(chunk("one"), go_on, chunk("two"), finish(), usage(5, 2), DONE)
    async with running(script) as setup, connect(setup.port) as client:
        client.write(post())
        reply = await client.reply()
        await reply.until("token")
        client.write(post(HOST, TYPE, LENGTH, LENGTH))
        await asyncio.sleep(0.05)
        go_on.set()
        assert [event.name for event in await reply.events()] == ["token", "done"]
        assert (await client.reply()).status == 400
        assert len(setup.provider.requests) == 1


async def test_a_broken_body_behind_a_good_one_does_not_disturb_its_answer() -> None:
    go_on = asyncio.Event()
    script = stream(chunk("one"), go_on, chunk("two"), finish(), usage(5, 2), DONE)
    async with running(script) as setup, connect(setup.port) as client:
        client.write(post())
        reply = await client.reply()
        await reply.until("token")
        client.write(post(HOST, TYPE, CHUNKED, body=b"1\n"))
        await asyncio.sleep(0.05)
        go_on.set()
        assert [event.name for event in await reply.events()] == ["token", "done"]
        assert (await client.reply()).status == 400
        assert len(setup.provider.requests) == 1


LINES = (
    b"POST /api/chat RTSP/1.0",
    b"POST /api/chat ICE/1.0",
    b"POST  /api/chat HTTP/1.1",
    b"POST /api/chat  HTTP/1.1",
    b"POST   /api/chat   HTTP/1.0",
    b"POST /api/chat#x HTTP/1.1",
    b"POST /api/chat?a#x HTTP/1.1",
    b"POST /api/chat# HTTP/1.1",
    b"POST #x HTTP/1.1",
    b"POST /api/chat http/1.1",
    b"POST\t/api/chat HTTP/1.1",
    b"POST /api/chat\tHTTP/1.1",
    b" POST /api/chat HTTP/1.1",
    b"POST /api/chat HTTP/1.1 ",
    b"POST /api/chat HTTP/01.1",
)


@pytest.mark.parametrize("line", LINES)
async def test_a_request_line_that_is_none(line: bytes) -> None:
    await refused(post(start=line + b"\r\n"), 400, "bad_request")


@pytest.mark.parametrize("line", LINES)
async def test_a_request_line_that_is_none_behind_a_good_request(line: bytes) -> None:
    async with running() as setup, connect(setup.port) as client:
        client.write(post() + post(start=line + b"\r\n"))
        assert (await (await client.reply()).events())[-1].name == "done"
        reply = await client.reply()
        assert (reply.status, (await reply.json())["code"]) == (400, "bad_request")
        assert len(setup.provider.requests) == 1


async def test_a_request_line_in_pieces() -> None:
    async with running() as setup, connect(setup.port) as client:
        client._writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(post())):
            client.write(post()[at : at + 1])
            await asyncio.sleep(0)
        assert (await (await client.reply()).events())[-1].name == "done"
        client.write(b"\r\n" + post())
        assert (await (await client.reply()).events())[-1].name == "done"
        for at in (b"POST /api", b"/chat", b"  HTTP/1.1\r\n", b"host: x\r\n\r\n"):
            client.write(at)
            await asyncio.sleep(0.01)
        assert (await client.reply()).status == 400


# Row 7: slowness. Each connection must be gone by itself; the test's time-out is the bound.


async def ends(client: Client) -> bytes:
    """What the server says until it closes."""
    try:
        return await client._reader.read()
    except ConnectionError:
        return b"reset"


async def test_row07_two_hundred_partial_heads_are_gone_and_an_honest_client_is_served() -> None:
    async with running(deadlines=QUICK) as setup:

        async def slow() -> bytes:
            async with connect(setup.port) as client:
                client.write(START + HOST)
                return await ends(client)

        floods = [asyncio.create_task(slow()) for _ in range(200)]
        tries = 1
        while True:  # on a busy machine the honest client's own head can come too late for these deadlines
            with contextlib.suppress(Cut):
                assert (await ask(setup.port)).status == 200
                break
            tries += 1
        for said in await asyncio.gather(*floods):
            assert said.startswith(b"HTTP/1.1 408 ")
            assert b'"request_timeout"' in said
        assert 1 <= len(setup.provider.requests) <= tries


@pytest.mark.parametrize("what", [b"", b"\r\n\r\n"])
async def test_row07_a_silent_connection_is_closed(what: bytes) -> None:
    async with running(deadlines=QUICK) as setup, connect(setup.port) as client:
        client.write(what)
        assert await ends(client) == b""


async def test_row07_a_head_a_byte_at_a_time_has_the_same_time() -> None:
    async with running(deadlines=QUICK) as setup, connect(setup.port) as client:

        async def trickle() -> None:
            client.write(START)
            while True:
                client.write(b"x: y\r\n")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        said = await ends(client)
        trickling.cancel()
        assert said.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("pause", [0.05, 60])
async def test_row07_a_body_that_comes_too_slowly(pause: float) -> None:
    async with running(deadlines=QUICK) as setup, connect(setup.port) as client:

        async def trickle() -> None:
            client.write(post(HOST, TYPE, b"content-length: 200000\r\n", body=b"{"))
            while True:
                client.write(b" ")
                await asyncio.sleep(pause)

        trickling = asyncio.create_task(trickle())
        said = await ends(client)
        trickling.cancel()
        assert said.startswith(b"HTTP/1.1 408 ")
        assert await setup.used() == 0


async def test_row07_a_kept_alive_connection_is_closed_when_idle() -> None:
    async with running(deadlines=QUICK) as setup, connect(setup.port) as client:
        assert (await (await client.post()).events())[-1].name == "done"
        assert (await (await client.post()).events())[-1].name == "done"
        assert await ends(client) == b""


async def test_row07_an_answer_may_take_longer_than_every_deadline_of_a_request() -> None:
    async with running(stream(chunk("one"), 2.5, chunk("two"), finish(), usage(5, 2), DONE), deadlines=QUICK) as setup:
        reply = await ask(setup.port)
        assert b"event: done" in reply.raw


async def test_row07_a_client_that_requests_much_and_reads_nothing_is_dropped() -> None:
    """Without a chat: the answers are complete for the application, and only the kernel and we hold them."""
    big = b"x" * 8_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8000000")]})
        await send({"type": "http.response.body", "body": big})

    for more in (b"", b"connection: close\r\n"):
        async with serve_http(app, deadlines=QUICK) as (port, context):
            async with connect(port, receive_buffer=4_096) as client:
                client.write(post(HOST, more, start=b"GET / HTTP/1.1\r\n", body=b"") * 2)
                await client.reply("GET")
                while context.connections:
                    await asyncio.sleep(0.05)
                assert len(await ends(client)) < len(big)


@pytest.mark.parametrize("attack", ["-H", "-B", "-X"])
async def test_row07_slowhttptest(attack: str) -> None:
    """Its three attacks (slow heads, slow bodies, slow reading), a hundred connections each."""
    if shutil.which("slowhttptest") is None:
        why = "slowhttptest is not installed; on Debian: apt-get install slowhttptest"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    async with running(deadlines=ConnectionDeadlines(header=2, body=3, idle=1, write=1, linger=0.2)) as setup:
        connections = setup.context.connections
        url = f"http://127.0.0.1:{setup.port}/api/{'usage' if attack == '-X' else 'chat'}"
        options = f"-c 100 -r 100 -i 1 -l 6 -p 2 -x 10 -u {url}".split()
        slow = (
            ["-w", "1", "-y", "10", "-n", "1", "-z", "1", "-k", "8"]
            if attack == "-X"
            else ["-s", "100000", "-t", "POST", "-f", "application/json"]
        )
        process = await asyncio.create_subprocess_exec(
            "slowhttptest",
            attack,
            *options,
            *slow,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        most = 0
        asked = 0
        while process.returncode is None:
            most = max(most, len(connections))
            async with asyncio.timeout(240):
                assert (await ask(setup.port)).status in (200, 429)  # the caller's own limit on requests holds, too
            asked += 1
            await asyncio.sleep(0.1)
        assert most > 50, "the attack took place"
        async with asyncio.timeout(240):
            while connections:
                await asyncio.sleep(0.05)
        assert len(setup.provider.requests) <= asked


# Row 9: caps.


async def test_row09_more_connections_than_may_be_are_refused_until_one_ends(caplog: pytest.LogCaptureFixture) -> None:
    limits = ConnectionLimits(max_connections=2)
    go_on = asyncio.Event()
    script = stream(chunk("one"), go_on, chunk("two"), finish(), usage(9, 2), DONE)
    async with running(script, deadlines=ConnectionDeadlines(linger=0.2), limits=limits) as setup:
        async with connect(setup.port) as first, connect(setup.port) as second:
            answers = [await first.post(), await second.post()]
            for reply in answers:
                await reply.until("token")
            for speaks in (False, True, True):
                async with connect(setup.port) as third:
                    if speaks:
                        third.send("POST", "/api/chat", HELLO, JSON)
                    reply = await third.reply()
                    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
                    assert (await reply.json())["code"] == "overloaded"
            crowd = [await asyncio.open_connection("127.0.0.1", setup.port) for _ in range(MOST_REFUSED + 10)]
            ended = [await asyncio.gather(reader.read(), return_exceptions=True) for reader, _ in crowd]
            assert any(isinstance(each[0], ConnectionError) for each in ended), "not everybody is answered"
            for _, writer in crowd:
                writer.close()
            go_on.set()
            for reply in answers:
                assert (await reply.events())[-1].name == "done"
            assert len(setup.provider.requests) == 2
        while limits.connections:
            await asyncio.sleep(0.01)
        assert limits.extra == {}
        assert limits.idle == {}
        assert (await ask(setup.port)).status == 200
    assert caplog.text.count("max_connections is reached") == 1


async def test_row09_the_connection_that_was_idle_longest_makes_room_for_a_new_one() -> None:
    limits = ConnectionLimits(max_connections=3)
    script = stream(chunk("one"), HANG)
    async with running(answer("x"), answer("x"), answer("x"), script, answer("x"), limits=limits) as setup:
        async with connect(setup.port) as oldest, connect(setup.port) as newer, connect(setup.port) as busy:
            for client in (newer, oldest, newer):
                assert (await (await client.post()).events())[-1].name == "done"
            await (await busy.post()).until("token")
            async with connect(setup.port) as another:
                assert (await (await another.post()).events())[-1].name == "done"
                assert await oldest._reader.read() == b"", "closed"
                assert limits.connections == 3
                assert (await (await newer.post()).events())[-1].name == "done"
            busy.reset()


async def test_row09_one_address_can_not_take_every_connection() -> None:
    peers = PeerAddress()
    limits = ConnectionLimits(
        max_connections=10, max_per_address=2, address_of=lambda host: peers({"client": (host, 0)}).id
    )
    async with running(deadlines=ConnectionDeadlines(linger=0.2), limits=limits) as setup:
        async with connect(setup.port) as first, connect(setup.port) as second:
            for client in (first, second):
                client.write(START)  # not whole, so not idle
            async with asyncio.timeout(240):
                while limits.connections < 2:
                    await asyncio.sleep(0)
            async with connect(setup.port) as third:
                reply = await third.post()
                assert (reply.status, (await reply.json())["code"]) == (503, "overloaded")
            async with connect(setup.port, source="127.0.0.2") as other:
                assert (await (await other.post()).events())[-1].name == "done"
        while limits.connections:
            await asyncio.sleep(0.01)
        assert not limits._by_address


async def test_row09_a_trusted_proxy_may_bring_as_many_as_there_are(tmp_path: Path) -> None:
    for proxies, statuses in (({}, {200, 503}), ({"CHAT_NEST_SERVER_TRUSTED_PROXIES": "127.0.0.0/8"}, {200})):
        limits = {"CHAT_NEST_SERVER_MAX_CONNECTIONS": "8", "CHAT_NEST_SERVER_HOST": "127.0.0.1"}
        async with (
            ScriptedProvider(stream(chunk("one"), HANG)) as provider,
            command(tmp_path, provider.url, **proxies, **limits) as served,
            AsyncExitStack() as stack,
        ):
            clients = [await stack.enter_async_context(connect(served.port)) for _ in range(6)]
            assert {(await client.post()).status for client in clients} == statuses
            async with connect(served.port, source="127.0.0.2") as other:
                assert (await other.post()).status == 200
            for client in clients:
                client.reset()


IN_MEMORY = {"CHAT_NEST_STORE_URL": "memory://"}
"""With a disk that is slow at this moment a server is not ready."""


async def test_row09_health_checks_are_answered_by_a_server_that_is_full(tmp_path: Path) -> None:
    async with (
        ScriptedProvider(stream(chunk("one"), HANG)) as provider,
        command(tmp_path, provider.url, **IN_MEMORY, CHAT_NEST_SERVER_MAX_CONNECTIONS="1") as served,
        connect(served.port) as first,
        AsyncExitStack() as stack,
    ):
        await (await first.post()).until("token")
        for _ in range(2 * MOST_REFUSED):
            await stack.enter_async_context(connect(served.port))  # says nothing
        for path in ("/healthz", "/readyz", "/healthz?probe=1"):
            async with connect(served.port) as probe:
                reply = await probe.request("GET", path)
                assert (reply.status, reply.headers["connection"]) == (200, "close"), path
                await reply.body()
        first.reset()


async def test_row09_streams_over_the_cap_are_refused_before_anything_is_reserved() -> None:
    async with running(stream(chunk("one"), HANG), max_streams=2) as setup:
        async with connect(setup.port) as first, connect(setup.port) as second:
            for client in (first, second):
                await (await client.post()).until("token")
            held = (await standing(setup.port))["tokens_per_day"]["held"]
            reply = await ask(setup.port)
            assert (reply.status, reply.headers["retry-after"]) == (503, "2")
            assert json.loads(reply.raw)["code"] == "overloaded"
            assert (await standing(setup.port))["tokens_per_day"]["held"] == held
            assert len(setup.provider.requests) == 2
            first.reset()
            await setup.provider.closed(0)
        async with connect(setup.port) as third:
            while (reply := await third.post()).status == 503:
                await reply.body()
            assert reply.status == 200


# What is refused before its body was read.


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((HOST, TYPE, b"content-length: 5000000\r\n"), 413),
        ((HOST, b"content-type: text/plain\r\n", b"content-length: 200000\r\n"), 415),
        ((HOST, TYPE, b"idempotency-key: a\r\nidempotency-key: b\r\n", b"content-length: 200000\r\n"), 400),
        ((HOST, TYPE, CHUNKED), 413),
    ],
)
@pytest.mark.parametrize("endless", [False, True])
async def test_an_unread_body_is_dropped_after_a_limit(fields: tuple[bytes, ...], status: int, endless: bool) -> None:
    async with running(deadlines=ConnectionDeadlines(linger=0.3)) as setup, connect(setup.port) as client:
        flood = b"10000\r\n" + b"x" * 65_536 + b"\r\n" if CHUNKED in fields else b"x" * 65_536
        client.write(post(*fields, body=flood * (MAX_BODY_BYTES // 65_536 if CHUNKED in fields else 1)))
        await asyncio.sleep(0.05)
        client.write(flood)  # a closed socket would answer this with a reset, which takes the answer away
        await asyncio.sleep(0.05)
        reply = await client.reply()
        assert reply.status == status, "it can be read, though more is on its way"
        assert reply.headers["connection"] == "close"
        await reply.body()

        async def go_on() -> None:
            while endless:
                client.write(flood)
                await client._writer.drain()

        going_on = asyncio.gather(go_on(), return_exceptions=True)
        await ends(client)
        while setup.context.connections:
            await asyncio.sleep(0.01)
        going_on.cancel()
        assert await setup.used() == 0


async def test_a_refusal_can_be_read_after_the_rest_was_sent() -> None:
    """By a client that sends all before it reads: a socket closed meanwhile would answer with a reset."""
    loop = asyncio.get_running_loop()
    async with running() as setup:
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", setup.port))
            for part in (post(HOST, TYPE, b"content-length: 5000000\r\n", body=b""), *[b"x" * 65_536] * 3):
                await loop.sock_sendall(sock, part)
                await asyncio.sleep(0.05)
            assert (await loop.sock_recv(sock, 65_536)).startswith(b"HTTP/1.1 413 ")
