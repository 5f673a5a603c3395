"""What the Redis store promises besides the contract: what a server can do to it, and what it does about that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis_servers import (
    RedisCluster,
    RedisSentinels,
    RedisServer,
    shared_cluster,
    shared_redis_url,
    shared_server,
    until,
)
from stores_under_test import LEASE, START, Clock, claim, gauge, rate, request, standing, window

from chat_nest.core.claims import Conflict, Duplicate, Granted, Line, Refused
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.extras import install, library_remedy
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.redis import RedisStore
from chat_nest.stores.redis.url import read_url
from chat_nest.stores.urls import open_store

FAR = 4_000_000_000.0
DAY = window(10**6, fixed=50, key="day", resets_at=FAR)


@pytest.fixture
def server():
    """A server that a test may harm."""
    one = RedisServer()
    yield one
    one.stop()


@pytest.fixture
async def opened():
    """Open stores that are closed at the end."""
    stores = []

    def open_one(url, **options):
        stores.append(RedisStore(url, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.aclose()


@pytest.fixture
def fresh(opened):
    """A store on the shared server, with keys of its own."""

    def open_fresh(**options):
        return opened(shared_redis_url(), **{"prefix": secrets.token_hex(8), **options})

    return open_fresh


def why(failure):
    return getattr(failure.value, "advice", "") or str(failure.value.__cause__)


# the same answers as memory

IDS = [f"id-{number}" for number in range(6)]
MONEY = Line(
    name="usd", scope="all", key="usd", unit="nanousd", kind="window", limit=2**50, fixed=7, per_million=75_000_000_019,
    resets_at=FAR,
)  # fmt: skip
TIGHT = Line(
    name="usd", scope="all", key="tight", unit="nanousd", kind="window", limit=2**49 + 12_345, fixed=3,
    per_million=2**49 - 99, resets_at=FAR,
)  # fmt: skip
LINES = [
    request(300, fixed=20),
    rate(5, key="rpm"),
    rate(607, 20, 1, unit="tokens", key="tpm", period=61),
    rate(1, fixed=0, key="slow", period=9_000),
    window(900, fixed=20, key="day", resets_at=START + 100),
    MONEY,
    TIGHT,
    gauge(2),
    window(2**50, fixed=1, per_token=0, key="wide", resets_at=FAR),
]
ASKED = Record(run="r", caller="c" * 16, group="acme", model="p:m", usage=Usage(input_tokens=7, output_tokens=9))
ANSWERED = Record(
    run="r", caller="c" * 16, seconds=1.5, usage=Usage(input_tokens=3), cost=0, source="reported", ending="stop"
)
records = st.sampled_from([None, ASKED, replace(ASKED, source="estimated", cost=5), ANSWERED])
claims = st.builds(
    lambda id, fingerprint, owner, record, chosen, least, more: replace(
        claim(
            id,
            *(line for line, take in zip(LINES, chosen, strict=True) if take),
            least=least,
            most=least + more,
            fingerprint=fingerprint,
        ),
        owner=owner,
        record=record,
    ),
    st.sampled_from(IDS),
    st.sampled_from(["same", "same", "same", "other"]),
    st.sampled_from(["me", "me", "me", "you"]),
    records,
    st.lists(st.booleans(), min_size=len(LINES), max_size=len(LINES)),
    st.integers(0, 30),
    st.integers(0, 300),
)
leases = st.sampled_from([0.5, 5.0, 30.0, 60.0])
actuals = st.none() | st.dictionaries(
    st.sampled_from(["tokens", "requests", "nanousd", "streams"]), st.integers(0, 700) | st.just(2**50), max_size=3
)
steps = st.one_of(
    st.tuples(st.just("reserve"), claims, leases),
    st.tuples(st.just("reserve"), claims, leases),
    st.tuples(st.just("settle"), claims, actuals, st.sampled_from(["reported", "assumed"]), records),
    st.tuples(st.just("release"), claims),
    st.tuples(st.just("extend"), st.lists(claims, max_size=4), leases),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("advance"), st.sampled_from([0.001, 0.5, 4.0, 30.0, 61.0, -20.0])),
)


async def end(store, memory, clock, lines, history):
    """All leases run out: the counters are the same then, and so is what is kept of each claim."""
    clock.advance(1_000)
    await store.sweep()
    await memory.sweep()
    assert await store.peek(lines) == await memory.peek(lines)
    for asked in [step[1] for step in history if step[0] == "reserve"]:
        assert await store.reserve(asked, LEASE) == await memory.reserve(asked, LEASE)


@settings(max_examples=60)
@given(st.lists(steps, min_size=5, max_size=40))
def test_every_history_has_the_same_answers_as_in_memory(history):
    async def run():
        clock = Clock()
        memory = MemoryStore(clock, retention=1e9)
        store = RedisStore(shared_redis_url(), prefix=secrets.token_hex(8), retention=1e9, _now=clock)
        try:
            for name, *arguments in history:
                if name == "advance":
                    clock.advance(*arguments)
                    continue
                expected = await getattr(memory, name)(*arguments)
                answer = await getattr(store, name)(*arguments)
                assert answer == expected or name == "sweep"  # how many were left for it to charge may differ
                assert await store.peek(LINES) == await memory.peek(LINES)
            await end(store, memory, clock, LINES, history)
        finally:
            await store.aclose()

    asyncio.run(run())


async def test_clamping_is_exact_at_any_size(fresh):
    """The room is what some number of tokens draws: where doubles go wrong, if they do."""
    store, memory, chance = fresh(_now=Clock()), MemoryStore(Clock()), random.Random(11)
    for number in range(1_500):
        fixed, per_million = chance.randrange(1_000), chance.randrange(2**48, 2**50)
        most = (2**50 - 1_000) * 1_000_000 // per_million
        room = -(-chance.randrange(most) * per_million // 1_000_000) - chance.randrange(2)
        line = Line(
            name="usd", scope="caller", key=f"{number}", unit="nanousd", kind="window", resets_at=FAR, fixed=fixed,
            per_million=per_million, limit=max(0, fixed + room),
        )  # fmt: skip
        one = claim(f"{number}", line, most=most, least=0)
        assert await store.reserve(one, LEASE) == await memory.reserve(one, LEASE)


# time and forgetting


async def test_the_servers_clock_counts_not_ours(fresh):
    store, line = fresh(), rate(60, key="rpm")
    await store.reserve(claim("a", line), 0.05)
    [found] = await store.peek([line])
    assert abs(found.resets_at - time.time()) < 5
    await asyncio.sleep(0.06)
    assert await store.sweep() == 1


async def test_expired_keys_are_removed_by_redis(fresh):
    prefix = secrets.token_hex(8)
    store = fresh(prefix=prefix, retention=0.2)
    lines = window(100, key="soon", resets_at=time.time() + 0.1), rate(100, key="rpm", period=1), gauge(3)
    one = claim("a", *lines)
    await store.reserve(one, 0.1)
    await store.settle(one, {"tokens": 3}, "reported")
    await store.release(claim("b", *lines))
    await asyncio.to_thread(
        until, lambda: [key.rpartition(b":")[2] for key in shared_server().ask("KEYS", f"*{prefix}*")] == [b"epoch"]
    )


async def test_a_gauge_is_free_again_after_many_leases_expired_at_once(fresh):
    """More than one reserve charges; the gauge's own are the last of them."""
    clock = Clock()
    store, line = fresh(_now=clock), gauge(5)
    await asyncio.gather(*(store.reserve(claim(f"o{number}", DAY), 1.0) for number in range(130)))
    for number in range(5):
        await store.reserve(claim(f"{number}", line), 2.0)
    clock.advance(3)
    assert isinstance(await store.reserve(claim("late", line), LEASE), Granted)
    assert await standing(store, line) == (0, 1)
    assert await store.sweep() == 30


