"""A blocked event loop is logged with the place, and with no value."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from chat_nest.server import watchdog
from chat_nest.server.watchdog import Watchdog


def block(seconds: float, prompt: str) -> None:
    assert prompt
    time.sleep(seconds)  # what must never be done in a coroutine


async def until_logged(caplog: pytest.LogCaptureFixture, times: int) -> None:
    while caplog.text.count("the event loop was blocked") < times:
        await asyncio.sleep(0.01)


async def test_row49_a_blocked_loop_is_logged_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    dog = Watchdog(0.1)
    dog.start()
    block(0.5, "canary-prompt")  # noqa: ASYNC251
    await until_logged(caplog, 1)
    dog.stop()
    (record,) = caplog.records
    assert "test_watchdog.py" in record.getMessage()
    assert record.getMessage().endswith(" block")
    assert "canary" not in caplog.text


async def test_row49_a_storm_is_one_line_and_then_a_count(caplog, monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "QUIET_SECONDS", 1.5)
    dog = Watchdog(0.05)
    dog.start()
    block(0.3, "first")
    await until_logged(caplog, 1)
    for _ in range(3):
        block(0.2, "again")
        await asyncio.sleep(0.1)
    assert len(caplog.records) == 1
    await asyncio.sleep(1.5)
    block(0.3, "at last")
    await until_logged(caplog, 2)
    dog.stop()
    assert re.search(r"; so it was [3-9] times since the last such line, in\n", caplog.records[1].getMessage())


async def test_row49_a_loop_that_works_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    dog = Watchdog(1.0)
    dog.start()
    for _ in range(150):
        await asyncio.sleep(0.01)
    dog.stop()
    assert caplog.records == []
