"""Prints the table of docs/metrics.md from the code: `.venv/bin/python tests/metrics_table.py`."""

from __future__ import annotations

from chat_nest.metrics import FAMILIES


def table() -> str:
    rows = ["| metric | kind | labels | what it counts |", "|---|---|---|---|"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
