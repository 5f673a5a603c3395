"""An entry of a journal, and what lies in its directory."""

from __future__ import annotations

from chat_nest.ledger.journal import Entry
from chat_nest.core.claims import Claim, Line
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage


def entry(id: str = "a", ending="settle") -> Entry:
    line = Line(
        name="tokens_per_day", scope="caller", key="caller:x:day", unit="tokens", kind="window",
        limit=100, fixed=10, per_million=1_000_000, resets_at=2e9,
    )  # fmt: skip
    record = Record(run="r", caller="x", usage=Usage(input_tokens=1), cost=3, ending="stop")
    claim = Claim(id=id, fingerprint="f", owner="o", lines=(line,), max_output_tokens=50, record=record)
    return Entry(ending=ending, claim=claim, actual={"tokens": 12}, source="reported", record=record)


def files(directory):
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []
