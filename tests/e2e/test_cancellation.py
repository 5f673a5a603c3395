"""A reader who leaves stops the spending, in every phase: uvicorn, real sockets, one event loop and so one clock.

Each phase is a way to bring a chat to a certain point. The reader then leaves, the provider must see its socket close
within 50 ms, and nothing may stay reserved. One try of several has to be as quick: a loaded machine is often late.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgi_servers import serve
from raw_client import HELLO, JSON, Client, Cut, Reply, ask, connect, settled, standing
from scripted_provider import (
    DONE,
    HANG,
    RESET,
    Script,
    ScriptedProvider,
    Step,
    answer,
    chunk,
    failure,
    finish,
    head,
    piece,
    stream,
    usage,
)

from chat_nest import Caller, HardCaps, Profile, Timeouts, create_chat_handler
from chat_nest.core.errors import ChatError
from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.protocols import Ending

TRIES = 7
CONTRACT = 0.050
"""Seconds from the reader's leaving to the provider's closed socket, on loopback."""

UNLIMITED = Profile(
    model="openai:scripted",
    max_output_tokens=2**30,
    tokens_per_request=None,
    tokens_per_day=2**40,
    requests_per_minute=None,
)
CAPS = HardCaps(
    max_output_tokens=2**30, tokens_per_day=MAX_AMOUNT, tokens_per_request=MAX_AMOUNT, requests_per_minute=10**6
)


class Endings:
    """An observer that lets a test wait for a request to be settled."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Ending] = asyncio.Queue()

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None: ...
    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None: ...

    def finished(self, ending: Ending) -> None:
        self.queue.put_nowait(ending)

    async def next(self) -> Ending:
        async with asyncio.timeout(240):
            return await self.queue.get()


class Setup:
    def __init__(self, provider: ScriptedProvider, port: int, endings: Endings) -> None:
        self.provider = provider
        self.port = port
        self.endings = endings


@asynccontextmanager
async def running(*scripts: Script, timeouts: Timeouts = Timeouts()) -> AsyncIterator[Setup]:
    async with ScriptedProvider(*scripts) as provider:
        endings = Endings()
        handler = create_chat_handler(
            api_key="k",
            base_url=provider.url,
            profiles={"balanced": UNLIMITED},
            hard_caps=CAPS,
            timeouts=timeouts,
            observers=[endings],
        )
        async with serve(handler) as port:
            yield Setup(provider, port, endings)


def endless() -> Iterator[Step]:
    yield head()
    whole = piece(chunk("0123456789abcdef" * 256))
    while True:
        yield whole


# The phases. Each brings a request to its point; the number is the request's at the provider.


async def before_the_headers(setup: Setup, client: Client, number: int) -> None:
    setup.provider.scripts = [[HANG]]
    client.send("POST", "/api/chat", HELLO, JSON)
    await setup.provider.request(number)


async def before_the_headers_with_the_stream_open(setup: Setup, client: Client, number: int) -> None:
    setup.provider.scripts = [[HANG]]
    reply = await client.post()
    await reply.until("start")
    await reply.until("ping")


async def before_the_first_token(setup: Setup, client: Client, number: int) -> None:
    setup.provider.scripts = [stream(HANG)]
    await (await client.post()).until("start")


async def mid_stream(setup: Setup, client: Client, number: int) -> None:
    setup.provider.scripts = [stream(chunk("one"), chunk("two"), HANG)]
    reply = await client.post()
    await reply.until("token")
    await reply.until("token")


async def in_the_middle_of_many_tokens(setup: Setup, client: Client, number: int) -> None:
    async def paced(connection: Any) -> None:
        await connection.send(head())
        while True:
            await connection.send(piece(chunk("word ")))
            await asyncio.sleep(0.002)

    setup.provider.scripts = [paced]
    reply = await client.post()
    for _ in range(5):
        await reply.until("token")


Phase = Callable[[Setup, Client, int], Awaitable[None]]
QUICK = Timeouts(commit=0.05, heartbeat=0.05)
PHASES: list[tuple[Phase, Timeouts, int]] = [
    (before_the_headers, Timeouts(), 0),
    (before_the_headers_with_the_stream_open, QUICK, 0),
    (before_the_first_token, Timeouts(), 0),
    (mid_stream, Timeouts(), 2),
    (in_the_middle_of_many_tokens, Timeouts(), 5),
]


