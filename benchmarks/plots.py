"""Pictures of what `scripts/bench growth --json FILE` measured, every stack in each; several runs side by side.

    scripts/bench plots FILE [FILE ...] [--to docs/performance]

Writes token.svg, first-token.svg and memory.svg: lines of medians, with the least and greatest round of each count. The
background is clear and every colour stands out on white and on black.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.stacks import FLOOR

INK = "#7a828c"
COLOURS = ("#8b929a", "#2f81f7", "#d9822b", "#2ea043", "#b35cc9", "#d1453b", "#1f9e9e", "#a58a2c")
MARKERS = "osD^vPX*"
PICTURES = {
    "token": ("us a token", "median", "CPU a token, microseconds"),
    "first-token": ("first token p50, ms", "difference", f"first token, median, ms more than {FLOOR}"),
    "memory": ("MB in all", "median", "memory in all, MB"),
}
"""By the file's name: the figure, which of its values, and what the axis says."""

Table = dict[str, dict[str, dict[str, Any]]]
Line = list[tuple[int, float, float, float]]
"""Of one stack: streams, the value, and the least and greatest of the rounds; of a difference, itself."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench plots", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--to", type=Path, default=Path("docs/performance"), metavar="DIR")
    asked = parser.parse_args()
    tables = {path.stem: msgspec.json.decode(path.read_bytes())["summary"] for path in asked.files}
    asked.to.mkdir(parents=True, exist_ok=True)
    for name, (figure, value, label) in PICTURES.items():
        lines = named_lines(tables, figure, value)
        if not lines:
            print(f"FAILED: no file has a figure {figure!r} by streams: scripts/bench growth makes it", file=sys.stderr)
            return 1
        path = asked.to / f"{name}.svg"
        draw(lines, label, path)
        print(path)
    return 0


def named_lines(tables: dict[str, Table], figure: str, value: str) -> dict[str, Line]:
    """By stack, and by the file's name too where there are several files."""
    found: dict[str, Line] = {}
    for file, table in tables.items():
        for name, cells in table.items():
            streams, _, rest = name.partition(" streams: ")
            for stack, cell in cells.items() if rest == figure else ():
                if value not in cell or (value == "difference" and stack == FLOOR):
                    continue
                least, most = (cell["min"], cell["max"]) if value == "median" else (cell[value], cell[value])
                line = found.setdefault(stack if len(tables) == 1 else f"{stack} ({file})", [])
                line.append((int(streams.replace(",", "")), cell[value], least, most))
    return {stack: sorted(line) for stack, line in found.items()}


def draw(lines: dict[str, Line], label: str, path: Path) -> None:
    start = 0 if any(stack.startswith(FLOOR) for stack in lines) else 1  # grey is the floor's, in every picture
    colours = {f"{part}.color": INK for part in ("xtick", "ytick", "text", "grid")}
    colours |= {"axes.labelcolor": INK, "axes.edgecolor": INK}
    # The same picture from the same figures, byte for byte; its letters stay text.
    with mpl.rc_context({**colours, "svg.fonttype": "none", "svg.hashsalt": "chat-nest", "font.size": 11}):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for at, (stack, line) in enumerate(lines.items(), start=start):
            counts, middle, least, most = zip(*line, strict=True)
            colour = COLOURS[at % len(COLOURS)]
            axes.plot(counts, middle, color=colour, marker=MARKERS[at % len(MARKERS)], label=stack, linewidth=1.8)
            axes.fill_between(counts, least, most, color=colour, alpha=0.15, linewidth=0)
        label_axes(axes, sorted({point[0] for line in lines.values() for point in line}), label)
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def label_axes(axes: Axes, counts: list[int], label: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(counts)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("streams at once")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
