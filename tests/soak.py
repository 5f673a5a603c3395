"""Thousands of mixed requests against a real `chat-nest serve`, and whether it is as it was before: `scripts/soak`.

With `--faults`: pairs of faults instead, and whether every store's ledger still agrees with the provider (`fault_pairs`).

Every request is one of KINDS: answers read to their end, readers who leave at each point, refusals, broken bodies,
broken framing, slow readers, and providers that fail. The server is then left alone, and its file descriptors, threads,
memory and connections must return to where they were after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fault_pairs
from raw_client import HELLO, JSON, Cut, ask, connect, standing
from scripted_provider import (
    HANG,
    RATE_LIMITED,
    RESET,
    Connection,
    Request,
    Script,
    ScriptedProvider,
    answer,
    chunk,
    failure,
    head,
    http,
    piece,
    stream,
)

Kind = Callable[[int], Awaitable[str]]

AT_ONCE = 24
STORES = list(dict.fromkeys(pair.store for pair in fault_pairs.all_pairs()))
MEMORY_MB = 16.0
"""How much more memory than after the warm-up is no leak: caches that fill, and what the allocator keeps."""
CLAIM_KB = 3.0
"""And for each request: `memory://` remembers a claim for an hour. A stream that is not let go weighs many times more."""
CONFIG = """
[server]
port = 0
header_seconds = 2
body_seconds = 2
idle_seconds = 2
max_streams = 200

[store]
url = "memory://"

[timeouts]
write = 1
first_token = 10
idle = 10
commit = 0.2

[hard_caps]
requests_per_minute = 1000000
tokens_per_day = 1000000000000
max_output_tokens = 100000000
tokens_per_request = 1000000000

[profiles.balanced]
requests_per_minute = 1000000
tokens_per_day = 1000000000000
max_output_tokens = 400
tokens_per_request = 1000000000

[profiles.flood]
max_output_tokens = 100000000

[profiles.poor]
tokens_per_day = 1
"""


class Look(NamedTuple):
    """What the kernel says about the server's process."""

    seconds: float
    requests: int
    files: int
    threads: int
    memory_mb: float
    connections: int
    provider: int
    """Connections that the provider's stand-in has."""

    def line(self) -> str:
        return (
            f"{self.seconds:8.1f} {self.requests:9} {self.files:6} {self.threads:8} {self.memory_mb:9.1f}"
            f" {self.connections:12} {self.provider:9}"
        )


HEAD = " seconds  requests  files  threads  RSS (MB)  connections  provider"