# trouble


async def test_row44_a_flushed_script_cache_is_not_seen(server, opened):
    store, line = opened(server.url), DAY
    one = claim("a", line)
    await store.reserve(one, LEASE)
    for call in (
        lambda: store.extend([one], LEASE),
        lambda: store.settle(one, {"tokens": 60}, "reported"),
        lambda: store.peek([line]),
        lambda: store.reserve(claim("b", line), LEASE),
        lambda: store.release(claim("b", line)),
        store.sweep,
    ):
        server.ask("SCRIPT", "FLUSH")
        await call()
    assert await standing(store, line) == (60, 0)


async def test_row44_a_full_server_grants_nothing_and_still_settles(server, opened):
    store, one = opened(server.url), claim("a", DAY, gauge(3))
    await store.reserve(one, LEASE)
    server.ask("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(LimiterUnavailable) as failure:
        await store.reserve(claim("b", DAY), LEASE)
    assert failure.value.__cause__.code == "OOM"
    assert await store.settle(one, {"tokens": 60}, "reported") is True
    server.ask("CONFIG", "SET", "maxmemory", 0)
    assert await standing(store, DAY) == (60, 0)
    assert isinstance(await store.reserve(claim("b", DAY), LEASE), Granted)


async def test_row44_a_replica_grants_nothing_until_it_is_a_master(server, opened):
    store = opened(server.url)
    await store.reserve(claim("a", DAY), LEASE)
    server.ask("REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("b", DAY), LEASE)
    server.ask("REPLICAOF", "NO", "ONE")
    assert isinstance(await store.reserve(claim("b", DAY), LEASE), Granted)
    assert await standing(store, DAY) == (0, 300)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_row45_a_server_that_may_evict_is_refused(server, opened, policy):
    server.ask("CONFIG", "SET", "maxmemory-policy", policy)
    store = opened(server.url)
    for call in (store.ping, lambda: store.reserve(claim("a", DAY), LEASE)):
        with pytest.raises(LimiterUnavailable) as failure:
            await call()
        assert "maxmemory-policy must be noeviction" in why(failure)
    assert server.ask("DBSIZE") == 0
    server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await store.ping()
    assert isinstance(await store.reserve(claim("a", DAY), LEASE), Granted)


async def test_a_policy_that_changes_is_noticed_by_the_next_sweep(server, opened):
    store = opened(server.url)
    await store.reserve(claim("a", DAY), LEASE)
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    with pytest.raises(LimiterUnavailable):
        await store.sweep()
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("b", DAY), LEASE)


async def test_row45_an_emptied_server_grants_nothing_to_processes_that_knew_it(server, opened):
    store = opened(server.url)
    await store.reserve(claim("a", DAY), LEASE)
    dump = server.ask("DUMP", "{chat-nest:0}:epoch")
    server.ask("FLUSHALL")
    for call in (
        lambda: store.reserve(claim("b", DAY), LEASE),
        lambda: store.settle(claim("a", DAY), {"tokens": 60}, "reported"),
        lambda: store.peek([DAY]),
        store.sweep,
        store.ping,
    ):
        with pytest.raises(LimiterUnavailable) as failure:
            await call()
        assert "emptied" in why(failure)
    server.ask("RESTORE", "{chat-nest:0}:epoch", 0, dump)  # as a restored backup would
    assert isinstance(await store.reserve(claim("c", DAY), LEASE), Granted)


async def test_a_new_process_believes_no_emptied_server_while_another_knows_better(server, opened):
    old = opened(server.url)
    await old.reserve(claim("a", DAY), LEASE)
    server.ask("FLUSHALL")
    with pytest.raises(LimiterUnavailable):
        await old.ping()
    new = opened(server.url)
    for call in (
        new.ping,
        lambda: new.reserve(claim("b", DAY), LEASE),
        lambda: new.settle(claim("b", DAY), None, "assumed"),
    ):
        with pytest.raises(LimiterUnavailable) as failure:
            await call()
        assert "another process" in why(failure)
    assert server.ask("KEYS", "*") == [b"{chat-nest:0}:doubted"]
    assert 0 < server.ask("PTTL", "{chat-nest:0}:doubted") <= 60_000
    server.ask("PEXPIRE", "{chat-nest:0}:doubted", 1)  # as when every old process has been gone for a minute
    await asyncio.to_thread(until, lambda: server.ask("EXISTS", "{chat-nest:0}:doubted") == 0)
    assert isinstance(await new.reserve(claim("b", DAY), LEASE), Granted)
    with pytest.raises(LimiterUnavailable):
        await old.reserve(claim("c", DAY), LEASE)
    assert isinstance(await new.reserve(claim("c", DAY), LEASE), Granted)  # who has begun goes on


async def test_a_window_stays_for_an_hour_after_the_latest_end_that_was_returned(server, opened):
    store, now = opened(server.url), time.time()
    berlin, los_angeles = (window(1_000, key="day", resets_at=now + hours * 3_600) for hours in (1, 9))
    for number, line in enumerate((berlin, los_angeles, berlin)):
        await store.reserve(claim(f"{number}", line), LEASE)
        await store.settle(claim(f"{number}", line), {"tokens": 30}, "reported")
        kept = server.ask("PTTL", "{chat-nest:0}:window:day") / 3_600_000
        assert kept == pytest.approx(2 if number == 0 else 10, abs=0.1)
    assert await standing(store, los_angeles) == (90, 0)


@pytest.mark.parametrize(("period", "hours"), [(60, 1), (3_600, 25), (86_400, 25), (31 * 86_400, 25)])
async def test_a_window_outlives_a_clock_that_is_a_day_ahead(server, opened, period, hours):
    store, line = opened(server.url), replace(window(1_000, resets_at=time.time() + 3_600), period=period)
    await store.reserve(claim("a", line), LEASE)
    kept = server.ask("PTTL", "{chat-nest:0}:window:day") / 3_600_000
    assert kept == pytest.approx(1 + hours, abs=0.1)


async def test_a_key_is_remembered_for_an_hour_after_its_last_attempt(server, opened):
    store = opened(server.url)
    first, paid = (replace(claim("a", DAY), owner=owner) for owner in ("first", "paid"))
    await store.reserve(first, LEASE)
    await store.release(first)
    server.ask("PEXPIRE", "{chat-nest:0}:claim:a", 60_000)  # as when it was released almost an hour ago
    await store.reserve(paid, LEASE)
    assert server.ask("PTTL", "{chat-nest:0}:claim:a") == -1
    await store.settle(paid, {"tokens": 60}, "reported")
    assert server.ask("PTTL", "{chat-nest:0}:claim:a") > 3_500_000


async def test_a_stopped_server_is_unavailable_until_it_returns(server, opened):
    store = opened(server.url)
    await asyncio.gather(*(store.peek([DAY]) for _ in range(20)))
    server.kill()
    with pytest.raises(LimiterUnavailable):
        await store.reserve(claim("a", DAY), LEASE)
    server.start()  # empty: it is not the one that we knew
    with pytest.raises(LimiterUnavailable) as failure:
        await store.reserve(claim("a", DAY), LEASE)
    assert "emptied" in why(failure)


async def test_connections_that_died_while_idle_are_replaced_unseen(server, opened):
    store = opened(server.url)
    await asyncio.gather(*(store.peek([DAY]) for _ in range(20)))
    server.ask("CLIENT", "KILL", "TYPE", "normal")
    assert isinstance(await store.reserve(claim("a", DAY), LEASE), Granted)
    server.ask("CLIENT", "KILL", "TYPE", "normal")
    assert await store.settle(claim("a", DAY), {"tokens": 60}, "reported") is True


@pytest.mark.parametrize("known", [True, False])
async def test_a_frozen_server_is_unavailable_within_a_second(server, opened, known):
    store = opened(server.url, timeout=0.4)
    if known:
        await store.reserve(claim("a", DAY), LEASE)
    server.signal(signal.SIGSTOP)
    calls = [
        *(store.reserve(claim(f"{number}", DAY), LEASE) for number in range(50)),
        store.settle(claim("a", DAY), None, "assumed"),
        store.peek([DAY]),
        store.ping(),
        store.sweep(),
    ]
    async with asyncio.timeout(240):
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in answers} == {LimiterUnavailable}
    server.signal(signal.SIGCONT)
    later = claim("later", window(10**6, key="another", resets_at=FAR))
    assert isinstance(await store.reserve(later, LEASE), Granted)


