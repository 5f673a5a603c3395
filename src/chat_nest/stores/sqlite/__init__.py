"""Counters in one SQLite file, for the workers of one machine."""

from chat_nest.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
