"""What a reservation and its settlement cost in each store, beside the bare round trip to what keeps it.

    scripts/bench stores [--json FILE] [--runs 5] [--cycles 400] [--store NAME] [--directory DIR]

It starts a Redis and a PostgreSQL server of its own. All cases of all stores take turns in every run; a figure is the
median over the runs, in microseconds of the clock, except `cpu`, which is this process's user and system time of a
cycle. Alone, it is the median of single calls; of 200 at once, the whole time divided by their number. Every answer is
checked, and so are the counters at the end: exit code 1 means that something was wrong, and that there is no table; 2
that a server is missing. Needs the extras redis and postgres.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psycopg

from benchmarks.databases import Commits, Database, start_postgres, start_redis
from benchmarks.processes import Failed, Missing
from benchmarks.report import machine
from chat_nest.core.claims import Claim, Granted, Line
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.protocols import Store
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.redis import RedisStore
from chat_nest.stores.redis.resp import Login
from chat_nest.stores.sqlite import SQLiteStore

CROWD = 200
CASES = {
    "alone, 1 caller": (1, 1),
    "alone, 100 callers": (1, 100),
    "alone, 10,000 callers": (1, 10_000),
    "200 at once, 1 hot caller": (CROWD, 1),
    "200 at once, 100 callers": (CROWD, 100),
    "200 at once, 10,000 callers": (CROWD, 10_000),
}
"""How many requests at once, and of how many callers."""
BARE = {"sqlite": "a synced commit", "postgres": "SELECT 1", "redis": "PING"}
OUTPUT, SPENT = 400, 321
PROMPT = 120
Bare = Callable[[], Awaitable[object]]
Figures = dict[str, float]


class Subject:
    """A store under measurement, and what its requests have settled so far."""

    def __init__(self, name: str, store: Store, bare: Bare | None) -> None:
        self.name, self.store, self.bare = name, store, bare
        self.end = time.time() + 86_400
        self.settled = 0
        self._numbers = iter(range(10**9))

    def claims(self, count: int, callers: int) -> list[Claim]:
        return [self._claim(next(self._numbers), callers) for _ in range(count)]

    def _claim(self, number: int, callers: int) -> Claim:
        """A claim as the profiles make it: the caller's rate, request and day, then all's rate and day."""
        caller = f"{number % callers:032x}"
        rate = {"unit": "requests", "kind": "rate", "limit": 10**6, "fixed": 1, "period": 60}
        tokens = {"unit": "tokens", "fixed": PROMPT, "per_million": 1_000_000}
        own = {"scope": "caller", "name": "limit"}
        return Claim(
            id=secrets.token_hex(16),
            fingerprint="0" * 32,
            max_output_tokens=OUTPUT,
            record=Record(run="0" * 32, caller=caller, profile="balanced", model="openai:gpt-4o-mini"),
            lines=(
                Line(key=f"caller:{caller}:requests_per_minute", **own, **rate),
                Line(key=f"caller:{caller}:tokens_per_request", kind="request", limit=2_048, **own, **tokens),
                Line(key=f"caller:{caller}:tokens_per_day:2026-11-21", **own, **tokens, **self._day()),
                Line(key="all:requests_per_minute", scope="all", name="limit", **rate),
                self.total(),
            ),
        )  # fmt: skip

    def total(self) -> Line:
        """The counter that every request draws on."""
        return Line(key="all:tokens_per_day:2026-11-21", scope="all", name="limit", unit="tokens", fixed=PROMPT,
                    per_million=1_000_000, **self._day())  # fmt: skip

    def _day(self):
        return {"kind": "window", "limit": 10**12, "resets_at": self.end}

    async def reserve(self, claim: Claim) -> None:
        answer = await self.store.reserve(claim, 60.0)
        if not isinstance(answer, Granted) or answer.output_tokens != OUTPUT or len(answer.room) != len(claim.lines):
            raise Failed(f"{self.name}: a reservation was answered with {answer}")

    async def settle(self, claim: Claim) -> None:
        usage = Usage(input_tokens=PROMPT, output_tokens=SPENT - PROMPT)
        record = msgspec.structs.replace(claim.record, usage=usage, seconds=1.5, source="reported", ending="stop")
        if not await self.store.settle(claim, {"tokens": SPENT}, "reported", record):
            raise Failed(f"{self.name}: a settlement was not taken")
        self.settled += 1

    async def cycle(self, claim: Claim) -> None:
        await self.reserve(claim)
        await self.settle(claim)

    async def check(self) -> None:
        [total] = await self.store.peek([self.total()])
        if (total.used, total.held) != (self.settled * SPENT, 0):
            raise Failed(
                f"{self.name}: used {total.used}, held {total.held}, and {self.settled} times {SPENT} were settled"
            )


async def each(step: Callable[[Claim], Awaitable[None]], claims: list[Claim], at_once: int) -> tuple[float, float]:
    """Do the step for every claim. Returns the microseconds that one took: of the clock and of this process."""

    async def some(mine: list[Claim]) -> None:
        for one in mine:
            await step(one)

    clock, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(some(claims[start::at_once]) for start in range(at_once)))
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return clock / len(claims) * 1e6, cpu / len(claims) * 1e6


async def measure_alone(subject: Subject, cycles: int, callers: int) -> Figures:
    """One call after another, the bare round trip in turn with them; medians of single calls."""
    took: dict[str, list[float]] = {"bare": [], "reserve": [], "settle": [], "cycle": [], "cpu": []}
    for one in subject.claims(cycles, callers):
        start = time.perf_counter()
        if subject.bare is not None:
            await subject.bare()
        bared, cpu = time.perf_counter(), time.process_time()
        await subject.reserve(one)
        reserved = time.perf_counter()
        await subject.settle(one)
        settled, cpu = time.perf_counter(), time.process_time() - cpu
        times = (bared - start, reserved - bared, settled - reserved, settled - bared, cpu)
        for figure, seconds in zip(took.values(), times, strict=True):
            figure.append(seconds * 1e6)
    return finished(subject, {name: statistics.median(times) for name, times in took.items()})


async def measure_crowd(subject: Subject, cycles: int, at_once: int, callers: int) -> Figures:
    """All reservations, then all their settlements, then cycles of both: the time that each adds to the whole."""
    figures = {"bare": 0.0}
    if subject.bare is not None:
        figures["bare"] = (await measure_alone(subject, 50, callers))["bare"]
    claims = subject.claims(cycles, callers)
    figures["reserve"], _ = await each(subject.reserve, claims, at_once)
    figures["settle"], _ = await each(subject.settle, claims, at_once)
    figures["cycle"], figures["cpu"] = await each(subject.cycle, subject.claims(cycles, callers), at_once)
    return finished(subject, figures)


def finished(subject: Subject, figures: Figures) -> Figures:
    """The figures with their ratios to the bare round trip, where there is one."""
    if subject.bare is None:
        return {name: value for name, value in figures.items() if name != "bare"}
    ratios = {f"{name} / bare": figures[name] / figures["bare"] for name in ("reserve", "settle", "cycle")}
    return figures | ratios


@asynccontextmanager
async def opened(
    names: list[str], directory: Path, servers: dict[str, Database]
) -> AsyncGenerator[list[Subject], None]:
    subjects: list[Subject] = []
    closing: list[Callable[[], Awaitable[object]]] = []
    try:
        for name in names:
            if name == "memory":
                subjects.append(Subject(name, MemoryStore(), None))
            elif name == "sqlite":
                commits = Commits(directory / "bare.db")

                async def commit(commits: Commits = commits) -> None:
                    commits.commit()

                subjects.append(Subject(name, SQLiteStore(directory / "store.db"), commit))
            elif name == "postgres":
                connection = await psycopg.AsyncConnection.connect(servers[name].url, autocommit=True)
                closing.append(connection.close)
                subjects.append(
                    Subject(
                        name, PostgresStore(servers[name].url, timeout=10.0), lambda c=connection: c.execute("SELECT 1")
                    )
                )
            else:
                wire = await Login(None, None, None, 0).open(("127.0.0.1", urlsplit(servers[name].url).port or 0))

                async def hang_up(wire=wire) -> None:
                    wire.abort()
                    await wire.wait_closed()

                closing.append(hang_up)
                subjects.append(
                    Subject(name, RedisStore(servers[name].url, timeout=0.99), lambda w=wire: w.ask("PING"))
                )
        yield subjects
    finally:
        for subject in subjects:
            await subject.store.aclose()
        for close in closing:
            await close()


async def run(
    asked: argparse.Namespace, directory: Path, servers: dict[str, Database]
) -> dict[str, dict[str, list[Figures]]]:
    found: dict[str, dict[str, list[Figures]]] = {case: {} for case in CASES}
    async with opened(asked.store or list(STARTS), directory, servers) as subjects:
        for subject in subjects:  # every counter exists, every connection is open, every statement is planned
            await each(subject.cycle, subject.claims(10_000, 10_000), CROWD)
        for number in range(asked.runs):
            turn = number % len(subjects)
            for case, (at_once, callers) in CASES.items():
                for subject in subjects[turn:] + subjects[:turn]:
                    print(f"run {number + 1} of {asked.runs}: {case}, {subject.name}", file=sys.stderr)
                    if at_once == 1:
                        figures = await measure_alone(subject, asked.cycles, callers)
                    else:
                        figures = await measure_crowd(subject, asked.cycles, at_once, callers)
                    found[case].setdefault(subject.name, []).append(figures)
        for subject in subjects:
            await subject.check()
    return found


async def admissions(
    names: list[str], directory: Path, servers: dict[str, Database], cycles: int, runs: int = 1
) -> dict[str, float]:
    """How many requests a second one core of each server admits and settles: 200 at once, of 10,000 callers.

    It is computed from the server's own CPU time: the asking process here is busier than the server.
    """
    found: dict[str, float] = {}
    async with opened(names, directory, servers) as subjects:
        for subject in subjects:
            await each(subject.cycle, subject.claims(cycles, 10_000), CROWD)
            rates: list[float] = []
            for _ in range(runs):
                before = servers[subject.name].cpu_seconds()
                await each(subject.cycle, subject.claims(cycles, 10_000), CROWD)
                rates.append(cycles / (servers[subject.name].cpu_seconds() - before))
            found[f"store: {subject.name}, a second"] = statistics.median(rates)
            await subject.check()
    return found


STARTS: dict[str, Callable[[str | None], Database] | None] = {
    "memory": None, "sqlite": None, "postgres": start_postgres, "redis": start_redis,
}  # fmt: skip


@contextmanager
def started(names: list[str], directory: str | None) -> Iterator[dict[str, Database]]:
    servers: dict[str, Database] = {}
    try:
        for name in names:
            start = STARTS[name]
            if start is not None:
                servers[name] = start(directory)
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def print_admissions(asked: argparse.Namespace, directory: Path, servers: dict[str, Database]) -> None:
    """Print the median over the runs."""
    found = asyncio.run(admissions(list(servers), directory, servers, 5 * asked.cycles, asked.runs))
    for name, rate in found.items():
        print(f"{name}: {rate:,.0f}")


def medians(found: dict[str, dict[str, list[Figures]]]) -> dict[str, dict[str, Figures]]:
    """By case and store. The ratio is the median of the runs' own ratios."""
    return {
        case: {
            store: {name: round(statistics.median(one[name] for one in runs), 2) for name in runs[0]}
            for store, runs in stores.items()
        }
        for case, stores in found.items()
    }


