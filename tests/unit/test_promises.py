"""Each promise of docs/promises.md names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_promise_is_proved_by_tests_that_exist() -> None:
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|(.*)$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 12))
    for number, row in rows:
        named = NAMED.findall(row)
        assert named, f"promise {number} is not proved"
        for path, name in named:
            body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
            found = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert name in found, f"promise {number}: there is no {path}::{name}"


def test_the_readme_links_to_them() -> None:
    assert "(docs/promises.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
