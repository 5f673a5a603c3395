"""One of several processes that share Redis servers. Run: redis_worker.py URL PREFIX NAME. See sqlite_worker.

Between `reserved ID OUTPUT` and `settled ID TOKENS` it writes `spent ID TOKENS`: what the provider would know by then.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.claims import Granted, Line
from chat_nest.core.limits import LineScope, Unit
from chat_nest.core.records import Record
from chat_nest.stores.redis import RedisStore
from chat_nest.core.usage import Usage
from msgspec.structs import replace
from sqlite_worker import insist, tell
from stores_under_test import claim

END = 4_000_000_000.0
INPUT, TOKEN = 50, 7
"""Tokens of each prompt, and nano-dollars of each token."""
LIMIT = 40_000


def lines_of(name):
    """The lines of one worker's caller, of the one group, and of all: on a Cluster three partitions."""
    window: dict[str, Any] = {"kind": "window", "resets_at": END}
    found = []
    scopes: tuple[tuple[LineScope, str], ...] = (("caller", f"caller:{name}"), ("group", "group:g"), ("all", "all"))
    for scope, owner in scopes:
        units: tuple[tuple[Unit, int, int], ...] = (
            ("tokens", 1, LIMIT if scope == "all" else 10**9), ("nanousd", TOKEN, 10**9),
        )  # fmt: skip
        for line, per_token, limit in units:
            found.append(
                Line(name=f"{line}_per_day", scope=scope, key=f"{owner}:{line}", unit=line, limit=limit,
                     fixed=INPUT * per_token, per_million=per_token * 1_000_000, **window)
            )  # fmt: skip
        found.append(
            Line(name="concurrent_streams", scope=scope, key=f"{owner}:streams", unit="streams", kind="gauge",
                 limit=1_000, fixed=1)
        )  # fmt: skip
    return found


def claim_of(id, most=200):
    name = id.partition("-")[0]
    record = Record(run=id, caller=name, group="g", usage=Usage(input_tokens=INPUT))
    return replace(claim(id, *lines_of(name), most=most), record=record, owner=name)


def settlement(one, tokens):
    """The arguments of settle."""
    cost = tokens * TOKEN
    usage = Usage(input_tokens=INPUT, output_tokens=tokens - INPUT)
    record = replace(one.record, usage=usage, cost=cost, source="reported", ending="stop")
    return one, {"tokens": tokens, "nanousd": cost}, "reported", record


async def chat(store, name):
    """12 callers at once, until the budget of all is spent or the process is killed."""

    async def caller(which):
        number = 0
        while True:
            number += 1
            one = claim_of(f"{name}-{which}-{number}", random.randint(1, 200))
            try:
                answer = await store.reserve(one, 60.0)
            except LimiterUnavailable:  # as the ledger does: it may be held
                await insist(lambda one=one: store.release(one))
                continue
            if not isinstance(answer, Granted):
                return
            tell("reserved", one.id, answer.output_tokens)
            await asyncio.sleep(random.random() / 200)
            tokens = INPUT + random.randint(0, answer.output_tokens)
            tell("spent", one.id, tokens)
            await insist(lambda: store.settle(*settlement(one, tokens)))
            tell("settled", one.id, tokens)

    await asyncio.gather(*(caller(which) for which in range(12)))


async def main(url, prefix, name):
    store = RedisStore(url, prefix=prefix, timeout=0.99)
    await chat(store, name)
    await store.aclose()


if __name__ == "__main__":
    tell("ready")
    sys.stdin.readline()
    asyncio.run(main(*sys.argv[1:]))
