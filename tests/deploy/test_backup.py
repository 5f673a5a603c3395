"""`chat-nest store backup` and `restore`: the copy of a store in use, and what budgets know after it is put back."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chat_nest.cli.commands import chat_nest
from chat_nest.core.claims import Claim, Granted, Line
from chat_nest.core.controls import Act, Control
from chat_nest.identity.api_key import Rights, present_second
from chat_nest.identity.key_issuers import StoreIssuer
from chat_nest.stores.sqlite import SQLiteStore


def window(key: str, fixed: int = 0) -> Line:
    return Line(
        name="tokens_per_day",
        scope="caller",
        key=key,
        unit="tokens",
        kind="window",
        limit=1_000,
        fixed=fixed,
        period=86_400,
        resets_at=4_000_000_000.0,
    )


RATE = Line(name="r", scope="caller", key="caller:ada:rate", unit="requests", kind="rate", limit=30, fixed=1, period=60)
ACT = Act(by="cli:a", act="block", target="bob")
DAY, LATER = "caller:ada:day", "caller:ada:hour"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, url: str = "sqlite:///chat-nest.db") -> Result:
    """Run the command in a thread, since it runs an event loop of its own."""
    clean = {name: None for name in os.environ if name.startswith(("CHAT_NEST_", "OPENAI_"))}
    runner = CliRunner(env={**clean, "CHAT_NEST_STORE_URL": url})
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(runner.invoke, chat_nest, ["store", *arguments]).result()


async def spend(store: SQLiteStore, id: str, tokens: int, key: str = DAY, *, ends: bool = True) -> None:
    lines = (window(key, tokens), RATE)
    claim = Claim(id=id, fingerprint="f", owner="ada", lines=lines, max_output_tokens=1)
    assert isinstance(await store.reserve(claim, 60), Granted)
    if ends:
        await store.settle(claim, {"tokens": tokens, "requests": 1}, "reported")


async def used(key: str = DAY) -> tuple[int, int]:
    """What is used, and held."""
    store = SQLiteStore("chat-nest.db")
    [standing] = await store.peek([window(key)])
    await store.aclose()
    return standing.used, standing.held


async def test_a_backup_of_a_store_in_use_is_one_whole_private_file() -> None:
    store = SQLiteStore("chat-nest.db")
    await spend(store, "a", 100)
    assert Path("chat-nest.db-wal").stat().st_size, "the newest entries are not in the file itself"
    done = run("backup", "copy.db")
    assert done.exit_code == 0, done.output
    await spend(store, "b", 50)
    await store.aclose()
    assert stat.S_IMODE(Path("copy.db").stat().st_mode) == 0o600
    assert sorted(path.name for path in Path().glob("*copy.db*")) == ["copy.db"]
    with closing(sqlite3.connect("copy.db")) as copy:
        assert copy.execute("SELECT used FROM counters WHERE key = ?", (DAY,)).fetchone() == (100,)


async def test_a_backup_replaces_no_file_and_needs_a_store() -> None:
    assert run("backup", "copy.db").exit_code == 1
    assert not Path("chat-nest.db").exists(), "nor does it make one"
    store = SQLiteStore("chat-nest.db")
    await spend(store, "a", 100)
    await store.aclose()
    Path("copy.db").write_text("mine")
    refused = run("backup", "copy.db")
    assert (refused.exit_code, "a backup replaces no file" in refused.output) == (1, True)
    assert Path("copy.db").read_text() == "mine"
    refused = run("backup", "no/where.db")
    assert (refused.exit_code, "No such file or directory" in refused.output) == (1, True), refused.output


async def backed_up() -> None:
    """A store with 100 used at the time of its backup, 30 held then, and 250 used since."""
    store = SQLiteStore("chat-nest.db")
    await spend(store, "a", 100)
    await spend(store, "ran", 30, ends=False)
    assert run("backup", "copy.db").exit_code == 0
    await spend(store, "b", 250)
    await spend(store, "c", 40, LATER)
    await store.aclose()


async def test_a_restore_gives_nothing_back_that_the_replaced_file_knows() -> None:
    await backed_up()
    done = run("restore", "copy.db")
    assert done.exit_code == 0, done.output
    assert "nothing spent is given back" in done.output
    total = sum(await used())
    assert total == 380
    assert await used(LATER) == (40, 0)
    [kept] = Path().glob("chat-nest.db.replaced-*")
    with closing(sqlite3.connect(kept)) as replaced:
        assert replaced.execute("SELECT used FROM counters WHERE key = ?", (DAY,)).fetchone() == (350,)
    assert not list(Path().glob(".*restoring*"))


@pytest.mark.parametrize("how", ["missing", "damaged"])
async def test_a_restore_that_forgets_spending_must_be_accepted(how) -> None:
    await backed_up()
    path = Path("chat-nest.db")
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"\0" * 8_192)
    refused = run("restore", "copy.db")
    assert (refused.exit_code, "--accept-loss" in refused.output) == (1, True), refused.output
    assert path.exists() == (how == "damaged")
    done = run("restore", "copy.db", "--accept-loss")
    assert (done.exit_code, "callers can spend it again" in done.output) == (0, True), done.output
    assert await used() == (100, 30)
    store = SQLiteStore("chat-nest.db", now=lambda: 3_000_000_000)
    assert await store.sweep() == 1
    await store.aclose()
    assert await used() == (130, 0), "what ran then is charged in full"


async def test_a_store_in_use_is_not_replaced() -> None:
    await backed_up()
    import subprocess
    import sys

    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sqlite3, sys; c = sqlite3.connect({str(Path.cwd() / 'chat-nest.db')!r});"
            "c.execute('SELECT 1 FROM counters').fetchone(); print('open', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"open\n"
        refused = run("restore", "copy.db")
        assert (refused.exit_code, "stop the servers first" in refused.output) == (1, True), refused.output
        holder.stdin.close()
    assert run("restore", "copy.db").exit_code == 0


async def test_a_backup_of_another_life_of_the_store_is_accepted_by_those_that_remember_the_last() -> None:
    await backed_up()
    for path in Path().glob("chat-nest.db*"):
        path.unlink()
    assert (await asyncio.to_thread(run, "accept-empty")).exit_code == 0
    assert await used() == (0, 0)
    done = run("restore", "copy.db")
    assert done.exit_code == 0, done.output
    assert (await used())[0] == 100


@pytest.mark.parametrize("content", [b"", b"no database at all", None], ids=["empty", "text", "other"])
async def test_an_invalid_backup_changes_nothing(content) -> None:
    await backed_up()
    if content is None:
        with closing(sqlite3.connect("other.db")) as other:
            other.execute("CREATE TABLE mine (x)")
            other.execute("PRAGMA user_version = 2")
    else:
        Path("other.db").write_bytes(content)
    before = await used()
    refused = run("restore", "other.db", "--accept-loss")
    assert (refused.exit_code, "is no backup of a store" in refused.output) == (1, True), refused.output
    assert run("restore", "nowhere.db").exit_code == 1
    assert await used() == before


async def test_records_of_both_files_are_there_after_a_restore() -> None:
    await backed_up()
    with closing(sqlite3.connect("chat-nest.db")) as store:
        columns = [row[1] for row in store.execute("PRAGMA table_info(requests)")]
        values = dict.fromkeys(columns, 0) | {"id": "new", "started_at": 1, "source": "reported", "ending": "stop"}
        store.execute(
            f"INSERT INTO requests VALUES ({', '.join('?' * len(columns))})", [values[name] for name in columns]
        )
        store.commit()
    assert run("restore", "copy.db").exit_code == 0
    with closing(sqlite3.connect("chat-nest.db")) as store:
        assert store.execute("SELECT id FROM requests").fetchall() == [("new",)]


@pytest.mark.parametrize("how", ["readable", "missing"])
async def test_known_operator_actions_since_the_backup_are_kept(how) -> None:
    store = SQLiteStore("chat-nest.db")
    await store.controls.change([Control(kind="grant", name="ada"), Control(kind="block", name="bob")], act=ACT)
    assert run("backup", "copy.db").exit_code == 0
    await store.controls.change([Control(kind="block", name="eve")], act=ACT)
    await store.aclose()
    if how == "missing":
        Path("chat-nest.db").unlink()
    assert run("restore", "copy.db", "--accept-loss").exit_code == 0
    store = SQLiteStore("chat-nest.db")
    found = {(row.kind, row.name) for row in (await store.controls.watch(0)).rows}
    await store.aclose()
    blocks = {("block", "bob"), ("block", "eve")} if how == "readable" else {("block", "bob")}
    assert found == (blocks | {("grant", "ada")} if how == "readable" else blocks), "a grant ends with what is known"


async def test_a_key_that_was_revoked_since_the_backup_stays_revoked() -> None:
    store = SQLiteStore("chat-nest.db")
    issuer = StoreIssuer(store.controls, b"0123456789abcdef0123456789abcdef", by="cli:a")
    leaked, kept = [await issuer.create(Rights(caller=name)) for name in ("ada", "bob")]
    assert run("backup", "copy.db").exit_code == 0
    await issuer.revoke([leaked.key.id])
    later = await issuer.create(Rights(caller="eve"))
    await store.aclose()
    assert run("restore", "copy.db").exit_code == 0
    store = SQLiteStore("chat-nest.db")
    issuer = StoreIssuer(store.controls, b"0123456789abcdef0123456789abcdef", by="cli:a")
    states = {key.id: key.state(present_second()) for key in await issuer.keys()}
    assert states == {leaked.key.id: "revoked", kept.key.id: "valid", later.key.id: "valid"}
    await store.aclose()


def test_other_stores_name_their_own_tools() -> None:
    for url, said in (
        ("memory://", "nothing to copy"),
        ("redis://127.0.0.1:1", "RDB or AOF"),
        ("postgresql://h/d", "pg_dump"),
    ):
        result = run("backup", "copy.db", url=url)
        assert (result.exit_code, said in result.output) == (1, True), result.output
