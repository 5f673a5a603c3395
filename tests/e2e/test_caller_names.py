"""What the log calls a caller: nothing that can be turned back into an address, and the same in every worker."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from pathlib import Path

import forked_command
from raw_client import JSON, ask, connect
from scripted_provider import ScriptedProvider, answer
from serve_command import Command, command

from chat_nest.core.messages import Caller

KEY = Caller(id="127.0.0.1").key
NAMES = re.compile(rb"caller=(\S+)")


async def named(folder: Path, *arguments: str, **environ: str) -> tuple[int, list[str]]:
    """`chat-nest caller ...`: its exit code, and the first word of each line."""
    process = await forked_command.run(
        *("caller", *arguments),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "OPENAI_API_KEY": "k", **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, [line.partition(" ")[0] for line in out.decode().splitlines()]


async def chats(served: Command) -> None:
    """One that is answered, one that is refused, and one that the edge refuses."""
    for _ in range(4):
        assert (await ask(served.port)).status == 200
    assert (await ask(served.port, {"messages": 5})).status == 400
    async with connect(served.port) as client:
        client.write(b"GET / HTTP/9.9\r\n\r\n")
        assert (await client.reply()).status == 400


async def test_one_name_in_every_line_worker_and_start_and_in_the_command(tmp_path: Path) -> None:
    async with ScriptedProvider(answer("x")) as provider:
        logged = b""
        for workers in ("1", "2"):
            async with command(tmp_path, provider.url, "k", "--workers", workers) as served:
                await chats(served)
            logged += served.said
        names = {name.decode() for name in NAMES.findall(logged)}
        assert len(names) == 1, names
        assert len(NAMES.findall(logged)) == 12
        code, (in_log, in_usage) = await named(tmp_path, "127.0.0.1")
        assert (code, {in_log}, in_usage) == (0, names, KEY)
        assert KEY.encode() not in logged, "which everybody can make"
        assert (await named(tmp_path, KEY))[1] == [in_log, KEY]
        assert (await named(tmp_path, "user:ada"))[1][1] == Caller(id="user:ada").key
        assert (await named(tmp_path, "2001:db8::1"))[1] == (await named(tmp_path, "2001:db8::2"))[1]
        (kept,) = tmp_path.glob("*caller-secret")
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert kept.read_bytes() not in logged


async def test_a_configured_secret_is_the_deployments(tmp_path: Path) -> None:
    secrets = ("s" * 32, "t" * 32)
    seen: list[str] = []
    async with ScriptedProvider(answer("x")) as provider:
        for secret in secrets:
            environ = {"CHAT_NEST_SERVER_CALLER_SECRET": secret, "CHAT_NEST_STORE_URL": "memory://"}
            async with command(tmp_path, provider.url, **environ) as served:
                assert (await ask(served.port, headers=JSON)).status == 200
            (name,) = {name.decode() for name in NAMES.findall(served.said)}
            assert (await named(tmp_path, "127.0.0.1", **environ))[1] == [name, KEY]
            assert secret.encode() not in served.said
            seen.append(name)
    assert len(set(seen)) == 2
    assert not list(tmp_path.glob("*caller-secret"))


async def test_it_starts_with_a_warning_if_no_secret_can_be_stored(tmp_path: Path) -> None:
    (tmp_path / "chat-nest.db.caller-secret").mkdir()
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url) as served:
        assert (await ask(served.port)).status == 200
    assert b"set server.caller_secret" in served.said
    assert KEY.encode() not in served.said
    assert (await named(tmp_path, "127.0.0.1"))[0] == 1
