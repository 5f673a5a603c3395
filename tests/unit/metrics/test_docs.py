"""docs/metrics.md is printed from the code."""

from pathlib import Path

from metrics_table import table

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_has_the_table_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = page.partition("<!-- printed by tests/metrics_table.py -->\n")[2].partition("\n<!-- end -->")[0]
    assert found == table(), "print it: .venv/bin/python tests/metrics_table.py"