def markdown(table: dict[str, dict[str, Figures]]) -> str:
    shown = ("bare", "reserve", "settle", "cycle", "cpu")
    rows = [f"| requests | store | {' | '.join(shown)} |", "|---|---|---:|---:|---:|---:|---:|"]
    for case, stores in table.items():
        for store, figures in stores.items():
            cells = [f"{figures[name]:,.0f}" if name in figures else "" for name in shown]
            for at, name in enumerate(shown):
                if f"{name} / bare" in figures:
                    cells[at] += f" ({figures[f'{name} / bare']:.1f} x)"
            rows.append(f"| {case} | {store} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench stores", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every run")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    parser.add_argument("--cycles", type=int, default=400, metavar="N", help="of each kind in a case of a run")
    parser.add_argument("--store", action="append", choices=list(STARTS), help="only this one; may be repeated")
    parser.add_argument("--directory", help="where the data lies; it should be on the disk that you would use")
    parser.add_argument("--admissions", action="store_true", help="only how many a second one core of a server admits")
    asked = parser.parse_args()
    began = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(dir=asked.directory) as directory,
            started(asked.store or list(STARTS), asked.directory) as servers,
        ):
            if asked.admissions:
                print_admissions(asked, Path(directory), servers)
                return 0
            found = asyncio.run(run(asked, Path(directory), servers))
    except Missing as e:
        print(e, file=sys.stderr)
        return 2
    except (Failed, LimiterUnavailable) as e:
        print(f"FAILED: {e.__cause__ or e}", file=sys.stderr)
        return 1
    table = medians(found)
    bare = ", ".join(f"{name} {what}" for name, what in BARE.items())
    print(f"Microseconds, medians of {asked.runs} interleaved runs. Bare: {bare}.")
    print(markdown(table))
    print(f"{time.monotonic() - began:.0f} s. Only figures of one run may be compared.")
    if asked.json:
        whole = {"machine": machine(), "cycles": asked.cycles, "summary": table, "runs": found}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
