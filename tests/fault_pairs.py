"""Pairs of faults: a store that is broken, and a process that is killed, drained or stopped at the same time.

A round breaks the store of two processes under running streams, and does something to the first of them. In each round,
at each process, one stream goes on during the fault and one behind it; one client leaves, and one cancels; the provider
cuts one answer, and fails one before its first token; and others come while the store is broken. Then the ledger must
agree with what the provider knows that it made:

- every request is charged once: a window has what its claims have, and a record has what its claim has;
- nothing is lost: a caller is charged at least what the provider made for it, and exactly what it reported;
- no budget is passed, nothing stays held beyond its lease, and whoever has room is let in again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import re
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from broken_stores import KINDS, BrokenStore, Redis, broken, opened
from fleet import (
    FULL,
    MODEL,
    PROFILE,
    Answer,
    CountingProvider,
    Made,
    address,
    answered,
    ask,
    body,
    config,
    fields,
    text_of,
)
from processes import until
from raw_client import Client, Cut, Reply, connect, settled, standing
from scripted_provider import Connection, failure
from serve_command import Command, start
from store_servers import Claimed

from chat_nest.core.messages import Caller, Message
from chat_nest.counting.tokens import ByteCounter, prompt_bound

EVENTS = ("killed", "drained", "stopped")
"""What happens to the first process."""
LEASE = 5.0
ENVIRONMENT = {
    "CHAT_NEST_SERVER_DRAIN_SECONDS": "2",
    "CHAT_NEST_STORE_JOURNAL": "journal",
    "CHAT_NEST_PROVIDERS_P_COUNTING": "bytes",  # it begins sooner without a tokenizer, and without a list of prices
}
WHOLE = prompt_bound([Message(role="user", content=text_of(0))], ByteCounter()) + FULL
LIMIT = 16 * WHOLE
"""Of a caller, who is asked for 14 answers before the fault and a few during it."""
PATIENCE = 45.0
"""Seconds in which all must be over: a lease, a sweep, the longest pause of a settlement, and a busy machine."""

EARLY, LATE, LEAVES, CANCELS, CUT, FAILS, MORE = range(7)
"""What becomes of a stream, by the last digit of its number. Of one whose client leaves, nothing more is made: that
would be billed, and nobody could know of it."""
Pair = tuple[str, str, str]
"""A store, how it is broken, and what happens to a process."""


def all_pairs() -> list[Pair]:
    found = [(kind, fault, event) for kind, store in KINDS.items() for fault in store.FAULTS for event in EVENTS]
    return [("memory", "", event) for event in EVENTS] + found


def covering(dice: random.Random) -> list[Pair]:
    """Few triples in which each two of a store, a fault and an event come together, as far as they can."""
    triples = all_pairs()
    dice.shuffle(triples)

    def twos(triple: Pair) -> set[Any]:
        return set(itertools.combinations(enumerate(triple), 2))

    missing = set().union(*map(twos, triples))
    found: list[Pair] = []
    while missing:
        best = max(triples, key=lambda triple: len(twos(triple) & missing))
        found.append(best)
        missing -= twos(best)
    return found


class PairsProvider(CountingProvider):
    """Makes what it is asked for, and does to each stream what the last digit of its number says."""

    def __init__(self) -> None:
        super().__init__(share=0.7)
        self.steps = [asyncio.Event() for _ in range(7)]

    def begin_round(self) -> None:
        for step in self.steps:
            step.clear()

    async def begins(self, made: Made, connection: Connection) -> bool:
        if made.number % 10 != FAILS:
            return True
        await self.steps[FAILS].wait()
        await connection.send(failure(500))
        return False

    async def goes_on(self, made: Made, connection: Connection) -> bool:
        await self.steps[made.number % 10].wait()
        if made.number % 10 == CUT:
            connection.reset()
        return made.number % 10 != CUT


class Stream:
    """One client and what it gets."""

    def __init__(self, port: int, caller: int, number: int, *, broken: bool = False) -> None:
        self.broken = broken
        """The store was broken when it came."""
        self.port = port
        self.caller = caller
        self.number = number
        self.id = ""
        self.role = number % 10
        self.began = asyncio.Event()
        """Its head has come, or never will."""
        self.client: Client | None = None
        self.running = asyncio.create_task(self._run())

    async def _run(self) -> Answer:
        try:
            async with connect(self.port) as self.client:
                self.client.send("POST", "/api/chat", body(self.caller, self.number), fields(self.caller))
                return await answered(self.client, self.caller, self._on_head)
        except ConnectionError:
            return Answer(self.caller, 0, "refused", "", None, {}, 0.0)
        finally:
            self.began.set()

    def _on_head(self, reply: Reply) -> None:
        self.id = reply.headers.get("x-request-id", "")
        self.began.set()

    def leave(self) -> None:
        if self.client is not None and not self.running.done():
            self.client.reset()

    async def cancel(self) -> None:
        """Stop the answer. A process that is stopped itself hears of it later, and one that is gone never."""
        with contextlib.suppress(Cut, ConnectionError, TimeoutError):
            async with asyncio.timeout(PATIENCE), connect(self.port) as client:
                await client.post(b"", f"/api/chat/{self.id}/stop", fields(self.caller))


class Arena:
    """A store, the processes that share it, and their provider. `wrong` is what no pair of faults may come to."""

    def __init__(self, store: BrokenStore | None, folder: Path, provider: PairsProvider) -> None:
        self.wrong: list[str] = []
        self.log = ""
        """What the processes that ended have said."""
        self._store = store
        self._folder = folder
        self._provider = provider
        self._dice = random.Random()
        """The round's."""
        self._caller = 0
        self._workers: list[Command] = []
        self._beside: list[asyncio.Task[None]] = []
        self._is_broken = False
        self._forgotten: set[str] = set()
        """The claims of which an operator accepted that they are lost."""

    async def start(self) -> None:
        url = "memory://" if self._store is None else self._store.url
        sections = f"""{PROFILE} tokens_per_day = {LIMIT}
        concurrent_streams = 40
        [limits]
        tokens_per_day = 1_000_000_000
        concurrent_streams = 1_000
        [prices."{MODEL}"]
        input = 0.1
        output = 0.1
        """
        (self._folder / "chat.toml").write_text(config(url, self._provider, sections, lease=LEASE))
        self._workers = [await self._new_worker() for _ in range(1 if self._store is None else 2)]
        await self._all_serve()

    async def _new_worker(self) -> Command:
        return await start(self._folder, "--config", "chat.toml", **ENVIRONMENT)

    async def aclose(self) -> None:
        for worker in self._workers:
            if worker.process.returncode is None:
                worker.process.send_signal(signal.SIGCONT)
            await worker.kill()
            self.log += worker.said.decode()

    def _pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers if worker.process.returncode is None]

    async def round(self, fault: str, event: str, dice: random.Random) -> None:
        """Let one pair of faults happen, and look at what it has come to."""
        self._dice = dice
        self._caller += 1
        self._provider.begin_round()
        streams = [
            Stream(worker.port, self._caller, 10 * index + role)
            for index, worker in enumerate(self._workers)
            for role in (EARLY, LATE, LEAVES, CANCELS, CUT, FAILS)
        ]
        more: list[Stream] = []
        try:
            async with asyncio.timeout(3 * PATIENCE):
                await self._running(streams)
                await self._torment(fault, event, streams, more)
                for role in (EARLY, LATE, CUT, FAILS, MORE):
                    self._provider.steps[role].set()
                await self._all_serve()
                await asyncio.gather(*(stream.running for stream in (*streams, *more)), *self._beside)
        except TimeoutError:
            self.wrong.append("an answer or a process did not end")
            return
        self._beside.clear()
        if self._store is None:
            await self._look_from_outside(event)
        else:
            await self._look_at_ledger(fault, event, (*streams, *more))
        await self._look_who_is_let_in()

    async def _running(self, streams: Sequence[Stream]) -> None:
        """Wait until the provider has been asked for all of them, and the heads of those that begin have come."""
        for stream in streams:
            if stream.role != FAILS:
                await stream.began.wait()
        await until(lambda: len(self._made()) == len(streams))

    def _made(self) -> list[Made]:
        return [made for made in self._provider.made if made.caller == self._caller]

    async def _torment(self, fault: str, event: str, streams: Sequence[Stream], more: list[Stream]) -> None:
        """Break the store, strike the first process, and let everything else happen, in any order."""
        dice = self._dice
        steps: list[Callable[[], object]] = [
            lambda: [stream.leave() for stream in streams if stream.role == LEAVES],
            lambda: self._beside.extend(asyncio.create_task(each.cancel()) for each in streams if each.role == CANCELS),
            *(self._provider.steps[role].set for role in (EARLY, CUT, FAILS)),
        ]
        steps += [partial(self._come, event, more, number) for number in range(2, 5)]
        dice.shuffle(steps)
        steps.insert(dice.randrange(len(steps) + 1), partial(self._strike, event))
        mends_early = dice.random() < 0.3
        for _ in range(dice.choice((0, 0, 0, 2, 4))):
            steps.pop(0)()
        async with self._broken(fault):
            for step in steps:
                step()
                await asyncio.sleep(dice.choice((0.0, 0.0, 0.05, 0.3)))
            if dice.random() < 0.35:
                await asyncio.sleep(1.2 * LEASE)
            if fault in ("emptied", "restored"):
                came = [await stream.running for stream in more if stream.broken]
                self.wrong += ["somebody was let in while all was gone"] * any(answer.status == 200 for answer in came)
            if mends_early:
                await self._mend(event)
        if fault == "emptied" and self._store is not None:  # what is still kept of them has no counters any more
            self._forgotten |= {*self._store.reader.claims(), *_records(self._store)}
        if not mends_early:
            await self._mend(event)

    @asynccontextmanager
    async def _broken(self, fault: str) -> AsyncIterator[None]:
        if self._store is None:
            yield
            return
        async with broken(self._store, fault, random.Random(self._dice.random()), self._pids):
            self._is_broken = True
            yield
            self._is_broken = False

    def _come(self, event: str, more: list[Stream], number: int) -> None:
        """One more asks a process that can answer."""
        worker = self._workers[-1]
        if worker.process.returncode is None:
            more.append(Stream(worker.port, self._caller, 10 * number + MORE, broken=self._is_broken))

    def _strike(self, event: str) -> None:
        signals = {"killed": signal.SIGKILL, "drained": signal.SIGTERM, "stopped": signal.SIGSTOP}
        self._workers[0].process.send_signal(signals[event])

    async def _mend(self, event: str) -> None:
        """Let a process that was stopped go on, and start one in the place of one that ended, as often as that takes."""
        first = self._workers[0]
        if event == "stopped":
            first.process.send_signal(signal.SIGCONT)
        else:
            code = await first.ended()
            self.log += first.said.decode()
            if event == "drained" and code != 0:
                self.wrong.append(f"a process that was drained ended with {code}")
            self._workers[0] = await self._new_worker()

    async def _all_serve(self) -> None:
        """Wait until all serve. One whose store did not answer when it started has ended, and is started again."""
        for number in range(len(self._workers)):
            while not self._workers[number].port:
                try:
                    await self._workers[number].listening()
                except AssertionError:
                    self.log += self._workers[number].said.decode()
                    self._workers[number] = await self._new_worker()

    async def _look_at_ledger(self, fault: str, event: str, streams: Sequence[Stream]) -> None:
        """Wait until nothing is wrong any more: what could not be settled while the store was broken is settled late."""
        look = partial(self._differences, fault, event, streams)
        try:
            async with asyncio.timeout(PATIENCE):
                while wrong := await asyncio.to_thread(look):
                    await asyncio.sleep(0.3)
        except TimeoutError:
            self.wrong += wrong

    def _differences(self, fault: str, event: str, streams: Sequence[Stream]) -> list[str]:
        """Between what the store holds and what the provider made, and within the store."""
        assert self._store is not None
        reader = self._store.reader
        counters, claims = reader.counters(), reader.claims()
        charged = {id: claim for id, claim in claims.items() if claim.state != "released" and id not in self._forgotten}
        used = {key: used for key, (used, _) in counters.items()}
        together = sum(claim.tokens for claim in charged.values())
        wrong = [f"{key} holds {held}" for key, (_, held) in counters.items() if held]
        wrong += [f"{id} is open" for id, claim in claims.items() if claim.state == "open"]
        wrong += [f"{path.name} is there" for path in self._folder.rglob("*.journal")]
        if streams_held := reader.streams():
            wrong.append(f"{streams_held} streams are held")
        for scope in ("all:", "caller:"):
            found = sum(amount for key, amount in used.items() if key.startswith(scope))
            if found != together:
                wrong.append(f"{scope} has {found}, and its claims have {together}")
        records = {id: tokens for id, tokens in _records(self._store).items() if id not in self._forgotten}
        if not isinstance(self._store, Redis) and records != {id: claim.tokens for id, claim in charged.items()}:
            wrong.append("records are not what was charged")
        own = f"caller:{Caller(id=address(self._caller)).key}:"
        mine = sum(amount for key, amount in used.items() if key.startswith(own))
        made = sum(made.total for made in self._made())
        if max(mine, made) > LIMIT:
            wrong.append(f"of a budget of {LIMIT}, {mine} are used, and the provider made {made}")
        if fault == "emptied":
            return wrong
        if made > mine:
            wrong.append(f"the provider made {made}, of which {mine} are charged")
        return wrong + [each for stream in streams if (each := self._difference(stream, charged, fault, event))]

    def _difference(self, stream: Stream, charged: dict[str, Claimed], fault: str, event: str) -> str:
        """Between what one answer was charged and what the provider made."""
        answer = stream.running.result()
        made = sum(made.total for made in self._made() if made.number == stream.number)
        claim = charged.get(answer.id)
        if claim is None:
            return f"nothing is charged for {stream.number}, which has {made}" if made and answer.id else ""
        if claim.tokens < made:
            return f"{stream.number} is charged {claim.tokens}, and has {made}"
        if answer.done is None or (claim.tokens, claim.state, claim.source) == (made, "settled", "reported"):
            return ""
        # What a process knew when it was killed, or had no disk when it ended, is lost: then the lease decides.
        lost = stream.number < 10 and (event == "killed" or (event, fault) == ("drained", "full"))
        if lost and (claim.state, claim.source) == ("expired", "assumed"):
            return ""
        return f"{stream.number} is done with {made}, and charged {claim}"

    async def _look_from_outside(self, event: str) -> None:
        """A store that only its process knows, and that ends with it."""
        limits = await settled(self._workers[0].port, headers=fields(self._caller))
        used = limits["tokens_per_day"]["used"]
        made = sum(made.total for made in self._made())
        if not (0 if event in ("killed", "drained") else made) <= used <= LIMIT:
            self.wrong.append(f"the provider made {made} for a budget of {LIMIT}, of which {used} are charged")

    async def _standing(self) -> dict[str, dict[str, Any]]:
        return await standing(self._workers[0].port, fields(self._caller))

    async def _look_who_is_let_in(self) -> None:
        """At each process, whoever has room is, though perhaps not in the first moments after an outage."""
        for number, worker in enumerate(self._workers, 8):
            try:
                async with asyncio.timeout(PATIENCE):
                    while (
                        found := await ask(worker.port, self._caller, 10 * number + MORE)
                    ).code == "limiter_unavailable":
                        await asyncio.sleep(0.2)
            except TimeoutError:
                self.wrong.append("nobody is let in any more")
                return
            if found.done is None:
                room = (await self._standing())["tokens_per_day"]["remaining"]
                if found.code != "budget_exceeded" or room >= WHOLE:
                    self.wrong.append(f"refused with {found.status} {found.code}, with room for {room}")


