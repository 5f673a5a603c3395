"""The order of what is sent, where two tasks may send."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from chat_nest import BALANCED, ChatRequest, Timeouts, create_chat_handler
from chat_nest.asgi.response_stream import ResponseStream
from chat_nest.core.errors import Stopped
from chat_nest.dialects import Native
from chat_nest.pipeline.lifecycle import Lifecycle, State
from chat_nest.runs.memory import MemoryRun
from chat_nest.testing import ScriptedProvider, answer, collect

BODY = {"messages": [{"role": "user", "content": "Hello"}]}


class Late(ScriptedProvider):
    """Accepts the request after so many seconds."""

    def __init__(self, seconds: float, script) -> None:
        super().__init__(script)
        self._seconds = seconds

    @asynccontextmanager
    async def open(self, prompt, timeouts):
        async with super().open(prompt, timeouts) as batches:
            await asyncio.sleep(self._seconds)
            yield batches


def make(provider: ScriptedProvider, **timeouts: float):
    return create_chat_handler(providers={"p": provider}, model="p:m", timeouts=Timeouts(**timeouts))


@pytest.mark.parametrize("early", [0.0, 1e-10, 5e-10, -1e-10])
@pytest.mark.looptime(start=0)
async def test_a_provider_that_accepts_in_the_turn_in_which_the_stream_opens_anyway(early):
    """Both the request's task and the timer want to open the stream; one does, and neither waits for the other."""
    handler = make(Late(1.0 - early, answer("a", "b")), commit=1.0)
    got = await collect(handler, BODY)
    assert [name for name, _ in got.events] == ["start", "token", "token", "done"]
    assert asyncio.get_running_loop().time() == pytest.approx(1.0, abs=0.01)
    await handler.aclose()


@pytest.mark.looptime(start=0)
async def test_a_head_that_is_slow_to_send_comes_before_everything_else():
    """The timer opens the stream into a slow socket; the provider answers meanwhile."""
    order: list[str] = []
    provider = Late(1.2, answer("a"))

    async def sent(data: bytes) -> None:
        if data.startswith(b"event: start"):
            await asyncio.sleep(2)
        order.append(data.split(b"\n")[0].decode())

    handler = make(provider)
    got = await collect(handler, BODY, sent=sent)
    assert order == ["event: start", "event: token", "event: done"]
    assert got.complete
    await handler.aclose()


@pytest.mark.looptime(start=0)
async def test_no_ping_while_a_write_is_waiting_and_none_after_the_end():
    names: list[str] = []

    async def sent(data: bytes) -> None:
        names.append(data.split(b"\n")[0].decode())
        if b'"a"' in data:
            await asyncio.sleep(20)

    handler = make(ScriptedProvider(answer("a")), heartbeat=5)
    got = await collect(handler, BODY, sent=sent)
    await asyncio.sleep(30)
    assert names == ["event: start", "event: token", "event: done"]
    assert got.complete
    await handler.aclose()


@pytest.mark.looptime(start=0)
async def test_a_refusal_within_the_commit_time_has_a_status_and_one_after_it_is_an_event():
    from chat_nest.core.errors import UpstreamRejected

    class Rejects(Late):
        @asynccontextmanager
        async def open(self, prompt, timeouts):
            async with super().open(prompt, timeouts):
                raise UpstreamRejected(spent_nothing=True)
                yield

    for seconds, status in ((0.5, 502), (1.5, 200)):
        handler = make(Rejects(seconds, []))
        got = await collect(handler, BODY)
        assert got.status == status
        assert b'"code":"upstream_rejected"' in got.body
        assert [name for name, _ in got.events] == ([] if status == 502 else ["start", "error"])
        await handler.aclose()


@pytest.mark.looptime(start=0)
async def test_a_server_that_raises_on_send_ends_the_run_at_once():
    """Newer servers raise OSError once the reader has left."""
    provider = ScriptedProvider([*answer("a", "b")[:2], *answer("c")])

    async def sent(data: bytes) -> None:
        if b'"a"' in data:
            raise BrokenPipeError

    handler = make(provider)
    got = await collect(handler, BODY, sent=sent)
    assert b'"b"' not in got.body
    assert not got.complete
    assert provider.closed == 1
    await handler.aclose()


@pytest.mark.looptime(start=0)
async def test_a_failed_ping_ends_the_request():
    async def wait() -> None:
        await asyncio.sleep(1_000)

    provider = ScriptedProvider([wait, *answer("a")])

    async def sent(data: bytes) -> None:
        if b"ping" in data:
            raise ConnectionResetError

    handler = make(provider, first_token=900, total=900)
    await collect(handler, BODY, sent=sent)
    assert asyncio.get_running_loop().time() < 20
    assert provider.closed == 1
    await handler.aclose()


@pytest.mark.looptime(start=0)
async def test_a_reader_that_reads_no_ping_is_dropped_after_the_write_timeout():
    """Its provider may think for as long as it is allowed to, but not for nobody."""

    async def think() -> None:
        await asyncio.sleep(1_000)

    provider = ScriptedProvider([think, *answer("a")])

    async def sent(data: bytes) -> None:
        if b"ping" in data:
            await asyncio.Event().wait()

    handler = make(provider, first_token=900, total=900, heartbeat=15, write=30)
    await collect(handler, BODY, sent=sent)
    assert asyncio.get_running_loop().time() == pytest.approx(16 + 30, abs=0.1)
    assert provider.closed == 1
    await handler.aclose()


async def test_an_answer_that_ends_in_the_turn_in_which_its_reader_is_given_up_does_not_go_on():
    """Both cancel its task, and a task that is cancelled twice before its next turn sees that once."""
    reading, life = asyncio.Event(), Lifecycle("r")

    async def send(message) -> None:
        if message.get("body") == b"word":
            reading.set()
            await asyncio.Event().wait()

    stream = ResponseStream(send, life, Native(), [], Timeouts(), {})

    async def story() -> None:
        life.admit(SimpleNamespace(profile=replace(BALANCED, on_disconnect="finish")))  # type: ignore[arg-type]
        life.log = MemoryRun("r", "ada", "m")
        stream.expect(Native().encoder(ChatRequest(messages=()), "r"), "m")
        await stream.start("m")
        await stream.write(b"word")
        await asyncio.Event().wait()

    task = life.begin(story())
    await reading.wait()
    stream._drop()
    assert life.state is State.DETACHED
    life.end(Stopped())
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    stream.close()
