"""Latency and success at a fixed rate: requests of one token that are due whether or not those before have ended.

    scripts/bench rates [--peers] [--rate 1000] [--seconds 3] [--rounds 3] [--json FILE]

A request that starts late, because all connections were busy, counts from the time when it was due. A stack with two
workers has them on the servers' core and on the load's: this machine has no third one. The table has the latency that
each stack adds to nginx's in the same round.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks import peers, report
from benchmarks.processes import Cores, Failed, Missing
from benchmarks.programs import BUILD, StandIn, compile_programs
from benchmarks.scenarios import Figures, Running
from benchmarks.stacks import FLOOR, NATIVE, OPENAI, Stack, chat_nest, nginx

RATES = (1_000, 2_000, 3_000)
CONNECTIONS = 512
STACKS = (
    Stack(name=FLOOR, prepare=nginx, **OPENAI),
    Stack(name="chat-nest memory", prepare=chat_nest("memory://"), **NATIVE),
    Stack(name="chat-nest sqlite", prepare=chat_nest("sqlite:///chat-nest.db"), **NATIVE),
    Stack(
        name="chat-nest sqlite, 2 workers",
        prepare=chat_nest("sqlite:///chat-nest.db", workers=2),
        pinned=False,
        **NATIVE,
    ),
)
RATED_PEERS = (peers.SMG_NAME, peers.ROUTER_NAME, peers.EXPRESS_NAME)
"""LiteLLM is full at 80 requests a second."""


def at_rate(running: Running, rate: int, seconds: float) -> Figures:
    """Milliseconds of whole answers, and the percentage of good ones among those that were due."""
    options = {"tokens": 1, "connections": CONNECTIONS, "rate": rate, "requests": int(rate * seconds)}
    found = running.begin("tokens=1", **options).outcome()
    running.standin.wait_until_idle(30.0)
    figures = {f"{rate:,} a second: success, %": 100 * found.completed / options["requests"]}
    if found.whole_ms is not None:
        figures |= {
            f"{rate:,} a second: p50, ms": found.whole_ms[0],
            f"{rate:,} a second: p99, ms": found.whole_ms[1],
        }
    return figures


def measure(stacks: list[Stack], rates: list[int], seconds: float, rounds: int, cores: Cores) -> report.Results:
    """Every rate for every stack, round by round."""
    results: report.Results = {stack.name: [{} for _ in range(rounds)] for stack in stacks}
    directory = Path(tempfile.mkdtemp(prefix="rates-", dir=BUILD))
    standin = StandIn()
    running: list[Running] = []
    try:
        for stack in stacks:
            running.append(Running(stack, standin, cores, directory / stack.name.replace(" ", "-")))
            running[-1].warm_up(300)
        for turn in range(rounds):
            for rate in rates:
                for one in running[turn % len(running) :] + running[: turn % len(running)]:
                    print(f"round {turn + 1} of {rounds}: {rate:,} a second, {one.stack.name}", file=sys.stderr)
                    results[one.stack.name][turn] |= at_rate(one, rate, seconds)
    finally:
        for one in running:
            one.server.stop()
        standin.stop()
        shutil.rmtree(directory)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench rates", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of each rate")
    parser.add_argument("--rate", type=int, action="append", metavar="N", help="only this one; may be repeated")
    parser.add_argument("--peers", action="store_true", help=", ".join(RATED_PEERS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    asked = parser.parse_args()
    began = time.monotonic()
    try:
        compile_programs()
        stacks = list(STACKS)
        if asked.peers:
            peers.install()
            stacks += [stack for stack in peers.PEERS if stack.name in RATED_PEERS]
        results = measure(stacks, asked.rate or list(RATES), asked.seconds, asked.rounds, Cores())
    except Missing as e:
        print(e, file=sys.stderr)
        return 2
    except Failed as e:
        print(f"FAILED: {e}", file=sys.stderr)
        return 1
    print(report.markdown(report.summary(results, FLOOR), [stack.name for stack in stacks], FLOOR))
    print(f"{time.monotonic() - began:.0f} s. Only figures of one run may be compared.")
    if asked.json:
        asked.json.write_bytes(msgspec.json.encode({"machine": report.machine(), "rounds": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
