"""The cost of a large prompt, of 400 kB and some 90,000 tokens, and what it does to the other streams.

    scripts/bench prompts [--quick] [--in-process] [--json FILE]

In one process, without sockets: the CPU time of a request, and how long the event loop is held at most; CPU time, so
that other work on the machine changes little. Over sockets: the CPU time of the server for a request, and the delay of
the tokens of 50 paced streams, without and with 20 such requests a second. nginx is beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from benchmarks import report
from benchmarks.instructions import CHUNK, HEAD, USAGE, Wire, event
from benchmarks.processes import Cores, Failed, Missing
from benchmarks.programs import BUILD, StandIn, compile_programs
from benchmarks.scenarios import Figures, fresh
from benchmarks.stacks import CHAT_NEST, FLOOR, NATIVE, OPENAI, Stack, chat_nest, large, native_body, nginx, openai_body

ROOM = "[server]\nmax_body_bytes = 2_000_000\n"
STACKS = (
    Stack(name=FLOOR, prepare=nginx, **OPENAI | {"body": openai_body}),
    Stack(name="chat-nest memory", prepare=chat_nest("memory://", more=ROOM), **NATIVE),
)
STREAMS, GAP, SECONDS = 50, 20_000, 6.0
A_SECOND = 20
READ = 65_536
"""Bytes that come from a socket at a time."""


class InProcess(msgspec.Struct, frozen=True):
    """Milliseconds of CPU time: the least for a request, and the longest hold of the loop, least and median."""

    request: float
    hold: float
    usual_hold: float


class TimedLoop(asyncio.SelectorEventLoop):
    """Connects to a provider that this program plays, and keeps the CPU time of its longest callback."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[tuple[Any, Wire]] = []
        self.longest = 0

    async def create_connection(self, make: Callable[[], Any], *_: Any, **_others: Any) -> Any:
        protocol, wire = make(), Wire()
        protocol.connection_made(wire)
        self.opened.append((protocol, wire))
        return wire, protocol

    def call_soon(self, callback: Any, *args: Any, **options: Any) -> asyncio.Handle:
        return super().call_soon(self._timed, callback, *args, **options)

    def _timed(self, callback: Callable[..., object], *args: Any) -> None:
        began = time.thread_time_ns()
        callback(*args)
        self.longest = max(self.longest, time.thread_time_ns() - began)


async def until(true: Callable[[], object]) -> None:
    """Wait without much CPU time: another thread may be counting."""
    while not true():  # noqa: ASYNC110 - what is measured must not know that it is watched
        await asyncio.sleep(0.001)


async def answer(requests: int, directory: Path) -> InProcess:
    """Answer large requests one after the other, as `chat-nest serve` does with a store in memory."""
    from chat_nest.server.app import build  # noqa: PLC0415
    from chat_nest.server.config.settings import load  # noqa: PLC0415
    from chat_nest.server.http.context import ServerContext  # noqa: PLC0415
    from chat_nest.server.http.protocol import ServerConnection  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    assert isinstance(loop, TimedLoop)
    config = directory / "config.toml"
    config.write_text(ROOM + CHAT_NEST.format(store="memory://", provider="http://127.0.0.1:1"))
    app = build(load(str(config), {}))
    app.handler.start()
    client = Wire()
    connection = ServerConnection(ServerContext(app))
    connection.connection_made(client)
    body = msgspec.json.encode(large(native_body)("tokens=1"))
    length = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    request = b"POST /api/chat HTTP/1.1\r\nhost: 127.0.0.1:8080\r\n" + length + body
    end = event(CHUNK % ("{}", '"stop"')) + event(USAGE) + event("[DONE]") + b"0\r\n\r\n"
    costs: list[float] = []
    holds: list[float] = []
    for _ in range(requests):
        client.written.clear()
        for _, wire in loop.opened:
            wire.written.clear()
        loop.longest, began = 0, time.process_time_ns()
        for at in range(0, len(request), READ):
            loop.call_soon(connection.data_received, request[at : at + READ])
            await asyncio.sleep(0)
        await until(lambda: loop.opened and loop.opened[0][1].written)
        provider = loop.opened[0][0]
        provider.data_received(HEAD + event(CHUNK % ('{"content":" word"}', "null")) + end)
        await until(lambda: not (connection.answering or app.running))
        if b"event: done" not in b"".join(client.written):
            raise Failed(f"an answer to a large prompt is wrong: {b''.join(client.written)[:300]!r}")
        costs.append((time.process_time_ns() - began) / 1e6)
        holds.append(loop.longest / 1e6)
    return InProcess(request=min(costs[2:]), hold=min(holds[2:]), usual_hold=median(holds[2:]))