async def test_a_cancelled_call_leaves_no_answer_behind_for_the_next(fresh):
    store = fresh()
    lines = [window(1_000_000, key=f"{number}", resets_at=FAR) for number in range(4)]
    for line, amount in zip(lines, (11, 22, 33, 44), strict=True):
        await store.reserve(claim(line.key, line, most=amount), LEASE)
    chance = random.Random(7)
    for _ in range(300):
        which = chance.randrange(4)
        calls = [asyncio.create_task(store.peek([lines[(which + n) % 4]])) for n in range(3)]
        for _ in range(chance.randrange(9)):
            await asyncio.sleep(0)
        calls[0].cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert calls[0].cancelled() or answers[0] is not None
        for n, answer in enumerate(answers):
            if not isinstance(answer, asyncio.CancelledError):
                assert answer[0].held == ((which + n) % 4 + 1) * 11


async def test_a_cancellation_is_never_swallowed(fresh):
    """A loop of calls ends when it is cancelled, wherever it is then."""
    store = fresh()

    async def forever():
        while True:
            await store.peek([DAY])

    for pause in range(60):
        task = asyncio.create_task(forever())
        for _ in range(pause):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=240)
        assert done


# many at once


async def test_500_calls_at_once(fresh):
    store, line = fresh(), window(100 * 150, fixed=50, key="day", resets_at=FAR)
    claims = [claim(f"{number}", line, least=100) for number in range(500)]
    answers = await asyncio.gather(*(store.reserve(one, LEASE) for one in claims))
    granted = [one for one, answer in zip(claims, answers, strict=True) if isinstance(answer, Granted)]
    assert (len(granted), sum(isinstance(answer, Refused) for answer in answers)) == (100, 400)
    settled = await asyncio.gather(*(store.settle(one, {"tokens": 60}, "reported") for one in granted))
    assert all(settled)
    assert await standing(store, line) == (6_000, 0)


