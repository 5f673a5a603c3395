"""A TCP proxy on a real socket that cuts, delays and trickles what the server says to its client.

async with FaultProxy(port, Fault("cut", at=100)) as proxy:
    ...  # speak to proxy.port; after 100 bytes of the answer both sides are closed

It stands between a client and the server, or between the server and a provider: `port` is the one that listens behind;
`source` is the address that it sees.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Literal, NamedTuple


class Fault(NamedTuple):
    """What happens to the answer once `at` bytes of it have passed.

    cut: FIN to both sides. reset: RST to both. silent: nothing more passes, until the client leaves. trickle: from then
    on `size` bytes at a time. delay: a pause of `seconds`, then everything.
    """

    kind: Literal["none", "cut", "reset", "silent", "trickle", "delay"]
    at: int = 0
    size: int = 1
    seconds: float = 0.02


class FaultProxy:
    """`said` is what has gone through of the answers, `passed` how many bytes that is; `broke` whether a fault kept some back."""

    def __init__(self, port: int, fault: Fault, *, source: str = "127.0.0.1") -> None:
        self.port = 0
        self.fault = fault
        self.said = b""
        self.passed = 0
        self.broke = False
        self._behind = port
        self._source = source
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        their_reader, theirs = await asyncio.open_connection("127.0.0.1", self._behind, local_addr=(self._source, 0))
        asked = asyncio.create_task(self._pass(reader, theirs))
        answered = asyncio.create_task(self._answer(their_reader, writer))
        try:
            await asyncio.wait({asked, answered}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass
        finally:
            asked.cancel()
            answered.cancel()
            await asyncio.gather(asked, answered, return_exceptions=True)
            for side in (writer, theirs):
                if self.broke and self.fault.kind == "reset":
                    linger = struct.pack("ii", 1, 0)
                    side.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    side.transport.abort()
                side.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self.fault
        while data := await reader.read(65_536):
            if fault.kind != "none" and self.passed + len(data) > fault.at:
                before = max(0, fault.at - self.passed)
                await self._send(writer, data[:before])
                data = data[before:]
                if fault.kind in ("cut", "reset", "silent"):
                    self.broke = True
                    if fault.kind == "silent":
                        await asyncio.Event().wait()
                    return
                if fault.kind == "delay":
                    await asyncio.sleep(fault.seconds)
                    fault = fault._replace(kind="none")
                while fault.kind == "trickle" and data:
                    await self._send(writer, data[: fault.size])
                    data = data[fault.size :]
                    await asyncio.sleep(0)
            await self._send(writer, data)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if data:
            writer.write(data)
            self.passed += len(data)
            self.said += data
            await writer.drain()
