"""Runs in Redis, for fleets: one stream a run, written by the process that runs it and read by any process.

A run's keys share a slot of a Cluster. So do a process's own messages (that it lives) and the messages to it (that
another process reads its run). Messages to all processes (to stop a run) are in another slot.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec.structs import replace

from chat_nest.core.protocols import FollowedRun
from chat_nest.runs.codec import Ended, Said, write
from chat_nest.runs.memory import MemoryRun, MemoryRuns
from chat_nest.runs.redis_connection import BLOCK_SECONDS, TROUBLE, Link
from chat_nest.runs.redis_followed import RunFacts, RunInRedis, ms, read_word
from chat_nest.stores.redis.resp import Denied

GATHER_SECONDS = 0.04
"""The time between two writes of a run: batches in between are written together."""
STOP_SECONDS = 0.3
"""The time for a run's process to report that it has stopped it."""
BEAT_SECONDS = 1.0
ALIVE_SECONDS = 4.0
"""A process without a beat for this long counts as dead."""
RUNNING_SECONDS = 3_600.0
"""How long a run without a known end is kept: its process is gone, or has not renewed it."""
RENEW_SECONDS = 900.0
"""The time between two renewals of what a process keeps of a running run."""
CLOSE_SECONDS = 2.0
GIVE_UP_SECONDS = 10.0
"""How long writing a run's end is retried."""


_ADD = """
local added = redis.pcall('XADD', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return added
"""
"""Add an entry and its expiry in one step, so that a killed process leaves no log without an expiry."""
_NAME = """
local run = redis.call('GET', KEYS[1])
if not run or run == ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
"""
"""Point a name to a run, unless it points to a newer one, whose expiry must not change."""
_REPLY = "redis.call('RPUSH', KEYS[1], 1) redis.call('PEXPIRE', KEYS[1], 5000)"


class _GaveUp(Exception):
    """The run has ended and can't be written: no process can follow it."""


class SharedRun(MemoryRun):
    """A running run of this process."""

    names: Sequence[str] = ()
    renewed_at = 0.0
    """When the expiry of all its keys was last set, in the event loop's seconds."""
    elsewhere_at = 0.0
    """When another process was last known to read it, in the event loop's seconds."""

    @property
    def readers(self) -> int:
        here = super().readers
        return here + (self.elsewhere_at > asyncio.get_running_loop().time() - 2 * BEAT_SECONDS)

    @property
    def left_at(self) -> float:
        return max(super().left_at, self.elsewhere_at)


