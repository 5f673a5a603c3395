"""What a process counts: plain numbers, which an event changes in a fraction of a microsecond.

prometheus_client's own values take a lock for each increment, and several times as long in files that processes share.
So the numbers reach its formats and its files only when somebody scrapes, and by workers once a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString  # pyright: ignore[reportUnknownVariableType]

from chat_nest.metrics.families import BUDGETS, FAMILIES, Family

Labels = tuple[str, ...]
COUNTED: Final = tuple(family for family in FAMILIES if family not in BUDGETS)


class Number:
    """The value of a counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Distribution:
    """The values of a histogram: how many were at most each bound and above the one before, and their sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Counted:
    """Every number of a process by its metric and labels, made when it is first counted."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[Family, Labels], Number] = {}
        self.distributions: dict[tuple[Family, Labels], Distribution] = {}

    def number(self, family: Family, *labels: str) -> Number:
        """Return the value of a counter or a gauge with these labels."""
        found = self.numbers.get((family, labels))
        if found is None:
            found = self.numbers[family, labels] = Number()
        return found

    def distribution(self, family: Family, *labels: str) -> Distribution:
        """Return the values of a histogram with these labels."""
        found = self.distributions.get((family, labels))
        if found is None:
            found = self.distributions[family, labels] = Distribution(family.buckets)
        return found

    def collect(self) -> Iterator[Metric]:
        """Yield every metric as prometheus_client has it. Another thread may call it."""
        metrics: dict[Family, Any] = {family: _empty(family) for family in COUNTED}
        for (family, labels), number in list(self.numbers.items()):
            metrics[family].add_metric(labels, number.value)
        for (family, labels), distribution in list(self.distributions.items()):
            total, cumulative = 0, list[tuple[str, float]]()
            for bound, count in zip(bucket_names(family), list(distribution.counts), strict=True):
                total += count
                cumulative.append((bound, total))
            metrics[family].add_metric(labels, cumulative, distribution.sum)
        yield from metrics.values()

    def describe(self) -> Iterator[Metric]:
        """Yield the names without values, for a registration."""
        return (_empty(family) for family in COUNTED)


def bucket_names(family: Family) -> list[str]:
    """Return the values of the label `le`."""
    return [str(floatToGoString(bound)) for bound in (*family.buckets, float("inf"))]  # type: ignore[no-untyped-call]


def _empty(family: Family) -> Metric:
    if family.kind == "histogram":
        return HistogramMetricFamily(family.name, family.help, labels=family.labels)
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return kind(family.name, family.help, labels=family.labels)
