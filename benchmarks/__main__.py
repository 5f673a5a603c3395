"""Measure what the relay costs, beside a proxy that only copies bytes. See docs/performance.md."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from benchmarks import formats, goals, parts, peers, report, stacks, telemetry
from benchmarks.processes import Cores, Failed, Missing
from benchmarks.programs import BUILD, StandIn, compile_programs
from benchmarks.report import Results
from benchmarks.scenarios import MEMORY, QUICK, SCENARIOS, Running, Sizes, memory
from benchmarks.stacks import DIRECT, FLOOR, STACKS, TLS, Stack

WARM_UP_REQUESTS = 500
PEERS_WARM_UP_REQUESTS = 150
BESIDE_PEERS = (FLOOR, goals.OURS, "chat-nest sqlite", TLS)
"""The stacks that run beside the peers, so that all of it ends in 12 minutes."""


def main() -> int:
    names = [stack.name for stack in STACKS]
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; for a first look")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 5, or 2 with --quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    parser.add_argument("--stack", action="append", choices=names, help="only this one and the floor; may be repeated")
    parser.add_argument("--only", action="append", choices=[*SCENARIOS, MEMORY], help="only this; may be repeated")
    parser.add_argument(
        "--peers",
        action="store_true",
        help="two rounds beside SMG, vllm-router, Express with the openai SDK, and LiteLLM, which it installs, and all"
        " goals: 12 minutes",
    )
    parser.add_argument("--dialects", action="store_true", help="the built-in wire formats instead of the stacks")
    parser.add_argument("--stores", action="store_true", help="a request with each store instead of the stacks")
    parser.add_argument("--telemetry", action="store_true", help="metrics and traces instead of the stacks")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="a checkout of another commit, as one more stack")
    asked = parser.parse_args()
    sizes = QUICK if asked.quick or asked.peers else Sizes()
    if asked.rounds:
        sizes = msgspec.structs.replace(sizes, rounds=asked.rounds)
    began = time.monotonic()
    try:
        stacks.check_machine()
        compile_programs()
        if asked.peers:
            peers.install()
        cores = Cores()  # before any database starts, which then shares the load's
        with more_stacks(asked) as stored:
            chosen = [*choose(asked), *stored]
            usual = [name for name in (*SCENARIOS, MEMORY) if any(takes_part(stack, name) for stack in chosen[1:])]
            results = measure(chosen, asked.only or usual, sizes, cores)
            if asked.peers and not asked.only:
                results[goals.OURS][0] |= parts.measure(cores)
                for ours, tls in zip(results[goals.OURS], results[TLS], strict=True):
                    ours["memory, TLS: kB a held stream"] = tls["memory: kB a held stream"]
    except Missing as e:
        print(e, file=sys.stderr)
        return 2
    except Failed as e:
        print(f"FAILED: {e}", file=sys.stderr)
        return 1
    table = report.summary(results, FLOOR)
    print(f"Medians of {sizes.rounds} interleaved rounds; in brackets the ratio or difference to {FLOOR}.")
    print(report.markdown(table, [stack.name for stack in chosen], FLOOR))
    against = dict.fromkeys([FLOOR, *(goal.against for goal in goals.GOALS if goal.against in results)])
    print("\n" + goals.markdown({stack: report.summary(results, stack) for stack in against}) + "\n")
    print(f"{time.monotonic() - began:.0f} s. Only figures of one run may be compared.")
    if asked.json:
        whole = {"machine": report.machine(), "sizes": sizes, "summary": table, "rounds": results}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
    return 0


def more_stacks(asked: argparse.Namespace) -> AbstractContextManager[list[Stack]]:
    """Start what the chosen stacks need besides their own servers, and yield them."""
    if asked.stores:
        return formats.stores()
    return telemetry.stacks() if asked.telemetry else nullcontext([])


def choose(asked: argparse.Namespace) -> list[Stack]:
    """What to measure, but for the stores; the floor is always there."""
    if asked.stores or asked.dialects or asked.telemetry:
        floor = [stack for stack in STACKS if stack.name == FLOOR]
        return floor + list(formats.DIALECTS if asked.dialects else ())
    chosen = [stack for stack in STACKS if not asked.stack or stack.name in (FLOOR, *asked.stack)]
    if asked.peers:
        chosen = [stack for stack in chosen if stack.name in BESIDE_PEERS] + list(peers.PEERS)
        only_memory = frozenset((MEMORY,))
        chosen = [
            msgspec.structs.replace(stack, scenarios=only_memory) if stack.name == TLS else stack for stack in chosen
        ]
    if asked.beside:
        chosen.append(stacks.beside(asked.beside.resolve()))
    return chosen


def takes_part(stack: Stack, scenario: str) -> bool:
    if stack.name == DIRECT:
        return scenario == "paced"
    return stack.scenarios is None or scenario in stack.scenarios


def measure(chosen: list[Stack], scenarios: list[str], sizes: Sizes, cores: Cores) -> Results:
    """Every scenario for every stack, round by round, so that a slow minute of the machine is shared by all."""
    results: Results = {stack.name: [{} for _ in range(sizes.rounds)] for stack in chosen}
    BUILD.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    standin = StandIn()
    running: list[Running] = []
    try:
        for stack in chosen:
            running.append(Running(stack, standin, cores, directory / stack.name.replace(" ", "-")))
            running[-1].warm_up(WARM_UP_REQUESTS if stack.scenarios is None else PEERS_WARM_UP_REQUESTS)
        for turn in range(sizes.rounds):
            order = running[turn % len(running) :] + running[: turn % len(running)]
            for name, scenario in SCENARIOS.items():
                for one in order if name in scenarios else ():
                    if takes_part(one.stack, name):
                        print(f"round {turn + 1} of {sizes.rounds}: {name}, {one.stack.name}", file=sys.stderr)
                        results[one.stack.name][turn] |= scenario(one, sizes)
            for one in order if MEMORY in scenarios else ():
                if takes_part(one.stack, MEMORY):
                    print(f"round {turn + 1} of {sizes.rounds}: {MEMORY}, {one.stack.name}", file=sys.stderr)
                    figures = memory(one.stack, sizes, standin, cores, one.directory / f"memory-{turn}")
                    results[one.stack.name][turn] |= figures
    finally:
        for one in running:
            one.server.stop()
        standin.stop()
        shutil.rmtree(directory)
    return results


if __name__ == "__main__":
    sys.exit(main())