WORKER = """
import asyncio, sys
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.claims import Granted
from chat_nest.stores.redis import RedisStore
from stores_under_test import claim, window

async def main(url, prefix, name):
    store = RedisStore(url, prefix=prefix)
    line = window(40 * 150, fixed=50, key="budget", resets_at=4e9)
    granted = []

    async def caller(which):
        for number in range(10):
            try:
                one = claim(f"{name}-{which}-{number}", line, least=100)
                granted.append(isinstance(await store.reserve(one, 600.0), Granted))
            except LimiterUnavailable:
                pass  # a busy machine: it may be held, and is seen in the end

    print("ready", flush=True)
    sys.stdin.readline()
    await asyncio.gather(*(caller(which) for which in range(10)))
    print(sum(granted))
    await store.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_processes_that_race_never_exceed_the_budget(fresh):
    prefix = secrets.token_hex(8)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, shared_redis_url(), prefix, f"w{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for number in range(3)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    granted = 0
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        output, _ = worker.communicate(timeout=240)
        granted += int(output)
    assert 0 < granted <= 40
    assert await standing(fresh(prefix=prefix), window(40 * 150, key="budget", resets_at=FAR)) == (0, 6_000)


# a Cluster


@pytest.fixture(scope="module")
def cluster():
    return shared_cluster()


def line_of(scope, *, key, **fields):
    return Line(scope=scope, key=key, name=key.rpartition(":")[2], **fields)


def hierarchy(caller, chosen):
    """A caller's lines, then its group's, then everybody's, as the profiles make them: up to three partitions."""
    group = {"a": "red", "b": "red", "c": "blue"}.get(caller, caller)
    tokens = {"unit": "tokens", "fixed": 20, "per_million": 1_000_000}
    money = {"unit": "nanousd", "kind": "window", "fixed": 7, "per_million": 2_500_001, "resets_at": FAR}
    requests = {"unit": "requests", "kind": "rate", "fixed": 1, "period": 60}
    streams = {"unit": "streams", "kind": "gauge", "fixed": 1}
    lines = [
        line_of("caller", key=f"caller:{caller}:tokens_per_request", kind="request", limit=300, **tokens),
        line_of("caller", key=f"caller:{caller}:requests_per_minute", limit=4, **requests),
        line_of("caller", key=f"caller:{caller}:concurrent_streams", limit=2, **streams),
        line_of("caller", key=f"caller:{caller}:tokens_per_minute", kind="rate", limit=600, period=60, **tokens),
        line_of("caller", key=f"caller:{caller}:tokens_per_day", kind="window", limit=700, resets_at=FAR, **tokens),
        line_of("caller", key=f"caller:{caller}:usd_per_day", limit=2_000, **money),
        line_of("group", key=f"group:{group}:requests_per_minute", limit=6, **requests),
        line_of("group", key=f"group:{group}:concurrent_streams", limit=3, **streams),
        line_of("group", key=f"group:{group}:tokens_per_minute", kind="rate", limit=650, period=60, **tokens),
        line_of("group", key=f"group:{group}:tokens_per_day", kind="window", limit=800, resets_at=FAR, **tokens),
        line_of("group", key=f"group:{group}:usd_per_day", limit=2_200, **money),
        line_of("all", key="all:requests_per_minute", limit=9, **requests),
        line_of("all", key="all:concurrent_streams", limit=4, **streams),
        line_of("all", key="all:tokens_per_minute", kind="rate", limit=700, period=60, **tokens),
        line_of("all", key="all:tokens_per_day", kind="window", limit=900, resets_at=FAR, **tokens),
        line_of("all", key="all:usd_per_day", limit=2_400, **money),
    ]
    return [lines[0], *(line for number, line in enumerate(lines[1:]) if chosen >> number & 1)]


