"""The handler under each ASGI server, in a process of its own, over real sockets."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from asgi_servers import SERVERS, Served, serve, serve_process
from raw_client import HELLO, JSON, Cut, Event, ask, connect, settled, standing
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, finish, head, piece, stream, usage

from chat_nest import MemoryStore, create_chat_handler

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Pair:
    """A server and its provider, shared by this file's tests of one server."""

    def __init__(self, name: str, served: Served, provider: ScriptedProvider) -> None:
        self.name = name
        self.port = served.port
        self.provider = provider

    def next(self, *scripts: Any) -> int:
        """Set what the provider does from now on; return the number of its next request."""
        self.provider.scripts = [b""] * len(self.provider.requests) + list(scripts)
        return len(self.provider.requests)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVERS)
async def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with ScriptedProvider() as provider:
        env = {"OPENAI_BASE_URL": provider.url}
        async with serve_process(request.param, "served_app:app", tmp_path_factory.mktemp("server"), env) as served:
            yield Pair(request.param, served, provider)
            assert await served.stop() in (0, -signal.SIGTERM), served.log.read_text()
            assert "Traceback" not in served.log.read_text()


async def test_each_token_arrives_when_the_provider_sends_it(pair):
    first, second = asyncio.Event(), asyncio.Event()
    pair.next(stream(chunk("one"), first, chunk("two"), second, finish(), usage(9, 2), DONE))
    async with connect(pair.port) as client:
        reply = await client.post()
        assert reply.status == 200
        assert reply.headers["content-type"] == "text/event-stream"
        assert (await reply.until("token")).data == '"one"'
        first.set()
        assert (await reply.until("token")).data == '"two"'
        second.set()
        done = await reply.until("done")
        assert done.json()["usage"] == {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}
        assert await reply.event() is None
        assert (await (await client.post({})).json())["code"] == "bad_request", "the connection goes on"


async def test_a_ping_in_a_silence(pair):
    go_on = asyncio.Event()
    pair.next([go_on, *answer("Hello")])
    async with connect(pair.port) as client:
        reply = await client.post()
        assert (await reply.event()).name == "start"
        assert await reply.event() == Event("ping", "")
        go_on.set()
        assert (await reply.until("done")).json()["finish_reason"] == "stop"


async def test_a_refusal_is_a_429_and_a_broken_body_a_400(pair):
    number = pair.next()
    reply = await ask(pair.port, {**HELLO, "dailyTokenLimit": 10})
    assert reply.status == 429
    assert b"Request too large" in reply.raw
    reply = await ask(pair.port, b'{"messages":')
    assert reply.status == 400
    assert b"Invalid messages payload" in reply.raw
    assert (await ask(pair.port, HELLO, headers={"content-type": "text/plain"})).status == 415
    async with connect(pair.port) as client:
        client.send("POST", "/api/chat", headers={**JSON, "content-length": "400000"})
        assert (await client.reply()).status == 413
    async with connect(pair.port) as client:
        assert (await client.request("HEAD", "/api/chat")).status == 405
    assert len(pair.provider.requests) == number, "nothing was generated"


@pytest.mark.parametrize("how", ["finish", "reset"])
@pytest.mark.parametrize("when", ["before the headers", "before the first token", "mid-stream"])
async def test_leaving_closes_the_provider(pair, how, when):
    loop = asyncio.get_running_loop()
    script = {
        "before the headers": [HANG],
        "before the first token": stream(HANG),
        "mid-stream": stream(chunk("a"), HANG),
    }
    took: list[float] = []
    for _ in range(5):
        number = pair.next(script[when])
        async with connect(pair.port) as client:
            client.send("POST", "/api/chat", HELLO, JSON)
            await pair.provider.request(number)
            if when != "before the headers":
                await (await client.reply()).until("token" if when == "mid-stream" else "start")
            left = loop.time()
            getattr(client, how)()
            took.append(await pair.provider.closed(number) - left)
        await settled(pair.port)
    print(f"{pair.name}, {when}, {how}: closed after {min(took) * 1_000:.1f} ms")
    assert min(took) < 0.25, took


def kernel_buffers() -> int:
    """What the kernel may hold of a stream on its way from the provider through the server: it sizes buffers as it likes."""
    received, sent = (int(Path(f"/proc/sys/net/ipv4/tcp_{kind}mem").read_text().split()[2]) for kind in "rw")
    return received + 2 * sent


async def test_a_reader_who_reads_nothing_stops_the_provider(pair):
    async def endless(connection: Any) -> None:
        await connection.send(head())
        whole = piece(chunk("0123456789abcdef" * 256))
        while True:
            await connection.send(whole)

    number = pair.next(endless)
    async with connect(pair.port, receive_buffer=4_096) as client:
        client.send("POST", "/api/chat", HELLO, JSON)
        connection = (await pair.provider.request(number)).connection
        sent = -1
        async with asyncio.timeout(240):
            while sent != connection.sent:
                sent = connection.sent
                await asyncio.sleep(0.5)
        assert 0 < sent < kernel_buffers() + (16 << 20), "only what buffers hold"
        client.reset()
        async with asyncio.timeout(240):
            await pair.provider.closed(number)
    await settled(pair.port)


async def test_thirty_at_once_and_nothing_is_left(pair):
    pair.next(answer("word ", 20, input_tokens=9))
    before = (await settled(pair.port))["tokens_per_day"]["used"]

    async def one(number: int) -> None:
        if number % 3:
            assert (await ask(pair.port)).raw.count(b"event: token") == 20
            return
        async with connect(pair.port) as client:
            await (await client.post()).event()
            client.reset()

    await asyncio.gather(*(one(number) for number in range(30)))
    used = (await settled(pair.port))["tokens_per_day"]["used"] - before
    assert 20 * 29 <= used, "each whole answer is charged as the provider counts it"
    assert await idle(pair.provider)


