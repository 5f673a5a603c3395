"""The outbox: alerts that are claimed, and not yet delivered. They are rows beside the counters of a store.

1. `post` takes the alert's key and writes a row for each channel, in one step of the store. Of all processes one is the
   first, so an alert is written once; and a process that dies right after it has lost nothing.
2. Any process finds a row that is due, and `take`s one attempt of it, again by a once-only key.
3. After the attempt the row is removed, or written again with the time of the next one. A process that dies before that
   leaves the row as it was: when the key of its attempt has expired, another process tries again with the same id.

So a receiver gets each alert at least once, and knows a second delivery by the id.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chat_nest.alerts.events import Alert, Crossing
from chat_nest.alerts.settings import SEND_SECONDS
from chat_nest.core.controls import Control
from chat_nest.core.protocols import Now

KIND: Final = "alert"
KEPT_SECONDS: Final = 3 * 86_400.0
"""How long an alert is tried."""
WAITS: Final = (5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0)
"""Seconds before the second attempt, the third, and so on; the last one repeats."""
ATTEMPT_SECONDS: Final = 4 * SEND_SECONDS
"""How long an attempt belongs to the process that took it: longer than it can take."""
_GONE: Final = 1.0
"""A time long past, with which a row ends."""


class OutboxEntry(Struct, frozen=True, kw_only=True):
    """One alert for one channel. `due` is in Unix seconds."""

    alert: Alert
    channel: str
    attempts: int = 0
    due: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.alert.id} {self.channel}"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OutboxEntry).decode


class Rows(Protocol):
    """The part of Controls that an outbox needs."""

    async def first(self, key: str, seconds: float, report: Sequence[Control] = ()) -> bool: ...
    async def report(self, rows: Sequence[Control]) -> None: ...
    async def reports(self, kind: str, name: str = "") -> Sequence[Control]: ...


class Outbox:
    """The outbox in these controls. Calls raise LimiterUnavailable, or what the store raises, if it does not answer."""

    def __init__(self, controls: Rows, now: Now = time.time) -> None:
        self._controls = controls
        self._now = now

    async def post(self, crossing: Crossing, alert: Alert, channels: Sequence[str]) -> bool:
        """Claim the crossing, and note its alert for each channel; False if another call has claimed it."""
        rows = [self._row(OutboxEntry(alert=alert, channel=channel)) for channel in channels]
        return await self._controls.first(crossing.key, crossing.seconds, rows)

    async def pending(self) -> list[OutboxEntry]:
        """Return all entries; those of a later version that can't be read are left out."""
        found: list[OutboxEntry] = []
        for row in await self._controls.reports(KIND):
            try:
                found.append(_decode(row.value))
            except (msgspec.DecodeError, msgspec.ValidationError):
                continue
        return found

    async def take(self, entry: OutboxEntry) -> bool:
        """Return whether this process, and no other, makes this attempt of the entry."""
        if not await self._controls.first(f"alert-attempt:{entry.name}:{entry.attempts}", ATTEMPT_SECONDS):
            return False
        # An entry that was read long ago may have been delivered since, and its key may have expired.
        rows = await self._controls.reports(KIND, entry.name)
        return any(_decode(row.value).attempts == entry.attempts for row in rows)

    async def remove(self, entry: OutboxEntry) -> None:
        """Forget an entry that was delivered, or is given up."""
        await self._controls.report([Control(kind=KIND, name=entry.name, expires=_GONE)])

    async def put_off(self, entry: OutboxEntry, wait: float = 0.0) -> OutboxEntry | None:
        """Set the time of the next attempt, in `wait` seconds at least; None if there is none and it is forgotten."""
        now = self._now()
        seconds = max(wait, WAITS[min(entry.attempts, len(WAITS) - 1)])
        if now + seconds > entry.alert.at + KEPT_SECONDS:
            await self.remove(entry)
            return None
        later = replace(entry, attempts=entry.attempts + 1, due=now + seconds)
        await self._controls.report([self._row(later)])
        return later

    def _row(self, entry: OutboxEntry) -> Control:
        ends = entry.alert.at + KEPT_SECONDS + ATTEMPT_SECONDS
        return Control(kind=KIND, name=entry.name, value=_encode(entry).decode(), expires=ends)