def fin(client: Client) -> None:
    client.finish()


def rst(client: Client) -> None:
    client.reset()


@pytest.mark.parametrize("leave", [fin, rst], ids=["FIN", "RST"])
@pytest.mark.parametrize(("phase", "timeouts", "pieces"), PHASES, ids=lambda value: getattr(value, "__name__", ""))
async def test_row_41_leaving_closes_the_provider(phase, timeouts, pieces, leave):
    loop = asyncio.get_running_loop()
    async with running(timeouts=timeouts) as setup:
        took: list[float] = []
        before = 0
        for number in range(TRIES):
            async with connect(setup.port) as client:
                await phase(setup, client, number)
                left = loop.time()
                leave(client)
                took.append(await setup.provider.closed(number) - left)
            ending = await setup.endings.next()
            assert ending.error is not None
            assert ending.error.code == "client_gone"
            assert ending.source == "estimated"
            assert ending.usage.input_tokens > 0
            assert ending.usage.output_tokens >= pieces, "what was produced is charged"
            used = (await settled(setup.port))["tokens_per_day"]["used"]
            assert used - before == ending.usage.total_tokens, "once"
            before = used
        assert len(setup.provider.requests) == TRIES
        assert setup.provider.active == 0
        print(f"closed after {min(took) * 1_000:.2f} ms (the best of {len(took)})")
        assert min(took) < CONTRACT, took


@pytest.mark.parametrize("leave", [fin, rst], ids=["FIN", "RST"])
async def test_row_41_leaving_while_we_are_blocked_on_the_socket(leave):
    """The reader reads nothing. We stop reading the provider, memory stays flat, and leaving still closes at once."""
    loop = asyncio.get_running_loop()
    took: list[float] = []
    async with running(lambda connection: _send_all(connection)) as setup:
        for number in range(3):
            async with connect(setup.port, receive_buffer=4_096) as client:
                client.send("POST", "/api/chat", HELLO, JSON)
                request = await setup.provider.request(number)
                sent = await level(lambda: request.connection.sent)
                assert 0 < sent < 24 << 20, "only what the buffers of three sockets hold"
                memory = resident()
                assert await level(lambda: request.connection.sent) == sent
                assert resident() - memory < 4 << 20
                left = loop.time()
                leave(client)
                took.append(await setup.provider.closed(number) - left)
            ending = await setup.endings.next()
            assert ending.error is not None
            assert ending.error.code == "client_gone"
            limits = await settled(setup.port)
            assert limits["tokens_per_day"]["used"] > 0
        print(f"closed after {min(took) * 1_000:.2f} ms (the best of {len(took)})")
        assert min(took) < CONTRACT, took


async def _send_all(connection: Any) -> None:
    for step in endless():
        await connection.send(step)


async def level(value: Callable[[], int]) -> int:
    """Wait until the value has not changed for a quarter of a second, and return it."""
    async with asyncio.timeout(240):
        while True:
            before = value()
            for _ in range(10):
                await asyncio.sleep(0.025)
            if value() == before:
                return before


