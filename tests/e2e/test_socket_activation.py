"""A server on sockets that the service manager holds: a restart refuses no connection, and loses none."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT
from contextlib import asynccontextmanager

import pytest
from forked_command import COMMAND
from raw_client import HELLO, connect
from scripted_provider import DONE, ScriptedProvider, answer, chunk, finish, stream, usage
from serve_command import Command

ADMIN_KEY = "a" * 64


@pytest.fixture
def sockets():
    """The sockets of chats and of operators, whose descriptors leave 3 and 4 free."""
    listening = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in range(2)]
    high = [socket.socket(fileno=fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, 100)) for each in listening]
    for each in listening:
        each.close()
    yield high
    for each in high:
        each.close()


@asynccontextmanager
async def activated(folder, url, sockets, *options):
    """Serve on these sockets, as systemd starts a service; killed at the end if it still runs."""
    public, operators = sockets
    ports = [each.getsockname()[1] for each in sockets]
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ |= {
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": "sk-served",
        "CHAT_NEST_SERVER_PORT": str(ports[0]),
        "CHAT_NEST_ADMIN_LISTEN": f"127.0.0.1:{ports[1]}",
        "CHAT_NEST_ADMIN_KEY": ADMIN_KEY,
        "CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_MINUTE": "100000",
        "CHAT_NEST_PROFILES_BALANCED_CONCURRENT_STREAMS": "1000",
        "CHAT_NEST_PROFILES_BALANCED_TOKENS_PER_DAY": "1000000000",
        "LISTEN_FDS": "2",
        "LISTEN_FDNAMES": "public:admin",
    }
    taken = f'exec 3<&{public.fileno()} 4<&{operators.fileno()}; LISTEN_PID=$$ exec "$@"'
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", taken, "sh", sys.executable, COMMAND, "serve", *options),
        cwd=folder,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        pass_fds=[each.fileno() for each in sockets],
    )
    served = Command(process)
    try:
        await served.listening()
        assert served.port == ports[0]
        yield served
    finally:
        await served.kill()


async def ask(port):
    """The status and the last event of one request, on a connection of its own."""
    async with connect(port) as client:
        reply = await client.post(HELLO)
        events = await reply.events() if reply.status == 200 else []
        return reply.status, events[-1].name if events else ""


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_restart_refuses_no_connection_and_ends_no_answer(tmp_path, sockets, workers):
    options = ("--workers", str(workers))
    asking, over = set(), asyncio.Event()

    async def keep_asking(port):
        while not over.is_set():
            asking.add(asyncio.create_task(ask(port)))
            await asyncio.sleep(0.005)

    gate = asyncio.Event()
    async with ScriptedProvider(answer("Hello", 3)) as provider:
        provider.scripts[:0] = [stream(chunk("Hello"), gate, finish(), usage(5, 2), DONE)]
        async with (
            activated(tmp_path, provider.url, sockets, *options) as served,
            connect(served.port) as first,
            connect(served.port) as late,
        ):
            running = await first.post(HELLO)
            await running.until("token")
            late.write(b"POST /api/chat HTTP/1.1\r\nhost: 127.0.0.1\r\n")  # and the rest during the drain
            load = asyncio.create_task(keep_asking(served.port))
            await provider.request(10)
            served.process.terminate()
            await served.until(b"waiting for \\d+ answers to end")
            body = json.dumps(HELLO).encode()
            late.write(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            assert (await (await late.reply()).events())[-1].name == "done"
            gate.set()
            assert (await running.events())[-1].name == "done"
            assert await served.ended() == 0
        waiting = len(asking)
        async with activated(tmp_path, provider.url, sockets, *options) as served:
            assert await ask(served.port) == (200, "done")
            over.set()
            await load
            assert set(await asyncio.gather(*asking)) == {(200, "done")}
    assert waiting > 10
