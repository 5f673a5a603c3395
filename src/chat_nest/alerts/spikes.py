"""Refusals and new visitors of the whole fleet: each process reports its own of the last minutes, as one row."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from chat_nest.alerts.outbox import Rows
from chat_nest.core.controls import Control

KIND: Final = "alert_counts"
MINUTES: Final = 5
MOST_CODES: Final = 8
"""The most frequent codes of a minute that a row has; the others are added up."""
OTHERS: Final = "others"


class Minute(Struct, array_like=True):
    """What happened in one minute."""

    refusals: dict[str, int]
    visitors: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[int, Minute]).decode


class RefusalTotals(Struct, frozen=True):
    """What happened in the last MINUTES."""

    refusals: Mapping[str, int]
    visitors: int


class Spikes:
    """The counts of this process, and their sum over the fleet."""

    def __init__(self, controls: Rows) -> None:
        self._controls = controls
        self._name = secrets.token_hex(8)
        self._minutes: dict[int, Minute] = {}

    async def add(self, refusals: Counter[str], visitors: int, now: float) -> RefusalTotals:
        """Add what this process has counted since the last call, and return the totals of the fleet.

        A process without any for some minutes calls no store, and leaves it to those that have. Raises what the store
        raises; what was added stays.
        """
        current = int(now // 60)
        self._minutes = {minute: each for minute, each in self._minutes.items() if minute > current - MINUTES}
        if refusals or visitors:
            before = self._minutes.get(current, Minute({}, 0))
            total = Counter(before.refusals) + refusals
            kept = dict(Counter({code: n for code, n in total.items() if code != OTHERS}).most_common(MOST_CODES))
            if rest := total.total() - sum(kept.values()):
                kept[OTHERS] = rest
            self._minutes[current] = Minute(kept, before.visitors + visitors)
        if not self._minutes:
            return RefusalTotals({}, 0)
        if refusals or visitors:
            row = Control(
                kind=KIND, name=self._name, value=_encode(self._minutes).decode(), expires=now + 60 * (MINUTES + 1)
            )
            await self._controls.report([row])
        codes: Counter[str] = Counter()
        found = 0
        for row in await self._controls.reports(KIND):
            for minute, each in _decode(row.value).items():
                if minute > current - MINUTES:
                    codes.update(each.refusals)
                    found += each.visitors
        return RefusalTotals(dict(codes.most_common()), found)
