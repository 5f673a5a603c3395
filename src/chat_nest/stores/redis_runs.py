"""Runs in Redis, for fleets: a stream a run, written by the process that has it and followed by any.

A run's keys share a slot of a Cluster. So does what a process says of itself (that it lives) with what is said to it
(that a run of its is read); what is said to all of them (that a run is to be stopped) has another.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec.structs import replace

from chat_nest.protocols import FollowedRun
from chat_nest.run_words import Ended, Said, write
from chat_nest.stores.redis_followed import About, RunInRedis, ms, read_word
from chat_nest.stores.redis_link import BLOCK_SECONDS, TROUBLE, Link
from chat_nest.stores.redis_wire import Denied
from chat_nest.stream_log import MemoryRun, MemoryRuns

GATHER_SECONDS = 0.04
"""Between two writes of a run: what it says meanwhile goes out together."""
STOP_SECONDS = 0.3
"""For the process that has a run to say that it has stopped it."""
BEAT_SECONDS = 1.0
ALIVE_SECONDS = 4.0
"""After this long without a beat a process counts as dead."""
RUNNING_SECONDS = 3_600.0
"""How long a run is kept after it last said something, while its end is not known."""
CLOSE_SECONDS = 2.0
GIVE_UP_SECONDS = 10.0
"""How long the end of a run is tried to be written."""


class _GaveUp(Exception):
    """The run has ended and can't be written: nobody can follow it."""


class SharedRun(MemoryRun):
    """A run of this process, while it goes on."""

    elsewhere_at = 0.0
    """When it was last known to be read in another process, in the event loop's seconds."""

    @property
    def readers(self) -> int:
        here = super().readers
        return here + (self.elsewhere_at > asyncio.get_running_loop().time() - 2 * BEAT_SECONDS)

    @property
    def left_at(self) -> float:
        return max(super().left_at, self.elsewhere_at)


class RedisRuns:
    """A RunLogs on the servers that `url` names (see `redis_servers.read_url`).

    Appending never waits: a task a run writes what has gathered, 25 times a second at most and one write at a time.
    While Redis does not answer, runs go on, and what they say waits in memory, as much as a MemoryRun holds. Runs are
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
        self._here.put(run, names)
        task = asyncio.create_task(self._write(run, tuple(names)))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return run

    def ended(self, id: str, names: Sequence[str] = ()) -> None:
        """From now on it is in Redis only."""
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
        """Tell every process, and wait for the one that has it."""
        reply = self._link.key("runs", "", f"stopped:{secrets.token_hex(8)}")
        async with self._link.answering(), self._link.own("runs", "") as ask:
            words = ("MAXLEN", "~", 1_000, "*", "name", name, "owner", owner, "reply", reply)
            await ask("XADD", self._link.key("runs", "", "stops"), *words)
            return await ask("BLPOP", reply, str(STOP_SECONDS)) is not None

    async def aclose(self) -> None:
        """Write what has ended, for a moment, and close the connections."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=CLOSE_SECONDS)
        tasks = [*self._attending, *self._writing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._attending = []
        await self._link.aclose()

    # What runs beside the requests.

    async def _write(self, run: SharedRun, names: Sequence[str]) -> None:
        """Write the run as it goes on, and its end."""
        about = About(run.owner, run.model, self._process)
        sent = 0
        try:
            await self._insist(run, lambda: self._introduce(run.id, about, names))
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
            await self._insist(run, lambda: self._conclude(run.id, done, names))
        except _GaveUp:
            return

    async def _introduce(self, id: str, about: About, names: Sequence[str]) -> None:
        lives = ("PX", ms(RUNNING_SECONDS))
        await self._link.call("run", id, "SET", "about", write(about), *lives)
        for name in names:
            await self._link.call("name", name, "SET", "run", id, *lives)

    async def _conclude(self, id: str, about: About, names: Sequence[str]) -> None:
        lives = ms(self._keep)
        await self._link.call("run", id, "SET", "about", write(about), "PX", lives)
        await self._link.call("run", id, "PEXPIRE", "log", lives)
        for name in names:
            if await self._link.call("name", name, "GET", "run") == id.encode():
                await self._link.call("name", name, "PEXPIRE", "run", lives)

    async def _add(self, run: SharedRun, number: int, data: bytes) -> None:
        """Add an entry, by the number of its last batch; the stream forgets what the memory has forgotten."""
        trimmed = ("MINID", "=", f"{run.forgotten + 1}-0") if run.forgotten else ()
        adding = self._link.call("run", run.id, "XADD", "log", *trimmed, f"{number}-0", "said", data)
        staying = self._link.call("run", run.id, "PEXPIRE", "log", ms(RUNNING_SECONDS))
        for failure in await asyncio.gather(adding, staying, return_exceptions=True):
            was_there = isinstance(failure, Denied) and "equal or smaller" in str(failure)
            if isinstance(failure, BaseException) and not was_there:
                raise failure

    async def _insist(self, run: SharedRun, attempt: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Try again until it succeeds; after the run's end not for ever. Raises _GaveUp."""
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
        """Say that this process lives, and hear which of its runs are read elsewhere."""
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
            except TROUBLE as error:
                link.note(error)
            await asyncio.sleep(BEAT_SECONDS)

    async def _hear(self) -> None:
        """Stop the runs that other processes are asked to stop."""
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
                            await ask("RPUSH", reply, "1")
                            await ask("PEXPIRE", reply, 5_000)
                except TROUBLE as error:
                    self._link.note(error)
                    await asyncio.sleep(0.2)
