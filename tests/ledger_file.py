"""What `chat-nest serve` has recorded of its requests in the SQLite file of its folder, read without our code."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple


class Recorded(NamedTuple):
    tokens: int
    source: str
    ending: str


def recorded(folder: Path) -> list[Recorded]:
    """The requests that were settled, in the order of their start."""
    return [
        Recorded(*row) for row in _rows(folder, "SELECT input_tokens + output_tokens, source, ending FROM requests")
    ]


def counters(folder: Path) -> int:
    """How many counters there are: a few for each caller who was ever admitted."""
    return _rows(folder, "SELECT count(*) FROM counters WHERE key <> ''")[0][0]


def _rows(folder: Path, query: str) -> list[tuple]:
    connection = sqlite3.connect(folder / "chat-nest.db")
    try:
        return connection.execute(query).fetchall()  # its primary key begins with the time of the start
    finally:
        connection.close()
