"""`chat-nest sessions revoke`: what it writes, and what it can't do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chat_nest.cli.commands import chat_nest
from chat_nest.core.controls import Control
from chat_nest.stores.sqlite import SQLiteStore

ONE, TWO = "s_" + "0a" * 12, "s_" + "1b" * 12


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environ: str) -> Result:
    clean = {name: None for name in os.environ if name.startswith(("CHAT_NEST_", "OPENAI_"))}
    return CliRunner(env={**clean, **environ}).invoke(chat_nest, ["sessions", "revoke", *arguments])


def rows() -> list[Control]:
    async def read() -> list[Control]:
        store = SQLiteStore("chat-nest.db")
        try:
            found = await store.controls.watch(0)
            return [] if found is None else list(found.rows)
        finally:
            await store.aclose()

    return asyncio.run(read())


def test_the_sessions_are_revoked_in_the_store() -> None:
    result = run(ONE, TWO, "--reason", "left")
    assert (result.exit_code, result.stdout) == (0, f"Revoked {ONE}.\nRevoked {TWO}.\n")
    assert [(row.kind, row.name, row.reason) for row in rows()] == [("session", ONE, "left"), ("session", TWO, "left")]
    assert run(ONE).exit_code == 0, "again"


def test_an_invalid_id_revokes_nothing_and_is_not_repeated() -> None:
    result = run(ONE, "cns_1.canary")
    assert result.exit_code == 2
    assert "the id of a session is s_ and 24 hex digits" in result.stderr
    assert "canary" not in result.output
    assert not Path("chat-nest.db").exists()


def test_a_store_out_of_reach_is_named(monkeypatch) -> None:
    monkeypatch.setattr("chat_nest.stores.starting.SECONDS", 0.0)
    result = run(ONE, CHAT_NEST_STORE_URL="memory://")
    assert result.exit_code == 1
    assert "The store in this process's memory can't be reached from here: use DELETE /api/sessions/ID" in result.stderr
    down = run(ONE, CHAT_NEST_STORE_URL="redis://127.0.0.1:1/0")
    assert down.exit_code == 1
    assert "can't be used" in down.stderr
