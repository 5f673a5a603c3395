"""An HTTP/1.1 client that a test drives by hand: it sees each piece as it arrives, and leaves as it likes.

async with connect(port) as client:
    reply = await client.post({"messages": [...]})            # the head has come
    assert reply.status == 200
    assert await reply.event() == Event("start", ...)         # one event, as soon as it is here
    client.reset()                                            # RST; client.finish() is FIN
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
JSON = {"content-type": "application/json"}
ATTACH_FILTER = 26
"""SO_ATTACH_FILTER of Linux, which Python does not name."""
RETURN = 0x06
"""BPF_RET: keep so many bytes of the packet; 0 drops it."""


class Event(NamedTuple):
    name: str
    data: str

    def json(self) -> Any:
        return json.loads(self.data)


class Cut(Exception):
    """The server closed the connection before the end of the answer. `body` is what came of it."""

    def __init__(self, body: bytes = b"") -> None:
        super().__init__("the answer was cut")
        self.body = body


class Reply:
    """An answer whose head has come. `headers` are by lower-case name; `heads` keeps those that came twice."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, method: str) -> None:
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.heads = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        self.headers = dict(self.heads)
        self.raw = b""
        """The body so far, without the framing of HTTP."""
        self._reader = reader
        self._taken = 0
        bodyless = method == "HEAD" or self.status == 204 or self.headers.get("content-length") == "0"
        self._left: int | None = 0 if bodyless else None
        if not bodyless and "content-length" in self.headers:
            self._left = int(self.headers["content-length"])
        self.complete = bodyless

    async def piece(self) -> bytes:
        """The next piece of the body as it was sent, b"" at its clean end. Raises Cut."""
        if self.complete:
            return b""
        try:
            if self.headers.get("transfer-encoding") == "chunked":
                size = int(await self._reader.readuntil(b"\r\n"), 16)
                data = (await self._reader.readexactly(size + 2))[:-2]
                self.complete = size == 0
            elif self._left is None:  # HTTP/1.0: until the server closes
                data = await self._reader.read(65_536)
                self.complete = not data
            else:
                data = await self._reader.readexactly(self._left)
                self.complete = True
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Cut(self.raw) from None
        self.raw += data
        return data

    async def body(self) -> bytes:
        """The whole body. Raises Cut."""
        while await self.piece():
            pass
        return self.raw

    async def json(self) -> Any:
        return json.loads(await self.body())

    async def event(self) -> Event | None:
        """The next event as soon as it is whole, None at the clean end of the answer. Raises Cut."""
        while (end := self.raw.find(b"\n\n", self._taken)) < 0:
            if not await self.piece():
                assert self._taken == len(self.raw), f"bytes after the last event: {self.raw[self._taken :]!r}"
                return None
        block, self._taken = self.raw[self._taken : end].decode(), end + 2
        matched = re.fullmatch(r"event: ([a-z]+)\ndata: ([^\r\n]*)(?:\nid: [0-9a-f]{24}-\d+)?", block)
        assert matched, f"not an event of the native dialect: {block!r}"
        return Event(matched[1], matched[2])

    async def events(self) -> list[Event]:
        """All events that are still to come."""
        events: list[Event] = []
        while (event := await self.event()) is not None:
            events.append(event)
        return events

    async def until(self, name: str) -> Event:
        """Skip to the next event with this name."""
        while (event := await self.event()) is not None:
            if event.name == name:
                return event
        raise AssertionError(f"the answer ended without {name}: {self.raw!r}")


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def post(self, body: object = HELLO, path: str = "/api/chat", headers: Mapping[str, str] = JSON) -> Reply:
        return await self.request("POST", path, body, headers)

    async def request(
        self, method: str, path: str, body: object | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request, with `body` as JSON unless it is bytes, and wait for the head of the answer."""
        self.send(method, path, body, headers)
        return await self.reply(method)

    def send(
        self, method: str, path: str, body: object | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a request without waiting."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"host": "127.0.0.1", **({"content-length": str(len(data))} if body is not None else {})}
        fields.update(headers or {})
        lines = [f"{name}: {value}" for name, value in fields.items()]
        self.write("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + data)

    async def reply(self, method: str = "POST") -> Reply:
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Cut from None
        return Reply(head, self._reader, method)

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def finish(self) -> None:
        """Leave with a FIN, if everything that came was read."""
        self._writer.close()

    def reset(self) -> None:
        """Leave with a RST."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    def vanish(self) -> None:
        """Be gone without a packet: the kernel throws away what comes for this connection, unseen and unanswered.

        Nobody is told before the connection is closed, with a RST.
        """
        ours = self._writer.get_extra_info("socket")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        nothing = ctypes.create_string_buffer(
            struct.pack("HBBI", RETURN, 0, 0, 0)
        )  # a packet filter of one instruction
        ours.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(nothing)))


@asynccontextmanager
async def connect(port: int, *, receive_buffer: int | None = None, source: str = "127.0.0.1") -> AsyncIterator[Client]:
    """Connect to 127.0.0.1 from the address `source`.

    With a `receive_buffer`, in bytes, little more than that is read before it is asked for.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # so that asyncio sets TCP_NODELAY
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20 if receive_buffer is None else 4_096)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


async def ask(port: int, body: object = HELLO, **more: Any) -> Reply:
    """POST on a connection of its own and read the whole answer."""
    async with connect(port) as client:
        reply = await client.post(body, **more)
        await reply.body()
        return reply


async def standing(port: int, headers: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The caller's own limits as GET /api/usage tells them, by name."""
    async with connect(port) as client:
        reply = await client.request("GET", "/api/usage", headers=headers)
        assert reply.status == 200, await reply.body()
        return {limit["name"]: limit for limit in (await reply.json())["limits"]}


async def settled(port: int, *, headers: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Wait until nothing of the caller's limits is held any more, and return how they stand.

    A minute is no bound on our speed: it is less than the lease after which a hold that was forgotten is charged.
    """
    async with asyncio.timeout(60):
        while True:
            limits = await standing(port, headers)
            if not any(limit["held"] for limit in limits.values()):
                return limits
            await asyncio.sleep(0.01)