def in_process(requests: int = 20) -> InProcess:
    """Measure in a process of its own. Raises Failed."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "benchmarks.prompts", "--answer", str(requests), directory]
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"large prompts in one process failed.\n{done.stderr}")
    return msgspec.json.decode(done.stdout, type=InProcess)


def over_sockets(stack: Stack, standin: StandIn, cores: Cores, directory: Path, seconds: float) -> Figures:
    """A fresh server: large requests alone, streams alone, both."""
    big = msgspec.structs.replace(stack, body=large(stack.body))
    with fresh(stack, standin, cores, directory) as running:
        running.warm_up(100)
        streams: dict[str, Any] = {"tokens": int(seconds * 1e6 / GAP), "stamped": True, "connections": STREAMS}
        streams |= {"requests": STREAMS, "ramp_ms": 500}
        steering = f"tokens={streams['tokens']},gap={GAP},stamp=1"
        alone, _ = running.load(steering, **streams)
        load = running.begin(steering, **streams)
        running.stack = big
        cpu = running.server.cpu_seconds()
        options = {"tokens": 1, "connections": 8, "rate": A_SECOND, "requests": int(A_SECOND * (seconds - 1))}
        # Its body file is read at once, so that the streams' one is free again.
        result = running.begin("tokens=1", **options).result()
        beside, _ = running.end(load)
        before = running.server.cpu_seconds()
        one, _ = running.load("tokens=1", tokens=1, connections=1, requests=1_000_000, seconds=seconds / 3)
        cpu = running.server.cpu_seconds() - before
    assert alone.token_delay_ms
    assert beside.token_delay_ms
    assert result.whole_ms
    return {
        "400 kB: ms a request": cpu / one.completed * 1e3,
        "400 kB, 20 a second: whole p99, ms": result.whole_ms[1],
        "50 streams: token delay p99, ms": alone.token_delay_ms[1],
        "50 streams beside them: token delay p99, ms": beside.token_delay_ms[1],
        "50 streams beside them: times the delay": beside.token_delay_ms[1] / alone.token_delay_ms[1],
    }


def measure(rounds: int, seconds: float, cores: Cores) -> report.Results:
    """Every stack, round by round."""
    compile_programs()
    results: report.Results = {stack.name: [] for stack in STACKS}
    directory = Path(tempfile.mkdtemp(prefix="prompts-", dir=BUILD))
    standin = StandIn()
    try:
        for turn in range(rounds):
            for stack in STACKS:
                print(f"round {turn + 1} of {rounds}: large prompts, {stack.name}", file=sys.stderr)
                place = directory / f"{stack.name.replace(' ', '-')}-{turn}"
                results[stack.name].append(over_sockets(stack, standin, cores, place, seconds))
    finally:
        standin.stop()
        shutil.rmtree(directory)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench prompts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--in-process", action="store_true", help="only what a busy machine can measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    parser.add_argument("--answer", nargs=2, metavar=("REQUESTS", "DIR"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.answer:
        with asyncio.Runner(loop_factory=TimedLoop) as runner:
            found = runner.run(answer(int(asked.answer[0]), Path(asked.answer[1])))
        sys.stdout.write(msgspec.json.encode(found).decode())
        sys.stdout.flush()
        os._exit(0)
    try:
        inside = in_process()
        print(
            f"One process, without sockets: {inside.request:.1f} ms of CPU a request of 400 kB; the event loop is held"
        )
        print(f"for {inside.hold:.1f} ms at a time at most, {inside.usual_hold:.1f} in the median of the requests.")
        results = {} if asked.in_process else measure(1 if asked.quick else 3, 4.0 if asked.quick else SECONDS, Cores())
    except Missing as e:
        print(e, file=sys.stderr)
        return 2
    except Failed as e:
        print(f"FAILED: {e}", file=sys.stderr)
        return 1
    if results:
        print(report.markdown(report.summary(results, FLOOR), [stack.name for stack in STACKS], FLOOR))
    if asked.json:
        whole = {"machine": report.machine(), "in process": inside, "rounds": results}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
