"""A provider's streams shared by two `chat-nest serve` on one store: greedy and modest callers over real sockets."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from postgres_server import new_database, shared_url
from raw_client import JSON, connect
from redis_servers import RedisServer
from scripted_provider import DONE, END, ScriptedProvider, chunk, delta, finish, head, piece, usage
from served_workers import start

STREAMS = 3
MODEST = 6
CONFIG = f"""
[server]
trusted_proxies = ["127.0.0.1"]
caller_header = "x-user"
[providers.openai]
concurrent_streams = {STREAMS}
[queue]
seconds = 100
length = 100
[profiles.balanced]
requests_per_minute = "none"
concurrent_streams = "none"
"""


class Model:
    """A model whose answers end when `release` allows one more, and who is asked what, in order, and how many at once."""

    def __init__(self) -> None:
        self.provider = ScriptedProvider(self._answer)
        self.release = asyncio.Semaphore(0)
        self.running = self.most = 0
        self.changed = asyncio.Condition()

    @property
    def asked(self) -> list[str]:
        return [request.json()["messages"][0]["content"] for request in self.provider.requests]

    async def until(self, condition) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def _answer(self, connection) -> None:
        await self._count(1)
        try:
            role = delta({"role": "assistant", "content": ""})
            await connection.send(head() + piece(role) + piece(chunk("Hello ")))
            await self.release.acquire()
        finally:
            await self._count(-1)  # before its end is sent: nobody can know of the free stream earlier
        await connection.send(piece(finish()) + piece(usage(5, 1)) + piece(DONE) + END)

    async def _count(self, change: int) -> None:
        async with self.changed:
            self.running += change
            self.most = max(self.most, self.running)
            self.changed.notify_all()


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shared.db'}"
    elif request.param == "redis":
        server = RedisServer()
        yield server.url
        server.stop()
    else:
        url, remove = new_database(shared_url())
        yield url
        remove()


@asynccontextmanager
async def two_workers(folder, url, model):
    (folder / "chat-nest.toml").write_text(CONFIG)
    environ = {
        "OPENAI_BASE_URL": model.provider.url,
        "OPENAI_API_KEY": "sk-test",
        "CHAT_NEST_MODEL": "scripted",
        "CHAT_NEST_STORE_URL": url,
        "CHAT_NEST_RUNS_URL": "memory://",
    }
    workers = [await start(folder, "--config", "chat-nest.toml", **environ) for _ in range(2)]
    try:
        await asyncio.gather(*(worker.started() for worker in workers))
        yield workers
    finally:
        await asyncio.gather(*(worker.kill() for worker in workers))


async def send(stack, worker, caller):
    """Send a request of this caller, and return its connection."""
    client = await stack.enter_async_context(connect(worker.port))
    client.send("POST", "/api/chat", {"messages": [{"role": "user", "content": caller}]}, {**JSON, "x-user": caller})
    return client


async def queued(client):
    """Return the answer of a request that waits."""
    reply = await client.reply()
    event = await reply.event()
    assert event.name == "queued"
    return reply


async def answers_before_the_last_modest(model, workers, greedy):
    """Let a caller send `greedy` requests to both workers and then six others one each.

    Return how many answers the greedy one still got before the last of these.
    """
    before = len(model.asked)
    async with AsyncExitStack() as stack:
        for number in range(STREAMS):  # which may wait until the server has counted out those of the round before
            await send(stack, workers[number % 2], "greedy")
        await model.until(lambda: model.running == STREAMS)
        for client in [await send(stack, workers[number % 2], "greedy") for number in range(greedy - STREAMS)]:
            await queued(client)
        modest = [await send(stack, workers[number % 2], f"modest-{number}") for number in range(MODEST)]
        replies = [await queued(client) for client in modest]
        for _ in range(greedy + MODEST - STREAMS):  # one ends, and the next begins, at whichever worker
            seen = len(model.asked)
            model.release.release()
            await model.until(lambda seen=seen: len(model.asked) > seen)
        for _ in range(STREAMS):
            model.release.release()
        for reply in replies:
            assert (await reply.until("done")).name == "done"
        asked = model.asked[before:]
        last = max(index for index, caller in enumerate(asked) if caller != "greedy")
        ahead = asked[:last].count("greedy") - STREAMS
    await model.until(lambda: not model.running)
    return ahead


async def test_a_greedy_caller_at_both_workers_gets_one_turn_a_round_and_the_provider_never_more_than_its_streams(
    url, tmp_path
):
    model = Model()
    async with model.provider, two_workers(tmp_path, url, model) as workers:
        for greedy in (10, 40):
            assert await answers_before_the_last_modest(model, workers, greedy) <= 3, (
                "one a round, and one for each worker whose store was slow"
            )
            model.release = asyncio.Semaphore(0)
        assert model.most == STREAMS


@pytest.mark.parametrize("url", ["redis"], indirect=True)
async def test_the_streams_of_a_killed_worker_are_given_to_the_other(url, tmp_path):
    model = Model()
    async with model.provider, two_workers(tmp_path, url, model) as workers, AsyncExitStack() as stack:
        for number in range(STREAMS):
            await send(stack, workers[0], f"{number}")
        await model.until(lambda: model.running == STREAMS)
        waits = await queued(await send(stack, workers[1], "waits"))
        workers[0].process.send_signal(signal.SIGKILL)
        await model.until(lambda: "waits" in model.asked)
        model.release.release()
        assert (await waits.until("done")).name == "done"
        assert model.most == STREAMS
