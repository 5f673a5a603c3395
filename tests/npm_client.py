"""What the browser client of the npm package does with an answer, modelled on its behaviour.

It splits the text at blank lines, takes the `event:` and `data:` lines of each block and trims them, parses a token as
JSON, reads `message` of an error, and ignores everything else: other fields, comments, events that it does not know, the
data of start and done. A 4xx is final; a 5xx is asked again, three times in all, after gaps of 1 and 2 seconds. It has
one deadline of 30 seconds and sends no headers of its own.
"""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from raw_client import HELLO, Reply, connect

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
        name = data = ""
        for line in block.split("\n"):
            if line.startswith("event:"):
                name = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                data += line.removeprefix("data:").strip()
        match name:
            case "start":
                self.started = True
            case "token":
                self.tokens.append(json.loads(data))
            case "done":
                self.done = True
            case "error":
                self.error = json.loads(data)["message"]


@dataclass
class Outcome:
    status: int = 0
    tokens: list[str] = field(default_factory=list)
    done: bool = False
    error: str | None = None
    gaps: list[float] = field(default_factory=list)
    """The pauses before it asked again."""


async def npm_chat(
    port: int,
    body: dict[str, Any] | None = None,
    *,
    path: str = "/api/chat",
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Outcome:
    """Ask as the client does. `sleep` stands for its gaps."""
    outcome = Outcome()
    async with asyncio.timeout(DEADLINE):
        for attempt in range(ATTEMPTS):
            async with connect(port) as client:
                reply = await client.post(body or HELLO, path=path)
                outcome.status = reply.status
                if reply.status == 200:
                    await _stream(reply, outcome)
                    return outcome
                outcome.error = (await reply.json()).get("error")
            if reply.status < 500 or attempt == ATTEMPTS - 1:
                return outcome
            outcome.gaps.append(float(2**attempt))
            await sleep(outcome.gaps[-1])
    return outcome


async def _stream(reply: Reply, outcome: Outcome) -> None:
    parser = Parser()
    while piece := await reply.piece():
        parser.feed(piece)
    outcome.tokens, outcome.done, outcome.error = parser.tokens, parser.done, parser.error
