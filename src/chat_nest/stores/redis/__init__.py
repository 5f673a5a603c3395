"""Counters in Redis, Valkey or a cluster of them, for any number of machines."""

from chat_nest.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
