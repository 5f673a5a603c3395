"""What a provider had sent when its stream ended early, and nobody had taken, is charged like what was relayed.

The reader takes nothing, so the answer waits: in our buffers, and behind those in the kernel's and at the provider.
Real sockets, the server of `chat-nest serve`; the provider counts for itself what it has made.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgi_servers import serve_http
from raw_client import HELLO, JSON, Client, connect, settled
from scripted_provider import (
    DONE,
    HANG,
    RESET,
    ScriptedProvider,
    chunk,
    failure,
    finish,
    head,
    http,
    piece,
    stream,
    usage,
)
from scripted_provider import Connection as ProviderSide

from chat_nest import HardCaps, Profile, Timeouts, create_chat_handler
from chat_nest.core.protocols import Ending
from chat_nest.counting.tokens import counter_for
from chat_nest.ledger.reservation import Reservation
from chat_nest.pipeline.lifecycle import Lifecycle
from chat_nest.providers.codec import Codec
from chat_nest.providers.http import HTTPStream
from chat_nest.providers.http_connection import ClientConnection

PATIENCE = 60
"""Seconds after which what hangs is ended."""
MODEL = "gpt-4o"
HELD = 2**20
"""The most output that is granted: more than any script here makes."""
FILLING = " word" * 3_200
"""16 KB: half of what waits for a reader before its provider is not read any more."""
LAST = [" last"] * 20


class Endings:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[Ending] = asyncio.Queue()

    def started(self, *_: object) -> None: ...
    def refused(self, *_: object) -> None: ...

    def finished(self, ending: Ending) -> None:
        self.queue.put_nowait(ending)


class Side:
    """Our side of the connection to the provider."""

    def __init__(self) -> None:
        self.connection: ClientConnection | None = None
        self.received = 0
        self.more = asyncio.Event()

    async def until(self, received: int) -> None:
        """Wait until so many bytes have come."""
        while self.received < received:
            self.more.clear()
            await self.more.wait()

    @property
    def waiting(self) -> int:
        """Bytes of the answer that nobody has taken."""
        return 0 if self.connection is None else sum(map(len, self.connection._pieces))


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> Side:
    watched = Side()
    data_received = ClientConnection.data_received

    def received(connection: ClientConnection, data: bytes) -> None:
        data_received(connection, data)
        watched.connection = connection
        watched.received += len(data)
        watched.more.set()

    monkeypatch.setattr(ClientConnection, "data_received", received)
    return watched


class Answering:
    """Fills every buffer on the way to the reader, says the last words in one go, and counts what it has said."""

    def __init__(self, side: Side, *ending: bytes) -> None:
        self.side = side
        self.said = ""
        self.waits = asyncio.Event()
        """Its last words have come, and wait."""
        self._ending = ending
        self._sent = 0

    async def __call__(self, provider: ProviderSide) -> None:
        await self.send(provider, head())
        while not self.side.waiting:
            await self.send(provider, piece(chunk(FILLING)))
            self.said += FILLING
        last = [*map(chunk, LAST), *self._ending]
        self.said += "".join(LAST)
        await self.send(provider, b"".join(map(piece, last)))
        assert self.side.waiting
        self.waits.set()
        await asyncio.shield(provider.closed)

    async def send(self, provider: ProviderSide, data: bytes) -> None:
        self._sent += len(data)
        await provider.send(data)
        await self.side.until(self._sent)


class Setup:
    def __init__(self, provider: ScriptedProvider, port: int, endings: Endings) -> None:
        self.provider = provider
        self.port = port
        self._endings = endings

    async def ended(self) -> Ending:
        """The one ending; the ledger has what it says."""
        ending = await self._endings.queue.get()
        assert (await settled(self.port))["tokens_per_day"]["used"] == ending.usage.total_tokens
        assert self._endings.queue.empty()
        return ending


@asynccontextmanager
async def running(script: Any, **timeouts: float) -> AsyncIterator[tuple[Setup, Client]]:
    async with asyncio.timeout(PATIENCE), ScriptedProvider(script) as provider:
        endings = Endings()
        handler = create_chat_handler(
            api_key="k",
            base_url=provider.url,  # of this machine: an answer that is abandoned costs what was made until then
            profiles={
                "balanced": Profile(
                    model=f"openai:{MODEL}",
                    max_output_tokens=HELD,
                    tokens_per_request=None,
                    tokens_per_day=2**40,
                    requests_per_minute=None,
                )
            },
            hard_caps=HardCaps(max_output_tokens=HELD, tokens_per_day=2**40, tokens_per_request=2**40),
            timeouts=Timeouts(**timeouts),
            observers=[endings],
        )
        async with serve_http(handler) as (port, _), connect(port, receive_buffer=4_096) as client:
            client.send("POST", "/api/chat", HELLO, JSON)
            yield Setup(provider, port, endings), client


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "given-up"])
async def test_unread_text_is_charged_if_the_reader_leaves_or_is_given_up(side: Side, leaves: bool) -> None:
    script = Answering(side)
    async with running(script, write=PATIENCE if leaves else 0.5) as (setup, client):
        if leaves:
            await script.waits.wait()
            client.reset()
        await setup.provider.closed()
        ending = await setup.ended()
    assert ending.error is not None
    assert ending.error.code == ("client_gone" if leaves else "slow_reader")
    assert ending.usage.output_tokens == counter_for(MODEL).count(script.said)
    assert ending.source == "estimated"


async def test_a_report_that_waits_is_charged(side: Side) -> None:
    script = Answering(side, finish(), usage(5, 777), DONE)
    async with running(script) as (setup, client):
        await script.waits.wait()
        client.reset()
        await setup.provider.closed()
        ending = await setup.ended()
    assert (ending.usage.input_tokens, ending.usage.output_tokens, ending.source) == (5, 777, "reported")
    assert ending.reason is None, "its reader was not told the end"


async def test_the_hold_is_charged_if_the_reader_leaves_while_the_provider_is_not_read(side: Side) -> None:
    class Pouring(Answering):
        async def __call__(self, provider: ProviderSide) -> None:
            await provider.send(head())
            while True:
                self.said += FILLING
                await provider.send(piece(chunk(FILLING)))
                if self.side.connection is not None and self.side.connection._paused:
                    self.waits.set()

    script = Pouring(side)
    async with running(script) as (setup, client):
        await script.waits.wait()
        client.reset()
        await setup.provider.closed()
        ending = await setup.ended()
    assert counter_for(MODEL).count(script.said) < ending.usage.output_tokens == HELD
    assert ending.source == "assumed"


async def test_an_answer_that_is_no_stream_was_made_whole_before_it_came(side: Side) -> None:
    body = b'{"choices":[{"message":{"role":"assistant","content":"' + b" word" * 100
    whole = http(200, body + b" " * 1_000)
    async with running([whole[:-1_000], HANG]) as (setup, client):
        await side.until(len(whole) - 1_000)
        client.reset()
        await setup.provider.closed()
        ending = await setup.ended()
    assert (ending.usage.output_tokens, ending.source) == (HELD, "assumed")


async def test_a_fast_reader_is_charged_for_the_tokens_that_arrived(side: Side) -> None:
    script = stream(*map(chunk, LAST), HANG)
    async with running(script) as (setup, client):
        reply = await client.reply()
        for _ in LAST:
            await reply.until("token")
        client.reset()
        await setup.provider.closed()
        ending = await setup.ended()
    assert ending.usage.output_tokens == counter_for(MODEL).count("".join(LAST))
    assert ending.source == "estimated"


@pytest.mark.parametrize("script", ["cut", "refused", "leaves", "whole"])
async def test_nothing_of_a_request_that_is_over_waits_for_a_garbage_collection(script: str) -> None:
    """Buffers in a reference cycle stay for minutes: under load that is most of a server's memory."""
    scripts = {
        "cut": stream(chunk("a"), RESET),
        "refused": failure(401, "no"),
        "leaves": stream(chunk("a"), HANG),
        "whole": stream(chunk("a"), finish(), DONE),
    }
    gc.collect()
    before = set(map(id, _parts_of_requests()))
    gc.disable()
    try:
        async with running(scripts[script]) as (setup, client):
            reply = await client.reply()
            if script == "leaves":
                await reply.until("token")
                client.reset()
            else:
                await reply.body()
            await setup.ended()
            while [part for part in _parts_of_requests() if id(part) not in before]:
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


def _parts_of_requests() -> list[object]:
    kinds = (HTTPStream, Lifecycle, Reservation, Codec)
    return [each for each in gc.get_objects() if isinstance(each, kinds)]