def resident() -> int:
    """The process's resident memory, in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_slow_reader_gets_the_whole_answer():
    """Backpressure end to end: nothing is lost, and the provider is never far ahead of the reader."""
    count = 600
    text = "x" * 4_000
    whole = sum(len(piece(chunk(text))) for _ in range(count))
    script = stream(*[chunk(text)] * count, finish(), usage(5, count), DONE)
    async with running(script) as setup, connect(setup.port, receive_buffer=4_096) as client:
        reply = await client.post()
        request = await setup.provider.request(0)
        await level(lambda: request.connection.sent)
        tokens = 0
        async with asyncio.timeout(240):
            while (event := await reply.event()) is not None:
                if event.name == "token":
                    assert event.data == f'"{text}"'
                    tokens += 1
        assert event is None
        assert tokens == count
        assert request.connection.sent > whole
        ending = await setup.endings.next()
        assert (ending.reason, ending.usage.output_tokens) == ("stop", count)


async def test_a_reader_who_closes_its_half_and_never_reads_is_dropped_by_the_write_timeout():
    """Its FIN can't be told from a reader's who still reads, until what is in between has been sent."""
    async with running(_send_all, timeouts=Timeouts(write=0.3)) as setup:
        async with connect(setup.port, receive_buffer=4_096) as client:
            client.send("POST", "/api/chat", HELLO, JSON)
            request = await setup.provider.request(0)
            await level(lambda: request.connection.sent)
            ending = await setup.endings.next()
            assert ending.error is not None
            assert ending.error.code == "slow_reader"
            await setup.provider.closed(0)


async def test_leaving_during_the_pause_before_a_retry(caplog):
    async with running(failure(500, retry_after="4"), answer("never")) as setup:
        async with connect(setup.port) as client:
            client.send("POST", "/api/chat", HELLO, JSON)
            while "provider openai: upstream_unavailable" not in caplog.text:  # logged when the pause begins
                await asyncio.sleep(0.005)
            assert (await standing(setup.port))["tokens_per_day"]["held"] > 0
            client.finish()
            ending = await setup.endings.next()
        assert ending.error is not None
        assert ending.error.code == "client_gone"
        assert ending.seconds < 3, "the pause was not waited for"
        limits = await settled(setup.port)
        assert limits["tokens_per_day"]["used"] == 0, "a refused attempt costs nothing"
        assert len(setup.provider.requests) == 1


@pytest.mark.parametrize("leave", [fin, rst], ids=["FIN", "RST"])
async def test_row_40_leaving_while_uploading_costs_nothing(leave):
    async with running() as setup:
        async with connect(setup.port) as client:
            client.send("POST", "/api/chat", headers={**JSON, "content-length": "1000"})
            client.write(b'{"messages":[')
            await asyncio.sleep(0)
            leave(client)
        assert (await ask(setup.port)).status == 200
        assert len(setup.provider.requests) == 1
        await settled(setup.port)


async def test_leaving_after_the_end_changes_nothing():
    async with running(answer("Hello", 3, input_tokens=9)) as setup:
        async with connect(setup.port) as client:
            await (await client.post()).until("done")
            client.reset()
        assert (await setup.endings.next()).reason == "stop"
        assert (await settled(setup.port))["tokens_per_day"]["used"] == 12


# Nothing is left behind.


async def one(setup: Setup, kind: int) -> None:
    """One of ten kinds of requests, most of them broken in some way."""
    async with connect(setup.port) as client:
        if kind == 0:
            assert (await client.post({"messages": []})).status == 400
            return
        if kind == 1:
            client.send("POST", "/api/chat", headers={**JSON, "content-length": "900"})
            client.reset()
            return
        client.send("POST", "/api/chat", HELLO, JSON)
        if kind == 2:
            client.reset()
            return
        if kind == 3:
            await asyncio.sleep(0.002)
            client.finish()
            return
        try:
            reply: Reply = await client.reply()
            if kind in (4, 5) and reply.status == 200:
                await reply.event()
                (client.finish if kind == 4 else client.reset)()
                return
            await reply.body()
        except Cut:
            pass


async def test_row_50_tasks_and_files_return_to_their_numbers():
    scripts: list[Script] = [
        answer("word ", 20),
        stream(chunk("word "), HANG),
        stream(chunk("word "), RESET),
        failure(400),
        [RESET],
        stream(chunk("word "), b"data: nonsense\n\n"),
        answer("word ", 3),
    ]
    timeouts = Timeouts(idle=0.3, first_token=0.5, commit=0.2)
    async with running(timeouts=timeouts) as setup:
        await ask(setup.port)
        await settled(setup.port)
        tasks, files = await quiet(setup)
        setup.provider.scripts = scripts * 50
        at_once = asyncio.Semaphore(25)

        async def limited(number: int) -> None:
            async with at_once:
                await one(setup, number % 10)

        async with asyncio.timeout(240):
            while len(setup.provider.requests) <= 150:  # it rests after failures in a row
                await asyncio.gather(*(limited(number) for number in range(300)))
            await settled(setup.port)
            while (now := await quiet(setup)) != (tasks, files):
                assert now[0] >= tasks
                await asyncio.sleep(0.05)


async def quiet(setup: Setup) -> tuple[int, int]:
    """The tasks, and the open files without the kept-alive connections to the provider, which have two ends here."""
    gc.collect()
    await asyncio.sleep(0)
    files = len(os.listdir("/proc/self/fd")) - 2 * setup.provider.active
    return len(asyncio.all_tasks()), files
