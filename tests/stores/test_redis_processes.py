"""Several real processes on one Redis server or Cluster, and what is left when some of them are killed."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from chat_nest.core.claims import Duplicate
from chat_nest.stores.redis import RedisStore
from chat_nest.core.usage import Usage
from msgspec.structs import replace
from redis_servers import shared_cluster, shared_redis_url, shared_server
from redis_worker import INPUT, LIMIT, TOKEN, claim_of, lines_of, settlement
from stores_under_test import LEASE, Clock

WORKER = Path(__file__).parent.parent / "redis_worker.py"
READ = """
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local claim = cmsgpack.unpack(redis.call('GET', key))
  local held = {}
  for _, hold in ipairs(claim.holds) do held[hold.unit] = hold.held end
  found[#found + 1] = cjson.encode({string.match(key, ':([^:}]*)}:claim:'), string.match(key, ':claim:(.*)$'), claim.state,
    claim.source or '', claim.output, claim.actual or {}, held})
end
return found
"""


def start(url, prefix, name):
    paths = os.pathsep.join([str(WORKER.parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, WORKER, url, prefix, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def go(workers):
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()


class Found(msgspec.Struct, array_like=True):
    """A claim as one partition has it."""

    partition: str
    id: str
    state: str
    source: str
    output: int
    actual: dict[str, int] | list[None]
    held: dict[str, int] | list[None]

    def charged(self, unit):
        return (self.actual or {}).get(unit, 0) if self.state == "settled" else (self.held or {}).get(unit, 0)


def claims_on(servers, prefix):
    answers = [server.ask("EVAL", READ, 0, "{" + prefix + ":*:claim:*") for server in servers]
    return [msgspec.json.decode(text, type=Found) for answer in answers for text in answer]


def run(url, prefix, chance):
    """Five workers, of which three are killed somewhere. Returns what they told: {word: {id: amount}}."""
    victims, others = (
        [start(url, prefix, f"{kind}{n}") for n in range(count)] for kind, count in (("victim", 3), ("other", 2))
    )
    go([*victims, *others])
    heard = []
    for worker in victims:
        heard += [worker.stdout.readline() for _ in range(chance.randint(1, 120))]
        worker.kill()
    for worker in victims:
        heard += worker.stdout.readlines()
        worker.communicate()
    for worker in others:
        heard += worker.communicate(timeout=240)[0].splitlines(keepends=True)
        assert worker.returncode == 0  # they go on
    told = defaultdict(dict)
    for words in [line.split() for line in heard if line.endswith("\n")]:
        if len(words) == 3:
            told[words[0]][words[1]] = int(words[2])
    return told


@pytest.fixture
async def opened():
    """Open stores, in whose time every lease has run out, and which are closed at the end."""
    stores = []

    def open_one(url, prefix):
        stores.append(RedisStore(url, prefix=prefix, timeout=0.99, _now=Clock(time.time() + LEASE + 1)))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.aclose()


@pytest.mark.skipif("REDIS_URL" in os.environ, reason="looks into the server")
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), [("one", 1), ("one", 2), ("cluster", 3), ("cluster", 4)])
async def test_reservations_of_killed_processes_are_charged_in_full_and_once(kind, seed, opened):
    prefix = secrets.token_hex(8)
    url = shared_redis_url() if kind == "one" else shared_cluster().url
    servers = [shared_server()] if kind == "one" else shared_cluster().nodes[:3]
    told = run(url, prefix, random.Random(seed))
    names = {id.partition("-")[0] for id in told["reserved"]}
    lines = {line.key: line for name in names for line in lines_of(name)}
    later = opened(url, prefix)
    open_claims = [one for one in claims_on(servers, prefix) if one.state == "open"]
    left = {one.id for one in open_claims}
    assert all(id.startswith("victim") for id in left)
    assert await later.sweep() == sum(home(kind, one) for one in open_claims)
    assert await later.sweep() == 0

    found = claims_on(servers, prefix)
    for one in found:
        if one.state == "expired":
            assert (one.id in left, one.source) == (True, "assumed")
            assert one.id not in told["settled"]
        elif one.state == "settled":
            assert one.actual == {"tokens": told["spent"][one.id], "nanousd": told["spent"][one.id] * TOKEN}
        else:
            assert one.state == "released"
    assert told["settled"].keys() <= {one.id for one in found if home(kind, one) and one.state == "settled"}
    # Each counter is the sum of what its claims were charged, nothing is held, and it is never less than the truth.
    standings = dict(zip(lines, await later.peek(list(lines.values())), strict=True))
    for key, standing in standings.items():
        assert standing.held == 0
        if lines[key].kind == "window":
            mine = [one for one in found if draws(kind, one, key)]
            assert standing.used == sum(one.charged(lines[key].unit) for one in mine)
            owner = key.split(":")[1] if key.startswith("caller:") else ""
            truth = [amount for id, amount in told["spent"].items() if id.startswith(owner)]
            assert standing.used >= sum(truth) * (TOKEN if lines[key].unit == "nanousd" else 1)
    assert standings["all:tokens"].used <= LIMIT
    # Who comes again is told what became of it, and nothing can be settled a second time.
    for one in [one for one in found if home(kind, one)]:
        asked = claim_of(one.id)
        answer = await later.reserve(asked, LEASE)
        if one.state == "expired":
            usage = Usage(input_tokens=INPUT, output_tokens=one.output)
            kept = replace(asked.record, usage=usage, cost=(INPUT + one.output) * TOKEN)
        else:
            kept = settlement(asked, told["spent"][one.id])[3] if one.state == "settled" else None
        assert answer == Duplicate(output_tokens=one.output, state=one.state, record=kept)
        if one.state == "settled":
            assert not await later.settle(*settlement(asked, INPUT))
    # That call made the other partitions follow what was decided at home, where its process died in between.
    decided = {one.id: one for one in found if home(kind, one) and one.state == "settled"}
    for key, standing in zip(lines, await later.peek(list(lines.values())), strict=True):
        if lines[key].kind == "window":
            mine = [decided.get(one.id, one) for one in found if draws(kind, one, key)]
            assert (standing.used, standing.held) == (sum(one.charged(lines[key].unit) for one in mine), 0)


def partition(line):
    owner = ":".join(line.key.split(":")[:2])
    return "all" if line.scope == "all" else str(crc32(owner.encode()) % 64)


def home(kind, found):
    """Whether this is the partition where the claim began: its caller's."""
    return kind == "one" or found.partition == partition(lines_of(found.id.partition("-")[0])[0])


def draws(kind, found, key):
    """Whether the claim, as this partition has it, draws on the line."""
    line = next((line for line in lines_of(found.id.partition("-")[0]) if line.key == key), None)
    return line is not None and (kind == "one" or found.partition == partition(line))
