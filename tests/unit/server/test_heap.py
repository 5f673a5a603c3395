"""Memory that was freed goes back to the system, although some of what lies between it lives on."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio
from pathlib import Path
from chat_nest.server import heap

heap.EVERY_SECONDS = 0.01

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

async def main():
    freed, kept = [], []
    for number in range(60_000):
        freed.append(b"x" * (600 + number % 3_000))
        if number % 20 == 0:
            kept.append(b"y" * 700)
    full = resident_mb()
    del freed
    trimmer = heap.Trimmer()
    trimmer.start()
    while resident_mb() > full / 2:
        await asyncio.sleep(0.01)
    trimmer.stop()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_freed_memory_goes_back_to_the_system() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=240)
