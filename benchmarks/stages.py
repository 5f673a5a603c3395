"""Count the instructions of each stage of a request with callgrind: other work on the machine changes nothing.

    scripts/bench stages [--beside DIR]

The same program as that of `instructions`. A stage begins where a function is called, and ends where the next stage
begins: callgrind writes what it has counted at each call of a function of the C library, which marks the places. The
marks themselves cost some 2 % of the whole. `--beside` counts another checkout's code as well. It needs valgrind, and
some minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.instructions import FIRST, LAST, OVER, ROOT, Loop, environment, serve
from benchmarks.processes import Missing

REQUESTS = 7
STAGES = {
    FIRST: "HTTP in: head, body, task",
    "chat_nest.asgi.handler:ChatHandler._http": "route, CORS, body, response stream",
    "chat_nest.pipeline.callers:Callers.identify": "identity",
    "chat_nest.pipeline.fair_queue:FairQueue.place": "the queue's place, the turn at the store",
    "chat_nest.pipeline.chat:parse": "parse",
    "chat_nest.limits.profiles:Profiles.resolve": "profile, pauses",
    "chat_nest.pipeline.chat:admitted": "count and trim the prompt",
    "chat_nest.pipeline.chat:_able": "lines, record, claim, encoder",
    "chat_nest.ledger.ledger:Ledger.reserve": "reserve",
    "chat_nest.pipeline.lifecycle:Lifecycle.admit": "clocks, quotas",
    "chat_nest.pipeline.upstream:Upstream.open": "call the provider: attempt, body",
    LAST: "first batch",
    "chat_nest.asgi.response_stream:ResponseStream.start": "head, first event",
    "chat_nest.pipeline.chat:relay": "relay",
    "chat_nest.pipeline.upstream:_Streaming.__aexit__": "close the provider",
    "chat_nest.ledger.ledger:Ledger.end": "usage, record, settle",
    "chat_nest.pipeline.chat:Chat._tell": "report, log, last event, end of the tasks",
}
"""The calls at which the stages begin, in this order, and their names."""


class Marks:
    """Notes the stages that begin, once the first requests are over."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def __call__(self, place: str) -> None:
        if self.begun or place == FIRST:
            self.begun.append(place)
            os.getppid()  # callgrind writes what it has counted, and counts from zero

    def watch(self, place: str) -> None:
        """Note each call of a function, `MODULE:FUNCTION` or `MODULE:CLASS.METHOD`."""
        module, _, path = place.partition(":")
        *outer, name = path.split(".")
        owner: Any = functools.reduce(getattr, outer, importlib.import_module(module))
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def marked(*arguments: Any, **named: Any) -> Any:
            self(place)
            return function(*arguments, **named)

        setattr(owner, name, marked)


async def serve_marked(directory: Path) -> None:
    marks = Marks()
    for place in STAGES:
        if ":" in place:
            marks.watch(place)
    (directory / "begun.json").write_text("[]")
    await serve(REQUESTS, 1, directory, "", mark=marks, done=lambda: _write(directory, marks.begun))


def _write(directory: Path, begun: Sequence[str]) -> None:
    (directory / "begun.json").write_text(json.dumps(begun))


def count(checkout: Path) -> dict[str, float]:
    """Return the median of the instructions of each stage."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory}/out", "--dump-before=getppid"]
        command += [sys.executable, "-m", "benchmarks.stages", "--serve", name]
        done = subprocess.run(command, env=environment(checkout), cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        begun = json.loads((directory / "begun.json").read_text())
        # The dump at a mark has what came before it, so the stage of the mark before.
        counted = [_total(directory / f"out.{number}") for number in range(2, len(begun) + 1)]
    found: dict[str, list[int]] = {}
    for place, instructions in zip(begun, counted, strict=False):
        if place != OVER:
            found.setdefault(place, []).append(instructions)
    if {len(each) for each in found.values()} != {REQUESTS} or list(found) != list(STAGES):
        raise RuntimeError(f"the stages did not come as they are written here: {begun[: len(STAGES) + 1]}")
    return {STAGES[place]: median(each) for place, each in found.items()}


def _total(dump: Path) -> int:
    found = re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{dump.name} has no total")
    return int(found[1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--beside", type=Path, metavar="DIR", help="a checkout of another commit")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(serve_marked(asked.serve))
    if not shutil.which("valgrind"):
        raise Missing("Instructions are counted by valgrind: apt-get install -y valgrind")
    checkouts = [ROOT, *([asked.beside.resolve()] if asked.beside else [])]
    columns = [count(checkout) for checkout in checkouts]
    print(f"| stage | {' | '.join(checkout.name for checkout in checkouts)} |")
    print("| --- |" + " ---: |" * len(columns))
    for stage in STAGES.values():
        print(f"| {stage} | {' | '.join(f'{column[stage]:,.0f}' for column in columns)} |")
    print(f"| all | {' | '.join(f'{sum(column.values()):,.0f}' for column in columns)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
