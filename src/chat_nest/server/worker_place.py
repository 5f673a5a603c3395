"""The place of one worker, through its processes."""

from __future__ import annotations

from multiprocessing.process import BaseProcess
from typing import Any

from chat_nest.server.reload import ReloadOutcome

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between the end of a worker and the start of its replacement; doubled each time."""
STEADY_SECONDS = 10.0
"""A worker that served for this many seconds resets the pause."""


class WorkerSlot:
    """The slot of one worker, and the time of its next start."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.process: BaseProcess | None = None
        self.link: Any = None
        """The Connection (on Windows of another class) to the worker, until it has ended."""
        self.served_from: float | None = None
        self.start_at = 0.0
        """When the next worker starts, in seconds of the monotonic clock; it matters only while there is none."""
        self._failures = 0

    @property
    def name(self) -> str:
        """The worker's name for the operator."""
        return f"worker {None if self.process is None else self.process.pid}"

    def send(self, *message: object) -> bool:
        """Send a message to the worker; return whether that was possible."""
        if self.link is None:
            return False
        try:
            self.link.send(message)
        except OSError:
            return False
        return True

    def answer(self, id: int, outcome: ReloadOutcome) -> None:
        """Send the outcome of a reload that this worker asked for, if it still runs."""
        self.send("outcome", id, outcome)

    def vacate(self, now: float) -> float:
        """Note the worker's end; return the pause in seconds before the next one starts."""
        steady = self.served_from is not None and now - self.served_from >= STEADY_SECONDS
        self._failures = 1 if steady else self._failures + 1
        pause = min(FIRST_PAUSE * 2.0 ** min(self._failures - 1, 30), LONGEST_PAUSE)
        if self.link is not None:
            self.link.close()
        self.process = self.link = self.served_from = None
        self.start_at = now + pause
        return pause
