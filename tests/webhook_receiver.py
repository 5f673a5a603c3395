"""A receiver of webhooks that checks each signature by itself: `async with Receiver() as receiver`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from typing import Any, NamedTuple

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()


class Delivery(NamedTuple):
    id: str
    body: dict[str, Any]
    headers: dict[str, str]


def is_signed(headers: dict[str, str], body: bytes, secret: str = SECRET) -> bool:
    """As https://github.com/standard-webhooks/standard-webhooks tells a receiver to check it."""
    at = headers["webhook-timestamp"]
    if abs(time.time() - int(at)) > 300:
        return False
    signed = f"{headers['webhook-id']}.{at}.".encode() + body
    mac = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(mac).decode()}"
    return any(hmac.compare_digest(expected, given) for given in headers["webhook-signature"].split(" "))


class Receiver:
    """Answers 200, or what `answers` has for the next requests: a status, or None for no answer at all."""

    def __init__(self, *answers: int | None, headers: str = "") -> None:
        self.deliveries: list[Delivery] = []
        self.attempts: list[str] = []
        """The id of every request, whatever its answer was."""
        self.answers = list(answers)
        self._headers = headers
        self._news = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        assert self._server
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook?of=us"

    async def __aenter__(self) -> Receiver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for writer in self._connections:
            writer.close()
        await self._server.wait_closed()

    async def attempted(self, count: int) -> None:
        """Wait for so many requests."""
        while len(self.attempts) < count:
            await self._news.wait()
            self._news.clear()

    async def delivered(self, count: int) -> list[Delivery]:
        """Wait for so many deliveries that were answered with 200."""
        while len(self.deliveries) < count:
            await self._news.wait()
            self._news.clear()
        return self.deliveries

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name: line.split(": ", 1)[1] for line in head[1:-2] for name in [line.split(":")[0].lower()]}
            body = await reader.readexactly(int(headers["content-length"]))
            assert head[0] == "POST /hook?of=us HTTP/1.1"
            assert is_signed(headers, body)
            answer = self.answers.pop(0) if self.answers else 200
            self.attempts.append(headers["webhook-id"])
            if answer is None:
                self._news.set()
                await reader.read()  # until the sender gives up
                return
            if answer == 200:
                self.deliveries.append(Delivery(headers["webhook-id"], json.loads(body), headers))
            self._news.set()
            writer.write(f"HTTP/1.1 {answer} X\r\ncontent-length: 0\r\n{self._headers}\r\n".encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._connections.discard(writer)
