"""Counters in PostgreSQL: any number of machines, and every answer durable before it is given."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import LiteralString, cast
from zoneinfo import ZoneInfo

import msgspec
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from chat_nest.limits import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing, Unit
from chat_nest.protocols import Now
from chat_nest.records import RECORDS_DAYS, By, Record, UsageRow
from chat_nest.stores.book import (
    Book,
    Counter,
    State,
    check_actual,
    check_claim,
    check_line,
    check_owner,
    check_record,
    check_text,
    lease_us,
)
from chat_nest.stores.postgres_link import PostgresLink, Row
from chat_nest.stores.reports import NO_ERRORS, POSTGRES, question, records_us, usage_rows
from chat_nest.usage import Source
from chat_nest.windows import US, gcra_wait

_RESERVE = (
    "SELECT v_outcome, v_output, v_room, v_line, v_at, v_mark, v_record::text"
    " FROM chat_nest.reserve(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, "
    "%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s, %s::jsonb, %s)"
)
_SETTLE = "SELECT chat_nest.settle(%s, %s, %s, %s::jsonb, %s, %s, %s, %s::jsonb)"
_RELEASE = "SELECT chat_nest.release(%s, %s, %s, %s, %s)"
_EXTEND = "SELECT chat_nest.extend(%s, %s, %s, %s, %s)"
_PEEK = "SELECT * FROM chat_nest.peek(%s, %s)"
_SWEEP = "SELECT * FROM chat_nest.sweep(%s, %s, %s, %s, %s, %s)"
_PING = "SELECT 1"

_MOST_CHARGED = 500
"""Leases charged in one transaction."""
_MOST_PURGED = 2_000
"""Rows of a table deleted in one transaction."""
_REPORTING = 60.0
"""Seconds that a report may take."""

_decode_counters = msgspec.json.Decoder(list[Counter]).decode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_report = msgspec.json.Decoder(list[list[str | int]]).decode


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
    Finished reservations, past windows and drained rates are deleted by `sweep` after `retention` seconds, what each
    request used after `records_days` days (0 keeps none of it), some at a time. `_now` replaces the server's clock, for
    tests.
    """

    def __init__(
        self,
        url: str,
        *,
        retention: float = 3 * 86_400.0,
        records_days: float = RECORDS_DAYS,
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
        self._records_us = records_us(records_days)
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
            claim.owner,
            _json(claim.record),
            "true" if self._records_us else "false",
        )
        return _reserved(claim, row)

    async def extend(self, claims: Sequence[Claim], lease: float) -> frozenset[str]:
        us = lease_us(lease)
        for claim in claims:
            _check_name(claim)
        ids = [claim.id for claim in claims]
        fingerprints, owners = [claim.fingerprint for claim in claims], [claim.owner for claim in claims]
        [live] = await self._call(_EXTEND, ids, fingerprints, str(us), self._time(), owners)
        return frozenset(live)

    async def settle(
        self, claim: Claim, actual: Mapping[Unit, int] | None, source: Source, record: Record | None = None
    ) -> bool:
        _check_name(claim)
        check_actual(actual)
        check_record(record)
        [settled] = await self._call(
            _SETTLE,
            claim.id,
            claim.fingerprint,
            _new_call(),
            _json(actual),
            source,
            self._time(),
            claim.owner,
            _json(record),
        )
        return bool(settled)

    async def release(self, claim: Claim) -> bool:
        check_claim(claim)
        [released] = await self._call(_RELEASE, claim.id, claim.fingerprint, _new_call(), self._time(), claim.owner)
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
                _SWEEP,
                str(_MOST_CHARGED),
                self._retention,
                self._purged_to,
                str(_MOST_PURGED),
                self._time(),
                str(self._records_us),
            )
            charged += charged_now
            if charged_now < _MOST_CHARGED:
                return charged

    async def ping(self) -> None:
        """Return if the server answers and its schema is ours."""
        await self._call(_PING)

    async def usage(
        self, since: float, until: float, by: Sequence[By], zone: ZoneInfo, caller: str | None = None
    ) -> list[UsageRow]:
        """See Reports. Has a connection and a longer time-out of its own."""
        asked = question(since, until, by, zone, caller)
        names, starts, ends = zip(*asked.spans, strict=True)
        values = _texts(asked.by), _texts(NO_ERRORS), caller, _texts(names), _array(starts), _array(ends)
        link = PostgresLink(self._url, timeout=_REPORTING, max_connections=1)
        try:
            [found] = await link.call(POSTGRES, values)
        finally:
            await asyncio.shield(link.close())
        return usage_rows(asked, _decode_report(found))

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
    outcome, output, room, index, now_us, mark, record = cast(
        "tuple[str, int, list[int], int, int, int | None, str | None]", row
    )
    if outcome == "granted":
        return Granted(output_tokens=output, room=tuple(room))
    if outcome == "refused":
        wait = _retry_after(claim.lines[index], claim, now_us, mark)
        return Refused(line=index, room=room[0], retry_after=wait)
    if outcome == "conflict":
        return Conflict()
    kept = None if record is None else _decode_record(record)
    return Duplicate(output_tokens=output, state=cast("State", outcome), record=kept)


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
    check_owner(claim.owner)


def _new_call() -> str:
    """A number by which the server knows a call that is tried again."""
    return str(secrets.randbits(63))


def _json(value: Record | Mapping[Unit, int] | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _texts(texts: Iterable[str]) -> list[str]:
    return list(texts)


def _array(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"
