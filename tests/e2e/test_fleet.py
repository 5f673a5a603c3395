"""Budgets hold on a fleet: workers behind nginx on Redis and on PostgreSQL, before a provider that counts."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import count

import pytest
from fleet import (
    FULL,
    LEAST,
    PROFILE,
    PROMPT,
    WHOLE,
    Answer,
    ClusterStoreServer,
    CountingProvider,
    Fleet,
    PostgresStoreServer,
    Store,
    address,
    ask,
    body,
    config,
    fields,
    fleet,
    new_store,
    ready,
    statuses,
    storm,
)
from postgres_server import PostgresServer
from processes import until
from raw_client import Reply, connect, settled
from redis_servers import RedisCluster

MANY = 1_000
ROOM = 20
OK = (200, "")
REFUSED = (429, "budget_exceeded")


@pytest.fixture(params=["redis", "postgresql"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with new_store(request.param) as opened:
        yield opened


@pytest.fixture
async def provider() -> AsyncIterator[CountingProvider]:
    async with CountingProvider() as counting:
        yield counting


async def all_at_once(served: Fleet, provider: CountingProvider, callers: Sequence[int]) -> list[Answer]:
    """A storm whose answers go on only when everybody knows whether they are admitted."""
    provider.go_on.clear()
    told: list[int] = []

    def on_head(reply: Reply) -> None:
        told.append(reply.status)
        if len(told) == len(callers):
            provider.go_on.set()

    return await storm(served.port, callers, on_head)


async def used_by(served: Fleet, caller: int, limit: str = "tokens_per_day") -> int:
    """What the caller is told at GET /api/usage, once nothing is held."""
    return (await settled(served.port, headers={"x-forwarded-for": address(caller)}))[limit]["used"]


def whole(answers: Sequence[Answer], tokens: int = FULL) -> int:
    """How many were answered to the end with this many tokens, as the provider reported them."""
    done = [answer.done for answer in answers if answer.done]
    return sum(end["source"] == "reported" and end["usage"]["output_tokens"] == tokens for end in done)


def one_counter(store: Store) -> tuple[int, int]:
    """Used and held of the only counter there is."""
    [counter] = store.counters().values()
    return counter


async def test_a_thousand_at_once_by_one_caller(tmp_path, store, provider):
    text = config(store.url, provider, f"{PROFILE} tokens_per_day = {ROOM * WHOLE}")
    async with fleet(tmp_path / "fleet", text) as served:
        await ready(provider)
        answers = await all_at_once(served, provider, [3] * MANY)
        assert statuses(answers) == {OK: ROOM, REFUSED: MANY - ROOM}
        assert whole(answers) == ROOM
        assert len(provider.made) == ROOM
        assert await used_by(served, 3) == provider.total == sum(answer.charged for answer in answers if answer.done)
        assert one_counter(store) == (provider.total, 0)
        assert provider.total == ROOM * WHOLE, "there was no room left: nobody was refused wrongly"
        assert await served.stop() == 0
    assert "Traceback" not in served.log


async def test_a_thousand_at_once_by_a_hundred_callers_who_share_a_budget(tmp_path, store, provider):
    text = config(store.url, provider, f"{PROFILE} [limits]\ntokens_per_day = {ROOM * WHOLE}")
    async with fleet(tmp_path / "fleet", text) as served:
        await ready(provider)
        answers = await all_at_once(served, provider, [number % 100 for number in range(MANY)])
        assert statuses(answers) == {OK: ROOM, REFUSED: MANY - ROOM}
        assert whole(answers) == ROOM
        made = Counter(one.caller for one in provider.made)
        assert made == Counter(answer.caller for answer in answers if answer.status == 200)
        for caller in range(100):
            assert await used_by(served, caller) == made[caller] * WHOLE
        counters = store.counters()
        assert [counters.pop(key) for key in list(counters) if key.startswith("all:")] == [(ROOM * WHOLE, 0)]
        assert sum(used for used, _ in counters.values()) == provider.total == ROOM * WHOLE
        assert not any(held for _, held in counters.values())
        assert await served.stop() == 0


async def test_a_thousand_at_once_with_a_budget_in_dollars(tmp_path, store, provider):
    """Input at $2 and output at $10 a million: 2,000 and 10,000 nano-dollars a token."""
    cost = PROMPT * 2_000 + FULL * 10_000
    prices = '[prices."p:m"]\ninput = 2.0\noutput = 10.0'
    text = config(store.url, provider, f"{PROFILE} usd_per_day = {ROOM * cost / 1e9:.9f}\n{prices}")
    async with fleet(tmp_path / "fleet", text) as served:
        await ready(provider)
        answers = await all_at_once(served, provider, [3] * MANY)
        assert statuses(answers) == {OK: ROOM, REFUSED: MANY - ROOM}
        assert whole(answers) == len(provider.made) == ROOM
        spent = sum(one.input_tokens * 2_000 + one.output_tokens * 10_000 for one in provider.made)
        assert await used_by(served, 3, "usd_per_day") == pytest.approx(spent / 1e9, abs=1e-12)
        assert round(sum(answer.done["cost_usd"] for answer in answers if answer.done) * 1e9) == spent
        counters = {key.split(":")[2]: counter for key, counter in store.counters().items()}
        assert counters["usd_per_day"] == (spent, 0) == (ROOM * cost, 0)
        assert counters["tokens_per_day"] == (provider.total, 0)
        assert await served.stop() == 0


@pytest.mark.parametrize(("rest", "last"), [(PROMPT + 30, 30), (PROMPT + LEAST, LEAST), (PROMPT + LEAST - 1, 0)])
async def test_the_last_one_is_clamped_to_what_is_left(tmp_path, store, provider, rest, last):
    text = config(store.url, provider, f"{PROFILE} tokens_per_day = {ROOM * WHOLE + rest}")
    async with fleet(tmp_path / "fleet", text, workers=2) as served:
        await ready(provider, 2)
        answers = await all_at_once(served, provider, [3] * 300)
        admitted = ROOM + bool(last)
        assert statuses(answers) == {OK: admitted, REFUSED: 300 - admitted}
        asked = Counter(one.asked for one in provider.made)
        assert asked == Counter([FULL] * ROOM + [last] * bool(last))
        assert whole(answers) == ROOM
        assert await used_by(served, 3) == provider.total == ROOM * WHOLE + (PROMPT + last) * bool(last)
        assert one_counter(store) == (provider.total, 0)
        assert await served.stop() == 0


async def test_room_that_comes_back_is_given_out_again(tmp_path, store, provider):
    """The first wave uses a half of what it held; the second gets exactly the rest."""
    provider.share = 0.5
    budget = ROOM * WHOLE
    text = config(store.url, provider, f"{PROFILE} tokens_per_day = {budget}")
    async with fleet(tmp_path / "fleet", text) as served:
        await ready(provider)
        answers = await all_at_once(served, provider, [3] * 500)
        assert statuses(answers) == {OK: ROOM, REFUSED: 500 - ROOM}
        assert await used_by(served, 3) == provider.total == ROOM * (PROMPT + FULL // 2)
        left = budget - provider.total
        provider.share = 1.0
        provider.made.clear()
        answers = await all_at_once(served, provider, [3] * 500)
        whole_ones, rest = divmod(left, WHOLE)
        clamped = [rest - PROMPT] if rest >= PROMPT + LEAST else []
        assert Counter(one.asked for one in provider.made) == Counter([FULL] * whole_ones + clamped)
        admitted = whole_ones + len(clamped)
        assert statuses(answers) == {OK: admitted, REFUSED: 500 - admitted}
        assert provider.total == left - (0 if clamped else rest)
        used = await used_by(served, 3)
        assert used == budget - left + provider.total
        assert one_counter(store) == (used, 0)
        assert await served.stop() == 0


# Processes that die.


async def load(port: int, provider: CountingProvider, clients: int, callers: int, until: asyncio.Event) -> list[Answer]:
    """Clients that ask one question after the other until they are told to stop; what came of each."""
    answers: list[Answer] = []
    numbers = count()

    async def one(client: int) -> None:
        while not until.is_set():
            answers.append(await ask(port, client % callers, next(numbers)))
            if answers[-1].status != 200:
                await asyncio.sleep(0.05)

    await asyncio.gather(*map(one, range(clients)))
    return answers


def check_charges(answers: Sequence[Answer], store: Store) -> Counter[str]:
    """Every request is charged once, as it was told, or its whole hold; return how many ended in each state."""
    claims = store.claims()
    for answer in answers:
        if answer.done:
            claim = claims[answer.id]
            assert (claim.state, claim.tokens, claim.source) == ("settled", answer.charged, "reported")
    for claim in claims.values():
        assert claim.state in ("settled", "expired", "released"), claim
        if claim.state == "expired":
            assert (claim.tokens, claim.source) == (WHOLE, "assumed")
    charged = sum(claim.tokens for claim in claims.values() if claim.state != "released")
    assert charged == sum(used for used, _ in store.counters().values()), "the counters have each of them once"
    assert not any(held for _, held in store.counters().values())
    return Counter(claim.state for claim in claims.values())


async def nothing_held(store: Store) -> None:
    while any(held for _, held in store.counters().values()):
        await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_workers_killed_under_load(tmp_path, store):
    text = "tokens_per_day = 1_000_000_000"
    async with CountingProvider(share=0.5, pieces=5, pause=0.1) as provider:
        text = config(store.url, provider, f"{PROFILE} {text}", lease=5)
        async with fleet(tmp_path / "fleet", text) as served:
            await ready(provider)
            enough = asyncio.Event()
            loading = asyncio.create_task(load(served.port, provider, 24, 6, enough))
            seed = random.randrange(1_000_000)
            print("seed", seed)
            chance = random.Random(seed)
            killed: list[int] = []
            while len(killed) < 5:
                await asyncio.sleep(chance.uniform(0.2, 0.9))
                alive = [pid for pid in served.workers() if pid not in killed]
                if len(alive) > 1:
                    killed.append(chance.choice(alive))
                    os.kill(killed[-1], signal.SIGKILL)
            await until(lambda: served.log.count("another one takes its place") == len(killed))
            await until(lambda: len(served.workers()) == 4 and len(provider.made) > 120)
            enough.set()
            answers = await loading
            await nothing_held(store)
            assert len(answers) > 100
            states = check_charges(answers, store)
            print(states, statuses(answers))
            assert states["expired"] > 0, "some were killed in the middle"
            assert sum(answer.done is not None for answer in answers) <= states["settled"]
            for caller in range(6):
                assert await used_by(served, caller) >= provider.total_of(caller)
            assert await served.stop() == 0


async def test_a_fleet_ended_by_sigterm_under_load(tmp_path, store):
    async with CountingProvider(share=0.5, pieces=5, pause=0.1) as provider:
        text = config(store.url, provider, f"{PROFILE} tokens_per_day = 1_000_000_000")
        async with fleet(tmp_path / "fleet", text) as served:
            await ready(provider)
            enough = asyncio.Event()
            loading = asyncio.create_task(load(served.port, provider, 24, 6, enough))
            await until(lambda: len(provider.made) > 60)
            assert await served.stop() == 0
            enough.set()
            answers = await loading
        states = check_charges(answers, store)
        assert states["expired"] == 0
        assert all(one.whole for one in provider.made), "each answer that had begun was let to its end"
        assert sum(used for used, _ in store.counters().values()) == provider.total
        assert sum(answer.done is not None for answer in answers) == states["settled"] == len(provider.made)
    assert "Traceback" not in served.log


# Servers that die.


def check_refusals(answers: Sequence[Answer]) -> None:
    """While the store is away there is nothing but its own refusal, and soon: the deadline is a second."""
    print(
        statuses(answers),
        "longest refusal:",
        max((answer.seconds for answer in answers if answer.status == 503), default=0.0),
    )
    assert {(answer.status, answer.code) for answer in answers} <= {OK, (503, "limiter_unavailable")}
    assert all(answer.done for answer in answers if answer.status == 200), "a stream that runs does not need the store"
    assert all(answer.seconds < 3 for answer in answers if answer.status == 503)


async def test_a_store_that_hangs_refuses_everybody_in_line(tmp_path, store, provider):
    text = config(store.url, provider, f"{PROFILE} tokens_per_day = {ROOM * WHOLE}")
    async with fleet(tmp_path / "fleet", text, workers=2) as served:
        await ready(provider, 2)
        assert (await ask(served.port, 3)).done
        async with store.busy():
            answers = await storm(served.port, [3] * 200)
        assert statuses(answers) == {(503, "limiter_unavailable"): 200}
        check_refusals(answers)
        await answered_again(served, [3])
        assert len(provider.made) == 2
        await nothing_held(store)  # a release that the store did not take is tried again
        assert await used_by(served, 3) == provider.total, "what nobody was told of was released"
        assert one_counter(store) == (provider.total, 0)
        assert await served.stop() == 0


async def answered_again(served: Fleet, callers: Iterable[int]) -> None:
    for caller in callers:
        while not (await ask(served.port, caller)).done:
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_cluster_that_loses_a_master_under_load(tmp_path):
    callers, clients = 6, 12
    cluster = RedisCluster()
    try:
        store = ClusterStoreServer(cluster)
        async with CountingProvider(share=0.5, pieces=3, pause=0.05) as provider:
            budgets = "tokens_per_day = 1_000_000_000\n[limits]\ntokens_per_day = 1_000_000_000"
            text = config(store.url, provider, f"{PROFILE} {budgets}", lease=5)
            async with fleet(tmp_path / "fleet", text, workers=2) as served:
                await ready(provider, 2)
                enough = asyncio.Event()
                loading = asyncio.create_task(load(served.port, provider, clients, callers, enough))
                await until(lambda: len(provider.made) > 50)
                cluster.nodes[0].kill()
                await asyncio.sleep(0.5)
                await answered_again(served, range(callers))
                enough.set()
                answers = await loading
                await nothing_held(store)
                check_refusals(answers)
                counters = store.counters()
                for caller in range(callers):
                    mine = [answer for answer in answers if answer.caller == caller]
                    made = provider.total_of(caller)
                    # Docs: what the replica had not received yet is forgotten. That is at most what was asked or
                    # settled at that moment: two requests of each client.
                    lost = 2 * clients // callers * WHOLE
                    unanswered = sum(answer.done is None for answer in mine) * WHOLE
                    assert made - lost <= await used_by(served, caller) <= made + lost + unanswered
                assert len(counters) == callers + 1
                assert await served.stop() == 0
    finally:
        cluster.stop()


@pytest.mark.slow
async def test_postgresql_restarted_under_load(tmp_path):
    server = PostgresServer()
    try:
        store = PostgresStoreServer(server.url)
        async with CountingProvider(share=0.5, pieces=3, pause=0.05) as provider:
            text = config(store.url, provider, f"{PROFILE} tokens_per_day = 1_000_000_000", lease=5)
            async with fleet(tmp_path / "fleet", text, workers=2) as served:
                await ready(provider, 2)
                enough = asyncio.Event()
                loading = asyncio.create_task(load(served.port, provider, 12, 6, enough))
                for asked in (50, 100):
                    await until(lambda asked=asked: len(provider.made) > asked)
                    server.crash()
                    await asyncio.sleep(0.7)
                    server.start()
                    await answered_again(served, range(6))
                enough.set()
                answers = await loading
                await nothing_held(store)
                check_refusals(answers)
                check_charges(answers, store)
                for caller in range(6):
                    assert await used_by(served, caller) >= provider.total_of(caller)
                assert await served.stop() == 0
    finally:
        server.remove()


# The same question twice.


async def test_one_key_at_several_workers_at_once(tmp_path, store, provider):
    provider.go_on.clear()
    text = config(store.url, provider, f"{PROFILE} tokens_per_day = {100 * WHOLE}")
    async with fleet(tmp_path / "fleet", text) as served:
        await ready(provider)
        asking = [asyncio.create_task(ask(served.port, 3, key="one")) for _ in range(40)]
        waiting = set(asking)
        while len(waiting) > 1:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert (await ask(served.port, 3, number=1, key="one")).code == "idempotency_key_reused", "another body"
        other = asyncio.create_task(ask(served.port, 4, key="one"))
        await provider.request(1)
        provider.go_on.set()
        answers = await asyncio.gather(*asking)
        assert statuses(answers) == {OK: 1, (409, "request_in_progress"): 39}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 409)
        assert (await other).done, "another caller's key is another key"
        assert len(provider.made) == 2
        assert await used_by(served, 3) == await used_by(served, 4) == WHOLE
        assert (await ask(served.port, 3, number=1, key="one")).code == "idempotency_key_reused"
        assert await served.stop() == 0


async def test_a_key_whose_answer_has_ended_tells_its_ending(tmp_path, store, provider):
    text = config(store.url, provider, f"{PROFILE} tokens_per_day = {100 * WHOLE}")
    async with fleet(tmp_path / "fleet", text, workers=2) as served:
        await ready(provider, 2)
        first = await ask(served.port, 3, key="one")
        assert first.done
        again = [await ask(served.port, 3, key="one") for _ in range(6)]
        assert statuses(again) == {OK: 6}
        assert {answer.events for answer in again} == {("start", "done")}
        assert {answer.headers.get("idempotency-replayed") for answer in again} == {"true"}
        for answer in again:
            assert (answer.done["usage"], answer.done["finish_reason"]) == (first.done["usage"], "length")
        assert "idempotency-replayed" not in first.headers
        assert len(provider.made) == 1
        assert await used_by(served, 3) == WHOLE
        assert await served.stop() == 0


async def test_a_first_attempt_that_spent_nothing_frees_its_key(tmp_path, store, provider):
    text = config(store.url, provider, f"{PROFILE} tokens_per_day = {100 * WHOLE}")
    async with fleet(tmp_path / "fleet", text, workers=2) as served:
        await ready(provider, 2)
        await provider.refuse()
        assert statuses([await ask(served.port, 3, key="one") for _ in range(2)]) == {(502, "upstream_unreachable"): 2}
        assert await used_by(served, 3) == 0
        await provider.accept()
        assert (await ask(served.port, 3, key="one")).done
        replayed = await ask(served.port, 3, key="one")
        assert replayed.events == ("start", "done")
        assert len(provider.made) == 1
        assert await used_by(served, 3) == WHOLE
        assert await served.stop() == 0


async def test_who_leaves_while_being_reserved_frees_nobody_elses_request(tmp_path, store, provider):
    provider.go_on.clear()
    text = config(store.url, provider, f"{PROFILE} tokens_per_day = {100 * WHOLE}")
    async with fleet(tmp_path / "fleet", text, workers=2) as served:
        await ready(provider, 2)
        running = asyncio.create_task(ask(served.port, 3, key="one"))
        await provider.request(0)
        async with store.busy():
            for _ in range(4):
                async with connect(served.port) as client:
                    client.send("POST", "/api/chat", body(3), fields(3, "one"))
                    await asyncio.sleep(0.1)  # it is being reserved
                    client.reset()
        for _ in range(10):
            async with asyncio.timeout(60):
                assert (await ask(served.port, 3, key="one")).code == "request_in_progress"
        provider.go_on.set()
        answer = await running
        assert answer.done
        assert await used_by(served, 3) == answer.charged == provider.total == WHOLE
        assert await served.stop() == 0
