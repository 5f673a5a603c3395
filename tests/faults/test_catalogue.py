"""The catalogue of faults has 50 rows, and each has a test that is named for it, or a reason why it can have none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = range(1, 51)
NAMED = re.compile(r"test_rows?_?(\d+)(?:_(and|to)_(\d+))?(?:_and_(\d+))?(?=_)")
WITHOUT: dict[int, str] = {}


def rows_of(name: str) -> set[int]:
    """The rows that a test's name begins with: row_7, row07, rows_13_and_19, rows_12_to_19."""
    if not (found := NAMED.match(name)):
        return set()
    first, how, second, third = found.groups()
    rows = {int(first), *(int(row) for row in (second, third) if row)}
    return rows | set(range(int(first), int(second) + 1)) if how == "to" else rows


def collected() -> dict[int, list[str]]:
    """{row: its tests}, of all functions that pytest collects."""
    named: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "node_modules" in path.parts:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for row in rows_of(node.name):
                    named.setdefault(row, []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return named


def test_names_are_read() -> None:
    assert rows_of("test_row_7_slow") == rows_of("test_row07_slow") == {7}
    assert rows_of("test_rows_12_to_15_a_field") == {12, 13, 14, 15}
    assert rows_of("test_rows_13_and_19_messages") == {13, 19}
    assert rows_of("test_a_row_7") == rows_of("test_row7") == set()


def test_every_row_has_a_test_or_a_reason() -> None:
    named = collected()
    assert set(named) <= set(ROWS), "a row that the catalogue does not have"
    assert sorted(set(ROWS) - set(named)) == sorted(WITHOUT)
