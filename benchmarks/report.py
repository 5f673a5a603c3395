"""Medians over rounds, and ratios to the floor taken inside each round."""

from __future__ import annotations

import platform
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.scenarios import Figures

Results = dict[str, list[Figures]]
"""By stack, a round's figures."""

PLAIN = ("memory: kB, no stream",)
"""Figures of which a ratio says nothing."""


def summary(results: Results, floor: str) -> dict[str, dict[str, dict[str, Any]]]:
    """By figure and stack: the median, least and greatest; the medians of the ratios and differences to the floor."""
    fullest = sorted(results.values(), key=lambda rounds: -len(rounds[0]))
    names = list(dict.fromkeys(name for rounds in fullest for figures in rounds for name in figures))
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        for stack, rounds in results.items():
            values = [figures[name] for figures in rounds if name in figures]
            if not values:
                continue
            cell: dict[str, Any] = {"median": median(values), "min": min(values), "max": max(values)}
            pairs = [
                (figures[name], least[name])
                for figures, least in zip(rounds, results.get(floor, []), strict=False)
                if name in figures and name in least
            ]
            if pairs and name not in PLAIN:
                cell["difference"] = median(value - least for value, least in pairs)
                if all(least > 0 for _, least in pairs):
                    cell["ratio"] = median(value / least for value, least in pairs)
            table.setdefault(name, {})[stack] = cell
    return table


def markdown(table: dict[str, dict[str, dict[str, Any]]], stacks: list[str], floor: str) -> str:
    """The last column says how far the floor's own rounds lie apart: a smaller difference than that is noise."""
    rows = [["", *stacks, f"{floor}, least to greatest"], ["---"] + ["---:"] * (len(stacks) + 1)]
    for name, cells in table.items():
        spread = f"{_number(cells[floor]['min'])} - {_number(cells[floor]['max'])}" if floor in cells else ""
        rows.append([name, *(_cell(cells.get(stack), name, is_floor=stack == floor) for stack in stacks), spread])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    )


def _cell(cell: dict[str, Any] | None, name: str, *, is_floor: bool) -> str:
    """Milliseconds are compared by difference, everything else by ratio."""
    if cell is None:
        return ""
    value = _number(cell["median"])
    if is_floor:
        return value
    if name.endswith("ms"):
        return f"{value} ({cell['difference']:+.2f})" if "difference" in cell else value
    return f"{value} ({cell['ratio']:.2f} x)" if "ratio" in cell else value


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def machine() -> dict[str, Any]:
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    return {"processor": processor, "kernel": platform.release(), "python": platform.python_version()}
