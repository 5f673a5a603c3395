"""The HTTP session over real sockets."""

from __future__ import annotations

import asyncio
import base64
import gc
import socket
import ssl
import traceback
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trustme
from scripted_provider import CLOSE, HANG, RESET, Connection, Script, ScriptedProvider, http, head, piece, stream

from chat_nest.core.errors import (
    UpstreamError,
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
    UpstreamUnreachable,
)
from chat_nest.providers.http import HTTPSession
from chat_nest.providers.http_connection import READ_BUFFER

KEY = "canary-2f7c"
LARGEST_READ = 262_144
"""What an event loop reads at once from a socket."""
OK = http(200, b"fine")


@pytest.fixture(autouse=True)
def no_proxy_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@asynccontextmanager
async def session(url: str, tls: ssl.SSLContext | None = None):
    session = HTTPSession(url, tls=tls)
    try:
        yield session
    finally:
        await session.aclose()


def post(session: HTTPSession, body: bytes = b"{}", connect_timeout: float = 10.0):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    return session.request("POST", "/chat", headers=headers, body=body, connect_timeout=connect_timeout)


async def fetch(session: HTTPSession, **options: Any) -> tuple[int, bytes]:
    async with post(session, **options) as answer:
        return answer.status, await answer.read_body(1 << 20)


async def failure(session: HTTPSession, **options: Any) -> UpstreamError:
    """How one request fails; nothing of it may be in what a log could show."""
    with pytest.raises(UpstreamError) as caught:
        await fetch(session, **options)
    error = caught.value
    assert error.__context__ is None
    shown = "".join(traceback.format_exception(error))
    assert KEY not in shown
    return error


# Connections are kept, and closed.


async def test_a_connection_is_used_again() -> None:
    async with ScriptedProvider(OK, stream(b"a", b"b")) as provider, session(provider.url) as client:
        assert await fetch(client) == (200, b"fine")
        assert await fetch(client) == (200, b"ab")
        assert await fetch(client) == (200, b"ab")
        assert provider.opened == 1
    assert provider.active == 0


async def test_a_body_that_was_not_read_closes_the_connection_at_once() -> None:
    async with ScriptedProvider(stream(b"a", HANG), OK) as provider, session(provider.url) as client:
        async with post(client) as answer:
            assert await answer.read() == b"a"
        await provider.closed(0)
        assert await fetch(client) == (200, b"fine")
        assert provider.opened == 2


async def test_a_connection_that_the_provider_closed_is_not_used() -> None:
    async with ScriptedProvider([OK, CLOSE], OK) as provider, session(provider.url) as client:
        await fetch(client)
        await provider.closed(0)
        for _ in range(10):  # the FIN is in our kernel already; the loop has yet to look
            await asyncio.sleep(0)
        assert await fetch(client) == (200, b"fine")
        assert provider.opened == 2


