"""The end of listening."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any

import pytest
from asgi_servers import serve_http


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_that_is_accepted_in_the_last_turn_is_closed(
    turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_http(nothing) as (port, _):
        client = socket.create_connection(("127.0.0.1", port))
        for _ in range(turns):
            await asyncio.sleep(0)
    gc.collect()  # an open socket is an error here, as everywhere in the tests
    client.setblocking(False)
    with client:
        try:
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        except ConnectionResetError:
            pass  # never accepted
    assert caplog.text == ""
