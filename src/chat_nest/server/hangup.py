"""SIGHUP: an operator wants a reload, or the terminal of a foreground server was closed."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

log = logging.getLogger("chat_nest.server")


class Hangup:
    """Handles SIGHUP from its creation on, in the main thread.

    A server whose terminal is gone drains, as on SIGTERM; else SIGHUP is a reload. Under `nohup`, which ignores SIGHUP,
    nothing changes.
    """

    def __init__(self) -> None:
        self._reload: Callable[[], object] | None = None
        self._missed = False
        self._had_terminal = _has_terminal()
        _handle(self._on_hangup)

    def reload_with(self, reload: Callable[[], object]) -> None:
        """Call `reload`, from a signal handler, at each SIGHUP, and now if there was one before."""
        self._reload = reload
        if self._missed:
            self._missed = False
            reload()

    def _on_hangup(self) -> None:
        if self._had_terminal and not _has_terminal():
            signal.raise_signal(signal.SIGTERM)
        elif self._reload is None:
            self._missed = True
        else:
            self._reload()


def leave_hangup_to_parent() -> None:
    """Only log SIGHUP: the parent of a worker reloads it, and ends it when the terminal is gone."""
    _handle(lambda: log.debug("SIGHUP is for the parent process"))


def _handle(call: Callable[[], None]) -> None:
    hangup = getattr(signal, "SIGHUP", None)  # not there on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        signal.signal(hangup, lambda _number, _frame: call())


def _has_terminal() -> bool:
    """Return whether the process has a controlling terminal: when it is closed, the kernel removes it from all."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