async def test_a_kept_connection_that_dies_is_nobodys_problem() -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
    kept = asyncio.Event()
    async with ScriptedProvider([OK, kept, RESET], OK) as provider, session(provider.url) as client:
        await fetch(client)
        kept.set()
        await provider.closed(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert await fetch(client) == (200, b"fine")
        assert provider.opened == 2
    gc.collect()
    assert not problems


async def test_a_post_is_not_sent_again_when_a_kept_connection_dies() -> None:
    async with ScriptedProvider(OK, [CLOSE], OK) as provider, session(provider.url) as client:
        await fetch(client)
        error = await failure(client)
        assert type(error) is UpstreamUnavailable
        assert error.retryable
        assert not error.spent_nothing
        assert (len(provider.requests), provider.opened) == (2, 1)


async def test_more_requests_at_once_than_any_pool() -> None:
    release = asyncio.Event()
    async with ScriptedProvider([release, OK]) as provider, session(provider.url) as client:
        waiting = [asyncio.create_task(fetch(client)) for _ in range(130)]
        await provider.request(129)
        assert provider.active == 130
        release.set()
        assert await asyncio.gather(*waiting) == [(200, b"fine")] * 130


def test_a_session_outlives_its_event_loop() -> None:
    client = HTTPSession("")

    async def once() -> int:
        async with ScriptedProvider(OK) as provider:
            client._base_url = provider.url  # noqa: F821
            assert await fetch(client) == (200, b"fine")  # noqa: F821
            return provider.opened

    assert asyncio.run(once()) == 1
    assert asyncio.run(once()) == 1
    asyncio.run(client.aclose())
    del client
    gc.collect()


async def test_a_session_can_be_used_after_it_was_closed() -> None:
    async with ScriptedProvider(OK) as provider, session(provider.url) as client:
        await fetch(client)
        await client.aclose()
        await provider.idle()
        assert await fetch(client) == (200, b"fine")
        await client.aclose()
        await client.aclose()


async def test_closing_ends_open_streams() -> None:
    async with ScriptedProvider(stream(b"a", HANG), [HANG]) as provider:
        client = HTTPSession(provider.url)
        async with post(client) as answer:
            assert await answer.read() == b"a"
            reading = asyncio.create_task(answer.read())
            waiting = asyncio.create_task(fetch(client))
            await provider.request(1)
            await client.aclose()
            with pytest.raises(UpstreamTruncated):
                await reading
            with pytest.raises(UpstreamUnavailable):
                await waiting
        await provider.idle()


# Nothing is asked for or followed that a provider does not need.


async def test_only_our_headers_are_sent() -> None:
    async with ScriptedProvider(http(200, b"x", set_cookie="a=b; Path=/")) as provider, session(provider.url) as client:
        await fetch(client)
        await fetch(client)
        for request in provider.requests:
            assert set(request.headers) == {
                "host", "accept", "accept-encoding", "authorization", "content-type", "content-length"
            }  # fmt: skip
            assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with ScriptedProvider(OK) as elsewhere:
        async with ScriptedProvider(http(status, b"", location=elsewhere.url)) as provider:
            async with session(provider.url) as client:
                assert (await fetch(client))[0] == status
        assert not elsewhere.opened


@pytest.mark.parametrize("coding", ["gzip", "br", "x", "identity, gzip", "gzip, identity"])
async def test_a_content_coding_is_refused(coding: str) -> None:
    script = [head(content_encoding=coding), piece(b"x"), HANG]
    async with ScriptedProvider(script) as provider, session(provider.url) as client:
        assert type(await failure(client)) is UpstreamProtocol
        await provider.closed(0)


async def test_an_error_in_a_content_coding_is_passed_on_as_it_came() -> None:
    async with ScriptedProvider(http(503, b"\x1f\x8b", content_encoding="gzip")) as provider:
        async with session(provider.url) as client:
            assert await fetch(client) == (503, b"\x1f\x8b")


async def test_identity_is_no_coding() -> None:
    async with ScriptedProvider(http(200, b"x", content_encoding=" Identity")) as provider:
        async with session(provider.url) as client:
            assert await fetch(client) == (200, b"x")


async def test_a_netrc_file_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login eve password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with ScriptedProvider(OK) as provider, session(provider.url) as client:
        await fetch(client)
        async with client.request("POST", "/", headers={}, body=b"", connect_timeout=10) as answer:
            await answer.read_body(100)
        assert provider.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert "authorization" not in provider.requests[1].headers


# Proxies.


async def test_a_proxy_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(OK) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:pass%20word@127.0.0.1:{proxy.port}")
        async with session("http://provider.invalid/v1") as client:
            assert await fetch(client) == (200, b"fine")
            assert await fetch(client) == (200, b"fine")
        for request in proxy.requests:
            assert request.path == "http://provider.invalid/v1/chat"
            assert request.headers["host"] == "provider.invalid"
            assert request.headers["authorization"] == f"Bearer {KEY}"
            scheme, _, credentials = request.headers["proxy-authorization"].partition(" ")
            assert (scheme, base64.b64decode(credentials)) == ("Basic", b"user:pass word")
        assert proxy.opened == 1


async def test_a_proxy_without_a_scheme_or_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login eve password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with ScriptedProvider(OK) as proxy:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
        async with session("http://provider.invalid:8080/v1") as client:
            assert await fetch(client) == (200, b"fine")
        assert "proxy-authorization" not in proxy.requests[0].headers


async def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(OK) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "other.invalid,provider.invalid")
        fail_names(monkeypatch)
        async with session("http://provider.invalid/v1") as client:
            assert type(await failure(client)) is UpstreamUnreachable
        assert not proxy.opened


