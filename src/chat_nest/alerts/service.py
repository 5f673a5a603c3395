"""`Alerts`: the watch and the delivery of one process, with their settings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

from msgspec import Struct

from chat_nest.alerts.counts import Counts
from chat_nest.alerts.delivery import AlertDelivery, Count
from chat_nest.alerts.local import LocalRows
from chat_nest.alerts.outbox import Outbox, Rows
from chat_nest.alerts.settings import AlertType, Bounds, Channel
from chat_nest.alerts.watch import Watch
from chat_nest.controls.memory import MemoryControls
from chat_nest.core.protocols import Now, Provider, Store


class Plan(Struct, frozen=True, kw_only=True):
    """What is sent, and how. Without channels nothing is watched."""

    channels: Sequence[Channel] = ()
    bounds: Bounds = Bounds()
    events: frozenset[AlertType] = frozenset()
    zone: ZoneInfo = ZoneInfo("UTC")


class Alerts:
    """Watches one handler and delivers alerts, while `start` is in force. For one event loop.

    `controls` are those of the handler. `local` is the file of the machine's own outbox, if there is to be one. What
    neither the store nor this file can keep is kept in memory, and lost if the process ends before it is delivered.
    """

    def __init__(
        self,
        counts: Counts,
        store: Store,
        controls: Rows,
        providers: Callable[[], Mapping[str, Provider]],
        *,
        local: Path | None = None,
        count: Count = lambda _type, _channel, _outcome: None,
        now: Now = time.time,
    ) -> None:
        self._local = None if local is None else LocalRows(local)
        rows: list[Rows] = [controls, *([] if self._local is None else [self._local]), MemoryControls(now)]
        self.delivery = AlertDelivery([Outbox(each, now) for each in rows], count, now)
        self.watch = Watch(counts, store, controls, providers, self.delivery.post, now)
        self._channels: Sequence[Channel] = ()
        self._task: asyncio.Task[None] | None = None
        self._started = False

    def adopt(self, plan: Plan) -> None:
        """Put a plan in force. Once started, needs the running loop."""
        self._channels = plan.channels
        self.watch.adopt(plan.bounds, plan.events if plan.channels else frozenset(), plan.zone)
        self.delivery.adopt({each.kind: each for each in plan.channels}, plan.bounds.name)
        if self._started:
            self.start()

    def start(self) -> None:
        """Watch and deliver from now on, if the plan has a channel."""
        self._started = True
        self.delivery.start()
        if self._channels and self._task is None:
            self._task = asyncio.create_task(self.watch.run())
        elif not self._channels and self._task is not None:
            self._task.cancel()
            self._task = None

    async def aclose(self) -> None:
        """Stop. What is not delivered stays in the outbox."""
        self._started = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        await self.delivery.aclose()
        if self._local is not None:
            await self._local.aclose()
