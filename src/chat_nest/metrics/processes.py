"""The workers of one server share a folder of counters: prometheus_client's multiprocess mode.

Each worker writes its values into memory-mapped files named for its place, 0 to n-1, so that they outlive it. The
worker that replaces it goes on with its counters: no counter ever falls, and the number of files stays the same. The
supervisor drops the gauges of a worker that has ended. Any worker can answer a scrape, also while another one is
stopped or has crashed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import ProcessCollector, multiprocess, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_PID = "worker_{}.pid"


def join(folder: str, place: int) -> None:
    """Count in this folder from now on, at this place among the workers. Call it before any metric is made."""
    os.environ[FOLDER] = folder
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
    Path(folder, _PID.format(place)).write_text(str(os.getpid()), encoding="ascii")


def leave(folder: str, place: int) -> None:
    """Drop the gauges of the worker that was at this place and has ended; its counters stay."""
    Path(folder, _PID.format(place)).unlink(missing_ok=True)
    with suppress(OSError):
        multiprocess.mark_process_dead(place, folder)  # type: ignore[no-untyped-call]


class WorkerProcesses:
    """The collector of the workers' process metrics: CPU time, memory, open files, each with the label `worker`."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        for file in sorted(self._folder.glob(_PID.format("*"))):
            try:
                pid = int(file.read_text(encoding="ascii"))
            except (OSError, ValueError):
                continue  # it has just ended
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                found.setdefault(metric.name, _empty(metric))
                for sample in metric.samples:
                    found[metric.name].add_sample(
                        sample.name, {**sample.labels, "worker": file.stem.removeprefix("worker_")}, sample.value
                    )
        yield from found.values()


def _empty(metric: Metric) -> Metric:
    kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
    return kind(metric.name, metric.documentation, labels=("worker",))
