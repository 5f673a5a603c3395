"""The measurements. Each gives figures of one stack in one round, by name; the report takes medians over rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.processes import Cores, Failed, Server, free_port
from benchmarks.programs import Load, Loaded, Seen, StandIn
from benchmarks.stacks import Stack

Figures = dict[str, float]


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything; times in seconds."""

    rounds: int = 5
    burst: float = 1.5
    paced_streams: int = 100
    paced_tokens: int = 400
    held: int = 500
    aborts: int = 200
    early_aborts: int = 50


QUICK = Sizes(rounds=2, burst=0.7, paced_tokens=125, held=200, aborts=60, early_aborts=20)

PACE = 20_000
"""Microseconds between two tokens: 50 a second."""
BURST_CONNECTIONS = 32


class Running:
    """One stack's server, and how to load it."""

    def __init__(self, stack: Stack, standin: StandIn, cores: Cores, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.stack, self.standin, self.directory = stack, standin, directory
        provider = standin.url(tls=stack.tls)
        port = free_port() if stack.prepare else standin.port
        command = stack.prepare(directory, port, provider) if stack.prepare else []
        self.url = f"http://127.0.0.1:{port}{stack.path}"
        core = str(cores.servers) if stack.pinned else cores.both
        self.server = Server(stack.name, command, port=port, core=core, directory=directory)
        try:
            self.server.wait_until_open(stack.start_seconds)
        except Failed:
            self.server.stop()
            raise

    def begin(self, steering: str, **options: Any) -> Load:
        body = self.directory / "body.json"
        body.write_bytes(msgspec.json.encode(self.stack.body(steering)))
        options |= {"url": self.url, "body": body, "mark": self.stack.mark, "done": self.stack.done}
        return Load(**options if self.stack.one_event_a_token else options | {"events": 0})

    def end(self, load: Load) -> tuple[Loaded, Seen]:
        """Wait for its last stream; raises Failed where an answer was wrong or a stream is left open."""
        try:
            return load.result(), self.standin.wait_until_idle()
        except Failed as e:
            raise Failed(f"{self.stack.name}: {e}\n{self.server.last_words()}") from None

    def load(self, steering: str, **options: Any) -> tuple[Loaded, Seen]:
        return self.end(self.begin(steering, **options))

    def warm_up(self, requests: int) -> None:
        """Send requests; some servers listen before they know their provider, and get a second chance."""
        give_up = time.monotonic() + self.stack.start_seconds
        while True:
            try:
                self.load("tokens=20", tokens=20, connections=min(BURST_CONNECTIONS, requests), requests=requests)
            except Failed:
                if self.stack.scenarios is None or time.monotonic() > give_up:
                    raise
                time.sleep(0.5)
            else:
                return


@contextmanager
def fresh(stack: Stack, standin: StandIn, cores: Cores, directory: Path) -> Generator[Running]:
    running = Running(stack, standin, cores, directory)
    try:
        yield running
    finally:
        running.server.stop()


def burst(running: Running, sizes: Sizes, tokens: int) -> Figures:
    """Answers that come whole: what a request costs, with `tokens` tokens in it."""
    before = running.server.cpu_seconds()
    result, _ = running.load(
        f"tokens={tokens}", tokens=tokens, connections=BURST_CONNECTIONS, requests=1_000_000, seconds=sizes.burst
    )
    used = running.server.cpu_seconds() - before
    return {f"burst {tokens}: us a request": used / result.completed * 1e6}


class Paced(msgspec.Struct, frozen=True, kw_only=True):
    """What paced streams cost while all of them ran, and what they saw."""

    us_a_token: float
    memory_kb: int
    seen: Loaded


def pace(running: Running, *, streams: int, tokens: int, gap: int, ramp: float) -> Paced:
    """Streams of a token each `gap` microseconds, begun evenly over `ramp` seconds, less than half of their time."""
    length = tokens * gap / 1e6
    load = running.begin(
        f"tokens={tokens},gap={gap},stamp=1",
        tokens=tokens,
        stamped=True,
        connections=streams,
        requests=streams,
        ramp_ms=ramp * 1000,
    )
    time.sleep(ramp + 0.3)
    cpu, sent = running.server.cpu_seconds(), running.standin.seen().tokens
    time.sleep(length - ramp - 0.6)
    cpu, sent = running.server.cpu_seconds() - cpu, running.standin.seen().tokens - sent
    memory_kb = running.server.memory_kb()
    result, _ = running.end(load)
    return Paced(us_a_token=cpu / sent * 1e6, memory_kb=memory_kb, seen=result)


def delays(result: Loaded) -> Figures:
    assert result.first_token_ms
    assert result.token_delay_ms
    return {
        "first token p50, ms": result.first_token_ms[0],
        "first token p99, ms": result.first_token_ms[1],
        "token delay p50, ms": result.token_delay_ms[0],
        "token delay p99, ms": result.token_delay_ms[1],
    }


def paced(running: Running, sizes: Sizes) -> Figures:
    """Streams at 50 tokens a second, begun evenly over a fifth of their time; a token's cost while all of them run."""
    ramp = sizes.paced_tokens * PACE / 1e6 / 5
    found = pace(running, streams=sizes.paced_streams, tokens=sizes.paced_tokens, gap=PACE, ramp=ramp)
    cost = {"paced: us a token": found.us_a_token} if running.stack.prepare else {}
    return {**cost, **delays(found.seen)}


def memory(stack: Stack, sizes: Sizes, standin: StandIn, cores: Cores, directory: Path) -> Figures:
    """A fresh server with streams that wait for their second token, and with more of them.

    What the first ones take may be what its start has left unused: a stream costs what the others add.
    """
    with fresh(stack, standin, cores, directory) as running:
        running.warm_up(50)
        time.sleep(0.2)
        empty = running.server.memory_kb()
        first, some = _hold(running, sizes.held)
        others, all_of_them = _hold(running, sizes.held)
        first.result()
        running.end(others)
    return {"memory: kB, no stream": empty, "memory: kB a held stream": (all_of_them - some) / sizes.held}


def _hold(running: Running, streams: int) -> tuple[Load, float]:
    """Begin streams that are held, and the memory once they are."""
    load = running.begin("tokens=20,hold=1", tokens=20, connections=streams, requests=streams, hold=True, ramp_ms=1000)
    load.wait_until_held()
    time.sleep(0.5)
    return load, running.server.memory_kb()


def disconnect(running: Running, sizes: Sizes) -> Figures:
    """From the client's close to the provider seeing its own connection closed: mid-stream, and before any token.

    About 200 streams a second are begun and left, evenly, so that a close does not queue behind twenty others.
    """
    running.standin.seen()
    options: dict[str, Any] = {"tokens": 1000, "connections": 20, "ramp_ms": 100}
    mid_stream = _closes(running, f"tokens=1000,gap={PACE}", abort_after=5, requests=sizes.aborts, **options)
    early: list[float] = []
    for phase in ("wait", "first"):  # before the provider's headers; after them
        steering = f"tokens=1000,{phase}=60000000"
        early += _closes(running, steering, abort_ms=100, requests=sizes.early_aborts // 2, **options)
    return {
        "disconnect mid-stream p50, ms": _quantile(mid_stream, 0.5),
        "disconnect mid-stream p99, ms": _quantile(mid_stream, 0.99),
        "disconnect before a token p50, ms": _quantile(early, 0.5),
        "disconnect before a token max, ms": max(early),
    }


def _closes(running: Running, steering: str, **options: Any) -> list[float]:
    """Milliseconds of each close; raises Failed where one never came through, or no request reached the provider."""
    result, standin = running.load(steering, **options)
    seen = {close.number: close.ns for close in standin.closes}
    missing = [close.number for close in result.closes if close.number not in seen]
    if missing or result.aborted != options["requests"]:
        raise Failed(f"{running.stack.name}, {steering}: {len(missing)} of {result.aborted} closes never came through")
    return [(seen[close.number] - close.ns) / 1e6 for close in result.closes]


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


Measure = Callable[[Running, Sizes], Figures]
SCENARIOS: dict[str, Measure] = {
    "burst-1": lambda running, sizes: burst(running, sizes, 1),
    "burst-200": lambda running, sizes: burst(running, sizes, 200),
    "paced": paced,
    "disconnect": disconnect,
}
MEMORY = "memory"
