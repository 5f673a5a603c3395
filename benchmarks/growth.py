"""What a token and a stream cost as streams grow in number: 10, 100, 1,000 and 2,000 at once, for as many tokens.

    scripts/bench growth [--quick] [--rounds N] [--json FILE]

From 100 streams on, all of them together send 4,000 tokens a second, so that only their number differs. Two workers
share the one core of the servers: it is the cost that is asked for, and the other core is the load's. Every count has a
fresh server. Exit code 1 means that an answer was wrong, and that there is no table; 2 that something is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import msgspec

from benchmarks import report
from benchmarks.peers import EXPRESS_NAME, PEERS, install
from benchmarks.processes import Cores, Failed, Missing
from benchmarks.programs import BUILD, StandIn, compile_programs
from benchmarks.report import Results
from benchmarks.scenarios import Figures, delays, fresh, pace
from benchmarks.stacks import FLOOR, NATIVE, OPENAI, Stack, chat_nest, check_machine, nginx

TOKENS = 4_000
"""A second, of all streams together."""
SHORTEST_GAP = 20_000
"""Microseconds between two tokens of a stream."""
COUNTS = (10, 100, 1000, 2000)
FEW, MANY, MOST = 100, 2000, 1.3
"""The goal: a token of MANY streams costs at most MOST times what one of FEW does."""
ROOM = "[server]\nmax_streams = 3000\nmax_connections = 8192\n"
STACKS = (
    Stack(name=FLOOR, prepare=nginx, **OPENAI),
    Stack(name="chat-nest memory", prepare=chat_nest("memory://", more=ROOM), **NATIVE),
    Stack(name="chat-nest sqlite", prepare=chat_nest("sqlite:///chat-nest.db", more=ROOM), **NATIVE),
    Stack(
        name="chat-nest sqlite, 2 workers",
        prepare=chat_nest("sqlite:///chat-nest.db", more=ROOM, workers=2),
        **NATIVE,
    ),
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    rounds: int = 3
    seconds: float = 12.0
    counts: tuple[int, ...] = COUNTS


QUICK = Plan(rounds=1, seconds=8.0, counts=(FEW, MANY))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench growth", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"one short round of {FEW} and {MANY} streams, 2 minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 3 (20 minutes), or 1 with --quick")
    parser.add_argument("--streams", type=int, action="append", metavar="N", help="only this many; may be repeated")
    parser.add_argument(
        "--peers", action="store_true", help=f"{EXPRESS_NAME}, too: LiteLLM is full with far fewer tokens"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    asked = parser.parse_args()
    plan = QUICK if asked.quick else Plan()
    plan = msgspec.structs.replace(plan, rounds=asked.rounds or plan.rounds, counts=tuple(asked.streams or plan.counts))
    chosen = STACKS + tuple(stack for stack in PEERS if asked.peers and stack.name == EXPRESS_NAME)
    began = time.monotonic()
    try:
        check_machine()
        compile_programs()
        if asked.peers:
            install()
        results = measure(chosen, plan, Cores())
    except Missing as e:
        print(e, file=sys.stderr)
        return 2
    except Failed as e:
        print(f"FAILED: {e}", file=sys.stderr)
        return 1
    table = report.summary(results, FLOOR)
    most = 1e6 / SHORTEST_GAP
    print(
        f"{TOKENS:,} tokens a second in all, {most:g} a stream at most; medians of {plan.rounds} interleaved rounds; in"
    )
    print(f"brackets the ratio or difference to {FLOOR}. Two workers share one core.")
    print(report.markdown(table, [stack.name for stack in chosen], FLOOR))
    print("\n" + growth(results))
    print(f"{time.monotonic() - began:.0f} s. Only figures of one run may be compared.")
    if asked.json:
        whole = {"machine": report.machine(), "plan": plan, "summary": table, "rounds": results}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
    return 0


def measure(chosen: tuple[Stack, ...], plan: Plan, cores: Cores) -> Results:
    """Every stack at every count, round by round, so that a slow minute of the machine is shared by all."""
    results: Results = {stack.name: [{} for _ in range(plan.rounds)] for stack in chosen}
    directory = Path(tempfile.mkdtemp(prefix="growth-", dir=BUILD))
    standin = StandIn()
    try:
        for turn in range(plan.rounds):
            at = turn % len(chosen)
            for count in plan.counts:
                for stack in chosen[at:] + chosen[:at]:
                    print(f"round {turn + 1} of {plan.rounds}: {count:,} streams, {stack.name}", file=sys.stderr)
                    place = directory / f"{stack.name.replace(' ', '-')}-{count}-{turn}"
                    results[stack.name][turn] |= streams(stack, count, plan, standin, cores, place)
    finally:
        standin.stop()
        shutil.rmtree(directory)
    return results


def streams(stack: Stack, count: int, plan: Plan, standin: StandIn, cores: Cores, directory: Path) -> Figures:
    """A fresh server, warmed a little; then the streams, begun over half of their time."""
    with fresh(stack, standin, cores, directory) as running:
        running.warm_up(100)
        time.sleep(0.3)
        empty = running.server.memory_kb()
        gap = max(SHORTEST_GAP, count * 1_000_000 // TOKENS)
        tokens = int(plan.seconds * 1e6 / gap)
        found = pace(running, streams=count, tokens=tokens, gap=gap, ramp=plan.seconds / 2)
    figures = {
        "us a token": found.us_a_token,
        "MB in all": found.memory_kb / 1000,
        "kB a stream": (found.memory_kb - empty) / count,
        **delays(found.seen),
    }
    return {f"{count:,} streams: {name}": value for name, value in figures.items()}


def growth(results: Results) -> str:
    """A token of many streams as a multiple of one of few in the same round; nothing where one of them is absent."""
    few, many = (f"{count:,} streams: us a token" for count in (FEW, MANY))
    rows = [f"| a token of {MANY:,} streams against one of {FEW} | at most | |", "| --- | ---: | --- |"]
    for name, rounds in results.items():
        ratios = [figures[many] / figures[few] for figures in rounds if few in figures and many in figures]
        if ratios:
            value = median(ratios)
            rows.append(f"| {name}: {value:.2f} x | {MOST:g} x | {'met' if value <= MOST else 'not met'} |")
    return "\n".join(rows) if len(rows) > 2 else ""


if __name__ == "__main__":
    sys.exit(main())
