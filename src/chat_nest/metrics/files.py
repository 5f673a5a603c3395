"""Writes what a process counts into the files of prometheus_client's multiprocess mode, for a scrape of any process."""

from __future__ import annotations

import os
from typing import Any, Final

from prometheus_client import values

from chat_nest.metrics.counted import Counted, Distribution, Labels, Number, bucket_names
from chat_nest.metrics.families import Family

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"


def in_use() -> bool:
    """Return whether the processes count together, in a folder."""
    return bool(os.environ.get(FOLDER))


class Files:
    """What was written of each number. A file may already have the counters of the process that it replaces."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Family, Labels], _Total] = {}
        self._distributions: dict[tuple[Family, Labels], _Totals] = {}

    def write(self, counted: Counted) -> None:
        """Write what has changed. Raises OSError if a file can't grow."""
        for key, number in counted.numbers.items():
            self._write_number(key, number)
        for key, distribution in counted.distributions.items():
            self._write_distribution(key, distribution)

    def _write_number(self, key: tuple[Family, Labels], number: Number) -> None:
        family, labels = key
        written = self._numbers.get(key)
        if written is None:
            mode = family.mode if family.kind == "gauge" else ""
            value = _value(family, family.name, family.labels, labels, mode=mode)
            written = self._numbers[key] = _Total(value)
            if family.kind == "gauge":  # a file of the process before may have another value
                value.set(number.value)
                written.written = number.value
        if number.value == written.written:
            return
        if family.kind == "gauge":
            written.file.set(number.value)
            written.written = number.value
        else:
            written.update(number.value)

    def _write_distribution(self, key: tuple[Family, Labels], distribution: Distribution) -> None:
        family, labels = key
        written = self._distributions.get(key)
        if written is None:
            name = f"{family.name}_bucket"
            buckets = [_value(family, name, (*family.labels, "le"), (*labels, le)) for le in bucket_names(family)]
            total = _value(family, f"{family.name}_sum", family.labels, labels)
            written = self._distributions[key] = _Totals([_Total(each) for each in (*buckets, total)])
        if distribution.counts != written.counts:  # each observation changes one of them
            for each, now in zip(written.totals, (*distribution.counts, distribution.sum), strict=True):
                each.update(now)
            written.counts = distribution.counts.copy()


class _Total:
    """A total in a file, and how much of this process's is in it."""

    __slots__ = ("file", "written")

    def __init__(self, file: Any) -> None:
        self.file = file
        self.written = 0.0

    def update(self, now: float) -> None:
        if now != self.written:
            self.file.inc(now - self.written)
            self.written = now


class _Totals:
    """The totals of a distribution, and its counts when they were written: most have not changed since."""

    __slots__ = ("counts", "totals")

    def __init__(self, totals: list[_Total]) -> None:
        self.totals = totals
        self.counts: list[int] = []


def _value(family: Family, name: str, labels: tuple[str, ...], of: Labels, *, mode: str = "") -> Any:
    """Return a number in the file of its kind, at zero if it is new."""
    base = family.name.removesuffix("_total")
    return values.ValueClass(family.kind, base, name, labels, of, family.help, multiprocess_mode=mode)
