"""A model provider on a real socket that does exactly what a test's script says.

    async with ScriptedProvider(answer("Hello", 3)) as provider:       # every request is answered this way
        ...  # point the code under test at provider.url, "http://127.0.0.1:PORT/v1"
        assert provider.requests[0].json()["stream"] is True

    release = asyncio.Event()
    script = stream(chunk("Hel"), release, chunk("lo"), finish(), usage(5, 2), DONE)
    async with ScriptedProvider(script, RATE_LIMITED) as provider:      # first request, then every later one
        request = await provider.request(0)                             # wait until the first request arrived
        release.set()
        closed_at = await provider.closed(0)                            # the loop's time at which the client closed it

A script is the bytes of a whole answer; or an iterable of steps, which may be endless; or an async function that takes
the Connection. A step is one of:

    bytes            sent as they are, once the socket has room (so an endless script meets backpressure)
    asyncio.Event    waited for
    float, int       slept for, in seconds (for running by hand, and for the loop of looptime)
    CLOSE            FIN, once everything before was sent
    RESET            RST, at once
    HANG             say nothing more until the client closes

After the last step the connection is kept alive for the next request. `stream(...)` puts steps into an HTTP answer
with chunked encoding; `http(...)` is a plain answer; `head(...)`, `piece(...)` and `END` are their parts. What a script
raises, other than because the client left, is raised again where the `async with` ends. GET requests are answered with
`provider.models` and recorded in `provider.checks`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast, Self

from chat_nest.server.http.server import stop_listening

Ending = Literal["close", "reset", "hang"]
CLOSE: Ending = "close"
RESET: Ending = "reset"
HANG: Ending = "hang"
Step = bytes | asyncio.Event | float | Ending
Script = bytes | Iterable[Step] | Callable[["Connection"], Awaitable[None]]

DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
"""The last chunk of a chunked body."""


def head(status: int = 200, content_type: str | None = "text/event-stream", **headers: str | None) -> bytes:
    """The head of an answer with a chunked body. Underscores in the names stand for hyphens; None leaves one out."""
    return _head(status, {"content_type": content_type, "transfer_encoding": "chunked", **headers})


def _head(status: int, headers: dict[str, str | None]) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status} Scripted", *lines, "", ""]).encode("latin-1")


def piece(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def http(status: int, body: bytes = b"", content_type: str | None = "application/json", **headers: str | None) -> bytes:
    """A whole answer with a content-length."""
    return _head(status, {"content_type": content_type, "content_length": str(len(body)), **headers}) + body


def stream(*steps: Step) -> list[Step]:
    """A 200 event stream: the head, each bytes step as a chunk of its own, then a clean end unless a step ended it."""
    script: list[Step] = [head()]
    script += [piece(step) if isinstance(step, bytes) else step for step in steps]
    if not (steps and steps[-1] in (CLOSE, RESET, HANG)):
        script.append(END)
    return script


def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    """One event in the shape, and about the size, of OpenAI's."""
    body = {
        "id": "chatcmpl-C9mRq1x8TtVQ2wYkzJc5uLwq0aBcD",
        "object": "chat.completion.chunk",
        "created": 1762000000,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
        "system_fingerprint": "fp_560af6e559",
        "choices": choices,
        "usage": None,
        "obfuscation": "Zk3J",
        **more,
    }
    return b"data: " + json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def delta(fields: dict[str, Any], finish_reason: str | None = None) -> bytes:
    return event([{"index": 0, "delta": fields, "logprobs": None, "finish_reason": finish_reason}])


def chunk(text: str) -> bytes:
    return delta({"content": text})


def finish(reason: str = "stop") -> bytes:
    return delta({}, reason)


def usage(input_tokens: int, output_tokens: int, cached: int = 0, reasoning: int = 0) -> bytes:
    """The event that `stream_options.include_usage` asks for: no choices, the totals."""
    counts = {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }
    return event([], usage=counts)


def answer(text: str, times: int = 1, *, input_tokens: int = 5, output_tokens: int | None = None) -> list[Step]:
    """A whole happy stream: the role, `times` events with this text, the finish, the usage, [DONE]."""
    role = delta({"role": "assistant", "content": "", "refusal": None})
    counts = usage(input_tokens, times if output_tokens is None else output_tokens)
    return stream(role, *[chunk(text)] * times, finish(), counts, DONE)


def failure(status: int, message: str = "Scripted failure", code: str | None = None, **headers: str | None) -> bytes:
    """An answer with OpenAI's error body."""
    error = {"message": message, "type": "scripted_error", "param": None, "code": code}
    return http(status, json.dumps({"error": error}).encode(), **headers)


