"""Many calls at once, which the stores send in batches: each gets the answer that it would get alone."""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from chat_nest.core.claims import Duplicate, Granted, Refused
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.redis import RedisStore
from chat_nest.stores.sqlite import SQLiteStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from postgres_server import empty, shared_url
from redis_servers import RedisServer, shared_redis_url
from stores_under_test import LEASE, STORES, Clock, claim, gauge, quick_directory, rate, request, standing, window

WORKERS = 8


async def insist(call):
    """What the ledger does: try again where the store is busy."""
    while True:
        try:
            return await call()
        except LimiterUnavailable:
            await asyncio.sleep(0.01)


# One answer each.

DAY, ALL, STREAMS = window(260, fixed=10, key="day"), window(900, fixed=10, key="all"), gauge(4)
MINUTE, TOKENS, ONE = rate(6), rate(500, fixed=10, per_token=1, key="tokens", unit="tokens"), request(90, fixed=10)
OTHER_DAY = window(120, fixed=10, key="other day")
LINES = (DAY, ALL, STREAMS, MINUTE, TOKENS, ONE, OTHER_DAY)

claims_of_a_moment = st.lists(
    st.builds(
        lambda id, chosen, most, least, print: claim(
            id, *(LINES[n] for n in sorted(chosen)), most=max(most, least), least=least, fingerprint=print
        ),
        st.sampled_from([f"r{n}" for n in range(12)]),
        st.frozensets(st.integers(0, len(LINES) - 1), min_size=1),
        st.integers(1, 120),
        st.integers(1, 60),
        st.sampled_from(["same", "same", "same", "another"]),
    ),
    max_size=14,
    unique_by=lambda one: one.id,
)
moments = st.lists(
    st.tuples(
        claims_of_a_moment,
        st.lists(
            st.tuples(st.integers(0, 11), st.one_of(st.none(), st.integers(0, 100)), st.booleans()),
            max_size=8,
            unique_by=lambda ending: ending[0],
        ),
        st.sampled_from([0, 1, 5, LEASE + 1]),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", ["sqlite", "postgres", "redis"])
def test_calls_of_one_moment_get_the_answers_that_one_after_another_get(name):
    """The memory store, asked one after another, is the model."""

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(moments=moments)
    def same(moments):
        asyncio.run(compare(moments))

    async def compare(moments):
        clock = Clock()
        model = MemoryStore(clock)
        async with STORES[name](clock) as store:
            held = {}
            for asked, endings, pause in moments:
                answers = await asyncio.gather(*(store.reserve(one, LEASE) for one in asked))
                for one, answer in zip(asked, answers, strict=True):
                    wanted = await model.reserve(one, LEASE)
                    assert answer == wanted
                    if isinstance(wanted, Granted):
                        held[one.id] = one
                ended = [
                    (held[f"r{number}"], None if spent is None else {"tokens": spent}, others)
                    for number, spent, others in endings
                    if f"r{number}" in held
                ]
                ended = [(replace(one, owner="someone else") if others else one, spent) for one, spent, others in ended]
                settled = await asyncio.gather(*(store.settle(one, spent, "reported") for one, spent in ended))
                # More than a hold on a rate comes last: the order of what is given back and taken matters there.
                order = sorted(range(len(ended)), key=lambda n: is_above_a_rate(*ended[n], held))
                for n in order:
                    assert settled[n] == await model.settle(*ended[n], "reported")
                clock.advance(pause)
                for line in (DAY, ALL, STREAMS, OTHER_DAY):
                    assert await standing(store, line) == await standing(model, line)

    def is_above_a_rate(one, spent, _held):
        return spent is not None and "tokens" in spent and any(line is TOKENS for line in one.lines)

    same()


async def test_two_settlements_of_one_id_at_once_count_once(store):
    line = window(1_000)
    one = claim("a", line)
    await store.reserve(one, LEASE)
    spent = [11, 22, 33, 44]
    settled = await asyncio.gather(*(store.settle(one, {"tokens": tokens}, "reported") for tokens in spent))
    assert settled.count(True) == 1
    assert await standing(store, line) == (spent[settled.index(True)], 0)


REFUSE_BAD = """
CREATE OR REPLACE FUNCTION public.refuse_bad() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'not this one'; END $$;
CREATE TRIGGER refuse_bad BEFORE INSERT OR UPDATE ON chat_nest.reservations
FOR EACH ROW WHEN (NEW.id = 'bad' OR NEW.source = 'assumed') EXECUTE FUNCTION public.refuse_bad();
"""


async def test_one_row_that_fails_fails_alone():
    url = shared_url()
    empty(url)
    line = window(10_000)
    store = PostgresStore(url, timeout=60.0)
    good = [claim(f"good-{n}", line) for n in range(20)]
    try:
        await store.ping()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(REFUSE_BAD)
        calls = [store.reserve(one, LEASE) for one in [*good[:9], claim("bad", line), *good[9:]]]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(answer, Granted) for answer in answers] == [True] * 9 + [False] + [True] * 11
        assert await standing(store, line) == (0, 20 * 100)
        sources = ["reported"] * 7 + ["assumed"] + ["reported"] * 12
        ends = [store.settle(one, {"tokens": 5}, source) for one, source in zip(good, sources, strict=True)]
        settled = await asyncio.gather(*ends, return_exceptions=True)
        assert [answer is True for answer in settled] == [True] * 7 + [False] + [True] * 12
        assert await standing(store, line) == (19 * 5, 100)
    finally:
        await store.aclose()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP FUNCTION public.refuse_bad() CASCADE")


async def test_a_counter_that_redis_can_not_read_fails_only_the_calls_that_need_it():
    server = RedisServer()
    store = RedisStore(server.url, timeout=0.99)
    store._timeout = 60.0
    line, broken = window(10_000), window(10_000, key="broken")
    good, bad = [claim(f"good-{n}", line, gauge(100)) for n in range(20)], claim("bad", line, gauge(100), broken)
    spoiled = claim("spoiled", line, broken)
    try:
        assert isinstance(await store.reserve(spoiled, LEASE), Granted)
        server.ask("DEL", "{chat-nest:0}:window:broken")
        server.ask("SET", "{chat-nest:0}:window:broken", "not a hash")
        calls = [store.reserve(one, LEASE) for one in [*good[:9], bad, *good[9:]]]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Granted] * 9 + [LimiterUnavailable] + [Granted] * 11
        assert await standing(store, line) == (0, 21 * 100)
        assert await standing(store, gauge(100)) == (0, 20)
        ends = [store.settle(one, {"tokens": 5}, "reported") for one in [*good[:7], spoiled, *good[7:]]]
        settled = await asyncio.gather(*ends, return_exceptions=True)
        assert [answer is True for answer in settled] == [True] * 7 + [False] + [True] * 13
        assert await standing(store, line) == (20 * 5, 100)
        assert await standing(store, gauge(100)) == (0, 0)
    finally:
        await store.aclose()
        server.stop()


async def test_reservations_of_one_moment_share_a_call_of_redis():
    server = RedisServer()
    store = RedisStore(server.url, timeout=0.99)
    store._timeout = 60.0
    try:
        await store.ping()
        await store.reserve(claim("first", window(10**6)), LEASE)
        server.ask("CONFIG", "RESETSTAT")
        claims = [claim(f"r{n}", window(10**6)) for n in range(64)]
        await asyncio.gather(*(store.reserve(one, LEASE) for one in claims))
        await asyncio.gather(*(store.settle(one, {"tokens": 5}, "reported") for one in claims))
        calls = re.findall(rb"cmdstat_evalsha:calls=(\d+)|cmdstat_eval:calls=(\d+)", server.ask("INFO", "commandstats"))
        assert sum(int(one or other) for one, other in calls) <= 3  # the first settlement brings the script, too
        assert await standing(store, window(10**6)) == (64 * 5, 100)
    finally:
        await store.aclose()
        server.stop()


async def test_a_caller_that_leaves_takes_no_other_along(store):
    line = window(10_000)
    await store.reserve(claim("first", line), LEASE)
    calls = [asyncio.create_task(store.reserve(claim(f"r{n}", line), LEASE)) for n in range(300)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    stayed = [answer for n, answer in enumerate(answers) if n % 3]
    granted = [answer for answer in stayed if isinstance(answer, Granted)]
    assert all(isinstance(answer, Granted | Refused) for answer in stayed)
    used, held = await standing(store, line)
    assert used == 0
    # Those that left may have been granted too: whoever releases them ends that.
    assert len(granted) * 100 <= held - 100 <= 9_900
    await asyncio.gather(*(store.release(claim(f"r{n}", line)) for n in range(0, 300, 3)))
    _, held = await standing(store, line)
    assert held == 100 + sum(answer.output_tokens for answer in granted)


# Races.


@asynccontextmanager
async def workers(kind):
    """Stores of their own on one place, as of eight processes."""
    async with AsyncExitStack() as stack:
        if kind == "postgres":
            empty(shared_url())
            stores = [PostgresStore(shared_url(), timeout=60.0, max_connections=4) for _ in range(WORKERS)]
        elif kind == "redis":
            prefix = secrets.token_hex(8)
            stores = [RedisStore(shared_redis_url(), prefix=prefix) for _ in range(WORKERS)]
        else:
            directory = stack.enter_context(quick_directory())
            stores = [SQLiteStore(directory / "store.db") for _ in range(WORKERS)]
        for store in stores:
            stack.push_async_callback(store.aclose)
        yield stores


@pytest.mark.parametrize("paid", [1, 20, 10_000])
@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
async def test_eight_workers_grant_exactly_the_budget(kind, paid):
    line = window(paid * 100, key="all", resets_at=4_000_000_000.0)
    asked = paid + 320
    async with workers(kind) as stores:

        async def some(store, numbers):
            answers = []
            for number in numbers:
                one = claim(f"r{number}", line, gauge(10**6), least=100)
                answer = await insist(lambda one=one, store=store: store.reserve(one, 600.0))
                answers.append(answer)
                if isinstance(answer, Granted) and number % 2:
                    settled = await insist(lambda one=one, store=store: store.settle(one, {"tokens": 100}, "reported"))
                    assert settled or kind != "postgres"  # a repeated settlement may say that it was settled
            return answers

        lanes = [range(start, asked, 256) for start in range(256)]
        found = await asyncio.gather(*(some(stores[n % WORKERS], numbers) for n, numbers in enumerate(lanes)))
        answers = [answer for some in found for answer in some]
        # An answer that was lost makes the next one a Duplicate: it is granted all the same.
        granted = sum(isinstance(answer, Granted | Duplicate) for answer in answers)
        assert granted == paid
        assert sum(await standing(stores[0], line)) == paid * 100