ALL, CALLERS_AND_ALL = 0b11111_11111_11111, 0b11111_00000_11111
"""Lines of `hierarchy`: all, groups' and callers' from the left; in each money, tokens a day, a minute, streams, requests."""
DAYS = 0b01000_00000_01000
spread = st.builds(
    lambda number, least, more, fingerprint, owner, record: replace(
        claim(
            f"id-{number}",
            *hierarchy(
                "abc"[number % 3], (ALL, 0b10011_11110_01111, 0b11111_10001_00000, ALL, 0b01010_00000_01111)[number % 5]
            ),
            least=least,
            most=least + more,
            fingerprint=fingerprint,
        ),
        owner=owner,
        record=record,
    ),
    st.integers(0, 14),
    st.integers(0, 30),
    st.integers(0, 300),
    st.sampled_from(["same", "same", "same", "other"]),
    st.sampled_from(["me", "me", "me", "you"]),
    records,
)
spread_steps = st.one_of(
    st.tuples(st.just("reserve"), spread, st.sampled_from([5.0, 60.0])),
    st.tuples(st.just("reserve"), spread, st.sampled_from([5.0, 60.0])),
    st.tuples(st.just("settle"), spread, actuals, st.just("reported"), records),
    st.tuples(st.just("release"), spread),
    st.tuples(st.just("extend"), st.lists(spread, max_size=3), leases),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("advance"), st.sampled_from([0.5, 4.0, 30.0])),
)