RATE_LIMITED = failure(429, "Rate limit reached", "rate_limit_exceeded", retry_after="7")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    connection: Connection

    def json(self) -> Any:
        return json.loads(self.body)


class Connection(asyncio.Protocol):
    """One connection of a client. `closed` is done when the client closed it: the loop's time at which that was seen.

    It is also done when the script closed it. `sent` counts the bytes that the script could send so far.
    """

    def __init__(self, provider: ScriptedProvider) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[float] = loop.create_future()
        self.sent = 0
        self._provider = provider
        self._loop = loop
        self._received = bytearray()
        self._room = asyncio.Event()
        self._room.set()
        self._running: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport

    async def send(self, data: bytes) -> None:
        """Send, and return once the socket has room for more. Raises ConnectionError when the client has left."""
        if self.closed.done():
            raise ConnectionResetError
        self._transport.write(data)
        await asyncio.sleep(0)
        await self._room.wait()
        if self.closed.done():
            raise ConnectionResetError
        self.sent += len(data)

    def close(self) -> None:
        """FIN, once everything before was sent."""
        self._transport.close()

    def reset(self) -> None:
        """RST."""
        linger = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._provider.opened += 1
        self._provider.active += 1
        self._provider.connections.append(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._next()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def eof_received(self) -> None:
        self._left()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()

    def _left(self) -> None:
        if not self.closed.done():
            self._provider.active -= 1
            self.closed.set_result(self._loop.time())
            self._room.set()
            if self._running:
                self._running.cancel()

    def _next(self) -> None:
        if self._running or (end := self._received.find(b"\r\n\r\n")) < 0:
            return
        first, *lines = self._received[:end].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "0"))
        if len(self._received) < end + 4 + size:
            return
        request = Request(method, path, headers, bytes(self._received[end + 4 : end + 4 + size]), self)
        del self._received[: end + 4 + size]
        self._running = self._loop.create_task(self._run(self._provider._take(request)))

    async def _run(self, script: Script) -> None:
        try:
            if callable(script):
                await script(self)
            else:
                for step in [script] if isinstance(script, bytes) else script:
                    await self._step(step)
        except ConnectionError:
            pass
        except Exception as error:
            self._provider.errors.append(error)
            self._transport.abort()
        self._running = None
        self._next()

    async def _step(self, step: Step) -> None:
        match step:
            case bytes():
                await self.send(step)
            case asyncio.Event():
                await step.wait()
            case "close":
                self.close()
            case "reset":
                self.reset()
            case "hang":
                await asyncio.shield(self.closed)
            case seconds:
                await asyncio.sleep(float(seconds))


class ScriptedProvider:
    """See the module. `opened` counts connections ever, `active` those open now; `connections` lists them in order."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.scripts = list(scripts or (answer("Hello"),))
        """The n-th POST gets the n-th; the last one answers all that follow. A test may change it at any time."""
        self.models: Script = http(
            200, b'{"object":"list","data":[{"id":"scripted","object":"model"},{"id":"gpt-4o-mini","object":"model"}]}'
        )
        self.requests: list[Request] = []
        self.checks: list[Request] = []
        self.connections: list[Connection] = []
        self.errors: list[Exception] = []
        self.opened = 0
        self.active = 0
        self.port = 0
        self._tls = tls
        self._arrived = asyncio.Event()
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        scheme, host = ("https", "localhost") if self._tls else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self.port}/v1"

    async def request(self, index: int = 0) -> Request:
        """Wait for the POST with this index to have arrived whole."""
        while len(self.requests) <= index:
            await self._arrived.wait()
        return self.requests[index]

    async def closed(self, index: int = 0) -> float:
        """Wait until the connection of the POST with this index was closed; return the loop's time of that."""
        request = await self.request(index)
        return await asyncio.shield(request.connection.closed)

    async def idle(self) -> None:
        """Wait until no connection is open."""
        await asyncio.gather(*(asyncio.shield(connection.closed) for connection in self.connections))

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", 0, ssl=self._tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_listening([self._server])
        for connection in self.connections:
            if connection._running:
                connection._running.cancel()
            if not connection.closed.done():
                connection._transport.abort()
        await self.idle()
        if self.errors:
            raise self.errors[0]

    def _take(self, request: Request) -> Script:
        if request.method == "GET":
            self.checks.append(request)
            return self.models
        script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
        self.requests.append(request)
        self._arrived.set()
        self._arrived = asyncio.Event()
        return script
