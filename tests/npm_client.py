"""What the browser client of the npm package (FetchAiClient 1.1.2) does with an answer, modelled on its behaviour.

It splits the text at LF LF, takes the `event:` and `data:` lines of each block and trims them, joins data lines with LF,
parses a token as JSON, reads `message` of an error, and ignores everything else: other fields, comments, events that it
does not know, the data of start and done. It writes its body as JSON.stringify does, so NaN goes out as null. A 4xx is
final; a 5xx is asked again, three times in all, after gaps of 1 and 2 seconds. Of a refusal its page shows the status,
`HTTP 429`, and never our text. Each attempt has 30 seconds for its whole stream; then it gives up without a word. It
sends the headers that it is given; the hook useAiChat has no way to give it any.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raw_client import HELLO, JSON, Reply, connect

ATTEMPTS = 3
DEADLINE = 30.0


class Parser:
    """Text in pieces; `tokens`, `error` and `done` are what the page was told."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.error: str | None = None
        self.started = False
        self.done = False
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text = ""

    def feed(self, data: bytes) -> None:
        self._text += self._decode(data)
        *blocks, self._text = self._text.split("\n\n")
        for block in blocks:
            self._block(block)

    def _block(self, block: str) -> None:
        name = ""
        data: list[str] = []
        for line in block.split("\n"):
            if line.startswith("event:"):
                name = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                data.append(line.removeprefix("data:").strip())
        match name:
            case "start":
                self.started = True
            case "token":
                self.tokens.append(json.loads("\n".join(data)))
            case "done":
                self.done = True
            case "error":
                self.error = json.loads("\n".join(data))["message"]


@dataclass
class Outcome:
    status: int = 0
    tokens: list[str] = field(default_factory=list)
    done: bool = False
    error: str | None = None
    """What the page shows."""
    refusal: dict[str, Any] = field(default_factory=dict)
    """The body of the last refusal, which the client does not read."""
    gaps: list[float] = field(default_factory=list)
    """The pauses before it asked again."""
    gave_up: bool = False
    """Its time for an attempt was over: the page is told nothing."""


def stringify(value: Any) -> Any:
    """The value as JSON.stringify would have it: what is no number is null."""
    if isinstance(value, dict):
        return {name: stringify(item) for name, item in value.items()}
    if isinstance(value, list):
        return [stringify(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


async def npm_chat(
    port: int,
    body: dict[str, Any] | None = None,
    *,
    path: str = "/api/chat",
    headers: Mapping[str, str] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    deadline: Callable[[], asyncio.Timeout] = lambda: asyncio.timeout(DEADLINE),
) -> Outcome:
    """Ask as the client does. `sleep` stands for its gaps, and `deadline` makes the time-out of one attempt."""
    outcome = Outcome()
    for attempt in range(ATTEMPTS):
        try:
            async with deadline():
                await _attempt(port, stringify(body or HELLO), path, {**JSON, **(headers or {})}, outcome)
        except TimeoutError:
            outcome.gave_up = True
            return outcome
        if outcome.status < 500 or attempt == ATTEMPTS - 1:
            return outcome
        outcome.gaps.append(float(2**attempt))
        await sleep(outcome.gaps[-1])
    return outcome


async def _attempt(port: int, body: Any, path: str, headers: Mapping[str, str], outcome: Outcome) -> None:
    outcome.error = None
    async with connect(port) as client:
        reply = await client.post(body, path=path, headers=headers)
        outcome.status = reply.status
        if reply.status == 200:
            await _stream(reply, outcome)
        else:
            outcome.error = f"HTTP {reply.status}"
            outcome.refusal = await reply.json()


async def _stream(reply: Reply, outcome: Outcome) -> None:
    parser = Parser()
    outcome.tokens = parser.tokens
    while piece := await reply.piece():
        parser.feed(piece)
    outcome.done, outcome.error = parser.done, parser.error
