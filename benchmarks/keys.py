"""What verifying an API key costs: CPU time of a request's key, in the file and in the store.

    python -m benchmarks.keys

Prints the best of rounds in microseconds, for a request with eight headers and a table of 1 and of 10,000 keys, the
keys in turn; and the milliseconds that a worker takes to read 10,000 keys of the store after a change, of one key and
of all. It fails if a key takes more than 20 µs.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from benchmarks.sessions import MOST_MICROSECONDS, microseconds, request
from chat_nest import ApiKeys, MemoryStore, Unauthorized
from chat_nest.controls.live import LiveControls
from chat_nest.core.controls import Control
from chat_nest.core.limits import COUNTERS
from chat_nest.identity.api_key import ApiKey, Rights, make_key, present_second, secret_hash
from chat_nest.identity.key_file import KeyFile
from chat_nest.identity.stored_keys import StoredKeys, row_of

SECRET = b"a-secret-of-more-than-thirty-two-bytes"
LIMITS = {name: 1_000 for name, unit in ((each.name, each.unit) for each in COUNTERS[:10]) if unit != "nanousd"}
WRONG = "cn_" + "a" * 32


async def main() -> int:
    slow = False
    for number in (1, 10_000):
        made = [make_key(SECRET, Rights(caller=f"c{each}", limits=LIMITS), present_second()) for each in range(number)]
        store = MemoryStore()
        await store.controls.change([row_of(key, SECRET) for key, _ in made])
        stored = StoredKeys(SECRET)
        stored.bind(LiveControls(store.controls))
        with TemporaryDirectory() as folder:
            file = Path(folder) / "keys.json"
            file.write_bytes(msgspec.json.encode(KeyFile(secret=secret_hash(SECRET), keys=tuple(k for k, _ in made))))
            # A clock that stands still: the file is not looked at again while the calls are timed.
            tables = {"file": ApiKeys(file, SECRET, clock=lambda: 0.0), "store": ApiKeys(stored, SECRET)}
        requests = [request(text) for _, text in made[:: max(1, number // 1_000)]]
        for name, keys in tables.items():
            right, wrong = _right(keys, requests), _wrong(keys)
            print(f"{name:6} {number:6} keys  verify {right:5.1f} us  refuse {wrong:5.1f} us")
            slow |= right > MOST_MICROSECONDS
    await _after_a_change(stored, [key for key, _ in made], store)
    return 1 if slow else 0


def _right(keys: ApiKeys, requests: list[dict[str, Any]]) -> float:
    return microseconds(lambda number: keys(requests[number % len(requests)]))


def _wrong(keys: ApiKeys) -> float:
    asked = request(WRONG)

    def refused(_: int) -> None:
        try:
            keys(asked)
        except Unauthorized:
            return

    return microseconds(refused)


async def _after_a_change(stored: StoredKeys, made: list[ApiKey], store: Any) -> None:
    fresh = StoredKeys(SECRET)
    fresh.bind(LiveControls(store.controls))
    for what, table in (("all", fresh), ("one", stored)):
        if what == "one":
            await store.controls.change([Control(kind="pause", name="all")])
        began = time.process_time()
        assert table.recent()
        print(f"{len(made):,} keys after a change of {what}: {(time.process_time() - began) * 1e3:.1f} ms")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
