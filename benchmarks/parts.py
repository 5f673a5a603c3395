"""The figures of the goals that no scenario measures: memory of a fleet, large prompts, stores, start, growth."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import growth, prompts, start, stores
from benchmarks.goals import OURS
from benchmarks.processes import Cores, Server, free_port
from benchmarks.programs import BUILD, StandIn
from benchmarks.scenarios import Figures
from benchmarks.stacks import chat_nest

WORKERS = 4
CYCLES = 2_000
"""Of a reservation and its settlement, for each store."""


def measure(cores: Cores) -> Figures:
    """All of them, once: some three minutes."""
    figures: Figures = {}
    for name, part in PARTS.items():
        print(f"once: {name}", file=sys.stderr)
        figures |= part(cores)
    return figures


def memory_of(workers: int) -> float:
    """Megabytes (proportional set size) of a server that is ready, and all its processes."""
    directory = Path(tempfile.mkdtemp(prefix="fresh-", dir=BUILD))
    standin, port = StandIn(), free_port()
    command = chat_nest("sqlite:///chat-nest.db", workers=workers)(directory, port, standin.url())
    server = Server(f"{workers} workers", command, port=port, core=None, directory=directory)
    try:
        server.wait_until_open()
        while start.readyz(port) != 200 or len(server.pids()) < (workers + 1 if workers > 1 else 1):
            time.sleep(0.05)
        time.sleep(3)  # the other workers begin to serve, and free what their start took
        return server.memory_kb() / 1000
    finally:
        server.stop()
        standin.stop()
        shutil.rmtree(directory)


def _memory(_cores: Cores) -> Figures:
    return {"fresh: MB": memory_of(1), "four workers: MB": memory_of(WORKERS)}


def _prompts(cores: Cores) -> Figures:
    inside = prompts.in_process()
    found = {"prompt: ms of CPU": inside.request, "prompt: ms of the longest hold": inside.usual_hold}
    [ours] = prompts.measure(1, 4.0, cores)[prompts.STACKS[-1].name]
    return found | {"prompt: times the delay": ours["50 streams beside them: times the delay"]}


def _stores(_cores: Cores) -> Figures:
    names = ["postgres", "redis"]
    with tempfile.TemporaryDirectory() as directory, stores.started(names, None) as servers:
        return asyncio.run(stores.admissions(names, Path(directory), servers, CYCLES))


def _start(_cores: Cores) -> Figures:
    programs = Path(sys.executable).parent
    ready = start.repeated(5, lambda: start.seconds_to_ready("memory", programs))
    imports = start.repeated(5, lambda: start.imported(programs))
    return {"start: s to ready": median(ready), "start: s of the import": median(one.seconds for one in imports)}


def _growth(cores: Cores) -> Figures:
    chosen = tuple(stack for stack in growth.STACKS if stack.name == OURS)
    [ours] = growth.measure(chosen, growth.QUICK, cores)[OURS]
    few, many = (ours[f"{count:,} streams: us a token"] for count in (growth.FEW, growth.MANY))
    return {"growth: times the cost": many / few}


PARTS = {
    "the memory of one worker and of four": _memory,
    "large prompts": _prompts,
    "admissions": _stores,
    "the start": _start,
    "growth": _growth,
}
