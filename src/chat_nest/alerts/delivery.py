"""Delivery: each channel tries what is due in the outboxes, on its own, so that one that hangs delays no other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from chat_nest.alerts.events import Alert, Crossing, payload
from chat_nest.alerts.outbox import Outbox, OutboxEntry
from chat_nest.alerts.settings import AlertType, Channel, SendOutcome
from chat_nest.core.errors import failure_name
from chat_nest.core.protocols import Now

log = logging.getLogger("chat_nest.alerts")

LOOK_SECONDS: Final = 5.0
"""Between two looks at the outboxes for what another process has left."""
STORE_SECONDS: Final = 5.0
"""The longest call of an outbox."""
AT_ONCE: Final = 8
"""Attempts of one channel at the same time."""

Count = Callable[[AlertType, str, str], None]
"""Count an alert: its type, its channel, and `sent`, `failed` (to be tried again) or `lost`."""


class AlertDelivery:
    """Posts alerts to the first outbox that answers, and delivers what is in all of them.

    The outboxes are those of the fleet, of this machine, and of this process, in this order; the last one always
    answers. Channels are by their kind. For one event loop.
    """

    def __init__(self, outboxes: Sequence[Outbox], count: Count, now: Now = time.time) -> None:
        self._outboxes = outboxes
        self._count = count
        self._now = now
        self._channels: Mapping[str, Channel] = {}
        self._name = ""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._former: set[asyncio.Task[None]] = set()
        self._wanted: dict[str, asyncio.Event] = {}

    def adopt(self, channels: Mapping[str, Channel], name: str) -> None:
        """Take these channels; `start` puts them in force."""
        self._channels, self._name = channels, name

    def start(self) -> None:
        """Start a task for each channel, and end those of former ones. An attempt that goes on is left alone."""
        for kind in {*self._tasks} - {*self._channels}:
            self._tasks[kind].cancel()
            self._former.add(self._tasks.pop(kind))
        for kind in {*self._channels} - {*self._tasks}:
            wanted = self._wanted[kind] = asyncio.Event()
            self._tasks[kind] = asyncio.create_task(self._work(kind, wanted))

    async def aclose(self) -> None:
        """Stop. An attempt that goes on is cancelled, and made again by another process, or after the next start."""
        tasks = {*self._tasks.values(), *self._former}
        self._tasks.clear()
        self._former.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def post(self, crossing: Crossing) -> bool:
        """Write the alert into an outbox, unless it was written before. Returns whether it was."""
        alert = crossing.alert(self._now(), self._name)
        for outbox in self._outboxes:
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    posted = await outbox.post(crossing, alert, list(self._channels))
            except Exception as error:
                log.warning("an alert (%s) can't be kept here: %s", alert.type, failure_name(error))
                continue
            if posted:
                log.warning("alert: %s: %s", alert.type, alert.text)
                for wanted in self._wanted.values():
                    wanted.set()
            return posted
        self._lose(alert, "every channel", "it could be kept nowhere")
        return False

    async def _work(self, kind: str, wanted: asyncio.Event) -> None:
        while True:
            wanted.clear()
            for outbox in self._outboxes:
                with contextlib.suppress(Exception):  # it does not answer: the watch has an alert for that
                    await self._deliver_due(outbox, self._channels[kind])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await wanted.wait()

    async def _deliver_due(self, outbox: Outbox, channel: Channel) -> None:
        """Make the attempts that are due."""
        async with asyncio.timeout(STORE_SECONDS):
            entries = await outbox.pending()
        now = self._now()
        due = sorted(
            (each for each in entries if each.channel == channel.kind and each.due <= now), key=lambda each: each.due
        )
        for first in range(0, len(due), AT_ONCE):
            attempts = [self._attempt(outbox, channel, entry) for entry in due[first : first + AT_ONCE]]
            await asyncio.gather(*attempts, return_exceptions=True)  # a failure is the outbox's, and says nothing new

    async def _attempt(self, outbox: Outbox, channel: Channel, entry: OutboxEntry) -> None:
        alert = entry.alert
        async with asyncio.timeout(STORE_SECONDS):
            if not await outbox.take(entry):
                return
        outcome = await channel.send(alert.id, alert.type, alert.text, payload(alert))
        if outcome.why:
            level = logging.INFO if outcome.sent else logging.WARNING
            log.log(level, "alert %s by %s, attempt %d: %s", alert.id, channel.kind, entry.attempts + 1, outcome.why)
        await self._note(outbox, entry, outcome)

    async def _note(self, outbox: Outbox, entry: OutboxEntry, outcome: SendOutcome) -> None:
        """Note what came of an attempt. If the outbox fails now, the attempt is made again, with the same id."""
        alert, kind = entry.alert, entry.channel
        async with asyncio.timeout(STORE_SECONDS):
            if outcome.sent:
                self._count(alert.type, kind, "sent")
                await outbox.remove(entry)
            elif outcome.final:
                self._lose(alert, kind, outcome.why)
                await outbox.remove(entry)
            elif await outbox.put_off(entry, outcome.wait) is None:
                self._lose(alert, kind, "all attempts failed")
            else:
                self._count(alert.type, kind, "failed")

    def _lose(self, alert: Alert, channel: str, why: str) -> None:
        """Say loudly that an alert is lost."""
        log.error("alert %s by %s is lost: %s: %s", alert.id, channel, why, alert.text)
        self._count(alert.type, channel, "lost")
