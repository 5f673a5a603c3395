"""The per-token path does not grow: what one token sets in motion, counted, from the provider's bytes to the client's.

Everything on the way is real, as in `chat-nest serve`: the HTTP client's connection, the codec, the relay, the encoder,
the ASGI stream and the server's protocol. Only the two sockets are not there. Counted are the steps of Python functions
(each call, and each time that a coroutine goes on) and what the event loop is asked to do, which do not depend on the
machine. A new await, task or timer a token is over the bound; so that this is known, worse relays are tried as well.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from counted_steps import CountingLoop, Steps, Wire
from scripted_provider import DONE, END, chunk, finish, head, piece

from chat_nest.dialects import DialectName
from chat_nest.pipeline import chat
from chat_nest.asgi.create import create_chat_handler
from chat_nest.core.protocols import Sink
from chat_nest.providers.http_connection import ClientConnection
from chat_nest.pipeline.relay import relay
from chat_nest.server.http.context import ServerContext
from chat_nest.server.http.protocol import ServerConnection

MOST_STEPS = 14
"""Python functions entered or gone on with, a token."""
MOST_HANDLES = 0
"""Callbacks, timers and tasks together, a token: it goes from the provider's read to the client's write."""
TOKENS = 100
WORD = "  word"
"""Of no other part of an event."""
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "native": ("/api/chat", {}),
    "openai": ("/v1/chat/completions", {"stream": True}),
    "responses": ("/v1/responses", {"stream": True}),
    "anthropic": ("/v1/messages", {"stream": True, "max_tokens": 400}),
    "ai_sdk": ("/api/ai", {}),
    "ag_ui": ("/api/ag-ui", {"threadId": "t", "runId": "r", "state": {}, "tools": [], "context": []}),
    "blog": ("/chat", {"message": "Hi"}),
}
"""The path of each format, and the fields of a request besides its messages."""


def request_of(dialect: DialectName) -> bytes:
    path, fields = FORMATS[dialect]
    said: dict[str, Any] = {"id": "1", "role": "user", "content": "Hi"}
    body: dict[str, Any] = {"input": "Hi"} if dialect == "responses" else {"messages": [said]}
    if dialect == "ai_sdk":
        said["parts"] = [{"type": "text", "text": "Hi"}]
    raw = json.dumps({**body, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


async def cost(
    loop: CountingLoop, monkeypatch: pytest.MonkeyPatch, dialect: DialectName
) -> tuple[dict[str, float], float]:
    """Steps by function, and handles, a token, of an answer in which every token comes by itself."""
    opened: list[ClientConnection] = []

    async def create_connection(make: Callable[[], ClientConnection], *_: object) -> tuple[Wire, ClientConnection]:
        opened.append(make())
        opened[0].connection_made(Wire())
        return Wire(), opened[0]

    monkeypatch.setattr(loop, "create_connection", create_connection)
    handler = create_chat_handler(api_key="none", base_url="http://127.0.0.1:1/v1", dialect=dialect)
    server, client = ServerConnection(ServerContext(handler)), Wire()
    server.connection_made(client)
    server.data_received(request_of(dialect))
    while not opened or not opened[0].transport.written:
        await asyncio.sleep(0)
    provider = opened[0]
    provider.data_received(head() + piece(chunk("First")))
    while not any(b"First" in data for data in client.written):
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    tokens = [piece(chunk(WORD)) for _ in range(TOKENS)]
    written, loop.handles, turns, steps = len(client.written), 0, 0, Steps(cost)
    sys.setprofile(steps)
    try:
        for number, token in enumerate(tokens):
            provider.data_received(token)
            while len(client.written) <= written + number:
                turns += 1
                await asyncio.sleep(0)
                assert turns <= 10 * TOKENS
    finally:
        sys.setprofile(None)
    handles = loop.handles - turns  # each turn of ours is one
    assert b"".join(client.written[written:]).count(WORD.encode()) == TOKENS
    assert len(client.written) == written + TOKENS
    provider.data_received(piece(finish() + DONE) + END)
    while not client.written[-1].endswith(b"0\r\n\r\n"):
        await asyncio.sleep(0)
    await handler.aclose()
    return {name: count / TOKENS for name, count in steps.by_function.items()}, handles / TOKENS


def measured(monkeypatch: pytest.MonkeyPatch, dialect: DialectName = "native") -> tuple[dict[str, float], float]:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, CountingLoop)
        return runner.run(cost(loop, monkeypatch, dialect))


def test_what_a_token_sets_in_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, handles = measured(monkeypatch)
    assert handles <= MOST_HANDLES + 0.02  # a heartbeat's timer may be armed in between
    assert sum(steps.values()) <= MOST_STEPS + 0.2, steps  # a text is counted anew now and then
    assert steps["_Passing.take"] == 1, "the count sees the path"


@pytest.mark.parametrize("dialect", FORMATS)
def test_a_token_takes_no_more_in_any_format(dialect: DialectName, monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses keeps its answers: a step to append the token and one to number it, and one less to encode it."""
    steps, handles = measured(monkeypatch, dialect)
    assert handles <= MOST_HANDLES + 0.02
    most = MOST_STEPS + (dialect == "responses")
    assert sum(steps.values()) <= most + 0.2, sorted(steps.items())


class Worse:
    """A sink that does one thing more a token; without one it has no `push`, so that each token is awaited."""

    def __init__(self, sink: Sink, more: Callable[[], object] | None) -> None:
        self.write = sink.write
        self.push = None if more is None or sink.push is None else partial(self._push, sink.push, more)

    def _push(self, push: Callable[[bytes], bool], more: Callable[[], object], data: bytes) -> bool:
        more()
        return push(data)


def a_task() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    task.add_done_callback(lambda _: None)


def a_timer() -> None:
    asyncio.get_running_loop().call_later(10, int).cancel()


def a_turn() -> None:
    asyncio.get_running_loop().call_soon(int)


@pytest.mark.parametrize("more", [a_task, a_timer, a_turn, None])
def test_a_worse_relay_is_over_the_bound(more: Callable[[], object] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def worse(batches: Any, encoder: Any, sink: Sink, *others: Any) -> Any:
        return await relay(batches, encoder, Worse(sink, more), *others)

    monkeypatch.setattr(chat, "relay", worse)
    steps, handles = measured(monkeypatch)
    assert handles > MOST_HANDLES + 0.5
    assert sum(steps.values()) > MOST_STEPS + 0.5
