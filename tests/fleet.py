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
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import forked_command
import processes
import pytest
from ports import free_port
from raw_client import JSON, Client, Cut, Reply, connect
from scripted_provider import DONE, END, Connection, Request, ScriptedProvider, chunk, finish, head, piece, usage

from chat_nest.core.messages import Message
from chat_nest.counting.bounds import prompt_bound
from chat_nest.counting.tokens import counter_for

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
        if not await self.begins(made, connection):
            return
        made.input_tokens = self.input_tokens
        tokens = max(1, int(asked["max_tokens"] * self.share))
        await connection.send(head())
        made.output_tokens = 1
        await connection.send(piece(chunk("x")))
        if not await self.goes_on(made, connection):
            return
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

    async def begins(self, _made: Made, _connection: Connection) -> bool:
        """Whether there is an answer; what comes instead is sent here."""
        return True

    async def goes_on(self, _made: Made, _connection: Connection) -> bool:
        """Whether an answer goes on behind its first token."""
        await self.go_on.wait()
        return True

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


# Servers.


@dataclass
class Fleet:
    """A running `chat-nest serve`. `port` is nginx's."""

    process: Process | forked_command.Process
    folder: Path
    port: int = 0

    @property
    def log(self) -> str:
        return (self.folder / "serve.log").read_text()

    def workers(self) -> set[int]:
        return processes.workers(self.process.pid)

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
        [timeouts]                           # answers are held back until a thousand clients know theirs
        first_token = 240
        idle = 240
        [hard_caps]
        requests_per_minute = 1_000_000
        tokens_per_day = 1_000_000_000
        {sections}
    """


def profile(name: str) -> str:
    """Sections for `config`, which may go on with more keys of this profile."""
    return f"""
        [profiles.{name}]
        model = "{MODEL}"
        max_output_tokens = {FULL}
        requests_per_minute = 1_000_000
        open = true
        """


PROFILE = profile("balanced")


@asynccontextmanager
async def fleet(folder: Path, text: str, *, workers: int = 4, seconds: float | None = 240) -> AsyncIterator[Fleet]:
    """Run a fleet with this config behind nginx until the end of the context; whatever it says is in its log.

    What hangs is ended after `seconds`: pytest-timeout's exception, raised in a busy loop, may only be logged.
    """
    folder.mkdir(exist_ok=True)
    (folder / "chat.toml").write_text(text)
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with (folder / "serve.out").open("wb") as said, (folder / "serve.log").open("wb") as logged:
        process = await forked_command.run(
            *("serve", "--port", "0", "--workers", str(workers), "--config", "chat.toml"),
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
        async with asyncio.timeout(seconds), nginx(folder / "nginx", int(found[1])) as served.port:
            yield served
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 60)
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


def body(caller: int, number: int = 0, profile: str = "balanced") -> Any:
    return {"messages": [{"role": "user", "content": text_of(caller, number)}], "profile": profile}


async def storm(
    port: int, callers: Sequence[int], on_head: Any = None, profile: str = "balanced", *, patient: bool = False
) -> list[Answer]:
    """Open a socket for each of the callers, then ask on all of them at once; the answers in their order.

    On a busy machine the store may take longer than its second for some. The `patient` ones then ask again.
    """
    everybody = asyncio.Barrier(len(callers))

    def head(reply: Reply) -> None:
        if on_head is not None and not (patient and reply.status == 503):
            on_head(reply)

    async def one(caller: int) -> Answer:
        async with connect(port) as client:
            await everybody.wait()
            client.send("POST", "/api/chat", body(caller, 0, profile), fields(caller))
            answer = await answered(client, caller, head)
        while patient and (answer.status, answer.code) == (503, "limiter_unavailable"):
            await asyncio.sleep(1)
            async with connect(port) as client:
                client.send("POST", "/api/chat", body(caller, 0, profile), fields(caller))
                answer = await answered(client, caller, head)
        return answer

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
