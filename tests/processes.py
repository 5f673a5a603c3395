"""What the kernel says about processes, on Linux: which are our children, in which state, with which files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path


def state(pid: int) -> str:
    """The state letter of a process ("Z" is a zombie); "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(command: str, parent: int | None = None) -> set[int]:
    """The children, ours unless told whose, whose command line holds `command`, and those that are zombies."""
    whose = parent or os.getpid()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            now, its_parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            line = (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_parent) == whose and (now == "Z" or command in line):
            found.add(int(folder.name))
    return found


def workers(server: int) -> set[int]:
    """The worker processes of a server, copies of it, and those that are zombies."""
    try:
        return children(Path(f"/proc/{server}/cmdline").read_text(), server)
    except FileNotFoundError:
        return set()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until(true: Callable[[], object]) -> None:
    """Return once `true()`; the test's time-out is the bound."""
    while not true():
        await asyncio.sleep(0.01)
