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
import pytest_asyncio
from fleet import (
    FULL,
    LEAST,
    PROFILE,
    PROMPT,
    WHOLE,
    Answer,
    CountingProvider,
    Fleet,
    address,
    ask,
    body,
    config,
    fields,
    fleet,
    profile,
    ready,
    statuses,
    storm,
)
from postgres_server import PostgresServer
from processes import until
from raw_client import Reply, connect, settled
from redis_servers import RedisCluster
from store_servers import ClusterStoreServer, PostgresStoreServer, Store, new_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

STORES = ["redis", "postgresql"]
MANY = 1_000
SOME = 300
ROOM = 20
LAST = {"some": (PROMPT + 30, 30), "least": (PROMPT + LEAST, LEAST), "nothing": (PROMPT + LEAST - 1, 0)}
"""Profiles that leave so much after `ROOM` answers, and the size of the last one then."""
OK = (200, "")
REFUSED = (429, "budget_exceeded")


@pytest_asyncio.fixture(loop_scope="module", params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with new_store(request.param) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def provider() -> AsyncIterator[CountingProvider]:
    async with CountingProvider() as counting:
        yield counting


class Shared:
    """A fleet for many tests, each with callers of its own."""

    def __init__(self, served: Fleet, store: Store, provider: CountingProvider) -> None:
        self.served = served
        self.store = store
        self.provider = provider
        self._seen = set(store.counters())

    def one_counter(self) -> tuple[int, int]:
        """Used and held of the only counter that this test made."""
        [counter] = (counter for key, counter in self.store.counters().items() if key not in self._seen)
        return counter


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    budgets = f"{PROFILE} tokens_per_day = {ROOM * WHOLE}"
    budgets += "".join(f"{profile(name)} tokens_per_day = {ROOM * WHOLE + rest}" for name, (rest, _) in LAST.items())
    async with new_store(request.param) as store, CountingProvider() as provider:
        text = config(store.url, provider, budgets)
        async with fleet(tmp_path_factory.mktemp("shared") / "fleet", text, seconds=None) as served:
            await ready(provider)
            yield Shared(served, store, provider)
            assert await served.stop() == 0
        assert "Traceback" not in served.log


@pytest.fixture
def shared(running: Shared) -> Shared:
    running.provider.made.clear()
    running.provider.requests.clear()
    running.provider.share = 1.0
    running.provider.go_on.set()
    return Shared(running.served, running.store, running.provider)


async def all_at_once(
    served: Fleet, provider: CountingProvider, callers: Sequence[int], profile: str = "balanced"
) -> list[Answer]:
    """A storm whose answers go on only when everybody knows whether they are admitted."""
    provider.go_on.clear()
    told: list[int] = []

    def on_head(reply: Reply) -> None:
        told.append(reply.status)
        if len(told) == len(callers):
            provider.go_on.set()

    return await storm(served.port, callers, on_head, profile, patient=True)


async def used_by(served: Fleet, caller: int, limit: str = "tokens_per_day") -> int:
    """What the caller is told at GET /api/usage, once nothing is held."""
    return (await settled(served.port, headers={"x-forwarded-for": address(caller)}))[limit]["used"]


def whole(answers: Sequence[Answer], tokens: int = FULL) -> int:
    """How many were answered to the end with this many tokens, as the provider reported them."""
    done = [answer.done for answer in answers if answer.done]
    return sum(end["source"] == "reported" and end["usage"]["output_tokens"] == tokens for end in done)


async def test_a_thousand_at_once_by_one_caller(shared):
    served, provider = shared.served, shared.provider
    answers = await all_at_once(served, provider, [3] * MANY)
    assert statuses(answers) == {OK: ROOM, REFUSED: MANY - ROOM}
    assert whole(answers) == ROOM
    assert len(provider.made) == ROOM
    assert await used_by(served, 3) == provider.total == sum(answer.charged for answer in answers if answer.done)
    assert shared.one_counter() == (provider.total, 0)
    assert provider.total == ROOM * WHOLE, "there was no room left: nobody was refused wrongly"


async def test_hundreds_at_once_by_a_hundred_callers_who_share_a_budget(tmp_path, store, provider):
    text = config(store.url, provider, f"{PROFILE} [limits]\ntokens_per_day = {ROOM * WHOLE}")
    async with fleet(tmp_path / "fleet", text, workers=2) as served:
        await ready(provider, 2)
        answers = await all_at_once(served, provider, [number % 100 for number in range(SOME)])
        assert statuses(answers) == {OK: ROOM, REFUSED: SOME - ROOM}
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


async def test_hundreds_at_once_with_a_budget_in_dollars(tmp_path, store, provider):
    """Input at $2 and output at $10 a million: 2,000 and 10,000 nano-dollars a token."""
    cost = PROMPT * 2_000 + FULL * 10_000
    prices = '[prices."p:m"]\ninput = 2.0\noutput = 10.0'
    text = config(store.url, provider, f"{PROFILE} usd_per_day = {ROOM * cost / 1e9:.9f}\n{prices}")
    async with fleet(tmp_path / "fleet", text, workers=2) as served:
        await ready(provider, 2)
        answers = await all_at_once(served, provider, [3] * SOME)
        assert statuses(answers) == {OK: ROOM, REFUSED: SOME - ROOM}
        assert whole(answers) == len(provider.made) == ROOM
        spent = sum(one.input_tokens * 2_000 + one.output_tokens * 10_000 for one in provider.made)
        assert await used_by(served, 3, "usd_per_day") == pytest.approx(spent / 1e9, abs=1e-12)
        assert round(sum(answer.done["cost_usd"] for answer in answers if answer.done) * 1e9) == spent
        counters = {key.split(":")[2]: counter for key, counter in store.counters().items()}
        assert counters["usd_per_day"] == (spent, 0) == (ROOM * cost, 0)
        assert counters["tokens_per_day"] == (provider.total, 0)
        assert await served.stop() == 0


@pytest.mark.parametrize("profile", LAST)
async def test_the_last_request_is_clamped_to_the_remaining_budget(shared, profile):
    served, provider, last = shared.served, shared.provider, LAST[profile][1]
    caller = 4 + [*LAST].index(profile)
    answers = await all_at_once(served, provider, [caller] * 300, profile)
    admitted = ROOM + bool(last)
    assert statuses(answers) == {OK: admitted, REFUSED: 300 - admitted}
    asked = Counter(one.asked for one in provider.made)
    assert asked == Counter([FULL] * ROOM + [last] * bool(last))
    assert whole(answers) == ROOM
    assert await used_by(served, caller) == provider.total == ROOM * WHOLE + (PROMPT + last) * bool(last)
    assert shared.one_counter() == (provider.total, 0)


async def test_freed_budget_is_granted_again(shared):
    """The first wave uses a half of what it held; the second gets exactly the rest."""
    served, provider = shared.served, shared.provider
    provider.share = 0.5
    budget = ROOM * WHOLE
    answers = await all_at_once(served, provider, [8] * 500)
    assert statuses(answers) == {OK: ROOM, REFUSED: 500 - ROOM}
    assert await used_by(served, 8) == provider.total == ROOM * (PROMPT + FULL // 2)
    left = budget - provider.total
    provider.share = 1.0
    provider.made.clear()
    answers = await all_at_once(served, provider, [8] * 500)
    whole_ones, rest = divmod(left, WHOLE)
    clamped = [rest - PROMPT] if rest >= PROMPT + LEAST else []
    assert Counter(one.asked for one in provider.made) == Counter([FULL] * whole_ones + clamped)
    admitted = whole_ones + len(clamped)
    assert statuses(answers) == {OK: admitted, REFUSED: 500 - admitted}
    assert provider.total == left - (0 if clamped else rest)
    used = await used_by(served, 8)
    assert used == budget - left + provider.total
    assert shared.one_counter() == (used, 0)


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
    """While the store is away there is nothing but its own refusal."""
    print(statuses(answers))
    assert {(answer.status, answer.code) for answer in answers} <= {OK, (503, "limiter_unavailable")}
    assert all(answer.done for answer in answers if answer.status == 200), "a stream that runs does not need the store"


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


async def test_one_key_at_several_workers_at_once(shared):
    served, provider = shared.served, shared.provider
    provider.go_on.clear()
    asking = [asyncio.create_task(ask(served.port, 10, key="one")) for _ in range(40)]
    waiting = set(asking)
    while len(waiting) > 1:
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert (await ask(served.port, 10, number=1, key="one")).code == "idempotency_key_reused", "another body"
    other = asyncio.create_task(ask(served.port, 11, key="one"))
    await provider.request(1)
    provider.go_on.set()
    answers = await asyncio.gather(*asking)
    assert statuses(answers) == {OK: 1, (409, "request_in_progress"): 39}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 409)
    assert (await other).done, "another caller's key is another key"
    assert len(provider.made) == 2
    assert await used_by(served, 10) == await used_by(served, 11) == WHOLE
    assert (await ask(served.port, 10, number=1, key="one")).code == "idempotency_key_reused"


async def test_a_repeated_key_gets_the_ending_of_the_finished_answer(shared):
    served, provider = shared.served, shared.provider
    first = await ask(served.port, 12, key="one")
    assert first.done
    again = [await ask(served.port, 12, key="one") for _ in range(6)]
    assert statuses(again) == {OK: 6}
    assert {answer.events for answer in again} == {("start", "done")}
    assert {answer.headers.get("idempotency-replayed") for answer in again} == {"true"}
    for answer in again:
        assert (answer.done["usage"], answer.done["finish_reason"]) == (first.done["usage"], "length")
    assert "idempotency-replayed" not in first.headers
    assert len(provider.made) == 1
    assert await used_by(served, 12) == WHOLE


async def test_a_first_attempt_that_spent_nothing_frees_its_key(shared):
    served, provider = shared.served, shared.provider
    await provider.refuse()
    assert statuses([await ask(served.port, 13, key="one") for _ in range(2)]) == {(502, "upstream_unreachable"): 2}
    assert await used_by(served, 13) == 0
    await provider.accept()
    assert (await ask(served.port, 13, key="one")).done
    replayed = await ask(served.port, 13, key="one")
    assert replayed.events == ("start", "done")
    assert len(provider.made) == 1
    assert await used_by(served, 13) == WHOLE


async def test_leaving_during_a_reservation_frees_no_other_request(shared):
    served, store, provider = shared.served, shared.store, shared.provider
    provider.go_on.clear()
    running = asyncio.create_task(ask(served.port, 14, key="one"))
    await provider.request(0)
    async with store.busy():
        for _ in range(4):
            async with connect(served.port) as client:
                client.send("POST", "/api/chat", body(14), fields(14, "one"))
                await asyncio.sleep(0.1)  # it is being reserved
                client.reset()
    for _ in range(10):
        assert (await ask(served.port, 14, key="one")).code == "request_in_progress"
    provider.go_on.set()
    answer = await running
    assert answer.done
    assert await used_by(served, 14) == answer.charged == provider.total == WHOLE


# Last: a worker may need a moment after it.


async def test_a_hanging_store_refuses_every_queued_request(shared):
    served, store, provider = shared.served, shared.store, shared.provider
    await answered_again(served, [9])
    async with store.busy():
        answers = await storm(served.port, [9] * 200)
    assert statuses(answers) == {(503, "limiter_unavailable"): 200}
    check_refusals(answers)
    await answered_again(served, [9])
    assert len(provider.made) == 2
    await nothing_held(store)  # a release that the store did not take is tried again
    assert await used_by(served, 9) == provider.total, "what nobody was told of was released"
    assert shared.one_counter() == (provider.total, 0)
