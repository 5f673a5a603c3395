"""A fleet as an operator runs it: `chat-nest serve` with workers behind nginx, a real store, a provider that counts.

async with CountingProvider() as provider, fleet(tmp_path, store, provider, limits) as served:
    replies = await storm(served.port, [asking(3)] * 1_000)    # a thousand open sockets, then all of them at once
    assert statuses(replies) == {200: 20, 429: 980}
    assert counters(store) == ...                              # what the store itself holds, read without our code
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from ports import free_port
from postgres_server import new_database, rows, shared_url
from processes import children
from raw_client import JSON, Client, Cut, Reply, connect
from redis_servers import RedisCluster, RedisServer
from scripted_provider import DONE, END, Connection, Request, ScriptedProvider, chunk, finish, head, piece, usage

from chat_nest.messages import Message
from chat_nest.tokens import counter_for, prompt_bound

COMMAND = Path(sys.executable).with_name("chat-nest")
LISTENING = re.compile(r"chat-nest: listening on http://127\.0\.0\.1:(\d+)\n")
NGINX = re.findall(
    r"^```nginx\n(.*?)^```$",
    (Path(__file__).parents[1] / "docs" / "embedding.md").read_text(),
    re.DOTALL | re.MULTILINE,
)
"""The blocks of docs/embedding.md."""
MODEL = "p:m"
FULL = 60
"""Tokens of an answer of the full size."""
LEAST = 16
"""A request is refused rather than clamped below this."""


def text_of(caller: int, number: int = 0) -> str:
    """A prompt that says whose it is; all of them are equally long."""
    return f"caller {caller:03} asks {number:05}"


PROMPT = prompt_bound([Message(role="user", content=text_of(0))], counter_for("m"))
"""Tokens that are reserved for one prompt. The provider bills as many, unless a test says otherwise."""
WHOLE = PROMPT + FULL


@dataclass
class Made:
    """What the provider produced for one request."""

    caller: int
    number: int
    asked: int
    """The most tokens that it was asked for."""
    input_tokens: int = 0
    output_tokens: int = 0
    whole: bool = False
    """It said how much that was, and nobody cut it off."""

    @property
    def total(self) -> int:
        return self.input_tokens + self.output_tokens


class CountingProvider(ScriptedProvider):
    """Makes as many tokens as it is asked for, or fewer, and keeps count: `made` has an entry for each request.

    `go_on` holds all answers back after their first token while it is not set. An answer has `pieces` pieces with
    `pause` seconds between them.
    """

    def __init__(self, *, share: float = 1.0, input_tokens: int = PROMPT, pieces: int = 4, pause: float = 0.0) -> None:
        super().__init__()
        self.share = share
        self.input_tokens = input_tokens
        self.pieces = pieces
        self.pause = pause
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.made: list[Made] = []

    def _take(self, request: Request) -> Any:
        scripted = super()._take(request)
        return scripted if request.method == "GET" else lambda connection: self._produce(request.json(), connection)

    async def _produce(self, asked: Any, connection: Connection) -> None:
        words = asked["messages"][-1]["content"].split()
        made = Made(int(words[1]), int(words[3]), asked["max_tokens"])
        self.made.append(made)
        made.input_tokens = self.input_tokens
        tokens = max(1, int(asked["max_tokens"] * self.share))
        await connection.send(head())
        made.output_tokens = 1
        await connection.send(piece(chunk("x")))
        await self.go_on.wait()
        left = tokens - 1
        for number in range(self.pieces, 0, -1):
            await asyncio.sleep(self.pause)
            some = left // number
            left -= some
            made.output_tokens += some
            if some:
                await connection.send(piece(chunk("x" * some)))
        end = finish("length") + usage(made.input_tokens, made.output_tokens) + DONE
        await connection.send(piece(end) + END)
        made.whole = True

    @property
    def total(self) -> int:
        """All the tokens that it has billed."""
        return sum(made.total for made in self.made)

    def total_of(self, caller: int) -> int:
        return sum(made.total for made in self.made if made.caller == caller)

    async def refuse(self) -> None:
        """Refuse connections, and end those that are open."""
        self._server.close()
        for connection in self.connections:
            connection._transport.abort()
        await self.idle()

    async def accept(self) -> None:
        """Listen again, at the same port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port, backlog=1024)


# Stores.


