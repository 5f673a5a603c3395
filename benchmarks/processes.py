"""Servers as processes on one core: start them, wait for them, read what they used."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path


class Failed(Exception):
    """A measurement that must not be believed: a wrong answer, an error, a server that did not start."""


class Missing(Exception):
    """Something that this machine lacks; the message says how to get it."""


class Cores:
    """The servers have one core, the stand-in, the load and this process another, so that they do not share time."""

    def __init__(self) -> None:
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            raise Missing("Two processor cores are needed: one for the servers, one for the load.")
        self.servers, self.load = usable[0], usable[1]
        self.both = f"{self.servers},{self.load}"
        os.sched_setaffinity(0, {self.load})


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the living processes, all threads, ended ones too.

    It is what /proc/PID/stat says, but in nanoseconds: the process's CPU-time clock (clock_getcpuclockid(3)).
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


class Server:
    """A running server and its children, pinned to one core if any, with what it prints in a file."""

    def __init__(self, name: str, command: list[str], *, port: int, core: str | None, directory: Path) -> None:
        self.name, self.port = name, port
        self.log = directory / "output.log"
        self.process: subprocess.Popen[bytes] | None = None
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("CHAT_NEST_", "OPENAI_"))}
        if command:
            with self.log.open("wb") as out:
                self.process = subprocess.Popen(
                    command if core is None else ["taskset", "-c", core, *command],
                    cwd=directory,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )

    def wait_until_open(self, seconds: float = 15.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline or (self.process and self.process.poll() is not None):
                    raise Failed(f"{self.name} did not start.\n{self.last_words()}") from None
                time.sleep(0.05)

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    def pids(self) -> list[int]:
        """The process and all that descend from it."""
        return family(self.process.pid) if self.process else []

    def cpu_seconds(self) -> float:
        """See `cpu_seconds`."""
        return cpu_seconds(self.pids())

    def memory_kb(self) -> int:
        """The proportional set size: pages shared with other processes count by share. Socket buffers are not in it."""
        total = 0
        for pid in self.pids():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(rollup.split("\nPss:")[1].split()[0])
        return total

    def stop(self) -> None:
        if not self.process:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
