"""Counters in PostgreSQL for any number of machines: every answer is durable before it is given.

The file is long because the SQL of each call is in it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString, cast
from zoneinfo import ZoneInfo

import msgspec
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from chat_nest.core.claims import Claim, Conflict, Duplicate, Granted, Line, Refused, Standing
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.limits import Unit
from chat_nest.core.protocols import Now
from chat_nest.core.records import RECORDS_DAYS, By, Record, UsageRow
from chat_nest.core.usage import Source
from chat_nest.limits.windows import US
from chat_nest.stores.batches import CallBatches
from chat_nest.stores.checks import (
    check_actual,
    check_claim,
    check_line,
    check_owner,
    check_record,
    check_text,
    lease_us,
)
from chat_nest.stores.epochs import ACCEPT, Epochs, epoch_path, known_epoch
from chat_nest.stores.places import addresses
from chat_nest.stores.postgres.batches import (
    RESERVE_ALL,
    SETTLE_ALL,
    Lanes,
    ReserveCall,
    SettleCall,
    int_array,
    is_of_one_row,
    reserve_answers,
    reserve_values,
    retry_after,
    settle_values,
)
from chat_nest.stores.postgres.connection import PostgresLink, Row
from chat_nest.stores.postgres.controls import PostgresControls
from chat_nest.stores.reports import NO_ERRORS, POSTGRES, question, records_us, usage_rows
from chat_nest.stores.rules import Book, Counter, ReservationState, newest_first

_RESERVE = (
    "SELECT chat_nest.guard(%s, %s), v_outcome, v_output, v_room, v_line, v_at, v_mark, v_record::text"
    " FROM chat_nest.reserve(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, "
    "%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s, %s::jsonb, %s)"
)
_SETTLE = "SELECT chat_nest.guard(%s, %s), chat_nest.settle(%s, %s, %s, %s::jsonb, %s, %s, %s, %s::jsonb)"
_RELEASE = "SELECT chat_nest.guard(%s, %s), chat_nest.release(%s, %s, %s, %s, %s)"
_EXTEND = "SELECT chat_nest.guard(%s, %s), chat_nest.extend(%s, %s, %s, %s, %s)"
_PEEK = "SELECT chat_nest.guard(%s, %s), * FROM chat_nest.peek(%s, %s)"
_SWEEP = "SELECT chat_nest.guard(%s, %s), * FROM chat_nest.sweep(%s, %s, %s, %s, %s, %s)"
_PING = (
    "SELECT chat_nest.guard(%s, %s), 'chat_nest.reservations'::regclass::oid, 'chat_nest.requests'::regclass::oid,"
    " 'chat_nest.controls'::regclass::oid"
)
_RUNNING = (
    "SELECT chat_nest.guard(%s, %s), coalesce((SELECT json_agg(o.record) FROM (SELECT r.record"
    " FROM chat_nest.reservations AS r"
    " WHERE r.state = 'open' AND r.record IS NOT NULL AND r.expires_at > chat_nest.now_us(%s)"
    " ORDER BY (r.record ->> 'started_at')::double precision DESC LIMIT %s) AS o), '[]')::text"
)
_ACCEPT = "SELECT chat_nest.accept(%s)"

_PART = "0"
_MOST_CHARGED = 500
"""Leases charged in one transaction."""
_MOST_PURGED = 2_000
"""Rows of a table deleted in one transaction."""
_REPORTING = 60.0
"""The time limit of a report, in seconds."""

_decode_counters = msgspec.json.Decoder(list[Counter]).decode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_records = msgspec.json.Decoder(list[Record]).decode
_decode_report = msgspec.json.Decoder(list[list[str | int]]).decode


class PostgresStore:
    """A Store in the schema `chat_nest` of a PostgreSQL database, version 14 or newer.

    `url` is a libpq connection URI: `postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full`. Nothing is opened
    before the first call. That call also creates or updates the schema, under a lock, so that many workers may start
    together. A schema made by a newer version is refused. libpq's environment variables apply here too.

    Time is the server's, so the hosts' clocks don't matter. Each call is one transaction of one function; reservations,
    and settlements, that wait together share one (see batches.sql). A call is answered when it is committed, with the
    durability of the server's `synchronous_commit`. A claim that breaks a rule of the database fails alone.

    A call has `timeout` seconds. Within them it is retried if that can help: a restart, a failover, a deadlock. Then it
    raises LimiterUnavailable with the reason as `__cause__`; it may still have happened, once. A retried call gets the
    answer that was lost. A cancelled call that was sent runs to its end, and its connection stays usable. A claim,
    line, amount or lease that breaks a rule raises ValueError. If the counters were emptied, or the schema dropped,
    since the first call of this process or of another one with the same directory `state`, a call raises StoreEmptied,
    which names the command `accept`.

    At most `max_connections` are open at a time, for one event loop; a call after `aclose` opens new ones. `sweep`
    deletes old rows, some at a time: finished reservations, past windows and drained rates after `retention` seconds,
    and each request's record after `records_days` days (0 keeps none). `_now` replaces the server's clock, for tests.
    """

    remedy = "check that PostgreSQL runs there, that this machine reaches it, and the login"
    calls_at_once = 128
    """Calls that wait together share a round trip."""

    def __init__(
        self,
        url: str,
        *,
        retention: float = 3 * 86_400.0,
        records_days: float = RECORDS_DAYS,
        timeout: float = 0.9,
        max_connections: int = 10,
        state: str | Path | None = None,
        accept: str = ACCEPT,
        _now: Now | None = None,
    ) -> None:
        if not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("the URL of a PostgreSQL store must start with postgresql:// or postgres://")
        try:
            given = conninfo_to_dict(url)
        except (ProgrammingError, UnicodeError):
            # The cause would repeat the URL, with its password.
            raise ValueError("the URL of a PostgreSQL store must be a valid libpq connection URI") from None
        if not 0 < timeout <= 60:
            raise ValueError("timeout must be more than 0 and at most 60 seconds")
        if max_connections < 1:
            raise ValueError("max_connections must be at least 1")
        self._url = url
        self.place = _place(given)
        place = [str(given.get(name) or "") for name in ("host", "hostaddr", "port", "dbname", "service")]
        self.epochs = Epochs(epoch_path(state, "postgresql", *place), accept)
        self._retention = str(int(retention * US))
        self._records_us = records_us(records_days)
        self._recorded = "true" if self._records_us else "false"
        self._timeout = timeout
        self._max_connections = max_connections
        self._now = _now
        self._link: PostgresLink | None = None
        self._lanes: Lanes | None = None
        self._purged_to = ""
        self.controls = PostgresControls(self._call, self._time)

    async def reserve(self, claim: Claim, lease: float) -> Granted | Refused | Duplicate | Conflict:
        check_claim(claim)
        asked = ReserveCall(claim, _new_call(), lease_us(lease), _json(claim.record))
        async with self._deadline():
            answer = await self._calls().reserves.ask(asked)
            return await self._reserve_alone(asked) if answer is None else answer

    async def _reserve_alone(self, asked: ReserveCall) -> Granted | Refused | Duplicate | Conflict:
        claim, lines = asked.claim, asked.claim.lines
        row = await self._call(
            _RESERVE,
            claim.id,
            claim.fingerprint,
            asked.call,
            str(claim.max_output_tokens),
            str(claim.min_output_tokens),
            str(asked.lease),
            self._time(),
            [line.name for line in lines],
            [line.key for line in lines],
            [line.unit for line in lines],
            [line.kind for line in lines],
            int_array(line.limit for line in lines),
            int_array(line.fixed for line in lines),
            int_array(line.per_million for line in lines),
            int_array(line.period for line in lines),
            int_array(int(line.resets_at * US) if line.kind == "window" else 0 for line in lines),
            claim.owner,
            asked.record,
            self._recorded,
        )
        return _reserved(claim, row)

    async def _reserve_batch(self, calls: Sequence[ReserveCall]) -> Sequence[Granted | Refused | None]:
        """Return the answers; None where the claim is to be reserved alone."""
        try:
            row = await self._call(RESERVE_ALL, *reserve_values(calls, recorded=self._recorded, now=self._time()))
        except LimiterUnavailable as failure:
            if is_of_one_row(failure):
                return [None] * len(calls)
            raise
        return reserve_answers(calls, row)

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
        asked = SettleCall(claim, _new_call(), _json(actual), source, _json(record))
        async with self._deadline():
            settled = await self._calls().settles.ask(asked)
            return settled or await self._settle_alone(asked)

    async def _settle_alone(self, asked: SettleCall) -> bool:
        claim = asked.claim
        [settled] = await self._call(
            _SETTLE,
            claim.id,
            claim.fingerprint,
            asked.call,
            asked.actual,
            asked.source,
            self._time(),
            claim.owner,
            asked.record,
        )
        return bool(settled)

    async def _settle_batch(self, calls: Sequence[SettleCall]) -> Sequence[bool]:
        """Return which of them were settled; the others are to be settled alone."""
        try:
            [ids] = await self._call(SETTLE_ALL, *settle_values(calls, now=self._time()))
        except LimiterUnavailable as failure:
            if is_of_one_row(failure):
                return [False] * len(calls)
            raise
        first = {asked.claim.id: asked for asked in reversed(calls)}  # which counts if an id is settled twice
        return [asked.claim.id in ids and first[asked.claim.id] is asked for asked in calls]

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

    async def running(self, most: int) -> Sequence[Record]:
        """See ListsRunning."""
        [found] = await self._call(_RUNNING, self._time(), str(most))
        return newest_first(_decode_records(found), most)

    async def ping(self) -> None:
        """Return if the server answers with our schema and the epoch that this process knows."""
        await self._call(_PING)

    async def accept(self) -> None:
        """Let all processes use the database as it is, though it was emptied. Raises LimiterUnavailable.

        Creates a missing schema. A schema that lacks a table is created anew: the old one is renamed to
        chat_nest_lost_..., and its records of requests, controls and acts are copied.
        """
        link = PostgresLink(self._url, place=self.place, timeout=_REPORTING, max_connections=1)
        try:
            await link.repair()
            await link.call(_ACCEPT, [_new_epoch()])
        finally:
            await asyncio.shield(link.close())
        await self.ping()

    async def usage(
        self,
        since: float,
        until: float,
        by: Sequence[By],
        zone: ZoneInfo,
        caller: str | None = None,
        most: int | None = None,
    ) -> list[UsageRow]:
        """See Reports. Uses a separate connection with a longer time-out."""
        asked = question(since, until, by, zone, caller, most)
        names, starts, ends = zip(*asked.spans, strict=True)
        values = _texts(asked.by), _texts(NO_ERRORS), caller, _texts(names), int_array(starts), int_array(ends)
        rows = None if most is None else str(most)
        link = PostgresLink(self._url, place=self.place, timeout=_REPORTING, max_connections=1)
        try:
            [found] = await link.call(POSTGRES, (*values, rows))
        finally:
            await asyncio.shield(link.close())
        return usage_rows(asked, _decode_report(found))

    async def aclose(self) -> None:
        """Wait for the running calls, then close the connections."""
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            await asyncio.shield(lanes.drain())
        link, self._link = self._link, None
        if link is not None:
            await asyncio.shield(link.close())

    async def _call(self, query: LiteralString, *values: str | list[str] | None) -> Row:
        # All values are text: psycopg would choose a type by an integer's size, and prepare a statement for each.
        known = self.epochs.seen(_PART)
        if known is None:
            try:
                known = await known_epoch(self.epochs, _PART)
            except (OSError, ValueError) as error:
                raise LimiterUnavailable from error
        if self._link is None:
            self._link = PostgresLink(
                self._url,
                place=self.place,
                timeout=self._timeout,
                max_connections=self._max_connections,
                epochs=self.epochs,
            )
        epoch, *row = await self._link.call(query, [known or None, _new_epoch(), *values])
        if str(epoch) != self.epochs.seen(_PART):
            await asyncio.to_thread(self.epochs.believe, _PART, known, str(epoch))
        return tuple(row)

    def _calls(self) -> Lanes:
        if self._lanes is None:
            self._lanes = Lanes(CallBatches(self._reserve_batch), CallBatches(self._settle_batch))
        return self._lanes

    @asynccontextmanager
    async def _deadline(self) -> AsyncGenerator[None, None]:
        """End a call that waits for its batch, or for what follows it, at the call's own deadline."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError as error:
            raise LimiterUnavailable from error

    def _time(self) -> str | None:
        return None if self._now is None else str(int(self._now() * US))


