"""A file over 300 lines, or a function over 40 without its docstring, has a reason: its docstring says that it is long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import chat_nest

PACKAGE = Path(chat_nest.__file__).parent
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 300, 40


def too_long(source: str) -> Iterator[str]:
    """The name of each function without a reason, and an empty name for the file itself."""
    tree = ast.parse(source)
    if source.count("\n") > LINES_OF_A_FILE and not has_reason(tree):
        yield ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            lines = span(node) - (0 if docstring is None else span(docstring))
            if lines > LINES_OF_A_FUNCTION and not has_reason(node):
                yield node.name


def span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def has_reason(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return " is long because " in " ".join((ast.get_docstring(node) or "").split())


def test_long_files_and_functions_have_a_reason() -> None:
    found = {str(file.relative_to(PACKAGE)): [*too_long(file.read_text())] for file in PACKAGE.rglob("*.py")}
    assert len(found) > 300
    assert {file: names for file, names in found.items() if names} == {}


def test_a_long_one_without_a_reason_is_found() -> None:
    body = "    pass\n" * 40
    assert [*too_long(f"def one():\n{body}")] == ["one"]
    assert [*too_long(f'def one():\n    """It is long because it must be."""\n{body}')] == []
    assert [*too_long("pass\n" * 301)] == [""]
