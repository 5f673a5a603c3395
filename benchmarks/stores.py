"""What a reservation and its settlement cost in each store: microseconds a cycle of one of each, 5 lines.

    python benchmarks/stores.py [--json] [--runs 5] [--cycles 4000] [--directory DIR]

Runs of all cases are interleaved; each figure is the median over the runs, by the clock and (cpu) by the process's
user and system time. `alone` is one caller at a time; `concurrent` is 200 callers at once. SQLite syncs every commit,
so its figures depend on the disk that DIR is on (default: the system's temporary directory).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from chat_nest.limits import Claim, Line
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore

CALLERS = 200


def claim(name, number, day_end):
    key = f"caller:{number % 100:032x}"
    tokens = {"unit": "tokens", "fixed": 120, "per_million": 1_000_000}
    window = {"kind": "window", "limit": 10**12, "resets_at": day_end, **tokens}
    requests = {"unit": "requests", "kind": "rate", "limit": 10**6, "fixed": 1, "period": 60}
    return Claim(
        id=f"{name}-{number}",
        fingerprint="0" * 32,
        max_output_tokens=400,
        lines=(
            Line(name="requests_per_minute", scope="caller", key=f"{key}:rpm", **requests),
            Line(name="tokens_per_request", scope="caller", key=f"{key}:tpr", kind="request", limit=2_048, **tokens),
            Line(name="tokens_per_day", scope="caller", key=f"{key}:tpd:2026-11-21", **window),
            Line(name="tokens_per_day", scope="all", key="all:tpd:2026-11-21", **window),
            Line(name="requests_per_minute", scope="all", key="all:rpm", **requests),
        ),
    )


async def cycle(store, one):
    await store.reserve(one, 60.0)
    await store.settle(one, {"tokens": 321}, "reported")


async def alone(store, claims):
    for one in claims:
        await cycle(store, one)


async def concurrent(store, claims):
    async def caller(mine):
        for one in mine:
            await cycle(store, one)

    await asyncio.gather(*(caller(claims[start::CALLERS]) for start in range(CALLERS)))


async def measure(open_store, run, cycles, name):
    store = open_store()
    end = time.time() + 86_400
    await run(store, [claim(f"warm-{name}", number, end) for number in range(CALLERS)])
    claims = [claim(name, number, end) for number in range(cycles)]
    clock, cpu = time.perf_counter(), time.process_time()
    await run(store, claims)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    await store.aclose()
    return clock / cycles * 1e6, cpu / cycles * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=4_000)
    parser.add_argument("--directory")
    asked = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(dir=asked.directory) as directory:
        stores = {"memory": MemoryStore, "sqlite": lambda: SQLiteStore(Path(directory) / "store.db")}
        for number in range(asked.runs):
            for store, open_store in stores.items():
                for run in (alone, concurrent):
                    took = asyncio.run(measure(open_store, run, asked.cycles, f"{number}-{run.__name__}"))
                    found.setdefault(f"{store} {run.__name__}", []).append(took)
    medians = {
        case: {
            what: round(statistics.median(values), 1)
            for what, values in zip(("us", "cpu_us"), zip(*took, strict=True), strict=True)
        }
        for case, took in found.items()
    }
    if asked.json:
        print(json.dumps(medians))
        return
    for case, figures in medians.items():
        print(f"{case:20} {figures['us']:8.1f} us a cycle {figures['cpu_us']:8.1f} us cpu")


if __name__ == "__main__":
    main()
