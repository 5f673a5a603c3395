"""An operator's commands against a server with two workers: both obey, and what runs in either is stopped."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import PIPE

import forked_command
from raw_client import HELLO, ask, connect
from scripted_provider import DONE, ScriptedProvider, chunk, finish, stream, usage
from serve_command import command


async def operate(folder, *words, code=0):
    """Run `chat-nest` beside the server, with its store; return its output."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await forked_command.run(
        *words,
        cwd=folder,
        env={**environ, "CHAT_NEST_STORE_URL": f"sqlite:///{folder}/store.db"},
        stdout=PIPE,
        stderr=PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == code, (output, errors)
    return output.decode()


async def until(port, status):
    """Ask until this many answers in a row have the status: with two workers, both have it then."""
    in_a_row = 0
    while in_a_row < 12:
        in_a_row = in_a_row + 1 if (await ask(port)).status == status else 0


async def test_two_workers_obey_controls_and_stop_running_answers(tmp_path):
    never = asyncio.Event()
    slow = stream(chunk("Hel"), never, finish(), usage(5, 2), DONE)
    async with (
        ScriptedProvider(*[slow] * 6, stream(chunk("Hi"), finish(), usage(5, 1), DONE)) as provider,
        command(
            tmp_path,
            provider.url,
            "sk-x",
            "--workers",
            "2",
            CHAT_NEST_STORE_URL=f"sqlite:///{tmp_path}/store.db",
            CHAT_NEST_PROFILES_BALANCED_CONCURRENT_STREAMS="none",
            CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_MINUTE="none",
            CHAT_NEST_PROFILES_BALANCED_TOKENS_PER_DAY="none",
        ) as served,
    ):
        clients = [connect(served.port) for _ in range(6)]
        opened = [await client.__aenter__() for client in clients]
        try:
            replies = [await client.post(HELLO) for client in opened]
            for reply in replies:
                await reply.until("token")
            runs = {reply.headers["x-request-id"] for reply in replies}
            listed = json.loads(await operate(tmp_path, "running", "--json"))
            assert {each["run"] for each in listed} == runs

            first, *others = replies
            assert "stopped" in await operate(tmp_path, "stop", first.headers["x-request-id"], "--reason", "a loop")
            assert (await first.until("error")).json()["code"] == "stopped"
            assert len(json.loads(await operate(tmp_path, "running", "--json"))) == 5

            await operate(tmp_path, "pause", "--provider", "openai", "--stop-running", "--reason", "too dear")
            for reply in others:
                assert (await reply.until("error")).json()["code"] == "stopped"
            await until(served.port, 503)
            asked = len(provider.requests)
            assert (await ask(served.port)).status == 503
            assert len(provider.requests) == asked
            assert await operate(tmp_path, "running") == "no answer is running\n"
            await operate(tmp_path, "resume", "--provider", "openai")
            await until(served.port, 200)

            await operate(tmp_path, "block", "--address", "127.0.0.0/8")
            await until(served.port, 403)
            await operate(tmp_path, "unblock", "--address", "127.0.0.0/8")
            await until(served.port, 200)

            provider.scripts = [slow]
            async with connect(served.port) as client:
                reply = await client.post(HELLO)
                await reply.until("token")
                await operate(tmp_path, "block", "--address", "10.0.0.0/8", "--stop-running")
                await operate(tmp_path, "block", "--address", "127.0.0.1", "--stop-running", "--reason", "abuse")
                assert (await reply.until("error")).json()["code"] == "stopped"
        finally:
            for client in clients:
                await client.__aexit__(None, None, None)
        acts = json.loads(await operate(tmp_path, "audit", "--json"))
        assert [act["act"] for act in acts] == ["block", "block", "unblock", "block", "resume", "pause", "stop"]
        assert acts[-1]["reason"] == "a loop"
