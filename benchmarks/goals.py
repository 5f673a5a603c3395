"""What a token, a request, a stream and a fleet may cost, and whether they do: every goal is a figure of one run.

`why` is the reason why a goal was not met when it was last measured on a quiet machine; the table prints it beside a
goal that is not met again.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from benchmarks.peers import EXPRESS_NAME, LITELLM_NAME, SMG_NAME
from benchmarks.stacks import FLOOR

OURS = "chat-nest memory"
REQUEST, LONG, TOKEN = "burst 1: us a request", "burst 200: us a request", "paced: us a token"


class Goal(msgspec.Struct, frozen=True):
    """`figure` of ours, or its ratio or difference to that of another stack in the same round.

    It may be `most`, or must be at least that if `least` is true.
    """

    text: str
    figure: str
    of: Literal["value", "ratio", "difference"]
    most: float
    stretch: float | None = None
    against: str | None = None
    least: bool = False
    why: str = ""


_INTERPRETER = (
    "some 750 Python functions, none over a twentieth: 70 % is the interpreter's, 14 % the kernel's."
    " docs/performance.md has the table of stages; half as much would have to be done"
)
_KERNEL = (
    "half of a token is the kernel's read and write, which nginx makes too; the rest is 14 Python functions, counted by"
    " a test. Only compiled code would be cheaper"
)
GOALS = (
    Goal("CPU a request of 1 token, against Express", REQUEST, "ratio", 0.15, 0.08, EXPRESS_NAME, why=_INTERPRETER),
    Goal("the same, against SMG", REQUEST, "ratio", 1.5, 1.0, SMG_NAME, why=_INTERPRETER),
    Goal("the same, against LiteLLM", REQUEST, "ratio", 0.02, None, LITELLM_NAME, why=_INTERPRETER),
    Goal("CPU a request of 200 tokens, against SMG", LONG, "ratio", 0.4, 0.25, SMG_NAME,
         why="a token in a burst costs a tenth of SMG's; the request around it is what is over"),
    Goal("CPU a paced token, against nginx", TOKEN, "ratio", 1.6, 1.3, FLOOR, why=_KERNEL),
    Goal("the same, against SMG", TOKEN, "ratio", 1.0, None, SMG_NAME, why=_KERNEL),
    Goal("the same, against LiteLLM", TOKEN, "ratio", 0.06, None, LITELLM_NAME,
         why="LiteLLM is behind at 100 streams: its tokens come in lumps, and a lump costs as little as a token"),
    Goal("first token p50, ms more than nginx", "first token p50, ms", "difference", 0.5, None, FLOOR,
         why="the whole request is processed before it: see CPU a request"),
    Goal("first token p99, ms more than nginx", "first token p99, ms", "difference", 2.0, None, FLOOR,
         why="the worst of a hundred requests, each processed in one piece among the tokens of 99 streams"),
    Goal("CPU of a 400 kB prompt, ms", "prompt: ms of CPU", "value", 4.0, 2.0,
         why="1.9 ms read the body once, with every rule of JSON; 2.2 ms count 90,000 tokens exactly; the rest is a"
             " request. Both are native code that reads each byte once"),
    Goal("longest hold of the event loop by it, ms", "prompt: ms of the longest hold", "value", 3.0, None,
         why="reading the body is one step, 1.9 ms on a quiet machine; counting is in a thread"),
    Goal("token delay p99 of 50 streams beside 20 of them a second", "prompt: times the delay", "value", 1.1, None,
         why="a token waits for at most one hold, which is longer than the usual delay"),
    Goal("a fresh server, MB", "fresh: MB", "value", 60.0, 40.0,
         why="63 MB are the tables of one vocabulary, all in use: malloc_trim gives nothing back, and toktok-rs has no"
             " smaller form; 33 MB are the interpreter, its modules and ours"),
    Goal("four workers in all, MB", "four workers: MB", "value", 120.0, 80.0,
         why="the tables and modules are shared, 95 MB in all; each worker's 15 MB are pages that CPython's reference"
             " counts have written to, and what it keeps itself"),
    Goal("a held stream, kB", "memory: kB a held stream", "value", 25.0, None,
         why="two bare connections of uvloop are 3 kB of it; 5 kB are 16 coroutines that wait for each other, the rest"
             " some 150 small objects, none over 0.6 kB: docs/performance.md has a table"),
    Goal("a held stream with TLS to the provider, kB", "memory, TLS: kB a held stream", "value", 40.0, None,
         why="a TLS connection alone holds 39 kB with uvloop, 1.5 kB without TLS: 29 kB of it are OpenSSL's, with its"
             " buffers released"),
    Goal("disconnect mid-stream p99, ms", "disconnect mid-stream p99, ms", "value", 5.0, 1.0,
         why="a close waits behind the requests that begin in that moment, and behind whatever else has the core: 4.8"
             " ms where the server waited for its core for 60 ms in all, 38 ms where it waited for 630"),
    Goal("admissions a second, PostgreSQL on one core", "store: postgres, a second", "value", 6_000, None, least=True,
         why="in batches of 64, 76 % of the server's time is its executor, none of whose functions has over 4 %, 14 %"
             " the kernel, 10 % the C library and PL/pgSQL"),
    Goal("admissions a second, Redis on one core", "store: redis, a second", "value", 20_000, None, least=True,
         why="of 645,000 instructions a request, in batches of 50, 9 % are the commands, 26 % the MessagePack of a"
             " claim; most of the rest is the Lua interpreter"),
    Goal("start to ready, s", "start: s to ready", "value", 0.5, None,
         why="the tokenizer's tables take twice as long as the imports; the process listens when it has both"),
    Goal("import, s", "start: s of the import", "value", 0.1, None,
         why="56 % are the standard library's modules (asyncio, ssl, logging), the rest 214 modules of ours, none"
             " over 3 ms"),
    Goal("a token of 2,000 streams, against one of 100", "growth: times the cost", "value", 1.1, None,
         why="streams in the thousands leave the processor's caches between two tokens"),
)  # fmt: skip


def markdown(table: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """The goals as rows; nothing where none was measured. `table` has a summary by the stack that it is compared to."""
    rows = ["| goal | at most | stretch | figure | | why not |", "| --- | ---: | ---: | ---: | --- | --- |"]
    for goal in GOALS:
        cell = table.get(goal.against or FLOOR, {}).get(goal.figure, {}).get(OURS, {})
        value = cell.get("median" if goal.of == "value" else goal.of)
        if value is None:
            continue
        met = value >= goal.most if goal.least else value <= goal.most
        verdict = "met" if met else "not met"
        if goal.stretch is not None and value <= goal.stretch:
            verdict = "stretch met"
        unit = " x" if goal.of == "ratio" else ""
        bound = f"{'at least ' if goal.least else ''}{goal.most:,g}{unit}"
        stretch = f"{goal.stretch:g}{unit}" if goal.stretch is not None else ""
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        why = "" if met else goal.why
        rows.append(f"| {goal.text} | {bound} | {stretch} | {shown}{unit} | {verdict} | {why} |")
    return "\n".join(rows) if len(rows) > 2 else ""
