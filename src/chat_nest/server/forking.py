"""Workers that share what their parent has loaded: the modules, and the tables that count tokens."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from multiprocessing.context import ForkContext, SpawnContext

from chat_nest.counting.tokens import TokenCounters
from chat_nest.server.config.settings import Config

_HANDLED = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


def worker_context() -> ForkContext | SpawnContext:
    """Return how to start a worker: on Linux as a copy of this process.

    A copy has one thread: what another one holds at that moment would stay locked in it. Elsewhere than on Linux,
    system libraries start threads of their own.
    """
    if sys.platform == "linux" and threading.active_count() == 1:
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("spawn")


def load_shared(config: Config) -> None:
    """Load what every worker needs, and keep the garbage collector from writing to it, which would copy it."""
    with contextlib.suppress(ImportError):
        importlib.import_module("uvloop")  # not there on Windows
    counters = TokenCounters({name: provider.counting for name, provider in config.providers.items()})
    for profile in config.profiles.values():
        for model in profile.models:
            counters.of(model)
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def signals_held() -> Generator[None]:
    """Hold back signals until the worker has handlers of its own: it begins with its parent's."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become_worker(parent: int, close: Callable[[], None]) -> None:
    """Part from the parent with this process id: in a copy, call `close` for what only the parent may keep open."""
    close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The other workers have copies of the pipe by which multiprocessing would notice the parent's end.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
