"""docs/backup.md for PostgreSQL: its commands, word for word, on a real server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest
from postgres_server import find_programs, new_database, rows, shared_url
from store_driver import LINES, act

from chat_nest.core.errors import LimiterUnavailable, StoreEmptied
from chat_nest.stores.urls import open_store

TEXT = (Path(__file__).parents[2] / "docs" / "backup.md").read_text().partition("## PostgreSQL")[2]
DUMP, RESTORE, RESTORE_AND_KEEP = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url, remove = new_database(shared_url())
    yield url
    remove()


async def run(commands: str, url: str) -> None:
    environ = {**os.environ, "DATABASE_URL": url, "PATH": f"{find_programs()}:{os.environ['PATH']}"}
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-euc", commands], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("keeps", [False, True], ids=["lost", "readable"])
async def test_a_dump_is_restored_while_a_server_watches(database, keeps) -> None:
    store = open_store(database)
    try:
        await act(store, "spend", "a", 100)
        await act(store, "hold", "ran", 30)
        await run(DUMP, database)
        await act(store, "spend", "b", 250)
        rows(database, "ALTER SCHEMA chat_nest RENAME TO hidden" if not keeps else "SELECT 1")
        if not keeps:
            with pytest.raises(StoreEmptied):
                await store.peek(LINES)
        await run(RESTORE_AND_KEEP if keeps else RESTORE, database)
        while True:
            try:
                [day, _] = await act(store, "standing")
                break
            except LimiterUnavailable:  # its connections had plans of the old functions
                continue
        assert day == ([350, 30] if keeps else [100, 30])
        await act(store, "spend", "c", 1)
        assert (await act(store, "usage"))[0] == (3 if keeps else 2)
    finally:
        await store.aclose()
