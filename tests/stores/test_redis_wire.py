"""The one connection of the Redis store: what is cut, stalled, cancelled or nonsense on it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets

import pytest
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.claims import Granted
from chat_nest.stores.redis import RedisStore
from chat_nest.stores.redis.resp import Broken, Denied, Login
from redis_servers import RedisServer, shared_server
from stores_under_test import LEASE, claim, standing, window

FAR = 4_000_000_000.0
DAY = window(10**6, key="day", resets_at=FAR)


class Proxy:
    """Between a store and its server. It hangs up instead of delivering, or stops delivering, when it is told to."""

    def __init__(self, port):
        self._port = port
        self._tasks = set()
        self.accepted = self.stalled = 0
        self.cut_after = None
        """How many bytes of the server's it still delivers before it hangs up."""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader, writer):
        self.accepted += 1
        there, to_there = await asyncio.open_connection("127.0.0.1", self._port)
        number = self.accepted
        tasks = {
            asyncio.create_task(self._copy(reader, to_there, number, back=False)),
            asyncio.create_task(self._copy(there, writer, number, back=True)),
        }
        self._tasks |= tasks
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, to_there):
            each.transport.abort()
        await asyncio.wait(tasks)
        self._tasks -= tasks

    async def _copy(self, reader, writer, number, *, back):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                if number <= self.stalled:
                    continue
                if back and self.cut_after is not None:
                    data, self.cut_after = data[: self.cut_after], self.cut_after - len(data)
                writer.write(data)
                await writer.drain()
                if back and self.cut_after is not None and self.cut_after <= 0:
                    self.cut_after = None
                    return


@pytest.fixture
async def proxy():
    async with Proxy(shared_server().port) as one:
        yield one


@pytest.fixture
async def store(proxy):
    one = RedisStore(proxy.url, prefix=secrets.token_hex(8), timeout=0.9)
    yield one
    await one.aclose()


@pytest.mark.parametrize("after", [1, 17, 60, 61, 300, 600])
async def test_calls_with_lost_answers_get_them_on_a_new_connection(proxy, store, after):
    await store.ping()
    proxy.cut_after = after
    claims = [claim(f"{number}", DAY, most=10 + number) for number in range(30)]
    answers = await asyncio.gather(*(store.reserve(one, LEASE) for one in claims))
    assert [answer.output_tokens for answer in answers] == [10 + number for number in range(30)]
    assert proxy.accepted == 2
    assert await standing(store, DAY) == (0, sum(range(10, 40)))
    proxy.cut_after = after
    await asyncio.gather(*(store.settle(one, {"tokens": 1}, "reported") for one in claims))
    assert await standing(store, DAY) == (30, 0)


async def test_a_connection_on_which_nothing_comes_any_more_is_replaced(proxy, store):
    await store.reserve(claim("a", DAY), LEASE)
    proxy.stalled = proxy.accepted
    answers = await asyncio.gather(*(store.peek([DAY]) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [LimiterUnavailable] * 3
    assert await standing(store, DAY) == (0, 100)
    assert proxy.accepted == 2


async def test_cancelled_calls_cost_no_connection(proxy, store):
    lines = [window(10**6, key=f"{number}", resets_at=FAR) for number in range(5)]
    for amount, line in enumerate(lines):
        await store.reserve(claim(line.key, line, most=10 + amount), LEASE)
    chance = random.Random(3)
    for _ in range(200):
        tasks = [asyncio.create_task(store.peek([line])) for line in lines]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        for task in chance.sample(tasks, 2):
            task.cancel()
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for amount, answer in enumerate(answers):
            assert isinstance(answer, asyncio.CancelledError) or answer[0].held == 10 + amount
    assert proxy.accepted == 1


async def test_many_calls_at_once_share_one_connection_that_one_of_them_opens(proxy, store):
    calls = [asyncio.create_task(store.reserve(claim(f"{number}", DAY), LEASE)) for number in range(50)]
    await asyncio.sleep(0)
    calls[0].cancel()  # the one that opens it
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(answer, Granted) for answer in answers[1:])
    assert await standing(store, DAY) == (0, 4_900)
    assert proxy.accepted <= 2


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n+OK\r\n+OK\r\n", b"", b"$-2\r\n"])
async def test_a_server_that_does_not_speak_redis_is_refused(words):
    handlers = set()

    async def serve(reader, writer):
        handlers.add(asyncio.current_task())
        await reader.read(100)
        writer.write(words)
        with contextlib.suppress(ConnectionError):
            while words and await reader.read(65_536):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        store = RedisStore(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=0.3)
        with pytest.raises(LimiterUnavailable):
            await store.reserve(claim("a", DAY), LEASE)
        await store.aclose()
        await asyncio.wait(handlers)


async def test_closing_does_not_wait_for_answers_of_abandoned_calls(proxy):
    store = RedisStore(proxy.url, prefix=secrets.token_hex(8))
    await store.ping()
    proxy.stalled = proxy.accepted
    call = asyncio.create_task(store.peek([DAY]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    async with asyncio.timeout(240):
        await store.aclose()


async def test_a_retired_connection_answers_pending_calls_and_ends():
    server = RedisServer()
    try:
        wire = await Login(None, None, None, 0).open(("127.0.0.1", server.port))
        asked = [asyncio.create_task(wire.ask("ECHO", str(number))) for number in range(3)]
        await asyncio.sleep(0)
        wire.retire()
        assert await asyncio.gather(*asked) == [b"0", b"1", b"2"]
        await wire.wait_closed()
        with pytest.raises(Broken):
            await wire.ask("PING")
    finally:
        server.stop()


async def test_an_error_fails_only_its_call():
    wire = await Login(None, None, None, 0).open(("127.0.0.1", shared_server().port))
    good, bad, after = await asyncio.gather(
        wire.ask("ECHO", "a"), wire.ask("EVALSHA", "0" * 40, 0), wire.ask("ECHO", b"\0\xff"), return_exceptions=True
    )
    assert (good, after) == (b"a", b"\0\xff")
    assert isinstance(bad, Denied)
    assert bad.code == "NOSCRIPT"
    wire.abort()
    await wire.wait_closed()
