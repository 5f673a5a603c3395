"""A blocked event loop is logged with the place, and with no value; a machine without CPU to spare is no blocked loop."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chat_nest.server import watchdog
from chat_nest.server.watchdog import Watchdog

LINUX = sys.platform == "linux" and Path("/proc/self/schedstat").exists()


def sleep(seconds: float, prompt: str) -> None:
    assert prompt
    time.sleep(seconds)  # what must never be done in a coroutine


def compute(seconds: float, prompt: str) -> None:
    """Keep a processor busy for so long, however long that takes on a busy machine."""
    assert prompt
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def blocks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("the event loop was blocked")]


async def until_logged(caplog: pytest.LogCaptureFixture, times: int) -> None:
    while len(blocks(caplog)) < times:
        await asyncio.sleep(0.01)


@contextmanager
def watching(seconds: float) -> Iterator[Watchdog]:
    dog = Watchdog(seconds)
    dog.start()
    try:
        yield dog
    finally:
        dog.stop()


@pytest.mark.parametrize("block", [sleep, compute])
@pytest.mark.timeout(120)
async def test_row49_a_blocked_loop_is_logged_with_its_stack(
    block: Callable[[float, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    with watching(0.1):
        while not blocks(caplog):  # again, where the watchdog was itself kept from running for as long
            block(1.0, "canary-prompt")
            await asyncio.sleep(0.2)
    line = blocks(caplog)[0]
    assert "test_watchdog.py" in line
    assert line.endswith(f" {block.__name__}")
    assert "canary" not in caplog.text


async def test_row49_a_storm_is_one_line_and_then_a_count(caplog, monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "QUIET_SECONDS", 3_600)
    with watching(0.05) as dog:
        sleep(0.3, "first")
        await until_logged(caplog, 1)
        for _ in range(3):
            sleep(0.2, "again")
            await asyncio.sleep(0.1)
        assert len(blocks(caplog)) == 1
        monkeypatch.setattr(dog._blocked, "_seconds", 0)
        while len(blocks(caplog)) < 2:
            sleep(0.3, "at last")
            await asyncio.sleep(0.1)
    assert re.search(r"; so it was [1-9] times since the last such line, in\n", blocks(caplog)[1])


async def test_row49_the_same_stack_is_logged_once(caplog, monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "QUIET_SECONDS", 0.0)

    def always_here() -> None:
        sleep(0.3, "one line of code")

    with watching(0.05):
        while len(blocks(caplog)) < 4:
            always_here()
            await asyncio.sleep(0.1)
    stacks = [line for line in blocks(caplog) if ", in\n" in line and line.endswith(" sleep")]
    short = [line for line in blocks(caplog) if re.search(r", in \S+test_watchdog.py:\d+ sleep$", line)]
    assert len(stacks) == 1
    assert short
    assert all("\n" not in line for line in short)


async def test_row49_only_so_many_stacks_are_logged(caplog, monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(watchdog, "MOST_STACKS", 0)
    with watching(0.05):
        while not blocks(caplog):
            sleep(0.3, "x")
            await asyncio.sleep(0.1)
    assert all("\n" not in line for line in blocks(caplog))


async def test_row49_a_loop_that_works_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with watching(1.0):
        for _ in range(150):
            await asyncio.sleep(0.01)
    assert blocks(caplog) == []


STARVED = """
import asyncio, logging, os, sys
from test_watchdog import compute
from chat_nest.server.watchdog import Watchdog

async def main():
    dog = Watchdog(0.1)
    dog.start()
    os.nice(19)
    print("ready", flush=True)
    sys.stdin.readline()  # until others want the processor, too
    while not lines:
        compute(0.002, "a step")
        await asyncio.sleep(0)
    for _ in range(5):
        compute(0.002, "a step")
        await asyncio.sleep(0)
    print(*lines, "end", sep="\\n", flush=True)
    os._exit(0)

lines = []
logging.basicConfig()
logging.getLogger("chat_nest.server").addFilter(lambda record: "waiting for a line" and lines.append(f"{record.levelname} {record.getMessage()}"))
asyncio.run(main())
"""


@pytest.mark.skipif(not LINUX, reason="only Linux tells how long a thread waited for a processor")
@pytest.mark.timeout(120)
async def test_row49_a_loop_that_lacks_cpu_is_one_line_about_the_machine() -> None:
    """Two processes want the only processor of a third, which is nice: a hundredth of it is left for its loop."""
    core = {min(os.sched_getaffinity(0))}
    burn = "import time\nend = time.monotonic() + 100\nwhile time.monotonic() < end: pass"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", STARVED], env=env, **pipes)]  # type: ignore[call-overload]
    try:
        starved = processes[0]
        assert await asyncio.to_thread(starved.stdout.readline) == "ready\n"
        processes += [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(2)]
        for process in processes:
            os.sched_setaffinity(process.pid, core)
        for thread in Path(f"/proc/{starved.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), core)
        starved.stdin.write("go\n")
        starved.stdin.flush()
        said = await asyncio.to_thread(lambda: list(iter(starved.stdout.readline, "end\n")))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert len(said) == 1, "at most one in a minute, and no blocked loop"
    assert re.fullmatch(
        r"WARNING the machine is short of CPU: the event loop waited \d+\.\d\d s for a processor\n", said[0]
    )
