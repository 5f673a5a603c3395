"""The workers of one server share a folder of counters: prometheus_client's multiprocess mode.

Each worker writes its values into memory-mapped files named for its place, 0 to n-1, so that they outlive it. The
worker that replaces it goes on with its counters: no counter ever falls, and the number of files stays the same. The
supervisor drops the gauges of a worker that has ended. Any worker can answer a scrape, also while another one is
stopped or has crashed.

A process that writes to a memory-mapped file on a full disk is killed by SIGBUS, so the files have their room from the
start, and keep it: a worker that replaces another needs no more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import ProcessCollector, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from chat_nest.metrics.files import FOLDER

_PID = "worker_{}.pid"
_GAUGES: Final = ("gauge_livesum", "gauge_livemax")
_ROOM: Final = {"counter": 1 << 18, "histogram": 1 << 21, **dict.fromkeys(_GAUGES, 1 << 16)}
"""Bytes of each file: for some 50 models. Beyond that, files grow without a promise of the disk."""


def join(folder: str, place: int) -> None:
    """Count in this folder from now on, at this place among the workers. Call it before any metric is made.

    Raises OSError if the disk is full.
    """
    for kind, room in _ROOM.items():
        with Path(folder, f"{kind}_{place}.db").open("ab") as file:
            _allocate(file.fileno(), room)
    os.environ[FOLDER] = folder
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
    _overwrite(Path(folder, _PID.format(place)), b"%-20d" % os.getpid())


def leave(folder: str, place: int) -> None:
    """Drop the gauges of the worker that was at this place and has ended; its counters stay."""
    with suppress(OSError):
        _overwrite(Path(folder, _PID.format(place)), b" " * 20)
        for kind in _GAUGES:
            _overwrite(Path(folder, f"{kind}_{place}.db"), b"\0" * 8)  # how much of the file is used


def _allocate(file: int, room: int) -> None:
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file, 0, room)


def _overwrite(path: Path, start: bytes) -> None:
    """Change the first bytes of a file, which takes no room if they are there."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(file, start)
    finally:
        os.close(file)


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
