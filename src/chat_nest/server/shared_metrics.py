"""The folder in which the workers of a server count together. `metrics.processes` does the work; it is an extra."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def shared_folder() -> Generator[str]:
    """Yield an empty folder for the counters of all workers, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="chat-nest-metrics-", ignore_cleanup_errors=True) as folder:
        yield folder


def join(folder: str, place: int) -> None:
    """See `metrics.processes.join`. Raises OSError."""
    from chat_nest.metrics.processes import join as join_workers  # noqa: PLC0415 - an extra

    join_workers(folder, place)


def leave(folder: str, place: int) -> None:
    """See `metrics.processes.leave`."""
    from chat_nest.metrics.processes import leave as leave_workers  # noqa: PLC0415 - an extra

    leave_workers(folder, place)