def _reserved(claim: Claim, row: Row) -> Granted | Refused | Duplicate | Conflict:
    outcome, output, room, index, now_us, mark, record = cast(
        "tuple[str, int, list[int], int, int, int | None, str | None]", row
    )
    if outcome == "granted":
        return Granted(output_tokens=output, room=tuple(room))
    if outcome == "refused":
        wait = retry_after(claim.lines[index], claim, now_us, mark)
        return Refused(line=index, room=room[0], retry_after=wait)
    if outcome == "conflict":
        return Conflict()
    kept = None if record is None else _decode_record(record)
    return Duplicate(output_tokens=output, state=cast("ReservationState", outcome), record=kept)


def _check_name(claim: Claim) -> None:
    check_text(claim.id, "claim.id")
    check_text(claim.fingerprint, "claim.fingerprint")
    check_owner(claim.owner)


def _new_call() -> str:
    """Return a number by which the server recognizes a retried call."""
    return str(secrets.randbits(63))


def _new_epoch() -> str:
    return str(secrets.randbits(62))


def _json(value: Record | Mapping[Unit, int] | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _texts(texts: Iterable[str]) -> list[str]:
    return list(texts)


def _place(given: Mapping[str, Any]) -> str:
    """Return a connection URI's servers and database, without the login. libpq has defaults for all of them."""
    hosts = str(given.get("host") or given.get("hostaddr") or "").split(",")
    if hosts == [""]:
        return "the PostgreSQL store at libpq's default place"
    ports = str(given.get("port") or "5432").split(",")
    found = addresses(zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False))
    return f"the PostgreSQL store at {found}"
