"""Use a store as a server would: python store_driver.py URL ACTIONS. Prints the answers as JSON. Runs with the code of either version.

Actions: ["spend", ID, TOKENS], ["hold", ID, TOKENS], ["settle", ID, TOKENS], ["standing"], ["key"], ["usage"].
"""

import asyncio
import json
import sys
import time
from zoneinfo import ZoneInfo

from chat_nest.core.claims import Claim, Granted, Line
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.stores.urls import open_store

LINES = (
    Line(name="tokens_per_day", scope="caller", key="caller:ada:day", unit="tokens", kind="window", limit=1_000,
         fixed=0, per_million=1_000_000, period=86_400, resets_at=4_000_000_000.0),
    Line(name="requests_per_minute", scope="caller", key="caller:ada:rate", unit="requests", kind="rate", limit=600,
         fixed=1, period=60),
    Line(name="concurrent_streams", scope="caller", key="caller:ada:streams", unit="streams", kind="gauge", limit=9,
         fixed=1),
    Line(name="tokens_per_day", scope="key", key="key:1f09c2aa53be:day", unit="tokens", kind="window", limit=1_000,
         fixed=0, per_million=1_000_000, period=86_400, resets_at=4_000_000_000.0),
)  # fmt: skip
START = time.time()


async def act(store, name, id="", tokens=0):
    record = Record(run=id, caller="c" * 16, model="p:m", started_at=START)
    claim = Claim(id=id, fingerprint="f", owner=id, lines=LINES, max_output_tokens=max(tokens, 1), record=record)
    if name == "standing":
        return [[each.used, each.held] for each in await store.peek(LINES[:3])][::2]  # a rate's drains
    if name == "key":
        return [[each.used, each.held] for each in await store.peek(LINES[3:])]
    if name == "usage":
        [row] = await store.usage(START - 3_600, START + 3_600, ["model"], ZoneInfo("UTC")) or [None]
        return [row.requests, row.output_tokens] if row else []
    if name in ("spend", "hold"):
        assert isinstance(await store.reserve(claim, 60), Granted)
    if name in ("spend", "settle"):
        usage = Usage(output_tokens=tokens)
        done = Record(
            run=id, caller="c" * 16, model="p:m", started_at=START, usage=usage, source="reported", ending="stop"
        )
        assert await store.settle(claim, {"tokens": tokens, "requests": 1, "streams": 1}, "reported", done)
    return None


async def main(url, actions):
    store = open_store(url)
    if hasattr(store, "_timeout"):
        store._timeout = 60.0  # a busy machine is no outage
    try:
        answers = [await act(store, *action) for action in actions]
    finally:
        await store.aclose()
    print(json.dumps([each for each in answers if each is not None]))


if __name__ == "__main__":
    import chat_nest.core

    print(chat_nest.core.__file__, file=sys.stderr)
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
