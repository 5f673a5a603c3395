"""What a token costs to encode in each dialect: nanoseconds of CPU a token, and the ratio to the native dialect.

    python -m benchmarks.dialects [--rounds 41] [--tokens 20000] [--json FILE]

The dialects take turns in every round, in batches of 1 and of 16 tokens; a ratio is the median of each round's ratio to
native. Exit code 1 where a token costs over a quarter more than in the native dialect. One thread, no input or output.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from chat_nest.core.deltas import Delta, TextDelta
from chat_nest.core.messages import ChatRequest
from chat_nest.core.protocols import Encoder
from chat_nest.dialects import DIALECTS

WORDS = [" the", " answer", ",", " of", " a", " model", "\n", " über", " 日本", " token", ".", " which", ' "', " is"]
SIZES = (1, 16)
MOST = 1.25
NATIVE = "native"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--tokens", type=int, default=20_000, help="in a round, of each dialect and batch size")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    figures: dict[int, dict[str, list[float]]] = {size: {name: [] for name in DIALECTS} for size in SIZES}
    gc.disable()
    for number in range(asked.rounds + 1):
        for size in SIZES:
            batches = batches_of(size, asked.tokens)
            for name in turns(list(DIALECTS), number):
                cost = measure(encoder(name), batches) / asked.tokens
                if number:  # the first round warms up
                    figures[size][name].append(cost)
    rows = [row(name, figures) for name in DIALECTS]
    print("| | batch of 1: ns a token | batch of 16: ns a token |\n|---|---:|---:|")
    for name, cells in rows:
        shown = " | ".join(f"{cost:,.0f} ({ratio:.2f} x)" for cost, ratio in cells)
        print(f"| {name} | {shown} |")
    if asked.json:
        asked.json.write_text(json.dumps(figures))
    dear = [name for name, cells in rows if any(ratio > MOST for _, ratio in cells)]
    if dear:
        print(f"FAILED: over {MOST} times native: {', '.join(dear)}", file=sys.stderr)
    return 1 if dear else 0


def encoder(name: str) -> Encoder:
    """An encoder whose answer has begun: what opens a part is not a token's cost."""
    made = DIALECTS[name]().encoder(ChatRequest(messages=()), "0123456789abcdef01234567")
    made.start("gpt-4o-mini-2024-07-18")
    made.encode([TextDelta("Once")])
    return made


def batches_of(size: int, tokens: int) -> list[list[Delta]]:
    deltas: list[Delta] = [TextDelta(WORDS[number % len(WORDS)]) for number in range(tokens)]
    return [deltas[at : at + size] for at in range(0, tokens, size)]


def turns(names: list[str], number: int) -> list[str]:
    """Each round begins with another one."""
    at = number % len(names)
    return names[at:] + names[:at]


def measure(made: Encoder, batches: Sequence[Sequence[Delta]]) -> float:
    """Nanoseconds of this process's CPU for all batches."""
    encode = made.encode
    began = time.process_time_ns()
    for batch in batches:
        encode(batch)
    return time.process_time_ns() - began


def row(name: str, figures: dict[int, dict[str, list[float]]]) -> tuple[str, list[tuple[float, float]]]:
    cells: list[tuple[float, float]] = []
    for of_size in figures.values():
        ratios = [own / native for own, native in zip(of_size[name], of_size[NATIVE], strict=True)]
        cells.append((statistics.median(of_size[name]), statistics.median(ratios)))
    return name, cells


if __name__ == "__main__":
    sys.exit(main())