def _records(store: BrokenStore) -> dict[str, int]:
    """The tokens of each request that is recorded, by the id of its claim; Redis keeps none."""
    return {} if isinstance(store, Redis) else store.reader.records()


@asynccontextmanager
async def arena(kind: str, folder: Path) -> AsyncIterator[Arena]:
    """A new store of this kind, with processes that use it."""
    async with contextlib.AsyncExitStack() as stack:
        store = None if kind == "memory" else await stack.enter_async_context(opened(kind, folder))
        provider = await stack.enter_async_context(PairsProvider())
        found = Arena(store, folder, provider)
        stack.push_async_callback(found.aclose)
        await found.start()
        yield found


async def run(pairs: Sequence[Pair], folder: Path, seed: str, until: float = math.inf) -> list[str]:
    """Let pairs happen, one after another at each store, and all stores at once; return what was wrong.

    The seed decides in which order everything happens within a pair. Nothing begins after `until`, in monotonic seconds.
    """

    async def at(kind: str) -> list[str]:
        (folder / kind).mkdir(parents=True)
        async with arena(kind, folder / kind) as found:
            for _, fault, event in [pair for pair in pairs if pair[0] == kind]:
                if (began := time.monotonic()) >= until:
                    break
                before = len(found.wrong)
                await found.round(fault, event, random.Random(f"{seed} {kind} {fault} {event}"))
                took = f"{time.monotonic() - began:5.1f} s"
                print(f"seed {seed}  {kind:10}  {fault or '-':9}  {event:7} {took}", flush=True)
                found.wrong[before:] = [f"{kind}, {fault}, {event}: {each}" for each in found.wrong[before:]]
                print(*(f"    wrong: {each}\n" for each in found.wrong[before:]), sep="", end="", flush=True)
        bugs = [
            f"{kind}: in a log: {line}" for line in found.log.splitlines() if re.search("Traceback|Exception", line)
        ]
        return found.wrong + bugs

    kinds = dict.fromkeys(pair[0] for pair in pairs)
    return list(itertools.chain(*await asyncio.gather(*map(at, kinds))))


def soak(minutes: float, seed: int, stores: Sequence[str], pair: str) -> list[str]:
    """Let all pairs of these stores happen in random orders for so long, or once the one that `pair` names.

    Each time that all have happened the seed is one more. Returns what was wrong, and the command that repeats it.
    """
    wrong: list[str] = []
    end = time.monotonic() + 60 * minutes
    while not wrong and time.monotonic() < end:
        pairs = [each for each in all_pairs() if each[0] in stores and pair in ("", ",".join(each[1:]))]
        random.Random(seed).shuffle(pairs)
        with tempfile.TemporaryDirectory() as folder:
            wrong = asyncio.run(run(pairs, Path(folder), str(seed), end))
        if pair:
            break
        seed += 1
    if wrong and not pair:
        wrong.append(f"again: scripts/soak --faults --seed {seed - 1} --store STORE --pair FAULT,EVENT")
    return wrong
