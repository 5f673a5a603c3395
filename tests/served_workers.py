"""Several `chat-nest serve` that share a store and the runs of each: one process each, so that a test chooses which it asks."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager

import forked_command
from raw_client import JSON, ask, connect
from redis_servers import shared_redis_url

LISTENING = re.compile(rb"chat-nest: listening on http://127\.0\.0\.1:(\d+)\n")


class Worker:
    def __init__(self, process):
        self.process = process
        self.port = 0
        self._draining: list[asyncio.Task[None]] = []

    async def started(self):
        said = b""
        while not (found := LISTENING.search(said)):
            line = await self.process.stdout.readline()
            assert line, (said, await self.process.stderr.read())
            said += line
        self.port = int(found[1])
        self._draining = [asyncio.create_task(drain(stream)) for stream in (self.process.stdout, self.process.stderr)]

    async def kill(self):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        await self.process.wait()
        await asyncio.gather(*self._draining)


async def drain(stream):
    while await stream.read(65_536):
        pass


async def start(folder, *arguments, **environ):
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    clean["CHAT_NEST_TIMEOUTS_STORE"] = "60"  # on a busy machine a store that is slow is not down
    process = await forked_command.run(
        "serve", "--port", "0", *arguments, cwd=folder, env={**clean, **environ}, stdout=PIPE, stderr=PIPE
    )
    return Worker(process)


def settings(folder, provider, kind="local", **more):
    """The environment of workers that share a `kind` of log: local or redis."""
    shared = folder / "runs"
    shared.mkdir(mode=0o700, exist_ok=True)
    places = {
        "local": {
            "CHAT_NEST_STORE_URL": f"sqlite:///{folder / 'shared.db'}",
            "CHAT_NEST_RUNS_URL": f"local://{shared}",
        },
        "redis": {"CHAT_NEST_STORE_URL": shared_redis_url()} if kind == "redis" else {},
    }
    return {
        "OPENAI_BASE_URL": provider.url,
        "OPENAI_API_KEY": "sk-test",
        "CHAT_NEST_MODEL": "scripted",
        "CHAT_NEST_PROFILES_BALANCED_ON_DISCONNECT": "finish",
        "CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_MINUTE": "60",
        # Each test is a user of its own, also in a Redis that others have used.
        "CHAT_NEST_SERVER_TRUSTED_PROXIES": "127.0.0.1",
        "CHAT_NEST_SERVER_CALLER_HEADER": "x-user",
        **places[kind],
        **more,
    }


@asynccontextmanager
async def workers(folder, provider, kind, count=4, **more):
    found = [await start(folder, **settings(folder, provider, kind, **more)) for _ in range(count)]
    try:
        await asyncio.gather(*(worker.started() for worker in found))
        yield found
    finally:
        await asyncio.gather(*(worker.kill() for worker in found))


def a_user():
    return {"x-user": secrets.token_hex(6)}


async def get(worker, path, user, **headers):
    async with connect(worker.port) as client:
        reply = await client.request("GET", path, headers={**user, **headers})
        await reply.body()
        return reply


async def stop(worker, run, user):
    reply = await ask(worker.port, b"", path=f"/api/chat/{run}/stop", headers={**JSON, **user})
    return reply.status
