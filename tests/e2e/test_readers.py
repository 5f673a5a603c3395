"""A reader leaves: each server tells it in a way of its own, and what happens then is the profile's policy."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager

import pytest
from asgi_servers import SERVERS, serve_process
from ports import free_port
from raw_client import connect, settled
from scripted_provider import DONE, HANG, ScriptedProvider, chunk, finish, stream, usage

WAYS = pytest.mark.parametrize("way", ["reset", "finish"])
GRACE = 0.6

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{behind}; proxy_http_version 1.1; proxy_buffering off; }}
  }}
}}
"""


@asynccontextmanager
async def nginx(folder, behind):
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("nginx is not installed")
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, behind=behind))
    process = await asyncio.create_subprocess_exec(program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "log"))
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        yield port
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def served(server, folder, script, policy):
    async with ScriptedProvider(script) as provider:
        env = {"OPENAI_BASE_URL": provider.url, "ON_DISCONNECT": policy, "GRACE_SECONDS": str(GRACE)}
        program = "uvicorn" if server == "nginx" else server
        async with serve_process(program, "served_app:app", folder, env) as process:
            if server == "nginx":
                async with nginx(folder, process.port) as port:
                    yield provider, port
            else:
                yield provider, process.port


async def leave_after_a_token(port, way):
    async with connect(port) as client:
        reply = await client.post()
        run = (await reply.event()).json()["id"]
        await reply.until("token")
        getattr(client, way)()
    return run


async def follow(client, run):
    reply = await client.request("GET", f"/api/chat/{run}/stream")
    assert reply.status == 200
    await reply.until("token")
    return reply


ALL = pytest.mark.parametrize("server", [*SERVERS, "nginx"])


@ALL
@WAYS
async def test_finish_continues_and_can_be_read_afterwards(server, way, tmp_path):
    rest = asyncio.Event()
    script = stream(chunk("one "), rest, chunk("two"), finish(), usage(9, 2), DONE)
    async with served(server, tmp_path, script, "finish") as (provider, port):
        run = await leave_after_a_token(port, way)
        await asyncio.sleep(0.2)  # long enough for the server to have told
        assert not provider.requests[0].connection.closed.done()
        rest.set()
        assert (await settled(port))["tokens_per_day"]["used"] == 11
        async with connect(port) as client:
            reply = await client.request("GET", f"/api/chat/{run}/stream")
            events = await reply.events()
        assert [event.name for event in events if event.name != "ping"] == ["start", "token", "token", "done"]


@ALL
async def test_grace_waits_for_a_returning_reader_and_restarts_when_it_leaves(server, tmp_path):
    async with served(server, tmp_path, stream(chunk("one "), HANG), "grace") as (provider, port):
        run = await leave_after_a_token(port, "reset")
        async with connect(port) as one, connect(port) as two:
            await follow(one, run)
            await follow(two, run)
            await asyncio.sleep(2 * GRACE)
            one.reset()
            await asyncio.sleep(1.5 * GRACE)
            assert not provider.requests[0].connection.closed.done()
            two.reset()
        await provider.requests[0].connection.closed
        assert (await settled(port))["tokens_per_day"]["held"] == 0
        async with connect(port) as client:
            reply = await client.request("GET", f"/api/chat/{run}/stream")
            assert (await reply.until("error")).json()["code"] == "client_gone"


@ALL
@WAYS
async def test_cancel_closes_the_providers_connection(server, way, tmp_path):
    async with served(server, tmp_path, stream(chunk("one "), HANG), "cancel") as (provider, port):
        await leave_after_a_token(port, way)
        await provider.requests[0].connection.closed
        assert 0 < (await settled(port))["tokens_per_day"]["used"] < 100
