"""The work of `chat-nest keys`: the issuer of a configuration, its errors, and the table of keys."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from chat_nest.cli.operate import IN_MEMORY, user
from chat_nest.cli.options import fail, progress
from chat_nest.core.errors import LimiterUnavailable, StoreEmptied, failure_name
from chat_nest.core.messages import hashed
from chat_nest.core.protocols import HasControls
from chat_nest.identity.api_key import ID, ApiKey, NotRotatable, UnknownKey, WrongKey
from chat_nest.identity.key_issuers import FileIssuer, KeyIssuer
from chat_nest.server.config.excerpts import KeySettings, load_keys, load_stored
from chat_nest.server.config.sources import ConfigError
from chat_nest.server.issuing import issuer_of
from chat_nest.server.operator import Rejected
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.places import place_of, remedy_of, sentence
from chat_nest.stores.starting import reach

Result = TypeVar("Result")

UNTOLD = "it is done, but not in the audit trail, and the running answers and sessions of a revoked key go on"
"""If the store did not take the act."""

COLORS = {"valid": "green", "expired": "yellow", "revoked": "red"}
COLUMNS = (
    "ID",
    "STATE",
    "CALLER",
    "GROUP",
    "SCOPES",
    "PROFILES",
    "LIMITS",
    "CREATED",
    "EXPIRES",
    "IN USAGE",
    "NAME",
)
_OPTIONS = {"caller": "CALLER", "profiles": "--profile", "limits": "--limit", "scopes": "--scope"}
"""The arguments with the fields of a key."""


def settings_of(file: str) -> KeySettings:
    """Return the configuration of keys. Exits with 2 if it is wrong."""
    try:
        return load_keys(file)
    except ConfigError as error:
        fail(*error.problems, code=2)


def issue(file: str, settings: KeySettings, work: Callable[[KeyIssuer], Awaitable[Result]]) -> Result:
    """Do the work with what issues the keys. Exits with 2 for a wrong argument, with 1 if it can't be done."""
    if not settings.identity.section.keys:
        return _in_file(file, settings, work)
    try:
        store = load_stored(file)
    except ConfigError as error:
        fail(*error.problems, code=2)
    assert isinstance(store, HasControls)
    issuer = issuer_of(settings.identity, store.controls, by=f"cli:{user()}")
    assert issuer is not None

    async def run() -> Result:
        try:
            await reach(store, progress)
            return await work(issuer)
        finally:
            await store.aclose()

    try:
        return _checked(run())
    except StoreEmptied as error:
        fail(f"{sentence(place_of(store))}: {error.advice}", code=1)
    except LimiterUnavailable as error:
        fail(f"{place_of(store)}: {failure_name(error.__cause__ or error)}: {remedy_of(store)}", code=1)
    except ValueError as error:
        fail(f"{place_of(store)}: {error}", code=1)


def _in_file(file: str, settings: KeySettings, work: Callable[[KeyIssuer], Awaitable[Result]]) -> Result:
    """Do the work with the keys of a file. What the store did not take of it is a warning: the file has the change."""
    path = Path(settings.identity.section.keys_file)
    store, lacking = None, IN_MEMORY
    try:
        store = load_stored(file)
    except ConfigError as error:
        lacking = "; ".join(error.problems)
    controls = store.controls if isinstance(store, HasControls) and not isinstance(store, MemoryStore) else None
    issuer = issuer_of(settings.identity, controls, by=f"cli:{user()}")
    assert isinstance(issuer, FileIssuer)

    async def run() -> Result:
        try:
            return await work(issuer)
        finally:
            if store is not None:
                await store.aclose()

    try:
        answer = _checked(run())
    except (OSError, ValueError) as error:
        _fail_with(path, error)
    if (missed := issuer.missed) is not None:
        why = missed.advice if isinstance(missed, StoreEmptied) else failure_name(missed.__cause__ or missed)
        said = lacking if store is None or controls is None else f"{place_of(store)}: {why}"
        click.echo(f"chat-nest: warning: {UNTOLD}: {said}", err=True)
    return answer


def _checked(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what the work returns. Exits for a wrong argument."""
    try:
        return asyncio.run(work)
    except UnknownKey as error:
        id = str(error)
        said = f"the ID {id}" if ID.fullmatch(id) and len(id) <= _LONGEST_ID else "an ID like that"
        fail(f"there is no key with {said}: `chat-nest keys list` shows those that are there", code=2)
    except NotRotatable as error:
        fail(f"the key can't be rotated: {error}", code=2)
    except (WrongKey, Rejected) as error:
        refuse(error)


_LONGEST_ID = 16
"""A longer one is not repeated: it may be a key."""


def refuse(error: WrongKey | Rejected) -> NoReturn:
    """Print which argument broke which rule, and exit with 2."""
    head, _, name = error.field.partition(".")
    option = _OPTIONS.get(re.sub(r"\[.*", "", head), f"--{head}")
    fail(f"{option}{f' {name}' if name else ''} {error.rule if isinstance(error, WrongKey) else error}", code=2)


def row(key: ApiKey, now: datetime) -> dict[str, Any]:
    """Return a key for display, as JSON's values."""
    return {
        "id": key.id,
        "state": key.state(now),
        "caller": key.caller,
        "group": key.group,
        "scopes": key.scopes,
        "profiles": key.profiles,
        "limits": key.limits,
        "created": _time(key.created),
        "expires": _time(key.expires),
        "in_usage": hashed(key.caller_id),
        "name": key.name or None,
        "revoked": _time(key.revoked),
        "rotated_to": key.rotated_to,
    }


def table(keys: Sequence[ApiKey], now: datetime) -> str:
    """Return the keys in columns."""
    cells = [COLUMNS, *(_cells(key, now) for key in keys)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines: list[str] = []
    for line in cells:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        if line[1] in COLORS:
            padded[1] = click.style(padded[1], fg=COLORS[line[1]])
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cells(key: ApiKey, now: datetime) -> list[str]:
    shown = row(key, now)
    shown["scopes"], shown["profiles"] = ",".join(key.scopes), ",".join(key.profiles)
    shown["limits"] = ",".join(f"{name}={number}" for name, number in key.limits.items())
    return [cell or "-" for cell in list(shown.values())[: len(COLUMNS)]]


def _time(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%dT%H:%MZ}"


def _fail_with(path: Path, error: OSError | ValueError) -> NoReturn:
    """Print why the file could not be read or written, and exit."""
    if isinstance(error, FileNotFoundError) and path.parent.is_dir():
        fail(f"{path}: there is no such file: the first `chat-nest keys create CALLER` makes it", code=1)
    if isinstance(error, FileNotFoundError):
        fail(f"{path}: {error.strerror}: make the directory {path.parent}, or correct [identity] keys_file", code=1)
    reason = f"{error.strerror}" if isinstance(error, OSError) else f"{error}"
    fail(f"{path}: {reason}", code=1)
