"""A wall clock for other processes that a test steps: of Redis, PostgreSQL and `chat-nest serve`."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("stepped_clock.c")


class SteppedClock:
    """Processes that run with `environ` read a clock that is `step` seconds wrong."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            (pytest.fail if os.environ.get("CI") else pytest.skip)("a stepped clock needs Linux and a C compiler")
        library, self._file = folder / "stepped_clock.so", folder / "step"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
        self.step(0)
        for path in (*folder.parents, folder, library, self._file):
            if path.stat().st_uid == os.getuid() and path.is_relative_to("/tmp"):
                path.chmod(path.stat().st_mode | 0o055)  # PostgreSQL runs as another user
        self.environ = {"LD_PRELOAD": str(library), "STEP_FILE": str(self._file)}

    def step(self, seconds: float) -> None:
        file = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(file, struct.pack("l", int(seconds)), 0)
        os.close(file)
