"""Row 46: the wall clock is stepped by an hour. Deadlines are the event loop's; only windows follow the clock."""

from __future__ import annotations

import asyncio
import time

import pytest
from asgi_servers import serve_http
from raw_client import connect, settled
from scripted_provider import DONE, HANG, ScriptedProvider, chunk, finish, stream, usage

from chat_nest import Timeouts, create_chat_handler

HOUR = 3_600.0


class Clock:
    """Noon, so that an hour either way is the same day."""

    def __init__(self) -> None:
        self.now = 1_800_014_400.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_row46_a_stepped_clock_ends_no_answer_and_no_upload(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, go_on = Clock(), asyncio.Event()
    monkeypatch.setattr(time, "time", clock)
    script = stream(chunk("one"), go_on, chunk("two"), finish(), usage(9, 2), DONE)
    async with ScriptedProvider(script) as provider:
        timeouts = Timeouts(heartbeat=0.1)
        handler = create_chat_handler(api_key="k", base_url=provider.url, model="m", now=clock, timeouts=timeouts)
        async with serve_http(handler) as (port, _):
            async with connect(port) as client, connect(port) as uploading:
                reply = await client.post()
                await reply.until("token")
                uploading.write(b"POST /api/chat HTTP/1.1\r\nhost: x\r\n")
                clock.now += step
                await reply.until("ping")
                await reply.until("ping")
                go_on.set()
                assert (await reply.until("done")).json()["usage"]["total_tokens"] == 11
                uploading.write(b"content-length: 2\r\ncontent-type: application/json\r\n\r\n{}")
                assert (await uploading.reply()).status == 400, "it was read whole, and has no messages"
            assert (await settled(port))["tokens_per_day"]["used"] == 11


async def test_row46_a_provider_that_falls_silent_is_given_up_though_the_clock_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    async with ScriptedProvider(stream(chunk("one"), HANG)) as provider:
        timeouts = Timeouts(idle=0.3)
        handler = create_chat_handler(api_key="k", base_url=provider.url, model="m", now=clock, timeouts=timeouts)
        async with serve_http(handler) as (port, _), connect(port) as client:
            reply = await client.post()
            assert (await reply.until("error")).json()["code"] == "upstream_idle"
