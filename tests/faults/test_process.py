"""Rows 23, 32, 46 and 48 at `chat-nest serve`: what a process that is killed, or has no disk, leaves in its ledger."""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
from base64 import b64encode
from hashlib import sha256
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from raw_client import HELLO, JSON, ask, connect, settled, standing
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, finish, stream, usage
from serve_command import Command, command

LEASE = {"CHAT_NEST_STORE_LEASE": "5"}
SPENT = 8
"""Tokens of `slow`, as its provider counts them."""


def slow(release: asyncio.Event) -> list[object]:
    return stream(chunk("one"), release, chunk("two"), finish(), usage(5, 3), DONE)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let nobody write to the ledger's file."""
    connection = sqlite3.connect(folder / "chat-nest.db", isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def sources(folder: Path) -> list[str]:
    """How the amount of each recorded request is known."""
    connection = sqlite3.connect(folder / "chat-nest.db")
    try:
        return [source for (source,) in connection.execute("SELECT source FROM requests")]
    finally:
        connection.close()


# Row 48: killed in every phase. Each yields at its point; what follows is SIGKILL.


@asynccontextmanager
async def uploading(served: Command, folder: Path, provider: ScriptedProvider) -> AsyncIterator[None]:
    async with connect(served.port) as client:
        client.send("POST", "/api/chat", b"{", {**JSON, "content-length": "1000"})
        await standing(served.port)
        yield


@asynccontextmanager
async def reserving(served: Command, folder: Path, provider: ScriptedProvider) -> AsyncIterator[None]:
    with locked(folder):
        async with connect(served.port) as client:
            client.send("POST", "/api/chat", HELLO, JSON)
            async with connect(served.port) as other:
                assert (await other.request("GET", "/healthz")).status == 200
            yield


@asynccontextmanager
async def asked(served: Command, folder: Path, provider: ScriptedProvider) -> AsyncIterator[None]:
    provider.scripts = [[HANG]]
    async with connect(served.port) as client:
        client.send("POST", "/api/chat", HELLO, JSON)
        await provider.request(0)
        yield


@asynccontextmanager
async def streaming(served: Command, folder: Path, provider: ScriptedProvider) -> AsyncIterator[None]:
    provider.scripts = [slow(asyncio.Event())]
    async with connect(served.port) as client:
        await (await client.post(HELLO)).until("token")
        yield


@asynccontextmanager
async def settling(served: Command, folder: Path, provider: ScriptedProvider) -> AsyncIterator[None]:
    release = asyncio.Event()
    provider.scripts = [slow(release)]
    async with connect(served.port) as client:
        reply = await client.post(HELLO)
        await reply.until("token")
        with locked(folder):
            release.set()
            await reply.until("token")
            yield


@asynccontextmanager
async def done(served: Command, folder: Path, provider: ScriptedProvider) -> AsyncIterator[None]:
    provider.scripts = [slow(release := asyncio.Event())]
    release.set()
    async with connect(served.port) as client:
        await (await client.post(HELLO)).until("done")
        yield


@pytest.mark.parametrize(
    ("phase", "source"),
    [
        (uploading, None),
        (reserving, None),
        (asked, "assumed"),
        (streaming, "assumed"),
        (settling, "assumed"),
        (done, "reported"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_row48_killed_in_any_phase_the_ledger_nets_to_what_was_spent_or_more(tmp_path, phase, source) -> None:
    async with ScriptedProvider(answer("x")) as provider:
        async with command(tmp_path, provider.url, **LEASE) as served:
            async with phase(served, tmp_path, provider):
                await served.kill()
        count = len(provider.requests)
        async with command(tmp_path, provider.url, **LEASE) as served:
            await settled(served.port)
            while source and not sources(
                tmp_path
            ):  # a lease that ran out is free at once, and charged by the next sweep
                await asyncio.sleep(0.05)
            day = (await settled(served.port))["tokens_per_day"]
    assert day["held"] == 0
    if source is None:
        assert (count, day["used"], sources(tmp_path)) == (0, 0, [])
    else:
        assert (count, sources(tmp_path)) == (1, [source])
        assert day["used"] == SPENT if source == "reported" else day["used"] > SPENT


# Row 46: no room on the disk, as far as this process can tell.


async def test_row46_on_a_full_disk_requests_are_refused_and_running_answers_are_settled(tmp_path) -> None:
    release = asyncio.Event()
    async with ScriptedProvider(slow(release)) as provider, command(tmp_path, provider.url) as served:
        async with connect(served.port) as client:
            reply = await client.post(HELLO)
            await reply.until("token")
            unlimited = resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (1, unlimited[1]))
            refused = await ask(served.port)
            assert (refused.status, json.loads(refused.raw)["code"]) == (503, "limiter_unavailable")
            assert (await until_ready(served.port, 503))["store"]["status"] == "limiter_unavailable"
            release.set()
            assert (await reply.until("token")).data == '"two"'
            await reply.until("done")
            assert (await ask(served.port)).status == 503
            assert len(provider.requests) == 1
            resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert (await settled(served.port))["tokens_per_day"]["used"] == SPENT
        assert (await ask(served.port)).status == 200
        await until_ready(served.port, 200)


async def until_ready(port: int, status: int) -> dict[str, Any]:
    """Wait until /readyz has this status, which takes as long as an answer of it is reused; return what it says."""
    while True:
        async with connect(port) as client:
            reply = await client.request("GET", "/readyz")
            if reply.status == status:
                return await reply.json()
            await reply.body()
        await asyncio.sleep(0.2)


# Rows 23 and 32, as far as there is something to ask: a server knows its callers by their address or a proxy's header.


async def test_row23_an_unverified_authorization_header_identifies_no_caller(tmp_path) -> None:
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url) as served:
        for sent in ("Bearer ' OR 1=1; DROP TABLE requests; --", "Basic eDp5", "Bearer somebody"):
            assert (await ask(served.port, headers={**JSON, "authorization": sent})).status == 200
            assert provider.requests[-1].headers["authorization"] == "Bearer sk-served"
        large = await ask(served.port, headers={**JSON, "authorization": "Bearer " + "x" * 1_000_000})
        assert (large.status, len(provider.requests)) == (431, 3)
        day = (await settled(served.port))["requests_per_minute"]
        assert day["used"] == 3, "one caller, whatever it said"


async def test_row32_the_page_runs_and_loads_only_files_of_its_origin(tmp_path) -> None:
    async with ScriptedProvider(answer("x")) as provider, command(tmp_path, provider.url) as served:
        async with connect(served.port) as client:
            reply = await client.request("GET", "/")
            page = (await reply.body()).decode()
    policy = dict(each.strip().partition(" ")[::2] for each in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    start = page.partition('<script type="module">')[2].partition("</script>")[0]
    digest = b64encode(sha256(start.encode()).digest()).decode()
    assert (policy["script-src"], policy["connect-src"]) == (f"'self' 'sha256-{digest}'", "'self'")
    assert not any("unsafe" in each or "*" in each or "http" in each for each in policy.values())
    assert {"base-uri", "form-action", "frame-ancestors"} <= set(policy)
    assert (
        "<script>" not in page
        and "http://" not in page.replace("http://www.w3.org", "")
        and " on" + "click" not in page
    )
