"""The way to an origin: addresses by turns, proxies, certificates, and no socket left wherever it is cancelled."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
import uvloop
from scripted_provider import CLOSE, HANG, Connection, ScriptedProvider, http, stream

from chat_nest.core.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable, UpstreamUnreachable
from chat_nest.providers.http import KEEP_SECONDS, HTTPSession
from chat_nest.providers.http_route import HttpRoute, request_head

OK = http(200, b"fine")
AUTHORITY = trustme.CA()


@pytest.fixture(autouse=True)
def no_proxy_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def server_tls(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(name).configure_cert(context)
    return context


def client_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


async def fetch(session: HTTPSession, connect_timeout: float = 10.0) -> tuple[int, bytes]:
    async with session.request("POST", "/chat", headers={}, body=b"{}", connect_timeout=connect_timeout) as answer:
        return answer.status, await answer.read_body(1000)


async def refused(url: str, tls: ssl.SSLContext | None = None, connect_timeout: float = 10.0) -> type[UpstreamError]:
    session = HTTPSession(url, tls=tls)
    with pytest.raises(UpstreamError) as caught:
        await fetch(session, connect_timeout)
    await session.aclose()
    assert caught.value.spent_nothing
    assert caught.value.__context__ is None
    return type(caught.value)


# Addresses.


def names(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """The event loop finds these addresses for any name."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


@asynccontextmanager
async def silent(port: int, address: str = "127.0.77.2") -> AsyncIterator[None]:
    """An address that does not answer: whoever listens there has all that it takes."""
    loop = asyncio.get_running_loop()
    with socket.socket() as server, socket.socket() as filler:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))  # an address of this file's own: on others the port may be a client's
        server.listen(0)
        filler.setblocking(False)
        await loop.sock_connect(filler, (address, port))
        yield


async def test_an_address_that_refuses_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(OK) as provider:
        asked = names(monkeypatch, "127.0.0.3", "127.0.0.4", "127.0.0.1")
        session = HTTPSession(f"http://provider.invalid:{provider.port}")
        assert await fetch(session) == (200, b"fine")
        assert await fetch(session) == (200, b"fine")
        await session.aclose()
        assert asked == ["provider.invalid"]
        assert provider.requests[0].headers["host"] == f"provider.invalid:{provider.port}"


async def test_an_address_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(OK) as provider, silent(provider.port):
        names(monkeypatch, "127.0.77.2", "127.0.0.1")
        session = HTTPSession(f"http://provider.invalid:{provider.port}")
        assert await fetch(session) == (200, b"fine")
        await session.aclose()
        assert provider.opened == 1


async def test_all_addresses_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        names(monkeypatch, "127.0.0.1", "127.0.0.3")
        assert await refused(f"http://provider.invalid:{taken.getsockname()[1]}") is UpstreamUnreachable


async def test_a_name_without_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch)
    assert await refused("http://provider.invalid") is UpstreamUnreachable


async def test_all_addresses_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(OK) as provider, silent(provider.port), silent(provider.port, "127.0.0.5"):
        names(monkeypatch, "127.0.77.2", "127.0.0.5")
        assert await refused(f"http://provider.invalid:{provider.port}", None, 0.4) is UpstreamTimeout


