"""One of several processes that share an SQLite file. Run: sqlite_worker.py PATH NAME TASK. It says `ready` and starts on a line of input.

Then it writes a line for each answer that it got, at once: `reserved ID OUTPUT` and `settled ID TOKENS`.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time

from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.claims import Granted
from chat_nest.stores.sqlite import SQLiteStore
from stores_under_test import claim, gauge, rate, window

END = 4_000_000_000.0
BUDGET = window(40 * 150, fixed=50, key="budget", resets_at=END)
DAY = window(30_000, fixed=50, key="day", resets_at=END)
LINES = (DAY, window(10**9, fixed=50, key="all", resets_at=END), gauge(1_000), rate(10**6))


def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def insist(call):
    """What the ledger does: try again where the store is busy."""
    while True:
        try:
            return await call()
        except LimiterUnavailable:
            tell("busy")


async def race(store, name):
    """100 reservations at once, never settled."""

    async def one(number):
        mine = claim(f"{name}-{number}", BUDGET, least=100)
        if isinstance(await insist(lambda: store.reserve(mine, 600.0)), Granted):
            tell("reserved", mine.id, 100)

    await asyncio.gather(*(one(number) for number in range(100)))


async def chat(store, name):
    """20 callers at once, until the day's budget is spent or the process is killed."""

    async def caller(which):
        number = 0
        while True:
            number += 1
            mine = claim(f"{name}-{which}-{number}", *LINES, most=random.randint(1, 200))
            answer = await insist(lambda: store.reserve(mine, 60.0))
            if not isinstance(answer, Granted):
                return
            tell("reserved", mine.id, answer.output_tokens)
            tokens = random.randint(0, 50 + answer.output_tokens)
            await insist(lambda: store.settle(mine, {"tokens": tokens}, "reported"))
            tell("settled", mine.id, tokens)

    await asyncio.gather(*(caller(which) for which in range(20)))


async def main(path, name, task):
    store = SQLiteStore(path, time.time)
    await {"race": race, "chat": chat}[task](store, name)
    await store.aclose()


if __name__ == "__main__":
    tell("ready")
    sys.stdin.readline()
    asyncio.run(main(*sys.argv[1:]))
