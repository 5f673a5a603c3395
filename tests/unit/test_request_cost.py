"""A request does not grow: what one answer of one token sets in motion, counted, from the client's bytes to the last.

Everything on the way is real, as in `chat-nest serve` with a store in memory: the server's protocol, the ASGI
application, the pipeline, the ledger, the HTTP client's connection. Only the two sockets are not there. Counted are the
steps of Python functions (each call, and each time that a coroutine goes on), those of the standard library included,
and what the event loop is asked to do: tasks, callbacks and timers. A feature that costs every request more than a few
of them is over the bound; so that this is known, worse ones are tried as well.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import pytest
from counted_steps import CountingLoop, Steps, Wire
from scripted_provider import DONE, END, chunk, finish, head, piece, usage

from chat_nest.asgi.create import create_chat_handler
from chat_nest.pipeline import chat
from chat_nest.pipeline.prompt import make_prompt
from chat_nest.providers.http_connection import ClientConnection
from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.protocol import ServerConnection

MOST_STEPS = 749
"""Python functions entered or gone on with, a request with five messages."""
MOST_HANDLES = 14
"""Callbacks, timers and tasks together."""
REQUESTS = 10
ANSWER = head() + piece(chunk("Hi")) + piece(finish()) + piece(usage(100, 1)) + piece(DONE) + END


async def cost(loop: CountingLoop, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], float]:
    """Steps by function, and handles, a request."""
    opened: list[ClientConnection] = []
    provider = Wire()

    async def create_connection(make: Callable[[], ClientConnection], *_: object) -> tuple[Wire, ClientConnection]:
        opened.append(make())
        opened[0].connection_made(provider)
        return provider, opened[0]

    monkeypatch.setattr(loop, "create_connection", create_connection)
    handler = create_chat_handler(api_key="none", base_url="http://127.0.0.1:1/v1")
    handler.start()
    server, client = ServerConnection(ServerContext(handler)), Wire()
    server.connection_made(client)
    turns = [{"role": "assistant" if index % 2 else "user", "content": f"Message {index}"} for index in range(5)]
    body = json.dumps({"messages": turns}).encode()
    headers = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    request = b"POST /api/chat HTTP/1.1\r\nhost: x\r\n" + headers + body

    async def answer_one() -> int:
        """Answer one request, and return how many turns of the event loop it was given."""
        turns = 0
        client.written.clear()
        provider.written.clear()
        server.data_received(request)
        while not provider.written:
            turns += 1
            await asyncio.sleep(0)
        opened[0].data_received(ANSWER)
        while server.answering or handler.running:
            turns += 1
            await asyncio.sleep(0)
        assert b"".join(client.written).count(b"event: token") == 1
        assert client.written[-1].endswith(b"0\r\n\r\n")
        return turns

    for _ in range(3):  # the first ones open the connection, and fill what is computed once
        await answer_one()
    before, loop.handles, turns, steps = len(opened), 0, 0, Steps(cost, answer_one)  # type: ignore[assignment]
    sys.setprofile(steps)
    try:
        for _ in range(REQUESTS):
            turns += await answer_one()  # type: ignore[arg-type]
    finally:
        sys.setprofile(None)
    handles = loop.handles - turns  # each turn of ours is one
    assert len(opened) == before, "the connection is used again"
    await handler.aclose()
    return {name: count / REQUESTS for name, count in steps.by_function.items()}, handles / REQUESTS


def measured(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], float]:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, CountingLoop)
        return runner.run(cost(loop, monkeypatch))


def test_what_a_request_sets_in_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, handles = measured(monkeypatch)
    assert handles <= MOST_HANDLES + 0.5
    assert sum(steps.values()) <= MOST_STEPS + 5, sorted(steps.items(), key=lambda each: -each[1])[:40]
    assert steps["make_prompt"] == 1, "the count sees the path"


async def a_task() -> None:
    await asyncio.create_task(asyncio.sleep(0))


@runtime_checkable
class Able(Protocol):
    def one(self) -> None: ...
    def another(self) -> None: ...


def a_check_of_a_protocol(request: object) -> None:
    for _ in range(30):
        assert not isinstance(request, Able)


def sixty_calls(_: object) -> None:
    for _ in range(60):
        a_call()


def a_call() -> None:
    """Do nothing."""


@pytest.mark.parametrize("more", [a_check_of_a_protocol, sixty_calls])
def test_a_request_with_more_steps_is_over_the_bound(
    more: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(request: Any, *others: Any) -> Any:
        more(request)
        return make_prompt(request, *others)

    monkeypatch.setattr(chat, "make_prompt", worse)
    steps, _ = measured(monkeypatch)
    assert sum(steps.values()) > MOST_STEPS + 5


def test_a_request_with_one_more_task_is_over_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    check = chat.Callers.check_challenge

    async def worse(*arguments: Any) -> None:
        await a_task()
        await check(*arguments)

    monkeypatch.setattr(chat.Callers, "check_challenge", worse)
    _, handles = measured(monkeypatch)
    assert handles > MOST_HANDLES + 0.5