async def test_addresses_of_both_kinds_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from chat_nest.providers.http_route import _resolve

    names(monkeypatch, "::1", "::2", "::3", "127.0.0.1", "127.0.77.2", "::1")
    assert await _resolve("provider.invalid", 80) == ["::1", "127.0.0.1", "::2", "127.0.77.2", "::3"]
    assert await _resolve("::1", 80) == ["::1"]


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_while_it_tries_addresses(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(OK) as provider, silent(provider.port):
        names(monkeypatch, "127.0.77.2", "127.0.0.1")
        session = HTTPSession(f"http://provider.invalid:{provider.port}")
        before = set(asyncio.all_tasks())
        opening = asyncio.create_task(fetch(session))
        for _ in range(6):
            await asyncio.sleep(0)
        for _ in range(times):
            opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        for _ in range(5):
            await asyncio.sleep(0)
        assert set(asyncio.all_tasks()) == before
        await session.aclose()


async def test_an_address_that_answers_late_is_left() -> None:
    from chat_nest.providers.http_route import _connect, _drop

    async with ScriptedProvider(OK) as provider:
        late = asyncio.create_task(_connect("127.0.0.1", provider.port))
        won = await _connect("127.0.0.1", provider.port)
        await late
        _drop(late, late.result())
        assert not late.result().closed
        _drop(late, won)
        assert late.result().closed
        won.abort()


async def test_closed_while_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def getaddrinfo(_: str, port: int, **__: object) -> list[tuple[object, ...]]:
        asked.set()
        await answer.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with ScriptedProvider(OK) as provider:
        session = HTTPSession(f"http://provider.invalid:{provider.port}")
        opening = asyncio.create_task(fetch(session))
        await asked.wait()
        await session.aclose()
        answer.set()
        with pytest.raises(UpstreamUnreachable):
            await opening
        await provider.idle()
        assert not provider.requests


# What is asked for.


@pytest.mark.parametrize(
    ("url", "authority", "prefix"),
    [
        ("http://provider.invalid", "provider.invalid", ""),
        ("http://provider.invalid:80/v1/", "provider.invalid", "/v1"),
        ("http://provider.invalid:443", "provider.invalid:443", ""),
        ("https://provider.invalid:443/a/b", "provider.invalid", "/a/b"),
        ("http://[::1]:80", "[::1]", ""),
        ("http://[::1]:8080", "[::1]:8080", ""),
        ("http://user:password@provider.invalid", "provider.invalid", ""),
    ],
)
def test_the_origin_of_a_url(url: str, authority: str, prefix: str) -> None:
    route = HttpRoute(url, None)
    assert (route.authority, route.prefix, route.fields) == (authority, prefix, {})


@pytest.mark.parametrize("bad", ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "caf\u00e9", "\ud800"])
def test_a_header_stays_in_its_line(bad: str) -> None:
    for target, fields in (("/", {"x": bad}), ("/", {bad: "x"}), (bad, {})):
        with pytest.raises(ValueError, match="ASCII, each in one line") as caught:
            request_head("GET", target, fields)
        assert bad not in str(caught.value)
    assert request_head("GET", "/", {"a": "b"}) == b"GET / HTTP/1.1\r\na: b\r\n\r\n"


# Proxies.