async def idle(provider: ScriptedProvider) -> bool:
    """Wait until the provider answers nobody; its kept-alive connections may stay."""
    async with asyncio.timeout(240):
        while any(connection._running and not connection.closed.done() for connection in provider.connections):
            await asyncio.sleep(0.01)
    return True


# What a process leaves behind.


@pytest.mark.parametrize("server", SERVERS)
async def test_row_47_a_stream_that_ends_soon_after_sigterm_is_whole(server, tmp_path):
    store, go_on = f"sqlite:///{tmp_path / 'ledger.db'}", asyncio.Event()
    async with ScriptedProvider(stream(chunk("one"), go_on, chunk("two"), finish(), usage(9, 2), DONE)) as provider:
        env = {"OPENAI_BASE_URL": provider.url, "STORE": store}
        async with serve_process(server, "served_app:app", tmp_path, env) as served, connect(served.port) as client:
            reply = await client.post()
            await reply.until("token")
            served.process.send_signal(signal.SIGTERM)
            await reply.until("ping")
            await reply.until("ping")  # a tenth of a second after the first
            go_on.set()
            assert (await reply.until("done")).json()["usage"]["total_tokens"] == 11
            client.finish()
            await served.process.wait()
    day = await ledger(store)
    assert (day["held"], day["used"]) == (0, 11)


# Granian has no way to end a request; hypercorn 0.18 waits for asyncio.Server.wait_closed, which since Python 3.12 waits
# for the requests.
ENDING = ["uvicorn", "hypercorn"] if sys.version_info < (3, 12) else ["uvicorn"]


@pytest.mark.parametrize("server", ENDING)
async def test_row_47_a_stream_that_does_not_end_gets_an_error_and_is_settled(server, tmp_path):
    store = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with ScriptedProvider(stream(chunk("one"), chunk("two"), HANG)) as provider:
        env = {"OPENAI_BASE_URL": provider.url, "STORE": store}
        async with serve_process(server, "served_app:app", tmp_path, env) as served, connect(served.port) as client:
            reply = await client.post()
            await reply.until("token")
            await reply.until("token")
            assert (await standing(served.port))["tokens_per_day"]["held"] > 0
            stopping = asyncio.create_task(served.stop(signal.SIGTERM))
            assert (await reply.until("error")).json()["code"] == "shutdown"
            assert await rest(reply) == [], "nothing follows"
            await stopping
            await provider.closed(0)
    day = await ledger(store)
    assert day["held"] == 0
    assert 2 < day["used"] < 200, "the prompt and two tokens, not the whole hold"


async def rest(reply: Any) -> list[str]:
    """The names of the events that still come, however the answer ends."""
    names: list[str] = []
    try:
        while (event := await reply.event()) is not None:
            names.append(event.name)
    except Cut:
        pass
    return names


async def ledger(store: str) -> dict[str, Any]:
    """This caller's day, as a new process would find it."""
    handler = create_chat_handler(api_key="k", store=store)
    async with serve(handler) as port:
        return (await standing(port))["tokens_per_day"]


async def test_row_26_over_two_processes_that_share_a_file(tmp_path):
    """A budget for four, forty at once over two servers: exactly four reach the provider."""
    release = asyncio.Event()
    async with ScriptedProvider(stream(chunk("Hello"), release, finish(), usage(15, 130), DONE)) as provider:
        env = {
            "OPENAI_BASE_URL": provider.url,
            "STORE": f"sqlite:///{tmp_path / 'shared.db'}",
            "TOKENS_PER_DAY": "720",
            "MAX_OUTPUT_TOKENS": "130",
            "MIN_OUTPUT_TOKENS": "130",
        }
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        async with (
            serve_process("uvicorn", "served_app:app", tmp_path / "a", env) as first,
            serve_process("uvicorn", "served_app:app", tmp_path / "b", env) as second,
        ):
            statuses: list[int] = []

            async def one(port: int) -> None:
                async with connect(port) as client:
                    reply = await client.post()
                    statuses.append(reply.status)
                    if len(statuses) == 40:
                        release.set()
                    await reply.body()

            await asyncio.gather(*(one(port) for port in [first.port, second.port] * 20))
            assert sorted(statuses) == [200] * 4 + [429] * 36
            assert len(provider.requests) == 4
            for port in (first.port, second.port):
                assert (await settled(port))["tokens_per_day"]["used"] == 4 * 145


# Without a server.


async def test_closed_by_async_with():
    store = MemoryStore()
    async with ScriptedProvider(stream(chunk("one"), HANG)) as provider:
        async with create_chat_handler(api_key="k", base_url=provider.url, store=store) as handler:
            async with serve(handler, lifespan="off") as port, connect(port) as client:
                reply = await client.post()
                await reply.until("token")
                closing = asyncio.create_task(handler.aclose())
                assert (await reply.until("error")).json()["code"] == "shutdown"
                await closing
                assert (await ask(port)).status == 503, "a closed handler takes nothing new"
                await provider.closed(0)


async def test_a_missing_key_is_reported_at_once():
    clean = {"PATH": "/usr/bin:/bin"}
    code = "from chat_nest import create_chat_handler; create_chat_handler()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=clean, stderr=subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"ValueError: no API key: pass api_key=..., or set OPENAI_API_KEY" in errors