class RedisStoreServer:
    """The counters of a fleet in Redis, read with Redis's own words."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.url = server.url

    def counters(self) -> dict[str, tuple[int, int]]:
        """The used and held of each window."""
        found = {}
        for name in self.server.ask("KEYS", "*:window:*"):
            used, held = self.server.ask("HMGET", name, "used", "held")
            found[name.decode().partition(":window:")[2]] = int(used or 0), int(held or 0)
        return found

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """It answers nobody while this is open."""
        self.server.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.signal(signal.SIGCONT)

    def claims(self) -> dict[str, Claimed]:
        """What it keeps of each request, by its id."""
        names = self.server.ask("KEYS", "*:claim:*")
        packed = self.server.ask("MGET", *names) if names else []
        found = {}
        for name, one in zip(names, packed, strict=True):
            claim = msgspec.msgpack.decode(one, type=_Claim)
            found[name.decode().partition(":claim:")[2]] = Claimed(claim.state, _tokens(claim), claim.source)
        return found


class ClusterStoreServer:
    """The counters of a fleet in a Redis Cluster, as its masters have them now."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.cluster = cluster
        self.url = cluster.url

    def counters(self) -> dict[str, tuple[int, int]]:
        """The used and held of each window."""
        found = {}
        for node in self.cluster.nodes:
            if node.process.poll() is None and node.ask("ROLE")[0] == b"master":
                found |= RedisStoreServer(node).counters()
        return found


class _Claim(msgspec.Struct):
    """What is of interest here of a claim in Redis."""

    state: str
    source: str = ""
    actual: Any = None
    holds: Any = ()


def _tokens(claim: _Claim) -> int:
    if claim.state == "settled":
        return claim.actual["tokens"]
    return next((hold["held"] for hold in claim.holds or () if hold["unit"] == "tokens"), 0)


class PostgresStoreServer:
    """The same in PostgreSQL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def counters(self) -> dict[str, tuple[int, int]]:
        found = rows(self.url, "SELECT key, used, held FROM chat_nest.counters WHERE kind = 'window'")
        return {key: (used, held) for key, used, held in found}

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """It answers nobody while this is open."""
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            await connection.execute("LOCK TABLE chat_nest.reservations, chat_nest.counters")
            yield

    def claims(self) -> dict[str, Claimed]:
        """What it keeps of each request, by its id."""
        found = rows(
            self.url,
            "SELECT r.id, r.state, max(coalesce(l.actual, l.held)), r.source FROM chat_nest.reservations r"
            " LEFT JOIN chat_nest.reservation_lines l ON l.id = r.id AND l.unit = 'tokens' GROUP BY r.id",
        )
        return {id: Claimed(state, tokens or 0, source or "") for id, state, tokens, source in found}


@dataclass(frozen=True)
class Claimed:
    """A request as the store keeps it: what it was charged or, while it is open, what it holds."""

    state: str
    tokens: int
    source: str


Store = RedisStoreServer | PostgresStoreServer


@asynccontextmanager
async def new_store(kind: str) -> AsyncIterator[Store]:
    """An empty store of this kind: a Redis server, or a database, of its own."""
    if kind == "redis":
        server = RedisServer()
        try:
            yield RedisStoreServer(server)
        finally:
            server.stop()
    else:
        url, remove = new_database(shared_url())
        try:
            yield PostgresStoreServer(url)
        finally:
            remove()


# Servers.


@dataclass
class Fleet:
    """A running `chat-nest serve`. `port` is nginx's."""

    process: Process
    folder: Path
    port: int = 0

    @property
    def log(self) -> str:
        return (self.folder / "serve.log").read_text()

    def workers(self) -> set[int]:
        return children("spawn_main", self.process.pid)

    async def stop(self) -> int:
        """SIGTERM, and what the fleet then exits with."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


def config(store_url: str, provider: ScriptedProvider, sections: str, *, lease: float = 60) -> str:
    # Days begin when nobody runs these tests: twelve hours from now.
    zone = f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"
    return f"""
        [server]
        trusted_proxies = ["127.0.0.1"]
        time_zone = "{zone}"
        [store]
        url = "{store_url}"
        lease = {lease}
        [providers.p]
        base_url = "{provider.url}"
        [hard_caps]
        requests_per_minute = 1_000_000
        tokens_per_day = 1_000_000_000
        {sections}
    """


PROFILE = f"""
        [profiles.balanced]
        model = "{MODEL}"
        max_output_tokens = {FULL}
        requests_per_minute = 1_000_000
        """
"""Sections for `config` may go on with more keys of this profile."""


@asynccontextmanager
async def fleet(folder: Path, text: str, *, workers: int = 4) -> AsyncIterator[Fleet]:
    """Run a fleet with this config behind nginx until the end of the context; whatever it says is in its log.

    What hangs is ended after 50 s: pytest-timeout's exception, raised in the middle of a busy loop, may only be logged.
    """
    folder.mkdir(exist_ok=True)
    (folder / "chat.toml").write_text(text)
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with (folder / "serve.out").open("wb") as said, (folder / "serve.log").open("wb") as logged:
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "serve", "--port", "0", "--workers", str(workers), "--config", "chat.toml"),
            cwd=folder,
            env=clean,
            stdout=said,
            stderr=logged,
        )
    served = Fleet(process, folder)
    try:
        while not (found := LISTENING.search((folder / "serve.out").read_text())):
            assert process.returncode is None, served.log
            await asyncio.sleep(0.02)
        async with asyncio.timeout(60), nginx(folder / "nginx", int(found[1])) as served.port:
            yield served
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()


@asynccontextmanager
async def nginx(folder: Path, upstream: int) -> AsyncIterator[int]:
    """nginx with the configuration of docs/embedding.md in front of a port; yields its own port."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        assert not os.environ.get("CI"), "nginx is missing, and in CI no test may be left out"
        pytest.skip("nginx is not installed")
    folder.mkdir()
    port = free_port()
    pool, location = NGINX[1].replace("127.0.0.1:8000", f"127.0.0.1:{upstream}"), NGINX[0]
    location = location.replace("http://127.0.0.1:8000", "http://chat-nest")
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {folder}/{name};\n" for name in names)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors.log; worker_rlimit_nofile 10000;\n"
        f"events {{ worker_connections 8000; }}\nhttp {{ access_log off; {temporary}{pool}"
        f"server {{ listen 127.0.0.1:{port} backlog=2048;\n{location} }} }}\n"
    )
    process = await asyncio.create_subprocess_exec(program, "-e", f"{folder}/errors.log", "-c", folder / "nginx.conf")
    try:
        async with asyncio.timeout(60):
            while True:
                assert process.returncode is None, (folder / "errors.log").read_text()
                try:
                    async with connect(port):
                        break
                except OSError:
                    await asyncio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def ready(provider: ScriptedProvider, workers: int = 4) -> None:
    """Wait until this many workers serve: each looks for its provider when it starts."""
    async with asyncio.timeout(60):
        while len(provider.checks) < workers:
            await asyncio.sleep(0.02)