@asynccontextmanager
async def proxy(
    target: int, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n", tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[bytes], Callable[[], Awaitable[None]]]]:
    """A proxy that knows CONNECT: its port, the heads that it got, and a wait until its clients have left."""
    heads: list[bytes] = []
    talks: list[asyncio.Task[None]] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        except (ConnectionError, ssl.SSLError):
            pass
        writer.transport.abort()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())  # type: ignore[arg-type]
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()  # Python closes it by itself only from 3.11.7 on
            return
        writer.write(answer)
        if not target:
            await copy(reader, writer)
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    async def left() -> None:
        await asyncio.wait(talks)

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], heads, left
        await left()
    finally:
        server.close()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 204 Go\r\nvia: x\r\n\r\n"]
)
async def test_a_tunnel(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(OK, tls=server_tls("provider.invalid")) as provider:
        async with proxy(provider.port, answer) as (port, heads, _):
            monkeypatch.setenv("https_proxy", f"http://us%20er:p%40ss@127.0.0.1:{port}")
            session = HTTPSession("https://provider.invalid/v1", tls=client_tls())
            assert await fetch(session) == (200, b"fine")
            assert await fetch(session) == (200, b"fine")
            await session.aclose()
        assert len(heads) == provider.opened == 1
        assert heads[0].startswith(b"CONNECT provider.invalid:443 HTTP/1.1\r\nhost: provider.invalid:443\r\n")
        assert b"Basic dXMgZXI6cEBzcw==" in heads[0]


async def test_a_proxy_that_is_spoken_to_through_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system's authorities are asked about the proxy: here SSL_CERT_FILE names them."""
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with ScriptedProvider(OK, tls=server_tls("provider.invalid")) as provider:
        async with proxy(provider.port, tls=server_tls("localhost")) as (port, heads, _):
            monkeypatch.setenv("https_proxy", f"https://localhost:{port}")
            session = HTTPSession("https://provider.invalid/v1")
            assert await fetch(session) == (200, b"fine")
            await session.aclose()
        assert heads


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nand more",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_a_proxy_that_does_not_do_it(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy(0, answer) as (port, _, left):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert await refused("https://provider.invalid") is UpstreamUnreachable
        await left()


async def test_the_certificate_behind_a_proxy_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(OK, tls=server_tls("other.invalid")) as provider:
        async with proxy(provider.port) as (port, _, left):
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
            assert await refused("https://provider.invalid", client_tls()) is UpstreamUnreachable
            await left()
        assert not provider.requests


async def test_a_silent_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy(0, b"") as (port, _, left):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert await refused("https://provider.invalid", None, 0.1) is UpstreamTimeout
        await left()


async def test_a_proxy_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    assert await refused("https://provider.invalid") is UpstreamUnreachable


# Certificates.


async def test_ssl_cert_file_names_the_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with ScriptedProvider(OK, tls=server_tls("localhost")) as provider:
        assert await refused(provider.url) is UpstreamUnreachable
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        session = HTTPSession(provider.url)
        assert await fetch(session) == (200, b"fine")
        await session.aclose()


# Kept connections.


@pytest.mark.looptime
async def test_a_connection_that_is_idle_for_long_is_closed() -> None:
    async with ScriptedProvider(OK) as provider:
        session = HTTPSession(provider.url)
        await asyncio.gather(fetch(session), fetch(session))
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(KEEP_SECONDS * 0.75)
        await fetch(session)  # the one that was used last
        assert provider.opened == provider.active == 2
        await provider.idle()
        assert asyncio.get_running_loop().time() - began <= KEEP_SECONDS * 1.8
        assert await fetch(session) == (200, b"fine")
        assert provider.opened == 3
        await session.aclose()


async def test_a_stream_that_was_left_reads_nothing_of_the_next() -> None:
    async with ScriptedProvider(OK, stream(b"secret")) as provider:
        session = HTTPSession(provider.url)
        async with session.request("POST", "/", headers={}, body=b"", connect_timeout=10) as answer:
            await answer.read_body(1000)
        async with session.request("POST", "/", headers={}, body=b"", connect_timeout=10) as other:
            with pytest.raises(UpstreamError):
                await answer.read()
            assert await other.read() == b"secret"
        await session.aclose()
        assert provider.opened == 1


async def test_a_get_is_sent_again_when_a_kept_connection_turns_out_to_be_closed() -> None:
    """Once, and on a new connection."""
    async with ScriptedProvider(OK) as provider:
        session = HTTPSession(provider.url)
        await fetch(session)
        provider.models = [CLOSE]
        with pytest.raises(UpstreamUnavailable) as caught:
            async with session.request("GET", "/models", headers={}, connect_timeout=10):
                pass
        assert caught.value.__context__ is None
        assert (len(provider.checks), provider.opened) == (2, 2)
        await fetch(session)

        async def closed_at_first(connection: Connection) -> None:
            provider.models = OK
            connection.close()

        provider.models = closed_at_first
        async with session.request("GET", "/models", headers={"x": "y"}, connect_timeout=10) as answer:
            assert await answer.read_body(100) == b"fine"
        assert provider.checks[-1].headers["x"] == "y"
        await session.aclose()


# The same on uvloop, which `chat-nest serve` runs on.


async def cancelled_at_any_turn(session: HTTPSession, times: int) -> int:
    turns, done = 0, False
    while not done:
        talk = asyncio.create_task(fetch(session))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = talk.done()
        for _ in range(times):
            talk.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([talk])
        if not talk.cancelled():
            assert talk.result() == (200, b"ab")
        turns += 1
        await session.aclose()
    return turns


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("through", ["tcp", "tls", "proxy"])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_cancelled_at_any_turn_no_socket_is_left(
    loop: Callable[[], asyncio.AbstractEventLoop], through: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk() -> None:
        tls = None if through == "tcp" else server_tls("provider.invalid" if through == "proxy" else "localhost")
        async with ScriptedProvider(stream(b"a", b"b"), tls=tls) as provider:
            if through == "proxy":
                async with proxy(provider.port) as (port, _, left):
                    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
                    session = HTTPSession("https://provider.invalid/v1", tls=client_tls())
                    assert await cancelled_at_any_turn(session, times) > 5
                    await left()
            else:
                session = HTTPSession(provider.url, tls=client_tls() if tls else None)
                assert await cancelled_at_any_turn(session, times) > 5
            await provider.idle()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(talk())


def test_leaving_a_stream_on_uvloop_closes_it() -> None:
    async def talk() -> None:
        for tls in (None, server_tls("localhost")):
            async with ScriptedProvider(stream(b"a", HANG), tls=tls) as provider:
                session = HTTPSession(provider.url, tls=client_tls())
                async with session.request("POST", "/", headers={}, body=b"", connect_timeout=10) as answer:
                    assert await answer.read() == b"a"
                await provider.closed(0)
                await session.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk())