def look(pid: int, port: int, began: float, requests: int, provider: ScriptedProvider) -> Look:
    status = Path(f"/proc/{pid}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    ours = f":{port:04X} "
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return Look(
        time.monotonic() - began,
        requests,
        len(os.listdir(f"/proc/{pid}/fd")),
        int(facts["Threads"]),
        int(facts["VmRSS"].split()[0]) / 1024,
        sum(row[1].endswith(ours.strip()) and row[3] == "01" for row in rows),
        sum(not connection.closed.done() for connection in provider.connections),
    )


# What the provider does: the prompt says it, since requests come in no order.


async def flood(connection: Connection) -> None:
    await connection.send(head())
    whole = piece(chunk("x" * 4_000))
    while True:
        await connection.send(whole)


SCRIPTS: dict[str, Script] = {
    "happy": answer("word ", 20),
    "hang": [HANG],
    "silent": stream(HANG),
    "mid-stream": stream(chunk("a"), chunk("b"), HANG),
    "flood": flood,
    "refused key": failure(401, "no"),
    "busy": RATE_LIMITED,
    "html": http(200, b"<html>", "text/html"),
    "reset": [RESET],
    "cut": stream(chunk("a"), RESET),
    "garbage": stream(chunk("a"), b"data: {\n\n"),
}


class Provider(ScriptedProvider):
    """Does what the last message asks for."""

    def _take(self, request: Request) -> Script:
        if request.method == "GET":
            return self.models
        return SCRIPTS[request.json()["messages"][-1]["content"]]


# What clients do. Each returns what came of it, for the table.


def says(what: str, profile: str = "balanced") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": what}], "profile": profile}


async def happy(port: int) -> str:
    async with connect(port) as client:
        for _ in range(2):  # on one connection
            reply = await client.post(says("happy"))
            if reply.status != 200:
                return str(reply.status)
            last = (await reply.events())[-1].name
        return last


def leaves(script: str, until: str | None, how: str) -> Kind:
    async def leave(port: int) -> str:
        async with connect(port) as client:
            client.send("POST", "/api/chat", says(script), JSON)
            if until is None:
                await asyncio.sleep(0.005)  # anywhere on its way
            else:
                await (await client.reply()).until(until)
            getattr(client, how)()
        return "left"

    return leave


def fails(script: str) -> Kind:
    async def fail(port: int) -> str:
        reply = await ask(port, says(script, "bad"))
        return str(reply.status) if reply.status != 200 else "error" if b"event: error" in reply.raw else "done"

    return fail


def refused(body: object, **headers: str) -> Kind:
    async def refuse(port: int) -> str:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        async with connect(port) as client:
            reply = await client.post(body, headers={**JSON, **fields})
            await reply.body()
            return str(reply.status)

    return refuse


def broken(request: bytes) -> Kind:
    """Also what is only a part of a request: it is answered in the end, with 408."""

    async def send(port: int) -> str:
        async with connect(port) as client:
            client.write(request)
            return str((await client.reply()).status)

    return send


async def silent(port: int) -> str:
    async with connect(port) as client:
        try:
            await client.reply()
        except Cut:
            return "closed"
        return "answered"


async def slow_reader(port: int) -> str:
    async with connect(port, receive_buffer=4_096) as client:
        client.send("POST", "/api/chat", says("flood", "flood"), JSON)
        reply = await client.reply()
        await asyncio.sleep(2.5)  # longer than [timeouts] write
        try:
            await reply.events()
        except Cut:
            return "cut"
        return "done"


START = b"POST /api/chat HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
KINDS: dict[str, tuple[int, Kind, set[str]]] = {
    # How many of a hundred or so, what it does, and what may come of it. A provider that fails after [timeouts] commit,
    # as on a busy machine, is told by an error event instead of a status.
    "happy": (40, happy, {"done"}),
    "leaves before the headers": (6, leaves("hang", None, "reset"), {"left"}),
    "leaves before the first token": (6, leaves("silent", "start", "finish"), {"left"}),
    "leaves after a token": (6, leaves("mid-stream", "token", "reset"), {"left"}),
    "leaves while it flows": (6, leaves("happy", "token", "reset"), {"left"}),
    "provider refuses the key": (2, fails("refused key"), {"502", "503", "error"}),
    "provider is busy": (2, fails("busy"), {"503", "error"}),
    "provider answers HTML": (2, fails("html"), {"502", "503", "error"}),
    "provider resets": (2, fails("reset"), {"502", "503", "error"}),
    "provider cuts": (2, fails("cut"), {"error", "503"}),
    "provider sends garbage": (2, fails("garbage"), {"error", "503"}),
    "provider says nothing": (1, fails("hang"), {"error", "503", "504"}),
    "over the budget": (6, refused(says("happy", "poor")), {"429"}),
    "broken JSON": (3, refused(b'{"messages":'), {"400"}),
    "no messages": (3, refused({}), {"400"}),
    "another type": (2, refused(HELLO, content_type="text/plain"), {"415"}),
    "too large": (2, refused(b"x" * 300_000), {"413"}),
    "two lengths": (2, broken(START + b"content-length: 4\r\ncontent-length: 4\r\n\r\nabcd"), {"400"}),
    "half a head": (2, broken(START), {"408"}),
    "half a body": (2, broken(START + b"content-length: 100\r\n\r\n{"), {"408"}),
    "silent": (1, silent, {"closed"}),
    "slow reader": (1, slow_reader, {"cut"}),
}


class Soak:
    """One run against one server. `wrong` says what must not be."""

    def __init__(self, port: int, pid: int, provider: Provider, seed: int) -> None:
        self.port = port
        self.pid = pid
        self.provider = provider
        self.began = time.monotonic()
        self.done = 0
        self.outcomes: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
        self.wrong: list[str] = []
        self._random = random.Random(seed)

    def look(self) -> Look:
        return look(self.pid, self.port, self.began, self.done, self.provider)

    async def run(self, enough: Callable[[], bool], every: float) -> None:
        """Mixed requests, AT_ONCE at a time, until it is enough; the curve has a line `every` so many seconds."""
        drawing = asyncio.create_task(self._draw(every))
        try:
            await asyncio.gather(*(self._client(enough) for _ in range(AT_ONCE)))
        finally:
            drawing.cancel()

    async def _client(self, enough: Callable[[], bool]) -> None:
        names = list(KINDS)
        weights = [KINDS[name][0] for name in names]
        while not enough():
            self.done += 1
            (name,) = self._random.choices(names, weights)
            _, kind, expected = KINDS[name]
            try:
                async with asyncio.timeout(240):
                    outcome = await kind(self.port)
            except (Cut, OSError, AssertionError, TimeoutError) as error:
                outcome = type(error).__name__
            self.outcomes[name][outcome] += 1
            if outcome not in expected:
                self.wrong.append(f"{name}: {outcome}")

    async def _draw(self, every: float) -> None:
        while True:
            print(self.look().line(), flush=True)
            await asyncio.sleep(every)

    async def rest(self, seconds: float = 20.0, like: Look | None = None) -> Look:
        """Leave the server alone until nothing is held and it is `like` before, or for so long; return how it is."""
        until = time.monotonic() + seconds
        while True:
            held = any(limit["held"] for limit in (await standing(self.port)).values())
            now = self.look()
            if not held and now.connections == 0 and (like is None or not differences(like, now)):
                return now
            if time.monotonic() > until:
                if held:
                    self.wrong.append("something is still held")
                return now
            await asyncio.sleep(0.1)


def differences(before: Look, after: Look) -> list[str]:
    """What did not return to where it was. Connections that wait for the next request to the provider may stay."""
    found = []
    if after.files - after.provider > before.files - before.provider:
        found.append(f"file descriptors: {before.files - before.provider}, now {after.files - after.provider}")
    if after.threads > before.threads:
        found.append(f"threads: {before.threads}, now {after.threads}")
    if after.connections > 0:
        found.append(f"connections that nobody uses: {after.connections}")
    if after.provider > AT_ONCE:
        found.append(f"connections to the provider: {after.provider}")
    if after.memory_mb > before.memory_mb + MEMORY_MB + (after.requests - before.requests) * CLAIM_KB / 1024:
        found.append(f"memory: {before.memory_mb:.1f} MB, now {after.memory_mb:.1f} MB")
    return found


@asynccontextmanager
async def server(folder: Path, provider: Provider) -> AsyncIterator[tuple[int, Process]]:
    """Its port and its process. Its log goes to a file in the folder."""
    config = CONFIG
    for name in ("good", "bad"):  # what the bad one does has no say in whether the good one is asked
        config += f'\n[providers.{name}]\nbase_url = "{provider.url}"\napi_key = "k"\nabort_bills = "stops"\n'
    for name in ("balanced", "flood", "poor", "bad"):
        section = f"[profiles.{name}]\n"
        model = f'{section}open = true\nmodel = "{"bad" if name == "bad" else "good"}:m"\n'
        config = config.replace(section, model) if section in config else f"{config}\n{model}"
    (folder / "chat.toml").write_text(config)
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    command = (sys.executable, "-m", "chat_nest.cli.main", "serve", "--config", "chat.toml")
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=clean, stdout=PIPE, stderr=log)
    assert process.stdout is not None
    try:
        first = (await process.stdout.readline()).decode()
        reading = asyncio.create_task(process.stdout.read())
        yield int(first.rpartition(":")[2]), process
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(240):
            await asyncio.gather(process.wait(), reading)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def soak(folder: Path, *, requests: int = 0, seconds: float = 0.0, seed: int = 1) -> list[str]:
    """Run so many requests, or for so long; print the curve and what came of each kind; return what is wrong."""
    async with Provider() as provider, server(folder, provider) as (port, process):
        run = Soak(port, process.pid, provider, seed)
        print(f"{AT_ONCE} clients, seed {seed}\n{HEAD}")
        every = max(1.0, seconds / 30)
        warm = max(requests // 4, 300)
        await run.run(lambda: run.done >= warm, every)
        before = await run.rest()
        print(before.line(), " rested: the baseline")
        until = time.monotonic() + seconds
        await run.run(lambda: run.done >= warm + requests if requests else time.monotonic() >= until, every)
        after = await run.rest(like=before)
        print(after.line(), " rested")
        for name, outcomes in run.outcomes.items():
            print(f"  {name:32}", ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common()))
        wrong = [*dict.fromkeys(run.wrong), *differences(before, after)]
    if process.returncode != 0:
        wrong.append(f"the server's exit code is {process.returncode}")
    log = (folder / "log").read_text()
    if "Traceback" in log or "Exception" in log:
        wrong.append("a traceback in the server's log:\n" + log[-4_000:])
    wrong += [f"not one request of the kind: {name}" for name, outcomes in run.outcomes.items() if not outcomes]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--requests", type=int, default=0, help="so many requests instead")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1_000_000), help="of the mixture, or of the pairs' order"
    )
    parser.add_argument(
        "--faults", action="store_true", help="pairs of a broken store and a process that ends, instead"
    )
    parser.add_argument("--store", choices=STORES, help="only this store's pairs")
    parser.add_argument("--pair", default="", metavar="PAIR", help="only those that begin so, once: frozen,killed")
    options = parser.parse_args()
    if options.faults:
        stores = [options.store] if options.store else STORES
        return tell(fault_pairs.soak(options.minutes, options.seed, stores, options.pair), "every ledger agrees")
    with tempfile.TemporaryDirectory() as folder:
        seconds = 0.0 if options.requests else 60 * options.minutes
        wrong = asyncio.run(soak(Path(folder), requests=options.requests, seconds=seconds, seed=options.seed))
    return tell(wrong, "as before")


def tell(wrong: list[str], well: str) -> int:
    for line in wrong:
        print(f"soak: wrong: {line}")
    print("soak:", "failed" if wrong else well)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
