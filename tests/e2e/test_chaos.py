"""Workers killed at random while their store is frozen, restarted and emptied: the provider never makes more than the limit.

CHAOS_SECONDS (4) is how long workers are killed under load, for each store; CHAOS_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
from collections import Counter

import pytest
from broken_stores import KINDS, BrokenStore, opened
from fleet import PROFILE, WHOLE, Answer, CountingProvider, Fleet, ask, config, fleet, ready

SECONDS = float(os.environ.get("CHAOS_SECONDS", "4"))
SEED = os.environ.get("CHAOS_SEED") or secrets.token_hex(4)
LIMIT = 60 * WHOLE
WORKERS = 3
CLIENTS = 6


def charged(store: BrokenStore) -> int:
    """What is used and held of the budget of all."""
    [(used, held)] = [each for key, each in store.reader.counters().items() if key.startswith("all:")]
    return used + held


async def load(served: Fleet, until: asyncio.Event, answers: list[Answer]) -> None:
    """Clients that ask one after another, each for a few callers."""

    async def client(number: int) -> None:
        asked = 0
        while not until.is_set():
            answers.append(await ask(served.port, number, asked))
            asked += 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))


async def kill_one(served: Fleet, dice: random.Random) -> None:
    if running := sorted(served.workers()):
        os.kill(dice.choice(running), signal.SIGKILL)


async def torment(served: Fleet, store: BrokenStore, dice: random.Random) -> None:
    """One fault, or a pair of them."""
    match dice.randrange(5):
        case 0 | 1:
            await kill_one(served, dice)
        case 2:
            with store.frozen():
                await asyncio.sleep(dice.uniform(0.1, 1.5))
        case 3:
            with store.frozen():
                await kill_one(served, dice)
                await asyncio.sleep(dice.uniform(0.1, 1.5))
        case _:
            await asyncio.to_thread(store.restart)
            await kill_one(served, dice)
    await asyncio.sleep(dice.uniform(0.1, 0.8))


async def refused(served: Fleet, code: str, *, always: bool = False) -> None:
    """Wait until a worker refuses with this code; `always`: nobody is let in before."""
    while (found := await ask(served.port, 99)).code != code:
        assert not always or found.status != 200, found
        await asyncio.sleep(0.05)


@pytest.mark.timeout(120 + 4 * SECONDS)
@pytest.mark.parametrize("kind", KINDS)
async def test_no_pair_of_faults_makes_a_budget_whole(tmp_path, kind):
    dice, loop = random.Random(SEED), asyncio.get_running_loop()
    print("CHAOS_SEED", SEED)
    folder = tmp_path / "fleet"
    folder.mkdir()
    answers, done = list[Answer](), asyncio.Event()
    async with opened(kind, folder) as store:
        async with CountingProvider(share=0.7, pause=0.01) as provider:
            text = config(store.reader.url, provider, f"{PROFILE} [limits]\n tokens_per_day = {LIMIT}", lease=5)
            async with fleet(folder, text, workers=WORKERS) as served:
                await ready(provider, WORKERS)
                loading = asyncio.create_task(load(served, done, answers))
                end = loop.time() + SECONDS
                while loop.time() < end:
                    await torment(served, store, dice)
                    assert provider.total <= LIMIT
                await refused(served, "budget_exceeded")
                done.set()
                await loading
                assert provider.total <= charged(store) <= LIMIT

                # All is spent. Emptied, with a worker killed at the same time, the store must admit nobody.
                made = len(provider.made)
                store.empty()
                await kill_one(served, dice)
                await refused(served, "limiter_unavailable", always=True)
                for _ in range(3 * WORKERS):
                    assert (await ask(served.port, 98)).status != 200
                await served.stop()
            (folder / "nginx").rename(folder / "nginx before")
            async with fleet(folder, text, workers=WORKERS) as served:  # and no more after a restart of all
                await refused(served, "limiter_unavailable", always=True)
                for _ in range(3 * WORKERS):
                    assert (await ask(served.port, 97)).status != 200
                assert "chat-nest store accept-empty --config chat.toml" in served.log
                await served.stop()
            assert len(provider.made) == made
            assert provider.total <= LIMIT
    told = Counter(answer.status for answer in answers)
    assert told[200] > 10, told
