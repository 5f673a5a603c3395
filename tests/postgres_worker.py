"""One of several processes that share a PostgreSQL database. Run: postgres_worker.py URL NAME TASK. See sqlite_worker."""

from __future__ import annotations

import asyncio
import sys

from chat_nest.stores.postgres import PostgresStore
from sqlite_worker import chat, race, tell


async def main(url, name, task):
    store = PostgresStore(url, max_connections=4, timeout=60.0)
    await {"race": race, "chat": chat}[task](store, name)
    await store.aclose()


if __name__ == "__main__":
    tell("ready")
    sys.stdin.readline()
    asyncio.run(main(*sys.argv[1:]))
