"""Log what blocks the event loop: one slow call delays every stream of the process."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

log = logging.getLogger("chat_nest.server")

QUIET_SECONDS = 10.0
"""Between two log lines about a blocked loop."""
STARVED_SECONDS = 60.0
"""Between two log lines about a machine that is short of CPU."""
MOST_FRAMES = 30
MOST_STACKS = 20
"""The most different stacks in the log.

A later stack, or one that was logged before, is shortened to its last place.
"""


class Watchdog:
    """A thread that pings the event loop, and logs the stack of the loop's thread if no reply comes.

    Only places are logged, never the values of variables. A block of 1.5 times `seconds` is always found, one shorter
    than `seconds` never. The loop is woken twice in `seconds`, for some microseconds. Time in which the loop's thread
    waited for a processor is not a block (known on Linux only): it means that the machine is short of CPU.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._alive = threading.Event()
        self._answered_at = 0.0
        self._stopped = threading.Event()
        self._blocked = _Quiet(QUIET_SECONDS)
        self._starved = _Quiet(STARVED_SECONDS)
        self._stacks: set[str] = set()

    def start(self) -> None:
        """Start the thread for the running loop."""
        watched = (asyncio.get_running_loop(), threading.get_ident(), threading.get_native_id())
        threading.Thread(target=self._run, args=watched, name="chat-nest-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread. Safe to call before `start`."""
        self._stopped.set()
        self._alive.set()

    def _run(self, loop: asyncio.AbstractEventLoop, thread: int, native_id: int) -> None:
        while not self._stopped.wait(self._seconds / 2):
            self._alive.clear()
            waited_before = _waited_for_cpu(native_id)
            try:
                loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop was closed
                return
            pinged_at = time.monotonic()
            if self._alive.wait(self._seconds) or self._stopped.is_set():
                continue
            places = _places(sys._current_frames().get(thread))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - CPython's documented way
            self._alive.wait()
            # The loop's own clock reading is used: this thread, too, may have waited for a processor.
            seconds = self._answered_at - pinged_at
            waited = min(_waited_for_cpu(native_id) - waited_before, seconds)
            if seconds - waited >= self._seconds:
                self._log_blocked(seconds, places)
            elif waited >= self._seconds / 2:
                self._log_starved(waited)

    def _answer(self) -> None:
        self._answered_at = time.monotonic()
        self._alive.set()

    def _log_blocked(self, seconds: float, places: list[str]) -> None:
        if not self._blocked.may_log():
            return
        more = f"; so it was {untold} times since the last such line" if (untold := self._blocked.untold()) else ""
        stack = "\n".join(f"  {place}" for place in places)
        if stack in self._stacks or len(self._stacks) >= MOST_STACKS:
            log.warning("the event loop was blocked for %.2f s%s, in %s", seconds, more, places[-1])
        else:
            self._stacks.add(stack)
            log.warning("the event loop was blocked for %.2f s%s, in\n%s", seconds, more, stack)

    def _log_starved(self, waited: float) -> None:
        if self._starved.may_log():
            more = f"; so it was {untold} times since the last such line" if (untold := self._starved.untold()) else ""
            log.warning("the machine is short of CPU: the event loop waited %.2f s for a processor%s", waited, more)


class _Quiet:
    """Allows one log line in `seconds`, and counts the lines that were left out."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._logged_at = -math.inf
        self._left_out = 0

    def may_log(self) -> bool:
        now = time.monotonic()
        if now - self._logged_at < self._seconds:
            self._left_out += 1
            return False
        self._logged_at = now
        return True

    def untold(self) -> int:
        left_out, self._left_out = self._left_out, 0
        return left_out


def _waited_for_cpu(native_id: int) -> float:
    """Return the seconds in which a thread of this process could have run but had no processor; 0 if unknown.

    It is the second number of schedstat (Linux, Documentation/scheduler/sched-stats.rst), in nanoseconds.
    """
    try:
        return int(Path(f"/proc/self/task/{native_id}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _places(frame: FrameType | None) -> list[str]:
    """Return the innermost frames, as FILE:LINE FUNCTION."""
    if frame is None:
        return ["a thread that has ended"]
    return [f"{place.filename}:{place.lineno} {place.name}" for place in traceback.extract_stack(frame)[-MOST_FRAMES:]]