async def test_loopback_is_never_proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(OK) as proxy, ScriptedProvider(OK) as provider:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        for host in ("127.0.0.1", "localhost"):
            async with session(provider.url.replace("127.0.0.1", host)) as client:
                assert await fetch(client) == (200, b"fine")
        assert not proxy.opened


class Tunnel:
    """An HTTP proxy that knows CONNECT only."""

    def __init__(self, target: int, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self.target = target
        self.answer = answer
        self.heads: list[bytes] = []
        self.closed = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        if not self.answer.startswith(b"HTTP/1.1 200"):
            await reader.read()
            writer.close()
            self.closed.set()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.target)

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(65_536):
                    writer.write(data)
            except ConnectionError:
                pass
            writer.close()

        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        self.closed.set()


async def test_tls_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    async with ScriptedProvider(OK, tls=server_tls(authority, "provider.invalid")) as provider:
        tunnel = Tunnel(provider.port)
        server = await asyncio.start_server(tunnel, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("https_proxy", f"http://user:pass@127.0.0.1:{port}")
        async with session("https://provider.invalid/v1", client_tls(authority)) as client:
            assert await fetch(client) == (200, b"fine")
        await tunnel.closed.wait()
        server.close()
    assert tunnel.heads[0].startswith(b"CONNECT provider.invalid:443 HTTP/1.1\r\n")
    assert base64.b64encode(b"user:pass") in tunnel.heads[0]
    assert KEY.encode() not in tunnel.heads[0]
    assert "proxy-authorization" not in provider.requests[0].headers


async def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    tunnel = Tunnel(0, b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
    server = await asyncio.start_server(tunnel, "127.0.0.1", 0)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with session("https://provider.invalid/v1") as client:
        error = await failure(client)
    assert (type(error), error.spent_nothing) == (UpstreamUnreachable, True)
    await tunnel.closed.wait()
    server.close()


# No connection.


def server_tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def fail_names(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, f"Name not known {KEY}")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


async def unreachable(client: HTTPSession) -> None:
    error = await failure(client)
    assert type(error) is UpstreamUnreachable
    assert error.spent_nothing
    assert error.retryable


async def test_refused() -> None:
    async with session(f"http://127.0.0.1:{closed_port()}") as client:
        await unreachable(client)


async def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fail_names(monkeypatch)
    async with session("http://provider.invalid") as client:
        await unreachable(client)
    assert "no connection to the provider: its host name can't be resolved" in caplog.text


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".invalid", "127.1"])
async def test_a_name_that_is_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with session(f"http://{host}") as client:
        await unreachable(client)


async def test_tls_works_and_leaving_closes_it() -> None:
    authority = trustme.CA()
    async with ScriptedProvider(OK, stream(b"a", HANG), tls=server_tls(authority, "localhost")) as provider:
        async with session(provider.url, client_tls(authority)) as client:
            assert await fetch(client) == (200, b"fine")
            async with post(client) as answer:
                assert await answer.read() == b"a"
            await provider.closed(1)
            assert provider.opened == 1


async def test_an_unknown_certificate_authority() -> None:
    async with ScriptedProvider(OK, tls=server_tls(trustme.CA(), "localhost")) as provider:
        async with session(provider.url) as client:
            await unreachable(client)
        assert not provider.requests


async def test_a_certificate_for_another_name() -> None:
    authority = trustme.CA()
    async with ScriptedProvider(OK, tls=server_tls(authority, "other.invalid")) as provider:
        async with session(provider.url, client_tls(authority)) as client:
            await unreachable(client)
        assert not provider.requests


async def test_tls_to_a_server_without_it() -> None:
    with listening() as server:
        async with session(f"https://127.0.0.1:{server.getsockname()[1]}") as client:
            talk = asyncio.create_task(unreachable(client))
            loop = asyncio.get_running_loop()
            connection, _ = await loop.sock_accept(server)
            with connection:
                await loop.sock_sendall(connection, b"HTTP/1.1 400 Bad Request\r\n\r\n")
                await talk


@contextmanager
def listening(**options: int) -> Iterator[socket.socket]:
    """A socket that clients can connect to, and nobody serves."""
    with socket.socket() as server:
        for name, value in options.items():
            server.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        yield server


