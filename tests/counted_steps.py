"""Counts what code sets in motion, without sockets: steps of Python functions, and what the event loop is asked to do.

Neither depends on the machine or on its load.
"""

from __future__ import annotations

import asyncio
import os
import selectors
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

EVENT_LOOP = os.path.dirname(asyncio.__file__)


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts what it is asked to do."""

    def __init__(self) -> None:
        super().__init__(selectors.EpollSelector())
        self.handles = 0

    def call_soon(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        self.handles += 1
        return super().call_soon(*arguments, **options)

    def call_at(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        self.handles += 1
        return super().call_at(*arguments, **options)


class NoSocket:
    def fileno(self) -> int:
        return -1


class Wire(asyncio.Transport):
    """A socket that takes everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2), "socket": NoSocket()})
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    resume_reading = abort = close = pause_reading

    def is_closing(self) -> bool:
        return False


class Steps:
    """Counts the Python functions that are entered or gone on with: not the event loop's, nor the test's own."""

    def __init__(self, *own_functions: Callable[..., object]) -> None:
        self.by_function: Counter[str] = Counter()
        parts = (CountingLoop, Wire, selectors.EpollSelector)
        own = (*own_functions, *(each for part in parts for each in vars(part).values()))
        self._own = {function.__code__ for function in own if hasattr(function, "__code__")}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code not in self._own and not code.co_filename.startswith(EVENT_LOOP):
            self.by_function[code.co_qualname] += 1
