"""`chat-nest store backup` and `restore`: which store can be copied by us, and what the commands print."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from chat_nest.core.protocols import Store
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.places import place_of, sentence
from chat_nest.stores.sqlite import SQLiteStore, copies
from chat_nest.stores.sqlite.copies import CopyFailed


def back_up(store: Store, to: Path) -> str:
    """Copy the store to a new file; return what was done. Raises CopyFailed."""
    size = copies.back_up(_sqlite(store).path, to)
    return f"{place_of(store)} is copied to {to} ({size:,} bytes)"


def restore(store: Store, backup: Path, *, accept_loss: bool) -> list[str]:
    """Replace the store by a backup; return what was done, a sentence each. Raises CopyFailed."""
    into = _sqlite(store)
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    done = copies.restore(into.path, backup, into.epochs, stamp, accept_loss=accept_loss)
    newest = f"{datetime.fromtimestamp(done.newest_us / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC" if done.newest_us else "none"
    said = [f"{sentence(place_of(store))} is {backup} now; its newest entry: {newest}"]
    if done.kept is not None:
        said.append(f"the replaced file is {done.kept}")
    if done.lost:
        said.append("what was spent after the backup is forgotten: callers can spend it again")
    else:
        said.append(
            f"{done.carried} counters had more in the replaced file, and keep that: nothing spent is given back"
        )
    return said


def _sqlite(store: Store) -> SQLiteStore:
    if isinstance(store, SQLiteStore):
        return store
    if isinstance(store, MemoryStore):
        raise CopyFailed("memory:// ends with its process: there is nothing to copy")
    own = "pg_dump and pg_restore" if place_of(store).startswith("the PostgreSQL") else "its own files, RDB or AOF"
    raise CopyFailed(f"{place_of(store)} is copied by {own}: docs/backup.md has the commands")