async def received(connection: socket.socket) -> int:
    """The bytes that came before the client closed the connection."""
    loop, size = asyncio.get_running_loop(), 0
    try:
        while data := await loop.sock_recv(connection, 65_536):
            size += len(data)
    except ConnectionResetError:
        pass
    connection.close()
    return size


async def test_connecting_takes_too_long() -> None:
    with listening() as server:
        async with session(f"https://127.0.0.1:{server.getsockname()[1]}") as client:
            error = await failure(client, connect_timeout=0.05)  # its TLS handshake never ends
            assert type(error) is UpstreamTimeout
            assert error.spent_nothing
            assert error.retryable
            connection, _ = await asyncio.get_running_loop().sock_accept(server)
            assert await received(connection), "a handshake was begun"


async def test_the_connect_timeout_ends_with_the_connection() -> None:
    release = asyncio.Event()
    async with ScriptedProvider([release, OK]) as provider, session(provider.url) as client:
        waiting = asyncio.create_task(fetch(client, connect_timeout=0.05))
        await asyncio.wait([waiting], timeout=0.2)
        release.set()
        assert await waiting == (200, b"fine")


# Cancelled.


async def cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_it_connects() -> None:
    with listening() as server:
        async with session(f"https://127.0.0.1:{server.getsockname()[1]}") as client:
            opening = asyncio.create_task(fetch(client))
            connection, _ = await asyncio.get_running_loop().sock_accept(server)
            await cancelled(opening)
            await received(connection)


async def test_cancelled_while_a_name_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        asked.set()
        await answer.wait()
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with session("http://provider.invalid") as client:
        opening = asyncio.create_task(fetch(client))
        await asked.wait()
        await cancelled(opening)
        answer.set()


async def test_cancelled_while_the_request_is_sent() -> None:
    """A provider that reads nothing must not keep the socket open until it does."""
    body = b"x" * 16_000_000  # more than the kernel's buffers hold
    with listening(SO_RCVBUF=4096) as server:
        async with session(f"http://127.0.0.1:{server.getsockname()[1]}") as client:
            opening = asyncio.create_task(fetch(client, body=body))
            connection, _ = await asyncio.get_running_loop().sock_accept(server)
            transport = None
            while transport is None or not transport.get_write_buffer_size():
                await asyncio.sleep(0)
                transport = next((connection.transport for connection in client._pool.busy), None)
            await cancelled(opening)
            assert await received(connection) < len(body)


async def test_cancelled_while_it_waits_for_the_head() -> None:
    async with ScriptedProvider([HANG], [head()[:-2], HANG]) as provider, session(provider.url) as client:
        for index in range(2):
            waiting = asyncio.create_task(fetch(client))
            await provider.request(index)
            await asyncio.sleep(0)
            await cancelled(waiting)
            await provider.closed(index)


async def test_cancelled_while_it_reads() -> None:
    async with ScriptedProvider(stream(b"a", HANG)) as provider, session(provider.url) as client:
        started = asyncio.Event()

        async def read() -> None:
            async with post(client) as answer:
                await answer.read()
                started.set()
                await answer.read()

        reading = asyncio.create_task(read())
        await started.wait()
        await cancelled(reading)
        await provider.closed(0)


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_at_any_turn_of_the_loop_leaves_no_socket(times: int) -> None:
    async with ScriptedProvider(stream(b"a", b"b")) as provider, session(provider.url) as client:
        turns, done = 0, False
        while not done:
            talk = asyncio.create_task(fetch(client))
            for _ in range(turns):
                await asyncio.sleep(0)
            done = talk.done()
            for _ in range(times):
                talk.cancel()
                await asyncio.sleep(0)
            await asyncio.wait([talk])
            if not talk.cancelled():
                assert talk.result() == (200, b"ab")
            assert client._pool is None or not client._pool.busy
            turns += 1
        assert turns > 5
        await client.aclose()
        await provider.idle()


# Bodies.


async def broken(connection: Connection) -> None:
    await connection.send(head() + piece(b"a"))
    await connection._provider.first_read.wait()  # type: ignore[attr-defined]
    await connection.send(b"zz\r\na\r\n")
    await asyncio.shield(connection.closed)


