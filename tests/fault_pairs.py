"""Pairs of faults: a store that is broken, and a process that is killed, drained or stopped at the same time.

A round breaks the store of two processes under running streams, does something to the first of them, and lets an
operator act on both. In each round, at each process, one stream goes on during the fault and one behind it; one client
leaves, and one cancels; the provider cuts one answer, and fails one before its first token; others come while the store
is broken, and the last of them waits in the queue. The caller is an IP address in one round, a session in the next.
Then the ledger must agree with what the provider knows that it made:

- every request is charged once: a window has what its claims have, and a record has what its claim has;
- nothing is lost: a caller is charged at least what the provider made for it, and exactly what it reported;
- no budget is passed, nothing stays held beyond its lease, and whoever has room is let in again;
- with an allowance for outages, all callers together are charged at least what the provider made, what the allowance
  admits is no more than it, and of the processes that live each holds one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import re
import signal
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import psycopg
from broken_stores import KINDS, BrokenStore, Redis, SQLite, broken, opened
from fleet import (
    FULL,
    MODEL,
    PROFILE,
    Answer,
    CountingProvider,
    Made,
    address,
    answered,
    body,
    config,
    fields,
    text_of,
)
from postgres_server import can_mount
from raw_client import Client, Cut, Reply, connect, settled, standing
from scripted_provider import Connection, failure
from serve_command import Command, start
from store_servers import Claimed

from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.messages import Caller, Message, hashed
from chat_nest.counting.bounds import prompt_bound
from chat_nest.counting.tokens import ByteCounter
from chat_nest.identity.sessions import Session, Sessions
from chat_nest.server.operator import Operator
from chat_nest.stores.urls import open_store

EVENTS = ("killed", "drained", "stopped")
"""What happens to the first process."""
ACTS = ("lowered", "paused", "ended")
"""What an operator does: a reload that lowers the caller's limit below what is held, a pause of the caller that must
still be in force when all is over, or, in the store, an end to the answers that clients cancel otherwise."""
AT_ONCE = 4
"""The stores, each with its two processes, that are broken at the same time."""
LEASE = 5.0
WHOLE = prompt_bound([Message(role="user", content=text_of(0))], ByteCounter()) + FULL
LIMIT = 16 * WHOLE
"""Of a caller, who is asked for 14 answers before the fault and a few during it."""
LOWERED = 2 * WHOLE
STREAMS = 7
"""Of the provider at once, for each process: six run before the fault."""
ENVIRONMENT = {
    "CHAT_NEST_SERVER_DRAIN_SECONDS": "2",
    "CHAT_NEST_STORE_JOURNAL": "journal",
    "CHAT_NEST_PROVIDERS_P_COUNTING": "bytes",  # it begins sooner without a tokenizer, and without a list of prices
}
BEFORE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.getuid() == 0 else ()
"""What a process is started by: root's may not write a file that it must not, as no other user's may."""
LASTING = ("emptied", "restored")
"""Faults in which a store is another one for a while: an operator acts before them."""
ALLOWANCE = 4 * WHOLE
"""Of each process, in tokens."""
SECRET = "the-secret-of-the-sessions-of-these-rounds"
PATIENCE = 45.0
"""Seconds in which all must be over: a lease, a sweep, the longest pause of a settlement, and a busy machine."""

EARLY, LATE, LEAVES, CANCELS, CUT, FAILS, MORE = range(7)
"""What becomes of a stream, by the last digit of its number. Of one whose client leaves, nothing more is made: that
would be billed, and nobody could know of it."""


class Pair(NamedTuple):
    """One round."""

    store: str
    fault: str
    event: str
    act: str
    mode: str
    """`degraded` with an allowance for outages, else `closed`."""

    @property
    def name(self) -> str:
        """As `--pair` takes it."""
        return ",".join(self[1:])


def all_pairs() -> list[Pair]:
    found = [Pair("memory", "", event, "lowered", "closed") for event in EVENTS]
    for kind, store in KINDS.items():
        faults = [fault for fault in store.FAULTS if (kind, fault) != ("postgresql", "full") or can_mount()]
        rounds = itertools.product([kind], faults, EVENTS, ACTS, ("closed", "degraded"))
        found += itertools.starmap(Pair, rounds)
    return found


def covering(dice: random.Random) -> list[Pair]:
    """Few rounds in which each two of a store, a fault, an event, an act and a mode come together, as far as they can."""
    rounds = all_pairs()
    dice.shuffle(rounds)

    def twos(pair: Pair) -> set[Any]:
        return set(itertools.combinations(enumerate(pair), 2))

    missing = set().union(*map(twos, rounds))
    found: list[Pair] = []
    while missing:
        best = max(rounds, key=lambda pair: len(twos(pair) & missing))
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

    def __init__(self, port: int, caller: int, number: int, fields: Mapping[str, str], *, broken: bool = False) -> None:
        self._fields = fields
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
                self.client.send("POST", "/api/chat", body(self.caller, self.number), self._fields)
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
            with contextlib.suppress(OSError):  # its process was there first
                self.client.reset()

    async def cancel(self) -> None:
        """Stop the answer. A process that is stopped itself hears of it later, and one that is gone never."""
        with contextlib.suppress(Cut, ConnectionError, TimeoutError):
            async with asyncio.timeout(PATIENCE), connect(self.port) as client:
                await client.post(b"", f"/api/chat/{self.id}/stop", self._fields)


class Arena:
    """A store, the processes that share it, and their provider. `wrong` is what no pair of faults may come to."""

    def __init__(self, store: BrokenStore | None, mode: str, folder: Path, provider: PairsProvider) -> None:
        self.wrong: list[str] = []
        self.log = ""
        """What the processes that ended have said."""
        self._store = store
        self._mode = mode
        self._folder = folder
        self._provider = provider
        self._dice = random.Random()
        """The round's."""
        self._caller = 0
        self._session: Session | None = None
        """The caller's, if it has one."""
        self._workers: list[Command] = []
        self._beside: list[asyncio.Task[None]] = []
        self._is_broken = False
        self._forgotten: set[str] = set()
        """The claims of which an operator accepted that they are lost."""
        self._made_before = 0
        """What the provider had made when the store was emptied last."""
        self._ended = 0
        """The processes that ended since."""

    async def start(self) -> None:
        self._configure(LIMIT)
        self._workers = [await self._new_worker() for _ in range(1 if self._store is None else 2)]
        await self._all_serve()

    def _configure(self, limit: int) -> None:
        url = "memory://" if self._store is None else self._store.url
        sections = f"""{PROFILE} tokens_per_day = {limit}
        concurrent_streams = 40
        [queue]
        seconds = 60
        [identity]
        accept = ["session", "address"]
        [sessions]
        secrets = ["{SECRET}"]
        [limits]
        tokens_per_day = 1_000_000_000
        concurrent_streams = 1_000
        [prices."{MODEL}"]
        input = 0.1
        output = 0.1
        """
        if self._mode == "degraded":
            sections += f"[degraded]\ntokens = {ALLOWANCE}\nstreams = {STREAMS}\n"
        (self._folder / "chat.toml").write_text(config(url, self._provider, sections, lease=LEASE))

    async def _new_worker(self) -> Command:
        # The workers share the provider's streams: some wait for one.
        most = {"CHAT_NEST_PROVIDERS_P_CONCURRENT_STREAMS": str(STREAMS * (1 if self._store is None else 2))}
        return await start(self._folder, "--config", "chat.toml", before=BEFORE, **ENVIRONMENT, **most)

    async def aclose(self) -> None:
        for worker in self._workers:
            if worker.process.returncode is None:
                worker.process.send_signal(signal.SIGCONT)
            await worker.kill()
            self.log += worker.said.decode()

    def _pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers if worker.process.returncode is None]

    @property
    def _id(self) -> str:
        """The caller of this round."""
        return f"session:caller {self._caller}" if self._session else address(self._caller)

    def _fields(self) -> dict[str, str]:
        session = self._session
        return fields(self._caller) | ({"authorization": f"Bearer {session.token}"} if session else {})

    async def round(self, pair: Pair, dice: random.Random) -> None:
        """Let one pair of faults happen, and look at what it has come to."""
        _, fault, event, act, _ = pair
        self._dice = dice
        self._caller += 1
        self._session = None
        if self._caller % 2:
            self._session = Sessions([SECRET]).create(caller=f"caller {self._caller}", limits={"tokens": LIMIT})
        self._provider.begin_round()
        streams: list[Stream] = []
        more: list[Stream] = []
        waits_for = "streams to begin"
        try:
            async with asyncio.timeout(3 * PATIENCE):
                await self._begin(streams, (EARLY, LATE, LEAVES, CANCELS, CUT))
                await self._begin(streams, (FAILS,))  # or the breaker may wait for it alone
                waits_for = "the faults to be over"
                await self._torment(pair, streams, more)
                waits_for = "processes to serve and answers to end"
                for role in (EARLY, LATE, CUT, FAILS, MORE):
                    self._provider.steps[role].set()
                await self._all_serve()
                await asyncio.gather(*(stream.running for stream in (*streams, *more)), *self._beside)
                waits_for = "what the operator did to be in force"
                await self._end_act(act, fault)
        except TimeoutError:
            ends = {each.number: each.running.done() and each.running.result().code for each in (*streams, *more)}
            self.wrong.append(f"waited in vain for {waits_for}: {ends}")
            return
        self._beside.clear()
        if fault == "emptied":
            self._made_before = self._provider.total
        if self._store is None:
            await self._look_from_outside(event)
        else:
            await self._look_at_ledger(fault, event, (*streams, *more))
        await self._look_who_is_let_in()

    async def _begin(self, streams: list[Stream], roles: Sequence[int]) -> None:
        """Add a stream of each role at each process, and wait until the provider has been asked for all of them.

        Who was refused comes again: a store that is slow once, on a busy machine, counts as down.
        """
        for index, worker in enumerate(self._workers):
            streams += [Stream(worker.port, self._caller, 10 * index + role, self._fields()) for role in roles]
        while True:
            for stream in streams:
                if stream.role != FAILS:
                    await stream.began.wait()
            asked = {made.number for made in self._made()}
            if len(asked) == len(streams):
                return
            for place, stream in enumerate(streams):
                if stream.running.done() and stream.number not in asked:
                    streams[place] = Stream(stream.port, self._caller, stream.number, self._fields())
            await asyncio.sleep(0.1)

    def _made(self) -> list[Made]:
        return [made for made in self._provider.made if made.caller == self._caller]

    async def _torment(self, pair: Pair, streams: Sequence[Stream], more: list[Stream]) -> None:
        """Break the store, strike the first process, and let everything else happen, in any order."""
        _, fault, event, act, _ = pair
        dice = self._dice
        cancelled = [stream for stream in streams if stream.role == CANCELS]

        def leave() -> None:
            for stream in streams:
                if stream.role == LEAVES:
                    stream.leave()

        steps: list[Callable[[], object]] = [
            leave,
            *(self._provider.steps[role].set for role in (EARLY, CUT, FAILS)),
        ]
        steps += [partial(self._come, more, number) for number in range(2, 5)]
        if act != "ended":
            steps.append(lambda: self._beside.extend(asyncio.create_task(each.cancel()) for each in cancelled))
        if fault in LASTING:
            await asyncio.gather(*self._acts(act, cancelled))
        else:
            steps.append(lambda: self._beside.extend(map(asyncio.create_task, self._acts(act, cancelled))))
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
            if fault in LASTING and self._mode == "closed":
                self._provider.steps[FAILS].set()  # one may wait for a stream of the provider
                came = [await stream.running for stream in more if stream.broken]
                self.wrong += ["somebody was let in while all was gone"] * any(answer.done for answer in came)
            if mends_early:
                await self._mend(event)
            if fault == "emptied" and self._store is not None:
                self._forgotten |= _left(self._store)  # what is still kept of them has no counters any more
        if fault == "emptied":
            self._ended = 0
        if not mends_early:
            await self._mend(event)

    # What an operator does.

    def _acts(self, act: str, cancelled: Sequence[Stream]) -> Iterator[Coroutine[Any, Any, None]]:
        if act == "lowered":
            yield self._lower()
        elif act == "paused":
            yield self._operate(lambda operator: operator.pause(self._pause))
        else:
            yield from map(self._end, cancelled)

    @property
    def _pause(self) -> str:
        return f"caller:{Caller(id=self._id).key}"

    async def _lower(self) -> None:
        self._configure(LOWERED)
        self._reload()

    def _reload(self) -> None:
        for worker in self._workers:
            if worker.port and worker.process.returncode is None:
                worker.process.send_signal(signal.SIGHUP)

    async def _end(self, stream: Stream) -> None:
        """End an answer: again, if its process was not there to see that."""
        while not stream.running.done():
            await self._operate(lambda operator: operator.stop(stream.id))
            await asyncio.wait([stream.running], timeout=2)

    async def _operate(self, act: Callable[[Operator], Awaitable[Any]]) -> None:
        """Act in the store, as soon as it takes that."""
        assert self._store is not None
        while True:
            ours: Any = open_store(self._store.reader.url)
            try:
                await act(Operator(ours, ZoneInfo("UTC"), by="a round"))
            except LimiterUnavailable:
                await asyncio.sleep(0.3)
            else:
                return
            finally:
                await ours.aclose()

    async def _end_act(self, act: str, fault: str) -> None:
        """Wait until the act is in force everywhere, unless its store was emptied since, and take it back."""
        if act == "lowered":
            self._configure(LIMIT)
            for worker in self._workers:
                while True:  # at least once: the first reload may have read the file, and not be in force yet
                    self._reload()
                    await asyncio.sleep(0.5)
                    if await self._limit(worker) == LIMIT:
                        break
        elif act == "paused":
            for number, worker in enumerate(self._workers, 6):
                while fault != "emptied" and (await self._ask(worker, number)).code != "paused":
                    await asyncio.sleep(0.2)
            await self._operate(lambda operator: operator.resume(self._pause))

    async def _limit(self, worker: Command) -> int:
        """What a process has in force; 0 while it can't tell."""
        with contextlib.suppress(AssertionError, ConnectionError, Cut):
            return int((await standing(worker.port, self._fields()))["tokens_per_day"]["limit"])
        return 0

    async def _ask(self, worker: Command, number: int) -> Answer:
        return await Stream(worker.port, self._caller, 10 * number + MORE, self._fields()).running

    @asynccontextmanager
    async def _broken(self, fault: str) -> AsyncIterator[None]:
        if self._store is None:
            yield
            return
        self._is_broken = True
        async with broken(self._store, fault, random.Random(self._dice.random()), self._pids):
            yield
            self._is_broken = False

    def _come(self, more: list[Stream], number: int) -> None:
        """One more asks a process that can answer."""
        worker = self._workers[-1]
        if worker.process.returncode is None:
            more.append(Stream(worker.port, self._caller, 10 * number + MORE, self._fields(), broken=self._is_broken))

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
            self._ended += 1
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
        funds = {id: charged.pop(id) for id in claims if id in charged and id.startswith("allowance-")}
        posts = {id: claim for id, claim in charged.items() if "." in id}  # what was admitted on an allowance
        open_funds = sum(claim.state == "open" for claim in funds.values())
        wrong = [f"{id} is open" for id, claim in charged.items() if claim.state == "open"]
        wrong += [f"{path.name} is there" for path in self._folder.rglob("*.journal")]
        living = len(self._workers) if self._mode == "degraded" else 0
        if not living <= open_funds <= living + (self._ended if living else 0):
            wrong.append(f"{open_funds} allowances are held, by {living} processes; {self._ended} have ended")
        for key, (_, held) in counters.items():
            if held != (ALLOWANCE * open_funds if key.startswith("all:") else 0):
                wrong.append(f"{key} holds {held}")
        if (streams_held := reader.streams()) != STREAMS * open_funds:
            wrong.append(f"{streams_held} streams are held")
        used = {key: used for key, (used, _) in counters.items()}
        requests = sum(claim.tokens for claim in charged.values())
        drawn = sum(claim.tokens for claim in posts.values())
        spent = sum(claim.tokens for claim in funds.values() if claim.state != "open")
        for scope, theirs in (("all:", requests - drawn + spent), ("caller:", requests)):
            found = sum(amount for key, amount in used.items() if key.startswith(scope))
            if found != theirs:
                wrong.append(f"{scope} has {found}, and its claims have {theirs}")
        if drawn > spent + ALLOWANCE * open_funds:
            wrong.append(f"{drawn} were admitted on allowances, of which {spent} are charged")
        records = {id: tokens for id, tokens in _records(self._store).items() if id not in self._forgotten}
        if not isinstance(self._store, Redis) and records != {id: claim.tokens for id, claim in charged.items()}:
            differ = {id for id, _ in records.items() ^ {(id, claim.tokens) for id, claim in charged.items()}}
            both = [(id, records.get(id), charged.get(id)) for id in sorted(differ)]
            wrong.append(f"records are not what was charged: {both}")
        own = f"caller:{Caller(id=self._id).key}:"
        mine = sum(amount for key, amount in used.items() if key.startswith(own))
        made = sum(made.total for made in self._made())
        if max(mine, made) > LIMIT + (drawn if self._mode == "degraded" else 0):
            wrong.append(f"of a budget of {LIMIT}, {mine} are used, and the provider made {made}")
        if self._session is not None:
            in_session = used.get(f"session:{hashed(self._session.id)}:tokens", 0)
            if in_session != mine:
                wrong.append(f"the session has {in_session}, and its caller {mine}")
        if fault == "emptied":
            return wrong
        known = sum(made.total for made in self._made() if not self._is_lost(made.number, event))
        if known > mine:
            wrong.append(f"the provider made {known}, of which {mine} are charged")
        total = self._provider.total - self._made_before
        all_charged = sum(amount for key, amount in used.items() if key.startswith("all:"))
        all_charged += ALLOWANCE * (open_funds - living)  # held for a process that is dead, until the lease ends
        if total > all_charged:
            wrong.append(f"the provider made {total}, of which {all_charged} are charged to all")
        return wrong + [each for stream in streams if (each := self._difference(stream, charged, fault, event))]

    def _is_lost(self, number: int, event: str) -> bool:
        """Whether a process that was killed may have admitted it on an allowance, which is charged, but not to the caller."""
        return self._mode == "degraded" and event == "killed" and number < 10

    def _difference(self, stream: Stream, charged: dict[str, Claimed], fault: str, event: str) -> str:
        """Between what one answer was charged and what the provider made."""
        answer = stream.running.result()
        made = sum(made.total for made in self._made() if made.number == stream.number)
        found = [claim for id, claim in charged.items() if answer.id and id.partition(".")[0] == answer.id]
        if not found:
            lost = not made or not answer.id or self._is_lost(stream.number, event)
            return "" if lost else f"nothing is charged for {stream.number}, which has {made}"
        if sum(claim.tokens > 0 for claim in found) > 1:
            return f"{stream.number} is charged {len(found)} times"
        claim = max(found, key=lambda claim: claim.tokens)  # one more was given back, after its lease
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
        limits = await settled(self._workers[0].port, headers=self._fields())
        used = limits["tokens_per_day"]["used"]
        made = sum(made.total for made in self._made())
        if not (0 if event in ("killed", "drained") else made) <= used <= LIMIT:
            self.wrong.append(f"the provider made {made} for a budget of {LIMIT}, of which {used} are charged")

    async def _standing(self) -> dict[str, dict[str, Any]]:
        return await standing(self._workers[0].port, self._fields())

    async def _look_who_is_let_in(self) -> None:
        """At each process, whoever has room is, though perhaps not in the first moments after an outage."""
        for number, worker in enumerate(self._workers, 8):
            try:
                async with asyncio.timeout(PATIENCE):
                    while (found := await self._ask(worker, number)).code in ("limiter_unavailable", "paused"):
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


