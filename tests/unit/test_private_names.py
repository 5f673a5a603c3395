"""Nothing that another package keeps to itself is used: its next release may take it away.

`_name` of another package's object is ruff's business (SLF001).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import chat_nest

PACKAGE = Path(chat_nest.__file__).parent


def private(source: str) -> Iterator[str]:
    """The imports of private modules and names that are not chat_nest's own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] != "chat_nest":
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        else:
            continue
        for path in paths:
            if any(part.startswith("_") and not part.startswith("__") for part in path.split(".")):
                yield path


def test_nothing_private_of_another_package_is_imported() -> None:
    found = {str(file.relative_to(PACKAGE)): [*private(file.read_text())] for file in PACKAGE.rglob("*.py")}
    assert len(found) > 100
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("source", ["from a._b import c", "from a import _b", "import a._b", "import _a"])
def test_such_an_import_is_found(source: str) -> None:
    assert [*private(source)]
    assert not [*private("from __future__ import annotations\nfrom chat_nest._x import y\nimport a.b")]
