"""Test tools for programs that embed Chat Nest.

They are a scripted provider, a fake clock, and a client that collects an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from chat_nest.core.deltas import Batch, FinishDelta, TextDelta, UsageDelta
from chat_nest.core.protocols import Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Usage

Step = Batch | Exception | Callable[[], Awaitable[None]]
"""The next step of a scripted provider: yield a batch, raise an exception, or await a function."""


class FakeClock:
    """A clock that moves only by `advance`, in seconds. Pass it as any `now` argument."""

    def __init__(self, start: float = 1_000_000_000.0) -> None:
        self.time = start

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self.time += seconds


def answer(*texts: str, input_tokens: int = 5, output_tokens: int | None = None) -> list[Step]:
    """Return the steps of a complete answer: one batch for each text, then the usage and the finish."""
    usage = Usage(input_tokens=input_tokens, output_tokens=len(texts) if output_tokens is None else output_tokens)
    return [*([TextDelta(text)] for text in texts), [FinishDelta("stop"), UsageDelta(usage)]]


class ScriptedProvider:
    """A Provider that follows a script, and yields to the event loop before every step.

    `prompts` holds the prompt of each call of `open`; `opened` and `closed` count its streams.
    """

    abort_bills = "stops"

    def lacks(self, prompt: Prompt) -> Sequence[str]:  # noqa: ARG002 - the seam's
        """Return nothing: the script runs for any prompt."""
        return ()

    def takes(self, model: str) -> frozenset[str]:  # noqa: ARG002 - the seam's
        """Accept images, files and their URLs, which are then found in `prompts`."""
        return frozenset(("images", "files", "image_urls", "file_urls"))

    def __init__(self, script: Sequence[Step]) -> None:
        self.script = script
        self.prompts: list[Prompt] = []
        self.opened = 0
        self.closed = 0

    @asynccontextmanager
    async def open(self, prompt: Prompt, timeouts: Timeouts) -> AsyncGenerator[AsyncIterator[Batch], None]:  # noqa: ARG002
        """Yield the script's batches."""
        self.prompts.append(prompt)
        self.opened += 1
        try:
            await asyncio.sleep(0)
            yield self._play()
        finally:
            self.closed += 1

    async def _play(self) -> AsyncIterator[Batch]:
        for step in self.script:
            await asyncio.sleep(0)
            if isinstance(step, Exception):
                raise step
            if callable(step):
                await step()
            else:
                yield step


class Answer:
    """The response of an application.

    `headers` are by lower-case name; `complete` is True once the response has ended.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False

    @property
    def events(self) -> list[tuple[str, str]]:
        """Return the events of the answer as (name, data)."""
        found: list[tuple[str, str]] = []
        for block in self.body.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            found.append((fields.get("event", "message"), fields["data"]))
        return found


async def collect(
    app: Callable[..., Awaitable[None]],
    body: object,
    *,
    path: str = "/api/chat",
    client: tuple[str, int] | None = ("203.0.113.7", 4711),
    headers: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),),
    leave: asyncio.Event | None = None,
    sent: Callable[[bytes], Awaitable[None]] | None = None,
) -> Answer:
    """POST `body` (encoded as JSON unless it is bytes) to an ASGI application and collect its response.

    The client disconnects when `leave` is set. `sent` is awaited for each piece of the body, and blocks the
    application.
    """
    answer = Answer()
    leave = leave or asyncio.Event()
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    requests: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if requests:
            return requests.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in message["headers"]}
            return
        data: bytes = message.get("body", b"")
        answer.body += data
        answer.complete = not message.get("more_body", False)
        if sent is not None:
            await sent(data)

    await app(_scope(path, headers, client), receive, send)
    return answer


def _scope(
    path: str, headers: Sequence[tuple[bytes, bytes]], client: tuple[str, int] | None
) -> MutableMapping[str, Any]:
    """Return the ASGI scope of a POST."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        "client": client,
        "server": ("127.0.0.1", 8000),
    }