BODIES: dict[str, tuple[Script, type[UpstreamError]]] = {
    "chunked, then FIN": (stream(b"a", CLOSE), UpstreamTruncated),
    "chunked, then RST": (stream(b"a", RESET), UpstreamTruncated),
    "in the middle of a chunk": ([head(), piece(b"a") + b"5\r\nab", CLOSE], UpstreamTruncated),
    "less than its content-length": ([http(200, b"abcdef")[:-2], CLOSE], UpstreamTruncated),
    "less than its content-length, then RST": ([http(200, b"abcdef")[:-2], RESET], UpstreamTruncated),
    "a chunk that is none, later": (broken, UpstreamProtocol),
    "a chunk that is none, at once": (head() + b"zz\r\n", UpstreamProtocol),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_broken_body(name: str) -> None:
    script, expected = BODIES[name]
    async with ScriptedProvider(script) as provider, session(provider.url) as client:
        provider.first_read = asyncio.Event()  # type: ignore[attr-defined]
        with pytest.raises(UpstreamError) as caught:
            async with post(client) as answer:
                while await answer.read():
                    provider.first_read.set()  # type: ignore[attr-defined]
        assert type(caught.value) is expected
        assert not caught.value.spent_nothing
        assert caught.value.__context__ is None
        await provider.closed(0)


async def test_a_body_until_the_connection_closes() -> None:
    script = [head(transfer_encoding=None), b"abc", CLOSE]
    async with ScriptedProvider(script) as provider, session(provider.url) as client:
        assert await fetch(client) == (200, b"abc")


HEADS = {
    "nothing": ([CLOSE], UpstreamUnavailable),
    "RST": ([RESET], UpstreamUnavailable),
    "half a head": ([head()[:-2], CLOSE], UpstreamUnavailable),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", UpstreamProtocol),
    "HTTP/2": (b"HTTP/2 200\r\n\r\n", UpstreamProtocol),
    "a status that is none": (b"HTTP/1.1 2000 OK\r\n\r\n", UpstreamProtocol),
    "a length that is none": (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", UpstreamProtocol),
    "two framings": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", UpstreamProtocol),
    "one long header": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", UpstreamProtocol),
    "many headers": (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1_000 + b"\r\n", UpstreamProtocol),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
async def test_a_broken_head(name: str, caplog: pytest.LogCaptureFixture) -> None:
    script, expected = HEADS[name]
    async with ScriptedProvider(script) as provider, session(provider.url) as client:  # type: ignore[arg-type]
        error = await failure(client)
        assert type(error) is expected
        assert not error.spent_nothing
        await provider.closed(0)
    assert caplog.messages
    assert KEY not in caplog.text


async def test_a_body_is_read_up_to_its_limit() -> None:
    endless = iter(lambda: piece(b"x" * 1000), None)

    async def script(connection: Connection) -> None:
        await connection.send(head())
        for data in endless:
            await connection.send(data)

    async with ScriptedProvider(script) as provider, session(provider.url) as client:
        async with post(client) as answer:
            assert await answer.read_body(12_345) == b"x" * 12_345
        await provider.closed(0)


# Backpressure.


async def stalled(connection: Connection) -> int:
    """The bytes that a provider could send until nothing more went out for many turns of the loop."""
    sent, still = -1, 0
    while still < 300:
        still = still + 1 if connection.sent == sent else 0
        sent = connection.sent
        assert sent < 100_000_000, "nothing holds the provider back"
        await asyncio.sleep(0)
    return sent


async def test_an_unread_stream_stops_reading_the_provider() -> None:
    data = piece(b"x" * 10_000)

    async def script(connection: Connection) -> None:
        await connection.send(head())
        while True:
            await connection.send(data)

    async with ScriptedProvider(script) as provider, session(provider.url) as client:
        async with post(client) as answer:
            await answer.read()
            connection = provider.connections[0]
            sent = await stalled(connection)
            kept = sum(map(len, answer.read.__self__._pieces))  # the rest is in the kernel
            assert kept <= READ_BUFFER + LARGEST_READ
            for _ in range(200):
                assert await answer.read()
            assert await stalled(connection) > sent
        await provider.closed(0)