@settings(max_examples=40)
@given(history=st.lists(spread_steps, min_size=5, max_size=25))
def test_a_cluster_gives_the_same_answers_as_memory(cluster, history):
    peeked = [line for caller in "abc" for line in hierarchy(caller, ALL)]
    peeked = list({line.key: line for line in peeked}.values())

    async def run():
        clock = Clock()
        memory = MemoryStore(clock, retention=1e9)
        store = RedisStore(cluster.url, prefix=secrets.token_hex(8), retention=1e9, _now=clock)
        try:
            for name, *arguments in history:
                if name == "advance":
                    clock.advance(*arguments)
                    continue
                expected = await getattr(memory, name)(*arguments)
                answer = await getattr(store, name)(*arguments)
                assert answer == expected or name == "sweep"
                assert await store.peek(peeked) == await memory.peek(peeked)
            await end(store, memory, clock, peeked, history)
        finally:
            await store.aclose()

    asyncio.run(run())


async def test_racing_callers_of_a_cluster_share_a_global_budget_exactly(cluster, opened):
    store = opened(cluster.url, prefix=secrets.token_hex(8), timeout=0.99)
    lines = [hierarchy(f"{number}", DAYS) for number in range(60)]
    claims = [claim(f"{number}", *lines[number], most=80, least=80) for number in range(60)]
    answers = await asyncio.gather(*(store.reserve(one, LEASE) for one in claims))
    assert sum(isinstance(answer, Granted) for answer in answers) == 9
    assert {answer.line for answer in answers if isinstance(answer, Refused)} == {2}
    assert await standing(store, lines[0][-1]) == (0, 900)
    held = [(await standing(store, mine[1]))[1] for mine in lines]
    assert sorted(held) == [0] * 51 + [100] * 9  # who was refused holds nothing


async def test_the_global_budget_of_a_cluster_clamps_every_line(cluster, opened):
    clock = Clock()
    store, memory = opened(cluster.url, prefix=secrets.token_hex(8), _now=clock), MemoryStore(clock)
    asked = [claim(caller, *hierarchy(caller, CALLERS_AND_ALL), most=500, least=10) for caller in "abcd"]
    for one in asked:
        expected = await memory.reserve(one, LEASE)
        assert await store.reserve(one, LEASE) == expected
        assert await store.peek(one.lines) == await memory.peek(one.lines)
        assert await store.reserve(one, LEASE) == await memory.reserve(one, LEASE)
    assert isinstance(expected, Refused)
    for each in (store, memory):
        await each.release(asked[0])
    assert await store.reserve(asked[3], LEASE) == await memory.reserve(asked[3], LEASE)  # a refused id is still free
    for number, one in enumerate(asked):
        assert await store.settle(one, {"tokens": number}, "reported") is (number > 0)
        await memory.settle(one, {"tokens": number}, "reported")
        assert await store.peek(one.lines) == await memory.peek(one.lines)


def day_of(scope, key, unit, **fields):
    fields = {"kind": "window", "resets_at": FAR, "fixed": 10, "per_million": 1_000_000, "limit": 1_000, **fields}
    return line_of(scope, key=f"{key}:{unit}_per_day", unit=unit, **fields)


@pytest.mark.parametrize("tight", [1, 2])
async def test_earlier_partitions_release_a_claim_that_a_later_one_refuses(cluster, opened, tight):
    store = opened(cluster.url, prefix=secrets.token_hex(8))
    lines = [
        day_of("caller", "caller:a", "tokens"),
        rate(50, key="caller:a:requests_per_minute"),
        day_of("group", "group:g", "tokens"),
        day_of("all", "all", "nanousd"),
    ]
    before = await store.peek(lines)
    owners = [0, 2, 3]
    lines[owners[tight]] = replace(lines[owners[tight]], limit=5)
    refused = await store.reserve(claim("a", *lines), LEASE)
    assert (refused.line, refused.room) == (owners[tight], 5)
    lines[owners[tight]] = replace(lines[owners[tight]], limit=1_000)
    after = await store.peek(lines)
    assert [(found.used, found.held, found.room) for found in after] == [
        (one.used, one.held, one.room) for one in before
    ]
    assert await store.sweep() == 0
    assert await store.reserve(claim("a", *lines), LEASE) == Granted(output_tokens=100, room=(890, 49, 890, 890))


