"""A store by its URL, as the config file names it."""

from __future__ import annotations

import time

from chat_nest.protocols import Now, Store
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore

_FORMS = "memory://, sqlite:///relative/path.db or sqlite:////absolute/path.db"


def open_store(url: str, now: Now = time.time) -> Store:
    """Return the store that the URL names; nothing is opened before its first call.

    What follows `sqlite:///` is the path as it is, without escapes or parameters. Raises ValueError for another form,
    and OSError where the SQLite file can't exist there.
    """
    if url == "memory://":
        return MemoryStore(now)
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.endswith("/") or "?" in path or "#" in path:
        raise ValueError(f"store.url must be {_FORMS}")
    return SQLiteStore(path, now)
