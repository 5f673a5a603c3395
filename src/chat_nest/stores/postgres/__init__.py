"""Counters in PostgreSQL, for any number of machines."""

from chat_nest.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