def _left(store: BrokenStore) -> set[str]:
    """The claims and records that are still there of an emptied store."""
    if isinstance(store, SQLite) and not store.path.exists():
        return set()
    try:
        return {*store.reader.claims(), *_records(store)}
    except (sqlite3.Error, psycopg.Error):  # they are gone, too
        return set()


@asynccontextmanager
async def arena(kind: str, mode: str, folder: Path) -> AsyncIterator[Arena]:
    """A new store of this kind, with processes that use it."""
    async with contextlib.AsyncExitStack() as stack:
        store = None if kind == "memory" else await stack.enter_async_context(opened(kind, folder))
        provider = await stack.enter_async_context(PairsProvider())
        found = Arena(store, mode, folder, provider)
        stack.push_async_callback(found.aclose)
        await found.start()
        yield found


async def run(pairs: Sequence[Pair], folder: Path, seed: str, until: float = math.inf) -> list[str]:
    """Let pairs happen, one after another at each store in each mode, and some of these at once; return what was wrong.

    The seed decides in which order everything happens within a pair. Nothing begins after `until`, in monotonic seconds.
    """

    async def at(kind: str, mode: str) -> list[str]:
        place = folder / f"{kind}-{mode}"
        place.mkdir(parents=True)
        async with contextlib.AsyncExitStack() as stack:
            async with at_once:
                found = await stack.enter_async_context(arena(kind, mode, place))
            for pair in [pair for pair in pairs if (pair.store, pair.mode) == (kind, mode)]:
                if time.monotonic() >= until:
                    break
                before = len(found.wrong)
                async with at_once:
                    began = time.monotonic()
                    await found.round(pair, random.Random(f"{seed} {pair}"))
                took = f"{time.monotonic() - began:5.1f} s"
                print(f"seed {seed}  {kind:10}  {pair.name:34} {took}", flush=True)
                found.wrong[before:] = [f"{kind} {pair.name}: {each}" for each in found.wrong[before:]]
                print(*(f"    wrong: {each}\n" for each in found.wrong[before:]), sep="", end="", flush=True)
        bugs = [
            f"{kind}: in a log: {line}" for line in found.log.splitlines() if re.search("Traceback|Exception", line)
        ]
        return found.wrong + bugs

    at_once = asyncio.Semaphore(AT_ONCE)
    kinds = dict.fromkeys((pair.store, pair.mode) for pair in pairs)
    return list(itertools.chain(*await asyncio.gather(*itertools.starmap(at, kinds))))


def soak(minutes: float, seed: int, stores: Sequence[str], pair: str) -> list[str]:
    """Let all pairs of these stores happen in random orders for so long, or once the one that `pair` names.

    Each time that all have happened the seed is one more. Returns what was wrong, and the command that repeats it.
    """
    wrong: list[str] = []
    end = time.monotonic() + 60 * minutes
    while not wrong and time.monotonic() < end:
        pairs = [each for each in all_pairs() if each.store in stores and each.name.startswith(pair)]
        random.Random(seed).shuffle(pairs)
        with tempfile.TemporaryDirectory() as folder:
            wrong = asyncio.run(run(pairs, Path(folder), str(seed), end))
        if pair:
            break
        seed += 1
    if wrong and not pair:
        wrong.append(f"again: scripts/soak --faults --seed {seed - 1} --store STORE --pair PAIR, as its line has it")
    return wrong
