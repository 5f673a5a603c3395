"""Counters in PostgreSQL: any number of machines, and every answer durable before it is given."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import LiteralString, cast

import msgspec
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from chat_nest.limits import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing, Unit
from chat_nest.protocols import Now
from chat_nest.records import Record
from chat_nest.stores.book import (
    Book,
    Counter,
    State,
    check_actual,
    check_claim,
    check_line,
    check_text,
    lease_us,
)
from chat_nest.stores.postgres_link import PostgresLink, Row
from chat_nest.usage import Source
from chat_nest.windows import US, gcra_wait

_RESERVE = (
    "SELECT * FROM chat_nest.reserve(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, "
    "%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
)
_SETTLE = "SELECT chat_nest.settle(%s, %s, %s, %s::jsonb, %s, %s)"
_RELEASE = "SELECT chat_nest.release(%s, %s, %s, %s)"
_EXTEND = "SELECT chat_nest.extend(%s, %s, %s, %s)"
_PEEK = "SELECT * FROM chat_nest.peek(%s, %s)"
_SWEEP = "SELECT * FROM chat_nest.sweep(%s, %s, %s, %s, %s)"
_PING = "SELECT 1"

_MOST_CHARGED = 500
"""Leases charged in one transaction."""
_MOST_PURGED = 2_000
"""Rows of a table deleted in one transaction."""

_decode_counters = msgspec.json.Decoder(list[Counter]).decode


class PostgresStore:
    """A Store in the schema `chat_nest` of a PostgreSQL database, version 14 or newer.

    `url` is a libpq connection URI: `postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full`. Nothing is opened
    before the first call; that one also makes or updates the schema, under a lock, so that many workers may start
    together. A schema that a newer version made is refused. What libpq reads from the environment holds here too.

    Time is the server's, so the hosts' clocks don't matter. Each call is one transaction of one function. It is
    answered when it is committed, and as durable as the server's `synchronous_commit` says.

    A call has `timeout` seconds, in which it is tried again where that can help: a restart, a failover, a deadlock.
    Then it raises LimiterUnavailable, whose `__cause__` says why; it may still have happened, once. Tried again, a call
    gets the answer that was lost. A cancelled call runs to its end in the background, and its connection stays usable.
    A claim, line, amount or lease that breaks a rule raises ValueError.

    At most `max_connections` are open at a time, for one event loop; a call after `aclose` opens new ones.
    Finished reservations, past windows and drained rates are deleted by `sweep` after `retention` seconds, some at a
    time. `_now` replaces the server's clock, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        retention: float = 3 * 86_400.0,
        timeout: float = 0.9,
        max_connections: int = 10,
        _now: Now | None = None,
    ) -> None:
        if not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("the URL of a PostgreSQL store must start with postgresql:// or postgres://")
        try:
            conninfo_to_dict(url)
        except (ProgrammingError, UnicodeError):
            # The cause would repeat the URL, with its password.
            raise ValueError("the URL of a PostgreSQL store must be a valid libpq connection URI") from None
        if not 0 < timeout <= 60:
            raise ValueError("timeout must be more than 0 and at most 60 seconds")
        if max_connections < 1:
            raise ValueError("max_connections must be at least 1")
        self._url = url
        self._retention = str(int(retention * US))
        self._timeout = timeout
        self._max_connections = max_connections
        self._now = _now
        self._link: PostgresLink | None = None
        self._purged_to = ""

    async def reserve(self, claim: Claim, lease: float) -> Granted | Refused | Duplicate | Conflict:
        check_claim(claim)
        lines = claim.lines
        row = await self._call(
            _RESERVE,
            claim.id,
            claim.fingerprint,
            _new_call(),
            str(claim.max_output_tokens),
            str(claim.min_output_tokens),
            str(lease_us(lease)),
            self._time(),
            [line.name for line in lines],
            [line.key for line in lines],
            [line.unit for line in lines],
            [line.kind for line in lines],
            _array(line.limit for line in lines),
            _array(line.fixed for line in lines),
            _array(line.per_million for line in lines),
            _array(line.period for line in lines),
            _array(int(line.resets_at * US) if line.kind == "window" else 0 for line in lines),
        )
        return _reserved(claim, row)

    async def extend(self, claims: Sequence[Claim], lease: float) -> frozenset[str]:
        us = lease_us(lease)
        for claim in claims:
            _check_name(claim)
        ids = [claim.id for claim in claims]
        [live] = await self._call(_EXTEND, ids, [claim.fingerprint for claim in claims], str(us), self._time())
        return frozenset(live)

    async def settle(
        self, claim: Claim, actual: Mapping[Unit, int] | None, source: Source, record: Record | None = None
    ) -> bool:
        _check_name(claim)
        check_actual(actual)
        spent = None if actual is None else msgspec.json.encode(actual).decode()
        [settled] = await self._call(_SETTLE, claim.id, claim.fingerprint, _new_call(), spent, source, self._time())
        return bool(settled)

    async def release(self, claim: Claim) -> bool:
        check_claim(claim)
        [released] = await self._call(_RELEASE, claim.id, claim.fingerprint, _new_call(), self._time())
        return bool(released)

    async def peek(self, lines: Sequence[Line]) -> tuple[Standing, ...]:
        for index, line in enumerate(lines):
            check_line(line, index)
        keys = [line.key for line in lines if line.kind != "request"]
        [now_us, found] = await self._call(_PEEK, keys, self._time())
        counters = {counter.key: counter for counter in _decode_counters(found)}
        return Book(counters, {}, lambda _: None).peek(lines, (), now_us)

    async def sweep(self) -> int:
        charged = 0
        while True:
            charged_now: int
            [charged_now, self._purged_to] = await self._call(
                _SWEEP, str(_MOST_CHARGED), self._retention, self._purged_to, str(_MOST_PURGED), self._time()
            )
            charged += charged_now
            if charged_now < _MOST_CHARGED:
                return charged

    async def ping(self) -> None:
        """Return if the server answers and its schema is ours."""
        await self._call(_PING)

    async def aclose(self) -> None:
        """Wait for the calls that are under way, then close the connections."""
        link, self._link = self._link, None
        if link is not None:
            await asyncio.shield(link.close())

    async def _call(self, query: LiteralString, *values: str | list[str] | None) -> Row:
        # All values are text: psycopg would choose a type by an integer's size, and prepare a statement for each.
        if self._link is None:
            self._link = PostgresLink(self._url, timeout=self._timeout, max_connections=self._max_connections)
        return await self._link.call(query, values)

    def _time(self) -> str | None:
        return None if self._now is None else str(int(self._now() * US))