# Clients.


@dataclass(frozen=True)
class Answer:
    """What one client got. `status` is 0 where it got nothing, `done` is None where the answer did not end well."""

    caller: int
    status: int
    code: str
    id: str
    done: Any
    headers: dict[str, str]
    seconds: float
    """Until its head came."""
    events: tuple[str, ...] = ()
    """Their names."""

    @property
    def charged(self) -> int:
        """What it was told that it cost, in tokens."""
        return self.done["usage"]["total_tokens"]


def address(caller: int) -> str:
    return f"10.0.{caller // 250}.{caller % 250 + 1}"


def fields(caller: int, key: str = "") -> dict[str, str]:
    return {**JSON, "x-forwarded-for": address(caller), **({"idempotency-key": key} if key else {})}


def body(caller: int, number: int = 0) -> Any:
    return {"messages": [{"role": "user", "content": text_of(caller, number)}]}


async def storm(port: int, callers: Sequence[int], on_head: Any = None) -> list[Answer]:
    """Open a socket for each of the callers, then ask on all of them at once; the answers in their order."""
    everybody = asyncio.Barrier(len(callers))

    async def one(caller: int) -> Answer:
        async with connect(port) as client:
            await everybody.wait()
            client.send("POST", "/api/chat", body(caller), fields(caller))
            return await answered(client, caller, on_head)

    return await asyncio.gather(*map(one, callers))


async def ask(port: int, caller: int, number: int = 0, *, key: str = "") -> Answer:
    """One question on a connection of its own; status 0 where nobody took it."""
    try:
        async with connect(port) as client:
            client.send("POST", "/api/chat", body(caller, number), fields(caller, key))
            return await answered(client, caller)
    except ConnectionError:
        return Answer(caller, 0, "refused", "", None, {}, 0.0)


async def answered(client: Client, caller: int, on_head: Any = None) -> Answer:
    """Read one answer to its end, however it ends."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        reply = await client.reply()
    except (Cut, ConnectionError):
        return Answer(caller, 0, "cut", "", None, {}, loop.time() - began)
    took = loop.time() - began
    if on_head is not None:
        on_head(reply)
    code, done, names = "", None, []
    try:
        if reply.headers.get("content-type") == "text/event-stream":
            while (event := await reply.event()) is not None:
                names.append(event.name)
                if event.name == "done":
                    done = event.json()
                elif event.name == "error":
                    code = event.json()["code"]
        else:
            code = _code(await reply.body())
    except (Cut, ConnectionError):
        code = "cut"
    id = reply.headers.get("x-request-id", "")
    return Answer(caller, reply.status, code, id, done, reply.headers, took, tuple(names))


def _code(data: bytes) -> str:
    try:
        return json.loads(data).get("code", "")
    except ValueError:
        return "not ours"


def statuses(answers: Iterable[Answer]) -> dict[tuple[int, str], int]:
    """How many there are of each status and code."""
    return dict(Counter((answer.status, answer.code) for answer in answers))