async def test_what_a_later_partition_clamps_drains_earlier_on_the_rates_of_the_others(cluster, opened):
    clock = Clock()
    store = opened(cluster.url, prefix=secrets.token_hex(8), _now=clock)
    minute = rate(600, 0, 1, unit="tokens", key="caller:a:tokens_per_minute")
    everyone = day_of("all", "all", "tokens", per_million=1_000_000, limit=110)
    clamped = claim("a", minute, everyone, most=500)
    assert await store.reserve(clamped, LEASE) == Granted(output_tokens=100, room=(500, 0))
    clock.advance(20)  # by now the 100 have drained
    assert await store.reserve(claim("b", minute, most=300), LEASE) == Granted(output_tokens=300, room=(300,))
    await store.settle(clamped, {"tokens": 0}, "reported")
    assert (await store.peek([minute]))[0].room == 300


async def test_the_record_of_a_clamped_and_lost_request_of_a_cluster_has_what_was_charged(cluster, opened):
    """The money is counted for all alone, which is not where the record is kept, and is what clamps."""
    prefix, clock = secrets.token_hex(8), Clock()
    store = opened(cluster.url, prefix=prefix, _now=clock)
    own = day_of("caller", "caller:a", "tokens")
    group, everyone = (
        day_of("group", "group:g", "tokens"),
        day_of("all", "all", "nanousd", per_million=7_000_000, limit=150),
    )
    one = replace(claim("a", own, group, everyone), record=ASKED)
    assert await store.reserve(one, LEASE) == Granted(output_tokens=20, room=(970, 970, 0))
    keys = [key for node in cluster.nodes[:3] for key in node.ask("KEYS", f"*{prefix}*:claim:a")]
    kept = [key for key in keys if any(b"acme" in (node.ask("GET", key) or b"") for node in cluster.nodes[:3])]
    assert (len(keys), len(kept)) == (3, 1)
    clock.advance(LEASE)
    assert await store.sweep() == 1
    lost = replace(ASKED, usage=Usage(input_tokens=7, output_tokens=20), cost=150)
    assert await store.reserve(one, LEASE) == Duplicate(output_tokens=20, state="expired", record=lost)
    assert [await standing(store, line) for line in (own, group, everyone)] == [(30, 0), (30, 0), (150, 0)]
    assert await store.settle(one, {"tokens": 12, "nanousd": 24}, "reported", ANSWERED)
    assert await store.reserve(one, LEASE) == Duplicate(output_tokens=20, state="settled", record=ANSWERED)
    assert [await standing(store, line) for line in (own, group, everyone)] == [(12, 0), (12, 0), (24, 0)]


async def chat_until(end, store, name, lines, told):
    """Requests one after another; tells when the longest call began and ended, and what was settled for certain."""
    number = 0
    while time.monotonic() < end():
        number += 1
        one = claim(f"{name}-{number}", *lines, most=10, least=10)
        for step in (
            lambda: store.reserve(one, 600.0),
            lambda: store.settle(one, {"tokens": 25}, "reported"),
            lambda: store.settle(one, {"tokens": 25}, "reported"),  # what the ledger does when it is not sure
        ):
            started = time.monotonic()
            try:
                answer = await step()
            except LimiterUnavailable:
                told["unavailable"] += 1
                told["ids"].add(number)
                answer = None
                await asyncio.sleep(0.02)
            told["longest"] = max(told["longest"], time.monotonic() - started)
            if isinstance(answer, Granted):
                told["granted"] += 1
            elif answer is True:
                told["settled"] += 1
                told["ids"].add(number)
                told["last"] = time.monotonic()


@pytest.mark.slow
async def test_a_masters_death_under_load_hangs_no_call_and_settles_nothing_twice(opened):
    cluster = await asyncio.to_thread(RedisCluster)
    try:
        store = opened(cluster.url)
        big = {"unit": "tokens", "fixed": 20, "per_million": 1_000_000, "limit": 10**9, "kind": "window"}
        lines = {
            name: [
                line_of("caller", key=f"caller:{name}:day", resets_at=FAR, **big),
                line_of("all", key="all:day", resets_at=FAR, **big),
            ]
            for name in (f"c{number}" for number in range(12))
        }
        told = {
            name: {"granted": 0, "settled": 0, "unavailable": 0, "longest": 0.0, "last": 0.0, "ids": set()}
            for name in lines
        }
        limit = [time.monotonic() + 120]
        chats = [
            asyncio.create_task(chat_until(lambda: limit[0], store, name, lines[name], told[name])) for name in lines
        ]
        while sum(one["settled"] for one in told.values()) < 200:
            await asyncio.sleep(0.01)
        cluster.nodes[0].kill()
        killed = time.monotonic()
        while time.monotonic() < limit[0] and any(one["last"] < killed + 0.9 for one in told.values()):
            await asyncio.sleep(0.05)  # until every caller has been served by whoever took over
        limit[0] = 0
        await asyncio.gather(*chats)
        assert sum(one["unavailable"] for one in told.values()) > 0
        assert all(one["last"] > killed for one in told.values())
        assert max(one["longest"] for one in told.values()) < 60, (
            "each ended by its own deadline, of less than a second"
        )
        for name, (own, _) in lines.items():
            [found] = await store.peek([own])
            # Each settlement counted 25 or, where the failover lost it, nothing; never 50.
            assert found.used % 25 == 0
            assert found.used // 25 <= len(told[name]["ids"])
    finally:
        await asyncio.to_thread(cluster.stop)