def _reserved(claim: Claim, row: Row) -> Granted | Refused | Duplicate | Conflict:
    outcome, output, room, index, now_us, mark = cast("tuple[str, int, list[int], int, int, int | None]", row)
    if outcome == "granted":
        return Granted(output_tokens=output, room=tuple(room))
    if outcome == "refused":
        wait = _retry_after(claim.lines[index], claim, now_us, mark)
        return Refused(line=index, room=room[0], retry_after=wait)
    if outcome == "conflict":
        return Conflict()
    return Duplicate(output_tokens=output, state=cast("State", outcome))


def _retry_after(line: Line, claim: Claim, now_us: int, mark: int | None) -> float:
    """`mark` is a rate's tat, or when the first lease on a gauge runs out."""
    if line.kind == "window":
        return max(0.0, line.resets_at - now_us / US)
    if line.kind == "rate":
        return gcra_wait(mark or 0, now_us, line.amount(claim.min_output_tokens), line.limit, line.period)
    if line.kind == "gauge":
        return 1.0 if mark is None else max(1.0, (mark - now_us) / US)
    return 0.0


def _check_name(claim: Claim) -> None:
    check_text(claim.id, "claim.id")
    check_text(claim.fingerprint, "claim.fingerprint")


def _new_call() -> str:
    """A number by which the server knows a call that is tried again."""
    return str(secrets.randbits(63))


def _array(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"
