"""Admission while the store is down, from an allowance that this process has held in the store before.

While the store answers, the allowance is held on the lines for all callers, as a claim like any other. When the store
is down, requests are admitted from it, on a separate MemoryStore. When the store is back, what they used is posted to
the lines that could not be read, and the allowance is settled and held anew.
The file is long because the allowance and what is admitted from it are one account.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.core.claims import MAX_AMOUNT, Claim, Conflict, Duplicate, Granted, Line, Refused, Standing
from chat_nest.core.errors import ChatError, LimiterUnavailable
from chat_nest.core.limits import Unit
from chat_nest.core.protocols import Now, Store
from chat_nest.ledger.allowance import CAN_HOLD, Fund, amounts_of, funding_claim, posting, requests_line
from chat_nest.ledger.delivery import Delivery
from chat_nest.ledger.journal import Entry
from chat_nest.limits.spec import Allowance
from chat_nest.stores.memory import MemoryStore

log = logging.getLogger("chat_nest.ledger")

FUND_LEASE = 3_600.0
"""How long an allowance outlives its process, and may outlast the store, in seconds."""
ROUND = 20.0
FIRST_PROBE, LONGEST_PROBE = 0.1, 2.0

MOST_UNASKED = 10_000
"""Ids of refused requests that are remembered, so that their release calls no store."""


class _Draw(Struct, frozen=True):
    """One request that was admitted without the store."""

    claim: Claim
    """As it came."""
    local: Claim
    output_tokens: int
    fund: Fund


class DegradedMode:
    """Admits requests on `store` while it answers, else on the allowance. `delivery` brings endings to the same store.

    `lines` returns this moment's lines for all callers. The ledger starts and closes it, and calls it as it would call
    the store; a claim that drew on the allowance ends by `end`, any other one in the store itself.

    After a call that fails or takes longer than `deadline` seconds the store counts as down: nothing asks it, except a
    probe in the background, until it answers again. Then a request raises LimiterUnavailable unless it can draw on the
    allowance. All budgets for all callers hold exactly. The caller's and the group's own lines, and all rates, are
    enforced for this process alone, with the allowance as their limit where that is lower, and charged afterwards.
    """

    def __init__(
        self,
        store: Store,
        allowance: Allowance,
        lines: Callable[[], Sequence[Line]],
        delivery: Delivery,
        *,
        now: Now = time.time,
        deadline: float = 0.5,
        lease: float = FUND_LEASE,
    ) -> None:
        self._store = store
        self._amounts = amounts_of(allowance)
        self._lines = lines
        self._delivery = delivery
        self._now = now
        self._deadline = deadline
        self._lease = lease
        self._local = MemoryStore(now)
        self._draws: dict[str, _Draw] = {}
        self._unasked: set[str] = set()
        """Ids of requests that were refused without asking the store, so that it has nothing to release."""
        self._fund: Fund | None = None
        self._retired: list[Fund] = []
        self._down = False
        self._refused = False
        self._closing = False
        self._ending: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_down(self) -> bool:
        """Whether the last call of the store failed."""
        return self._down

    @property
    def can_admit(self) -> bool:
        """Whether there is an allowance to draw on."""
        return self._usable() is not None

    def start(self) -> None:
        """Begin to hold an allowance."""
        if self._keeper is None or self._keeper.done():
            self._closing = False
            self._keeper = asyncio.create_task(self._keep())

    async def reserve(self, claim: Claim, lease: float) -> Granted | Refused | Duplicate | Conflict:
        """As Store.reserve. Raises LimiterUnavailable where neither the store nor the allowance can answer."""
        if claim.id in self._draws:
            return await self._local.reserve(claim, lease)  # a Duplicate or a Conflict, as ever
        if not self._down:
            try:
                async with asyncio.timeout(self._deadline):
                    return await self._store.reserve(claim, lease)
            except Exception as failure:
                if not _is_outage(failure):
                    raise
                self._fall(failure)
                # The store may come to hold the claim all the same: releasing its id forbids that.
                self._delivery.deliver(Entry(ending="release", claim=claim))
        try:
            return await self._admit(claim, lease)
        except LimiterUnavailable:
            if len(self._unasked) >= MOST_UNASKED:
                self._unasked.clear()  # to release these at the store as well does no harm
            self._unasked.add(claim.id)
            raise

    async def extend(self, claims: Sequence[Claim], lease: float) -> frozenset[str]:
        draws = [draw for claim in claims if (draw := self._draws.get(claim.id)) is not None]
        live = await self._local.extend([draw.local for draw in draws], lease)
        others = [claim for claim in claims if claim.id not in self._draws]
        return live | await self._store.extend(others, lease) if others else live

    def end(self, entry: Entry) -> asyncio.Task[None] | None:
        """Start the ending of a claim that the store never held. None for any other one: that is the store's to end."""
        claim = entry.claim
        draw = self._draws.get(claim.id)
        if draw is not None and draw.claim.owner == claim.owner:
            del self._draws[claim.id]
            if entry.ending == "settle":
                self._charge(draw, entry)
            self._leave(draw)
            return self._start(self._end(draw, entry))
        if entry.ending == "release" and claim.id in self._unasked:
            self._unasked.discard(claim.id)
            return self._start(asyncio.sleep(0))
        return None

    def _start(self, ending: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _end(self, draw: _Draw, entry: Entry) -> None:
        if entry.ending == "settle":
            await self._local.settle(draw.local, entry.actual, entry.source)
        else:
            await self._local.release(draw.local)

    def _charge(self, draw: _Draw, entry: Entry) -> None:
        """Charge the allowance, and post to the lines of the store that could not be seen."""
        spent = dict(entry.actual or {})
        for line in draw.claim.lines:
            spent.setdefault(line.unit, line.amount(draw.output_tokens))
        for unit in draw.fund.spent:
            draw.fund.spent[unit] += spent.get(unit, 0)
        post = posting(draw.claim, spent, entry.record)
        if post.lines or entry.record is not None:
            self._delivery.deliver(replace(entry, ending="post", claim=post, actual=spent))

    async def peek(self, lines: Sequence[Line]) -> tuple[Standing, ...]:
        if self._down:
            raise LimiterUnavailable
        return await self._store.peek(lines)

    async def sweep(self) -> int:
        await self._local.sweep()
        return 0 if self._down else await self._store.sweep()

    async def aclose(self, grace: float) -> None:
        """Settle the allowance back, once nothing draws on it any more. Admit nobody on it afterwards.

        Waits up to `grace` seconds for the endings of what drew on it.
        """
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._fund is not None:
            self._retire(self._fund)
        if self._ending:
            await asyncio.wait(self._ending, timeout=grace)

    # Without the store.

    def _usable(self) -> Fund | None:
        fund = self._fund
        if fund is None or self._closing or not self._now() < min(fund.good_until, fund.ends_at):
            return None
        return fund

    async def _admit(self, claim: Claim, lease: float) -> Granted | Refused | Duplicate | Conflict:
        """Admit on the allowance. Nothing here waits, so nothing comes in between."""
        fund = self._usable()
        if fund is None:
            raise LimiterUnavailable
        lines = [self._own_line(line, fund) for line in claim.lines]
        if "requests" in self._amounts:
            lines.append(requests_line(fund, self._amounts["requests"]))
        local = replace(claim, lines=tuple(lines), record=None)
        answer = await self._local.reserve(local, lease)
        if isinstance(answer, Granted):
            self._draws[claim.id] = _Draw(claim, local, answer.output_tokens, fund)
            fund.drawing.add(claim.id)
            fund.touched = True
            return Granted(output_tokens=answer.output_tokens, room=answer.room[: len(claim.lines)])
        if isinstance(answer, Refused) and (
            answer.line >= len(claim.lines) or lines[answer.line].limit < claim.lines[answer.line].limit
        ):
            raise LimiterUnavailable  # it is the allowance that is used up, not this limit
        return answer

    def _own_line(self, line: Line, fund: Fund) -> Line:
        """The line as this process alone can enforce it."""
        if line.kind == "request":
            return line
        key, limit = line.key, min(line.limit, self._amounts.get(line.unit, line.limit))
        if line.scope == "all" and line.kind in CAN_HOLD:
            if line.key not in fund.keys:
                raise LimiterUnavailable  # a window that has begun since, of which nothing is held
            key = f"{fund.claim.id}:{line.name}"
        return replace(line, key=key, limit=limit)

    def _leave(self, draw: _Draw) -> None:
        draw.fund.drawing.discard(draw.claim.id)
        if draw.fund in self._retired:
            self._settle_back(draw.fund)

    # The allowance.

    def _fall(self, failure: Exception) -> None:
        if not self._down:
            log.error("the store is down, what is admitted draws on the allowance: %s", type(failure).__name__)
        self._down = True
        self._wake.set()

    async def _keep(self) -> None:
        probe = FIRST_PROBE
        while True:
            self._wake.clear()
            try:
                await self._round()
                probe = FIRST_PROBE
            except Exception as failure:
                self._fall(failure)
                self._wake.clear()
                probe = min(2 * probe, LONGEST_PROBE)
            pause = probe if self._down else self._until_next_round()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _until_next_round(self) -> float:
        if self._fund is None:
            return LONGEST_PROBE
        return min(ROUND, max(FIRST_PROBE, self._fund.ends_at - self._now()))

    async def _round(self) -> None:
        """Find out whether the store answers; renew what is held in it, or settle it and hold anew."""
        async with asyncio.timeout(self._deadline):
            await self._store.ping()
        funds = [*self._retired, *([self._fund] if self._fund is not None else [])]
        if funds:
            good_until = self._now() + self._lease
            async with asyncio.timeout(self._deadline):
                live = await self._store.extend([fund.claim for fund in funds], self._lease)
            for fund in funds:
                if fund.claim.id in live:
                    fund.good_until = good_until
                elif fund is self._fund:
                    self._retire(fund)  # its lease ran out and all of it was charged: settling corrects that
        if self._down:
            log.warning("the store answers again")
        self._down = False
        lines = [line for line in self._lines() if line.kind in CAN_HOLD and line.unit in self._amounts]
        ours = self._fund
        if ours is not None and (ours.touched or ours.keys != frozenset(line.key for line in lines)):
            settling = self._retire(ours)
            if settling is not None:
                await asyncio.wait([settling], timeout=self._deadline)  # else there may be no room for the next one
        if self._fund is None:
            await self._hold(lines)

    async def _hold(self, lines: Sequence[Line]) -> None:
        claim = funding_claim(lines, self._amounts)
        good_until = self._now() + self._lease
        try:
            async with asyncio.timeout(self._deadline):
                answer = await self._store.reserve(claim, self._lease)
        except BaseException:
            self._delivery.deliver(Entry(ending="release", claim=claim))
            raise
        if isinstance(answer, Granted):
            self._fund = Fund(claim, good_until)
            self._refused = False
        elif isinstance(answer, Refused) and not self._refused:
            log.warning("limits.%s has no room for the allowance of an outage", claim.lines[answer.line].name)
            self._refused = True

    def _retire(self, fund: Fund) -> asyncio.Task[None] | None:
        self._fund = None
        self._retired.append(fund)
        return self._settle_back(fund)

    def _settle_back(self, fund: Fund) -> asyncio.Task[None] | None:
        if fund.drawing:
            return None  # whoever ends last settles it
        self._retired.remove(fund)
        actual: dict[Unit, int] = {unit: min(amount, MAX_AMOUNT) for unit, amount in fund.spent.items()}
        return self._delivery.deliver(Entry(ending="settle", claim=fund.claim, actual=actual, source="estimated"))


def _is_outage(failure: Exception) -> bool:
    """A claim that breaks a rule, and whatever else the store says on purpose, is no outage."""
    return isinstance(failure, LimiterUnavailable) or not isinstance(failure, ValueError | ChatError)
