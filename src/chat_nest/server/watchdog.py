"""Says where the event loop is blocked: one slow call delays every stream of the process."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import time
import traceback
from types import FrameType

log = logging.getLogger("chat_nest.server")

QUIET_SECONDS = 10.0
"""Between two log lines."""
MOST_FRAMES = 30


class Watchdog:
    """A thread that asks the event loop for a sign of life, and logs its thread's stack where none comes.

    Only places are logged, never the values of variables. A block that lasts 1.5 times `seconds` is always seen, one
    shorter than `seconds` never; the loop is woken twice in `seconds`, for some microseconds.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._alive = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Watch the running loop, from its thread."""
        watched = (asyncio.get_running_loop(), threading.get_ident())
        threading.Thread(target=self._run, args=watched, name="chat-nest-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer. Safe to call before `start`."""
        self._stopped.set()
        self._alive.set()

    def _run(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        told_at, untold = -math.inf, 0
        while not self._stopped.wait(self._seconds / 2):
            self._alive.clear()
            asked_at = time.monotonic()
            try:
                loop.call_soon_threadsafe(self._alive.set)
            except RuntimeError:  # the loop was closed
                return
            if self._alive.wait(self._seconds) or self._stopped.is_set():
                continue
            if asked_at - told_at < QUIET_SECONDS:
                untold += 1
                self._alive.wait()
                continue
            places = _places(sys._current_frames().get(thread))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - CPython's documented way
            self._alive.wait()
            told_at = time.monotonic()
            more = f"; so it was {untold} times since the last such line" if untold else ""
            untold = 0
            log.warning("the event loop was blocked for %.2f s%s, in\n%s", told_at - asked_at, more, places)


def _places(frame: FrameType | None) -> str:
    """The innermost frames, as FILE:LINE FUNCTION."""
    if frame is None:
        return "a thread that has ended"
    stack = traceback.extract_stack(frame)[-MOST_FRAMES:]
    return "\n".join(f"  {place.filename}:{place.lineno} {place.name}" for place in stack)