# Sentinel


@pytest.mark.slow
async def test_sentinels_name_the_new_master(opened):
    sentinels = await asyncio.to_thread(RedisSentinels)
    try:
        store = opened(sentinels.url)
        await store.reserve(claim("a", DAY), 600.0)
        await asyncio.to_thread(until, lambda: sentinels.replica.ask("EXISTS", "{chat-nest:0}:claim:a"))
        sentinels.master.kill()
        with pytest.raises(LimiterUnavailable):
            await store.reserve(claim("b", DAY), 600.0)
        while True:
            with contextlib.suppress(LimiterUnavailable):
                if await store.settle(claim("a", DAY), {"tokens": 60}, "reported"):
                    break
            await asyncio.sleep(0.05)
        assert await standing(store, DAY) == (60, 0)
        assert await store.reserve(claim("a", DAY), LEASE) == Duplicate(output_tokens=100, state="settled")
        assert await store.reserve(claim("a", DAY, fingerprint="other"), LEASE) == Conflict()
    finally:
        await asyncio.to_thread(sentinels.stop)


# a URL


@pytest.mark.parametrize(
    ("url", "addresses", "rest"),
    [
        ("redis://h", (("h", 6379),), {"kind": "single", "tls": False, "db": 0, "password": None}),
        ("redis://me:p%40ss@h:1/2", (("h", 1),), {"username": "me", "password": "p@ss", "db": 2}),
        ("rediss://:pw@[::1]:7", (("::1", 7),), {"tls": True, "username": None, "password": "pw"}),
        ("redis+cluster://a,b:1", (("a", 6379), ("b", 1)), {"kind": "cluster"}),
        ("redis+sentinel://a,b:1/nest/3", (("a", 26379), ("b", 1)), {"kind": "sentinel", "master": "nest", "db": 3}),
        ("rediss://h?ssl_ca_certs=/ca.pem", (("h", 6379),), {"options": {"ssl_ca_certs": "/ca.pem"}}),
    ],
)
def test_a_url_is_taken_apart(url, addresses, rest):
    place = read_url(url)
    assert place.addresses == addresses
    assert {name: getattr(place, name) for name in rest} == rest


@pytest.mark.parametrize(
    "url",
    [
        "http://hunter2@h",
        "redis://:hunter2@",
        "redis://:hunter2@h:port",
        "redis://:hunter2@h/one",
        "redis://:hunter2@h/1/2",
        "redis://:hunter2@h?timeout=9",
        "redis://:hunter2@h?ssl_ca_certs=/x",
        "redis://:hunter2@h#x",
        "redis+cluster://:hunter2@a,b/1",
        "redis+cluster://:hunter2@a,,b",
        "redis+sentinel://:hunter2@a",
    ],
)
def test_another_form_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match=r"store\.url") as failure:
        read_url(url)
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "redis+cluster://a,b", "redis+sentinel://a,b/nest"])
def test_open_store_knows_the_forms(url):
    assert isinstance(open_store(url), RedisStore)


def test_a_missing_driver_names_the_extra():
    script = """
import sys
sys.modules["hiredis"] = None
from chat_nest.stores.urls import open_store
try:
    open_store("redis://:hunter2@h")
except ValueError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stdout == f"store.url: Redis needs a package that is not installed: run: {install('redis')}\n"


@pytest.mark.parametrize("url", ["store", "runs"])
def test_a_driver_that_can_not_be_loaded_names_the_library(url, tmp_path):
    (tmp_path / "hiredis.py").write_text(
        "raise ImportError('libnone.so.1: cannot open shared object file: No such file', name='hiredis.hiredis')\n"
    )
    script = f"""
import chat_nest.runs.urls, chat_nest.stores.urls
open_url = dict(store=chat_nest.stores.urls.open_store, runs=chat_nest.runs.urls.open_runs)[{url!r}]
try:
    open_url("redis://:hunter2@h")
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    remedy = library_remedy("libnone.so.1")
    assert done.stdout == f"{url}.url: Redis needs libnone.so.1, which is missing: {remedy}\n"


@pytest.mark.parametrize("options", [{"timeout": 1.0}, {"retention": 0.0}, {"prefix": "a{b}"}])
def test_an_option_must_make_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RedisStore("redis://localhost", **options)
