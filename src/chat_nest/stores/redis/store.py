"""Counters in Redis or Valkey: one server, Sentinel or a Cluster, for any number of processes and hosts.

The file is long because a call, its retry and the parts that it is split into on a Cluster are one path.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha1
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args
from zlib import crc32

from msgspec import Struct

from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing
from chat_nest.core.controls import GRANT
from chat_nest.core.errors import LimiterUnavailable, StoreEmptied
from chat_nest.core.limits import Unit
from chat_nest.core.protocols import Now
from chat_nest.core.records import Record
from chat_nest.core.usage import Source
from chat_nest.limits.windows import US
from chat_nest.stores.batches import CallBatches
from chat_nest.stores.checks import check_actual, check_claim, check_line, check_record, check_text, lease_us
from chat_nest.stores.epochs import ACCEPT, Epochs, epoch_path, known_epoch
from chat_nest.stores.places import sentence
from chat_nest.stores.redis.batches import (
    OF_ONE_CALL,
    EndState,
    FinishCall,
    ReserveCall,
    ScriptAnswer,
    finish_word,
    reserve_word,
)
from chat_nest.stores.redis.codec import kept_record, not_granted, standing
from chat_nest.stores.redis.controls import ControlScript, RedisControls
from chat_nest.stores.redis.resp import Broken, Denied, Word, tls_context
from chat_nest.stores.redis.topology import Servers, UnsafeServer, open_servers
from chat_nest.stores.redis.url import read_url
from chat_nest.stores.rules import newest_first

_log = logging.getLogger(__name__)

_PARTITIONS = 64
"""The number of slots for a Cluster's callers. It is part of the keys' names: another number means other counters."""
_SWEPT_AT_ONCE = 200
_EXTENDED_AT_ONCE = 200

_FOLLOW: dict[bytes, EndState] = {b"settled": "settled", b"released": "released", b"": "settled"}
"""The action in a claim's other partitions, by its state in its home: an expired claim expires there too."""


class _Script(Struct, frozen=True):
    text: str
    sha: str


def _script(name: str) -> _Script:
    folder = files("chat_nest.stores.redis") / "lua"
    text = (folder / f"{name}.lua").read_text("utf-8")
    if name != "accept":
        text = (folder / "book.lua").read_text("utf-8") + text
    return _Script(text, sha1(text.encode()).hexdigest())  # noqa: S324 - EVALSHA's name of a script


_RESERVE, _FINISH, _EXTEND, _SHRINK, _PEEK, _SWEEP, _RUNNING, _ACCEPT = map(
    _script, ("reserve", "finish", "extend", "shrink", "peek", "sweep", "running", "accept")
)
_CONTROLS = {name: _script(name) for name in get_args(ControlScript)}
_WORD: dict[_Script, Callable[[Sequence[Any]], bytes]] = {_RESERVE: reserve_word, _FINISH: finish_word}
"""The scripts that take many calls, and what makes their argument."""


class _Part(Struct, frozen=True):
    """The lines of a claim in one partition, by their index in the claim."""

    partition: str
    lines: Sequence[int]


