"""The work of `chat-nest pause`, `block`, `stop`, `reset`, `grant`, `audit` and `running`: acts in the store itself."""

from __future__ import annotations

import asyncio
import getpass
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from chat_nest.cli.options import fail, progress
from chat_nest.controls.gate import BLOCK, PAUSE, terms_of
from chat_nest.core.claims import Line
from chat_nest.core.controls import GRANT, Act, Control
from chat_nest.core.errors import LimiterUnavailable, StoreEmptied, failure_name
from chat_nest.core.protocols import HasControls, Store
from chat_nest.core.records import Record
from chat_nest.server.config.excerpts import load_store, load_stored
from chat_nest.server.config.sources import ConfigError
from chat_nest.server.config.values import read
from chat_nest.server.operator import Operator, Rejected, granted, listed, window_lines
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.places import place_of, remedy_of, sentence
from chat_nest.stores.starting import reach

Result = TypeVar("Result")

IN_MEMORY = (
    "the store is memory://, which ends with its process: set [store] url, or use the operators' listener of the server"
)


def act(file: str, work: Callable[[Operator, Store], Awaitable[Result]]) -> Result:
    """Do the work on the store of a configuration. Exits with 2 for a wrong argument, with 1 if the store fails."""
    try:
        _, zone = load_store(file)
        store = load_stored(file)
    except ConfigError as error:
        fail(*error.problems, code=2)
    if isinstance(store, MemoryStore) or not isinstance(store, HasControls):
        fail(IN_MEMORY, code=2)
    operator = Operator(store, zone, by=f"cli:{user()}")

    async def run() -> Result:
        try:
            with suppress(StoreEmptied):  # the work itself says so
                await reach(store, progress)
            return await work(operator, store)
        finally:
            await store.aclose()

    try:
        return asyncio.run(run())
    except Rejected as error:
        fail(f"--{error.field} {error}", code=2)
    except ValueError as error:
        fail(str(error), code=2)
    except StoreEmptied as error:
        fail(f"{sentence(place_of(store))}: {error.advice}", code=1)
    except LimiterUnavailable as error:
        fail(f"{place_of(store)}: {failure_name(error.__cause__ or error)}: {remedy_of(store)}", code=1)


def note(file: str, work: Callable[[Operator], Awaitable[object]]) -> str:
    """Note an act that is done in the audit trail; return why that failed, or an empty string."""
    try:
        _, zone = load_store(file)
        store = load_stored(file)
    except ConfigError as error:
        return "; ".join(error.problems)
    if isinstance(store, MemoryStore) or not isinstance(store, HasControls):
        return "the store is memory://, which only the server reaches"

    async def run() -> None:
        try:
            with suppress(StoreEmptied):
                await reach(store, progress)
            await work(Operator(store, zone, by=f"cli:{user()}"))
        finally:
            await store.aclose()

    try:
        asyncio.run(run())
    except (LimiterUnavailable, ValueError, OSError) as error:
        return f"{place_of(store)}: {failure_name(error.__cause__ or error)}"
    return ""


def check_known(file: str, scope: str, name: str) -> None:
    """Exit with 2 if the configuration has providers or profiles, and not this one: it would pause nothing."""
    try:
        _, values = read(file, os.environ)
    except ConfigError as error:
        fail(*error.problems, code=2)
    section = {"provider": "providers", "model": "providers", "profile": "profiles"}.get(scope)
    known = list(values[section]) if section else []
    wanted = name.partition(":")[0] if scope == "model" else name
    if known and wanted.lower() not in {each.lower() for each in known}:
        fail(f"--{scope}: there is no [{section}.{wanted}]; there are {', '.join(known)}", code=2)


async def in_force(operator: Operator, _store: Store) -> list[str]:
    """Return a line for each pause and block."""
    rows = await _rows(operator)
    return [_shown(row) for kind in (PAUSE, BLOCK) for row in listed(rows, kind, time.time())]


async def grants_in_force(operator: Operator, _store: Store) -> list[str]:
    """Return a line for each grant and reset."""
    return [_granted(row) for row in listed(await _rows(operator), GRANT, time.time())]


async def withdraw(operator: Operator, owner: str, limit: str | None, reason: str) -> list[str]:
    """End the grants and resets of an owner, of one limit or of all; return a line for each."""
    ended: list[str] = []
    for row in listed(await _rows(operator), GRANT, time.time()):
        what = granted(row)
        if what.get("owner") == owner and limit in (None, what["limit"]):
            await operator.withdraw(row.name, reason=reason)
            ended.append(_granted(row))
    return ended


async def _rows(operator: Operator) -> Sequence[Control]:
    found = await operator.controls.watch(-1)
    return () if found is None else found.rows


def windows(file: str, owner: str) -> list[Line]:
    """Return the present windows of an owner. Exits with 2 for a wrong configuration."""
    try:
        _, zone = load_store(file)
    except ConfigError as error:
        fail(*error.problems, code=2)
    return window_lines(owner, zone, time.time())


def acts_as_text(acts: Sequence[Act]) -> str:
    """Return a line for each act, the newest first."""
    lines = [
        "  ".join(filter(None, (_time(each.at), each.by, each.act, each.target, each.detail, each.reason)))
        for each in acts
    ]
    return "\n".join(lines) or "no act yet"


def running_as_text(records: Sequence[Record]) -> str:
    """Return a line for each running answer, the newest first."""
    now = time.time()
    lines = [
        f"{each.run}  {max(0, int(now - each.started_at)):>5} s  caller {each.caller}"
        f"  {each.group or '-'}  {each.profile}  {each.model}"
        for each in records
    ]
    return "\n".join(lines) or "no answer is running"


def records_as_json(records: Sequence[Record]) -> str:
    """Return the running answers as JSON."""
    names = ("run", "caller", "group", "profile", "model", "started_at")
    return msgspec.json.encode([{name: getattr(each, name) for name in names} for each in records]).decode()


def acts_as_json(acts: Sequence[Act]) -> str:
    """Return the acts as JSON."""
    return msgspec.json.encode(acts).decode()


def _shown(row: Control) -> str:
    terms = terms_of(row)
    until = "until it is ended" if row.expires is None else f"until {_time(row.expires)}"
    words = (row.kind, row.name, until, "stops what is running" if terms.stop_running else "", terms.by, row.reason)
    return "  ".join(filter(None, words))


def _granted(row: Control) -> str:
    what = granted(row)
    if not what:
        return row.name
    amount = f"{what['amount']:,} {what['unit']}"
    until = "" if row.expires is None else f"until {_time(row.expires)}"
    return "  ".join(filter(None, (what["kind"], what["owner"], what["limit"], amount, until, what["by"], row.reason)))


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def user() -> str:
    """Return the name of the user who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid()) if hasattr(os, "getuid") else "?"
