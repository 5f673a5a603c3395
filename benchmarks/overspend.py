"""How far a budget is overspent, and how many requests are refused that it could pay, when many come at once.

    scripts/bench overspend [--store NAME] [--peers]

A budget pays 20 requests. 50, and then 1,000, come at once, from one caller, at two ledgers with a store each, as two
workers have them (in memory: at one). Each holds its share, waits until all others were answered, and uses all that it
held. It starts a Redis and a PostgreSQL of its own; exit code 2 names a missing one. With `--peers` LiteLLM, which it
installs, gets a budget of the same 20 requests, and the same crowds over HTTP: `used` is then what the provider was
asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import peers
from benchmarks.databases import Database, start_postgres, start_redis
from benchmarks.processes import Cores, Failed, Missing
from benchmarks.programs import BUILD, StandIn, compile_programs
from benchmarks.scenarios import fresh
from chat_nest.core.claims import Claim, Line, Refused
from chat_nest.core.errors import ChatError, LimiterUnavailable, LimitExceeded
from chat_nest.core.protocols import Store
from chat_nest.core.usage import Usage
from chat_nest.ledger.ledger import Ledger
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.redis import RedisStore
from chat_nest.stores.sqlite import SQLiteStore

AT_ONCE = (50, 1_000)
PAYS = 20
"""Requests."""
PROMPT, OUTPUT = 120, 400
STORES = ("memory", "sqlite", "redis", "postgres")


def budget(name: str, fixed: int = PROMPT) -> Line:
    return Line(
        key=f"caller:{name}:tokens_per_day:2026-11-21",
        name="tokens_per_day",
        scope="caller",
        unit="tokens",
        kind="window",
        limit=PAYS * (PROMPT + OUTPUT),
        fixed=fixed,
        per_million=1_000_000,
        resets_at=time.time() + 86_400,
    )


def refusal(_claim: Claim, _refused: Refused) -> ChatError:
    return LimitExceeded("tokens_per_day")


async def crowd(ledgers: Sequence[Ledger], number: int, name: str) -> tuple[int, int, int, float]:
    """Return how many were granted, refused and not answered, and the budget's use in multiples of it."""
    line, answered, all_answered = budget(name), 0, asyncio.Event()
    counts = {"granted": 0, "refused": 0, "unanswered": 0}

    def note(answer: str) -> None:
        nonlocal answered
        counts[answer] += 1
        answered += 1
        if answered == number:
            all_answered.set()

    async def one(index: int) -> None:
        claim = Claim(
            id=f"{name}-{index}",
            fingerprint="0",
            owner=f"{name}-{index}",
            lines=(line,),
            max_output_tokens=OUTPUT,
            min_output_tokens=OUTPUT,
        )
        try:
            async with ledgers[index % len(ledgers)].reserve(claim, PROMPT) as held:
                note("granted")
                await all_answered.wait()
                held.asked = True
                held.report(Usage(input_tokens=PROMPT, output_tokens=OUTPUT), last=True)
        except LimitExceeded:
            note("refused")
        except LimiterUnavailable:
            note("unanswered")

    await asyncio.gather(*(one(index) for index in range(number)))
    while any(ledger.unsettled for ledger in ledgers):  # noqa: ASYNC110 - the ledger notifies no one
        await asyncio.sleep(0.01)
    [standing] = await ledgers[0].peek([line])
    return counts["granted"], counts["refused"], counts["unanswered"], (standing.used + standing.held) / line.limit


async def measure(name: str, make: Callable[[], Store], workers: int) -> None:
    ledgers = [Ledger(make(), refusal) for _ in range(workers)]
    for ledger in ledgers:
        await ledger.store.ping()
    try:
        for number in AT_ONCE:
            granted, refused, unanswered, used = await crowd(ledgers, number, f"crowd{number}")
            wrongly = max(0, PAYS - granted)
            print(f"| {name} | {number:,} | {granted} | {refused} | {unanswered} | {used:.2f} x | {wrongly} |")
            if used > 1:
                raise Failed(f"{name}: {used:.2f} times the budget were spent")
    finally:
        for ledger in ledgers:
            await ledger.aclose()
            await ledger.store.aclose()


TOKENS, PROMPT_TOKENS = 20, 1_100
"""Of an answer of the stand-in, whose tokens come one by one within a second."""
NANODOLLARS = 150 * PROMPT_TOKENS + 600 * TOKENS
"""What LiteLLM's own table says of such an answer of gpt-4o-mini."""
PATIENCE = 300
"""Seconds: a thousand at once wait for LiteLLM for longer than a minute where other work runs."""


def measure_litellm() -> None:
    """The crowds at LiteLLM, each at a fresh one; one request before them tells it what a request costs."""
    compile_programs()
    peers.install_litellm()
    stack = peers.litellm_with_budget((PAYS + 1) * NANODOLLARS / 1e9)
    directory = Path(tempfile.mkdtemp(prefix="overspend-", dir=BUILD))
    standin, cores = StandIn(), Cores()
    try:
        for number in AT_ONCE:
            with fresh(stack, standin, cores, directory / str(number)) as running:
                running.warm_up(1)
                options = {"tokens": TOKENS, "connections": number, "requests": number, "rate": 1_000_000}
                before = standin.seen().requests
                load = running.begin(f"tokens={TOKENS},gap=50000", patience=PATIENCE, **options)
                found = load.outcome(2 * PATIENCE)
                used = (standin.wait_until_idle(PATIENCE).requests - before) / PAYS
            granted, refused = found.completed, found.refused
            unanswered, wrongly = number - granted - refused, max(0, PAYS - granted) if refused else 0
            print(f"| LiteLLM | {number:,} | {granted} | {refused} | {unanswered} | {used:.2f} x | {wrongly} |")
            if unanswered:
                print(f"LiteLLM, {number:,} at once: {found.error}", file=sys.stderr)
    finally:
        standin.stop()
        shutil.rmtree(directory)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overspend", description=__doc__)
    parser.add_argument("--store", action="append", choices=STORES, help="only this one; may be repeated")
    parser.add_argument("--peers", action="store_true", help="LiteLLM, too")
    asked = parser.parse_args()
    chosen = asked.store or STORES
    print("| store | at once | granted | refused | not answered | used | refused though paid |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    try:
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))

            def started(start: Callable[[str | None], Database]) -> str:
                database = start(None)
                stack.callback(database.stop)
                return database.url

            if "memory" in chosen:
                asyncio.run(measure("memory", MemoryStore, 1))
            if "sqlite" in chosen:
                asyncio.run(measure("SQLite", lambda: SQLiteStore(place / "one.db"), 2))
            if "redis" in chosen:
                url = started(start_redis)
                asyncio.run(measure("Redis", lambda: RedisStore(url), 2))
            if "postgres" in chosen:
                url_of_postgres = started(start_postgres)
                asyncio.run(measure("PostgreSQL", lambda: PostgresStore(url_of_postgres), 2))
            if asked.peers:
                measure_litellm()
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    except Failed as failed:
        print(f"FAILED: {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
