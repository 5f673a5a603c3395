"""The clients that people use against the real `chat-nest serve`: each streams, stops and is refused correctly."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from client_drivers import DRIVERS, drive
from raw_client import settled
from scripted_provider import HANG, ScriptedProvider, answer, chunk, stream


EVERY = pytest.mark.parametrize("client", DRIVERS)


@asynccontextmanager
async def serving(folder: Path, provider: ScriptedProvider, limits: str = "") -> AsyncIterator[int]:
    (folder / "chat.toml").write_text(f"[dialects]\nblog = true\nblog_get = true\n[profiles.balanced]\n{limits}\n")
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat_nest.cli.main", "serve", "--port", "0", "--config", "chat.toml"),
        cwd=folder,
        env={**environ, "OPENAI_API_KEY": "sk-front-ends", "OPENAI_BASE_URL": provider.url},
        stdout=PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        first = (await process.stdout.readline()).decode()
        said = re.search(r"listening on http://127\.0\.0\.1:(\d+)", first)
        assert said, first
        yield int(said[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        await process.communicate()


@EVERY
async def test_it_streams_stops_and_is_refused(client, tmp_path):
    hanging = stream(chunk("one"), HANG)
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9), hanging) as provider:
        async with serving(tmp_path, provider, "requests_per_day = 2") as port:
            events = await drive(client, port)
            assert [event["text"] for event in events if event["event"] == "text"] == ["Hello Hello Hello "]
            assert events[-1]["event"] == "end"

            events = await drive(client, port, abort=True)
            assert [event["event"] for event in events] == ["aborted"]
            async with asyncio.timeout(60):
                await provider.closed(0)
            used = (await settled(port))["tokens_per_day"]["used"]
            assert 12 < used < 300, "what came was charged, not the whole hold"

            events = await drive(client, port)
            assert [event["event"] for event in events] == ["error"]
            assert len(provider.requests) == 2