class RedisRuns:
    """A RunLogs on the servers that `url` names (see `stores.redis.topology.read_url`).

    Appending never waits: one task a run writes what has gathered, at most 25 times a second and one write at a time.
    While Redis does not answer, runs go on, and their batches wait in memory, as much as a MemoryRun holds. Runs are
    kept for `keep` seconds after their end. Each key begins with `{PREFIX:`. Raises ValueError for an unusable URL.
    """

    def __init__(self, url: str, *, keep: float = 300.0, prefix: str = "chat-nest") -> None:
        self._link = Link(url, prefix)
        self._keep = keep
        self._process = secrets.token_hex(8)
        self._live: dict[str, SharedRun] = {}
        self._here = MemoryRuns(keep=0.0)
        self._stop: Callable[[str, str], bool] = lambda _name, _owner: False
        self._attending: list[asyncio.Task[None]] = []
        self._writing: set[asyncio.Task[None]] = set()

    def begin(self, id: str, owner: str, model: str, names: Sequence[str] = ()) -> SharedRun:
        run = self._live[id] = SharedRun(id, owner, model)
        run.names, run.renewed_at = tuple(names), asyncio.get_running_loop().time()
        self._here.put(run, names)
        task = asyncio.create_task(self._write(run))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return run

    def ended(self, id: str, names: Sequence[str] = ()) -> None:
        """Drop the run here: from now on it is only in Redis."""
        self._live.pop(id, None)
        self._here.ended(id, names)

    def listen(self, stop: Callable[[str, str], bool]) -> None:
        self._stop = stop

    def attend(self) -> None:
        if not self._attending:
            self._attending = [asyncio.create_task(self._beat()), asyncio.create_task(self._hear())]

    async def find(self, name: str) -> FollowedRun | None:
        if here := await self._here.find(name):
            return here
        async with self._link.answering():
            call = self._link.call
            about, id = await asyncio.gather(call("run", name, "GET", "about"), call("name", name, "GET", "run"))
            if about is None and id is not None:
                name = id.decode()
                about = await call("run", name, "GET", "about")
        return None if about is None else RunInRedis(self._link, name, read_word(about))

    async def stop(self, name: str, owner: str) -> bool:
        """Send the stop to every process, and wait for the one that has the run."""
        reply = self._link.key("runs", "", f"stopped:{secrets.token_hex(8)}")
        async with self._link.answering(), self._link.own("runs", "") as ask:
            words = ("MAXLEN", "~", 1_000, "*", "name", name, "owner", owner, "reply", reply)
            await ask("XADD", self._link.key("runs", "", "stops"), *words)
            return await ask("BLPOP", reply, str(STOP_SECONDS)) is not None

    async def forget(self, id: str, owner: str) -> bool:
        await self._here.forget(id, owner)
        async with self._link.answering():
            about = await self._link.call("run", id, "GET", "about")
            found = None if about is None else read_word(about)
            if found is None or found.owner != owner or found.finale is None:
                return False
            await self._link.call("run", id, "DEL", "about")
            await self._link.call("run", id, "DEL", "log")
            return True

    async def aclose(self) -> None:
        """Write the runs that have ended, for a moment, and close the connections."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=CLOSE_SECONDS)
        tasks = [*self._attending, *self._writing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._attending = []
        await self._link.aclose()

    # Tasks that run beside the requests.

    async def _write(self, run: SharedRun) -> None:
        """Write the run as it goes on, and its ending."""
        about = RunFacts(run.owner, run.model, self._process)
        sent = 0
        try:
            await self._insist(run, lambda: self._introduce(run, about))
            while run.finale is None or sent < run.last:
                sent = max(sent, run.forgotten)
                batches = run.behind(sent)
                if batches:
                    said = write(Said(sent + 1, [list(batch) for batch in batches]))
                    sent += len(batches)
                    await self._insist(run, lambda number=sent, data=said: self._add(run, number, data))  # type: ignore[misc]
                    await asyncio.sleep(0 if run.finale else GATHER_SECONDS)
                elif run.finale is None:
                    await run.news()
            finale = run.finale
            await self._insist(run, lambda: self._add(run, run.last + 1, write(Ended(finale))))
            done = replace(about, last=run.last, finale=finale)
            await self._insist(run, lambda: self._conclude(run, done))
        except _GaveUp:
            return

    async def _introduce(self, run: SharedRun, about: RunFacts) -> None:
        lives = ("PX", ms(RUNNING_SECONDS))
        await self._link.call("run", run.id, "SET", "about", write(about), *lives)
        for name in run.names:
            await self._link.call("name", name, "SET", "run", run.id, *lives)

    async def _renew(self, run: SharedRun) -> None:
        """Renew the keys that no other code writes while the run goes on. Nothing is sent once the run has ended."""
        lives = ms(RUNNING_SECONDS)
        for name in ("about", "log"):
            if run.finale is None:
                await self._link.call("run", run.id, "PEXPIRE", name, lives)
        for name in run.names:
            if run.finale is None:
                await self._link.evaluate("name", name, _NAME, "run", run.id, lives)

    async def _conclude(self, run: SharedRun, about: RunFacts) -> None:
        lives = ms(self._keep)
        await self._link.call("run", run.id, "SET", "about", write(about), "PX", lives)
        await self._link.call("run", run.id, "PEXPIRE", "log", lives)
        for name in run.names:
            await self._link.evaluate("name", name, _NAME, "run", run.id, lives)

    async def _add(self, run: SharedRun, number: int, data: bytes) -> None:
        """Add an entry, by the number of its last batch; the stream drops what the memory has forgotten."""
        trimmed = ("MINID", "=", f"{run.forgotten + 1}-0") if run.forgotten else ()
        words = (*trimmed, f"{number}-0", "said", data)
        try:
            await self._link.evaluate("run", run.id, _ADD, "log", ms(RUNNING_SECONDS), *words)
        except Denied as failure:
            if "equal or smaller" not in str(failure):  # else it is there, and only the answer was lost
                raise

    async def _insist(self, run: SharedRun, attempt: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Retry until it succeeds, but after the run's end for a limited time. Raises _GaveUp."""
        loop = asyncio.get_running_loop()
        pause, until = 0.05, 0.0
        while True:
            try:
                await attempt()
            except TROUBLE as error:
                self._link.note(error)
                if run.finale is not None:
                    until = until or loop.time() + GIVE_UP_SECONDS
                    if loop.time() >= until:
                        raise _GaveUp from None
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
            else:
                self._link.note(None)
                return

    async def _beat(self) -> None:
        """Report that this process lives, and look up which of its runs other processes read."""
        loop = asyncio.get_running_loop()
        link, me = self._link, self._process
        while True:
            runs = list(self._live.values())
            try:
                await link.call("process", me, "SET", "alive", "1", "PX", ms(ALIVE_SECONDS))
                names = [f"read:{run.id}" for run in runs]
                keys = [link.key("process", me, name) for name in names[1:]]
                found = await link.call("process", me, "MGET", names[0], *keys) if names else ()
                for run, read in zip(runs, found, strict=True):
                    run.elsewhere_at = loop.time() if read else run.elsewhere_at
                for run in runs:
                    if run.finale is None and loop.time() >= run.renewed_at + RENEW_SECONDS:
                        run.renewed_at = loop.time()
                        await self._renew(run)
            except TROUBLE as error:
                link.note(error)
            await asyncio.sleep(BEAT_SECONDS)

    async def _hear(self) -> None:
        """Stop the runs that other processes want to stop."""
        stops = self._link.key("runs", "", "stops")
        last: bytes | str = ""
        async with self._link.own("runs", "") as ask:
            while True:
                try:
                    if not last:
                        seconds, micros = await ask("TIME")
                        last = f"{int(seconds) * 1_000 + int(micros) // 1_000}-0"
                    found = await ask("XREAD", "BLOCK", ms(BLOCK_SECONDS), "STREAMS", stops, last)
                    for id, fields in found[0][1] if found else ():
                        last = id
                        name, owner, reply = (word.decode() for word in fields[1::2])
                        if self._stop(name, owner):
                            await ask("EVAL", _REPLY, 1, reply)
                except TROUBLE as error:
                    self._link.note(error)
                    await asyncio.sleep(0.2)