class RedisStore:
    """A Store on the servers that `url` names (see `topology.read_url`); nothing is opened before the first call.

    Each call is one Lua script, so it is atomic and takes one round trip; the server's clock counts. The reservations
    that wait in one moment share a script, and so do the settlements: each has the answer that it would have alone, and
    an error that one of them is the reason of is its own. On a Cluster a claim's lines may be in three slots: the
    caller's, the group's and that of all callers. They are reserved one after another. If one refuses, the earlier ones
    are given back before the answer: for that moment they have less room. The caller's slot keeps the record and the
    claim's state. An id belongs to its claim's lines there: the same id with another caller's lines is another claim.

    A call raises LimiterUnavailable with the reason as `__cause__` if:
    - it has no answer within `timeout` seconds, including the connection;
    - the server is out of memory, loading, read-only or failing over, or may evict keys;
    - the server was emptied since the first call of this store, of another store in use, or of one with the same
      directory `state` (a StoreEmptied, which names the command `accept`).

    A call without an answer may or may not have run: a reservation that no process knows of is charged when its lease
    ends. A cancelled call may still run, and a settlement that was sent twice may return False. A claim, line, amount
    or lease that breaks a rule raises ValueError, and so does an invalid URL.

    Finished claims with their records and drained rates are kept for `retention` seconds, and windows longer than a
    minute for at least 25 hours after their end. For the retention an id is a Duplicate: a client that repeats an
    Idempotency-Key later is answered and charged anew. Every key begins with `prefix`. `_now`, for tests, replaces the
    server's clock; the retention of keys still uses the server's.
    """

    remedy = "check that Redis runs there, that this machine reaches it, and the login"
    calls_at_once = 128
    """Calls that wait together share a round trip."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 0.7,
        retention: float = 3_600.0,
        prefix: str = "chat-nest",
        state: str | Path | None = None,
        accept: str = ACCEPT,
        _now: Now | None = None,
    ) -> None:
        if not 0 < timeout < 1 or retention <= 0:
            raise ValueError("timeout must be over 0 and under 1 second, retention over 0 seconds")
        if not prefix.isprintable() or not prefix or "{" in prefix or "}" in prefix:
            raise ValueError("prefix must be printable characters without braces")
        self._place = read_url(url)
        self.place = self._place.shown
        self._timeout = timeout
        self._tls = tls_context(self._place.options) if self._place.tls else None
        self._retention_us = int(retention * US)
        self._prefix = prefix
        self._now = _now
        self._link: _Link | None = None
        place = self._place
        path = epoch_path(state, "redis", place.kind, place.addresses, place.db, place.master, prefix)
        self.epochs = Epochs(path, accept)
        self._failing = False
        self.controls = RedisControls(self._run_controls)

    async def reserve(self, claim: Claim, lease: float) -> Granted | Refused | Duplicate | Conflict:
        check_claim(claim)
        us = lease_us(lease)
        parts = self._parts(claim)
        attempt = secrets.token_urlsafe(6)
        output, granted, rooms = claim.max_output_tokens, list[tuple[_Part, int]](), dict[int, int]()
        async with self._calling() as link:
            for part in parts:
                lines = [claim.lines[index] for index in part.lines]
                call = ReserveCall(claim, attempt, us, output, lines, home=part is parts[0])
                now_us, (answer, *found) = await self._ask(link, part.partition, _RESERVE, call)
                if answer != b"granted":
                    for held, _ in granted:
                        await self._end(link, held.partition, FinishCall(claim, "undone", "", {}, None))
                    return not_granted(answer, found, claim, part.lines, now_us)
                output = int(found[0])
                granted.append((part, output))
                rooms |= zip(part.lines, found[1:], strict=True)
            for part, first in granted:
                if first != output:
                    await self._shrink(link.servers, claim, part, first, output, rooms)
        return Granted(output_tokens=output, room=tuple(rooms[index] for index in range(len(claim.lines))))

    async def extend(self, claims: Sequence[Claim], lease: float) -> frozenset[str]:
        us = lease_us(lease)
        for claim in claims:
            check_text(claim.id, "claim.id")
        live: set[str] = set()
        by_partition: dict[str, list[tuple[Claim, bool]]] = {}
        for claim in claims:
            for number, part in enumerate(self._parts(claim)):
                by_partition.setdefault(part.partition, []).append((claim, number == 0))
        async with self._calling() as link:
            for partition, asked in by_partition.items():
                for start in range(0, len(asked), _EXTENDED_AT_ONCE):
                    some = asked[start : start + _EXTENDED_AT_ONCE]
                    words: list[Word] = [us]
                    for claim, _ in some:
                        words += _names(claim)
                    _, _, *renewed = await self._run(link.servers, partition, _EXTEND, words)
                    live |= {claim.id for (claim, home), was in zip(some, renewed, strict=True) if home and was}
        return frozenset(live)

    async def settle(
        self, claim: Claim, actual: Mapping[Unit, int] | None, source: Source, record: Record | None = None
    ) -> bool:
        check_text(claim.id, "claim.id")
        check_actual(actual)
        check_record(record)
        return await self._finish(claim, "settled", source, dict(actual or {}), record)

    async def release(self, claim: Claim) -> bool:
        check_claim(claim)
        return await self._finish(claim, "released", "", {})

    async def peek(self, lines: Sequence[Line]) -> tuple[Standing, ...]:
        for index, line in enumerate(lines):
            check_line(line, index)
        by_partition: dict[str, list[int]] = {}
        for index, line in enumerate(lines):
            if line.kind != "request":
                by_partition.setdefault(self._partition(line), []).append(index)
        standings: dict[int, Standing] = {}
        async with self._calling() as link:
            for partition, indices in by_partition.items():
                words = [word for index in indices for word in (lines[index].kind, lines[index].key)]
                _, now_us, *found = await self._run(link.servers, partition, _PEEK, words)
                for index, used, held, tat in zip(indices, found[::3], found[1::3], found[2::3], strict=True):
                    standings[index] = standing(lines[index], used, held, tat, now_us)
        return tuple(standings.get(index) or standing(line, 0, 0, 0, 0) for index, line in enumerate(lines))

    async def sweep(self) -> int:
        """Charge expired leases; also check again whether the servers may evict keys."""
        swept = 0
        async with self._calling() as link:
            await link.servers.check()
        for partition in self._partitions():
            more = True
            while more:
                async with self._calling() as link:
                    _, _, looked, charged = await self._run(link.servers, partition, _SWEEP, [_SWEPT_AT_ONCE])
                swept += charged
                more = looked == _SWEPT_AT_ONCE
        return swept

    async def running(self, most: int) -> Sequence[Record]:
        """See ListsRunning."""
        records: list[Record] = []
        for partition in self._partitions():
            async with self._calling() as link:
                _, _, *found = await self._run(link.servers, partition, _RUNNING, [most])
            records += (kept_record(word) for word in found)
        return newest_first(records, most)

    async def ping(self) -> None:
        """Return if the servers answer, never evict keys, and are those that this store knows."""
        async with self._calling() as link:
            await link.servers.check()
            await asyncio.gather(*(self._run(link.servers, partition, _PEEK, []) for partition in self._partitions()))

    async def accept(self) -> None:
        """Let all processes use the server as it is, though it was emptied. Raises LimiterUnavailable.

        The grants end: they raised limits whose use may be forgotten.
        """
        for partition in self._partitions():
            key = f"{{{self._prefix}:{partition}}}:epoch"
            async with self._calling() as link:
                await self._evaluate(link.servers, partition, _ACCEPT, [1, key, secrets.token_hex(8)])
        await self.controls.change(remove=[(GRANT, "")])
        await self.ping()

    async def aclose(self) -> None:
        """Wait for the running calls, then close the connections; a call after that opens new ones."""
        link, self._link = self._link, None
        if link is not None:
            await link.idle.wait()
            await link.servers.aclose()

    @asynccontextmanager
    async def _calling(self, link: _Link | None = None) -> AsyncGenerator[_Link, None]:
        """Give one call its servers and its deadline, and turn every failure into LimiterUnavailable."""
        link = link or self._link
        if link is None:
            link = self._link = _Link(open_servers(self._place, self._tls))
        link.running += 1
        link.idle.clear()
        try:
            async with asyncio.timeout(self._timeout):
                yield link
        except (Denied, Broken, OSError, ValueError, UnsafeServer, StoreEmptied) as error:  # TimeoutError is an OSError
            if not self._failing:
                _log.warning("%s does not answer: %s", sentence(self.place), _why(error))
            self._failing = True
            if isinstance(error, StoreEmptied):
                raise
            raise LimiterUnavailable from error
        else:
            if self._failing:
                _log.warning("%s answers again", sentence(self.place))
            self._failing = False
        finally:
            link.running -= 1
            if not link.running:
                link.idle.set()

    async def _ask(self, link: _Link, partition: str, script: _Script, call: ReserveCall | FinishCall) -> ScriptAnswer:
        """Return the answer to this call, which goes with those that wait at the same time."""
        lane = link.lanes.get((partition, script))
        if lane is None:
            lane = link.lanes[partition, script] = CallBatches(partial(self._send, link, partition, script))
        answer = await lane.ask(call)
        if answer is None:
            _, now_us, answer = await self._run(link.servers, partition, script, [_WORD[script]([call])])
            return now_us, answer
        return answer

    async def _send(
        self, link: _Link, partition: str, script: _Script, calls: Sequence[ReserveCall | FinishCall]
    ) -> Sequence[ScriptAnswer | None]:
        """Return the answer to each call, None if it is to be asked alone."""
        word = _WORD[script](calls)
        async with self._calling(link):
            try:
                _, now_us, *answers = await self._run(link.servers, partition, script, [word])
            except Denied as error:
                if error.code == OF_ONE_CALL:
                    return [None] * len(calls)
                raise
        return [(now_us, answer) for answer in answers]

    async def _run(self, servers: Servers, partition: str, script: _Script, words: Sequence[Word]) -> list[Any]:
        """Return the script's answer without the epoch."""
        key = f"{{{self._prefix}:{partition}}}:epoch"
        known = self.epochs.seen(partition)
        if known is None:
            known = await known_epoch(self.epochs, partition)
        now: Word = "" if self._now is None else int(self._now() * US)
        fresh = "" if known else secrets.token_hex(8)
        answer = await self._evaluate(
            servers, partition, script, [1, key, known, fresh, now, self._retention_us, *words]
        )
        if answer[0] == b"doubted":
            raise self.epochs.emptied("another process found that it was emptied or replaced")
        if answer[0] == b"emptied":
            raise self.epochs.emptied()
        epoch = answer.pop(1).decode()
        if epoch != self.epochs.seen(partition):
            await asyncio.to_thread(self.epochs.believe, partition, known, epoch)
        return answer

    async def _run_controls(self, name: ControlScript, words: Sequence[Word]) -> tuple[int, list[Any]]:
        async with self._calling() as link:
            partition = "all" if self._place.kind == "cluster" else "0"
            _, now_us, *answer = await self._run(link.servers, partition, _CONTROLS[name], words)
        return now_us, answer

    async def _evaluate(self, servers: Servers, partition: str, script: _Script, words: Sequence[Word]) -> list[Any]:
        tag = f"{self._prefix}:{partition}"
        try:
            answer: list[Any] = await servers.call(tag, "EVALSHA", script.sha, *words)
        except Denied as error:
            if error.code != "NOSCRIPT":
                raise
            answer = await servers.call(tag, "EVAL", script.text, *words)
        return answer

    async def _finish(
        self, claim: Claim, ending: EndState, source: str, spent: Mapping[Any, int], record: Record | None = None
    ) -> bool:
        """End the claim in its home; the other partitions follow the decision there, of this call or an earlier one."""
        home, *others = self._parts(claim)
        async with self._calling() as link:
            ended, state, spent = await self._end(
                link, home.partition, FinishCall(claim, ending, source, spent, record)
            )
            follow = _FOLLOW.get(state) if state or ending == "settled" else None
            for part in others if follow else ():
                await self._end(link, part.partition, FinishCall(claim, follow or ending, source, spent, None))
        return ended

    async def _end(self, link: _Link, partition: str, call: FinishCall) -> tuple[bool, bytes, Mapping[Any, int]]:
        _, (ended, state, *pairs) = await self._ask(link, partition, _FINISH, call)
        spent = {unit.decode(): amount for unit, amount in zip(pairs[::2], pairs[1::2], strict=True)}
        return bool(ended), state, spent if state == b"settled" else call.spent

    async def _shrink(
        self, servers: Servers, claim: Claim, part: _Part, held: int, output: int, rooms: dict[int, int]
    ) -> None:
        """Reduce what a part holds for `held` output tokens to what `output` draw."""
        lines = [claim.lines[index] for index in part.lines]
        words: list[Word] = [*_names(claim), output]
        words += [line.amount(output) for line in lines if line.kind != "request"]
        answer, _, *found = await self._run(servers, part.partition, _SHRINK, words)
        if answer == b"lost":
            raise TimeoutError("the lease ran out while the claim was being reserved")
        left = iter(found)
        for index, line in zip(part.lines, lines, strict=True):
            room = 0 if line.kind == "request" else next(left)
            rooms[index] = room if line.kind == "rate" else rooms[index] + line.amount(held) - line.amount(output)

    def _parts(self, claim: Claim) -> list[_Part]:
        """Return the partitions of a claim's lines, the one that keeps the claim's id first."""
        if self._place.kind != "cluster":
            return [_Part("0", range(len(claim.lines)))]
        own = [line for line in claim.lines if line.scope == "caller"] or claim.lines
        home = self._partition(own[0]) if own else str(crc32(claim.id.encode()) % _PARTITIONS)
        by_partition: dict[str, list[int]] = {home: []}
        for index, line in enumerate(claim.lines):
            by_partition.setdefault(home if line.kind == "request" else self._partition(line), []).append(index)
        return [_Part(partition, indices) for partition, indices in by_partition.items()]

    def _partitions(self) -> Sequence[str]:
        return [*map(str, range(_PARTITIONS)), "all"] if self._place.kind == "cluster" else ["0"]

    def _partition(self, line: Line) -> str:
        if self._place.kind != "cluster":
            return "0"
        if line.scope == "all":
            return "all"
        owner = ":".join(line.key.split(":", 2)[:2])  # `caller:KEY` of `caller:KEY:tokens_per_day:2026-11-21`
        return str(crc32(owner.encode()) % _PARTITIONS)


def _why(error: Exception) -> str:
    """Return the failure's text for the log: never a value, which a server's message may contain."""
    if isinstance(error, StoreEmptied):
        return error.advice
    if isinstance(error, UnsafeServer):
        return str(error)
    return error.code if isinstance(error, Denied) else type(error).__name__


def _names(claim: Claim) -> tuple[str, str, str]:
    return claim.id, claim.fingerprint, claim.owner


class _Link:
    """Open servers, the number of calls that run on them, and the calls that wait for a script of a partition."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.lanes: dict[tuple[str, _Script], CallBatches[Any, ScriptAnswer | None]] = {}
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()
