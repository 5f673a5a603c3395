"""Delivery: nothing that hangs or fails delays anything else, and nothing is lost silently."""

from __future__ import annotations

import asyncio
import os
import resource
import time

import pytest
from webhook_receiver import SECRET, Receiver

from chat_nest.alerts import delivery as of_delivery
from chat_nest.alerts.delivery import AlertDelivery
from chat_nest.alerts.events import Crossing
from chat_nest.alerts.local import LocalRows
from chat_nest.alerts.outbox import Outbox
from chat_nest.alerts.settings import SendOutcome
from chat_nest.alerts.webhook import Webhook
from chat_nest.controls.memory import MemoryControls
from chat_nest.core.errors import LimiterUnavailable

CROSSING = Crossing(key="alert:all:x:1:100:80", seconds=3_600, type="budget.threshold", text="80 %")


class Clock:
    now = 1_790_000_000.0

    def __call__(self):
        return self.now


class Scripted:
    """A channel whose outcomes a test sets."""

    def __init__(self, kind, *outcomes):
        self.kind = kind
        self.outcomes = list(outcomes)
        self.sent = []
        self.news = asyncio.Event()

    async def send(self, id, type, text, body):
        self.sent.append((id, text))
        self.news.set()
        outcome = self.outcomes.pop(0) if self.outcomes else SendOutcome(sent=True)
        if outcome is None:
            await asyncio.Event().wait()
        return outcome

    async def aclose(self):
        pass

    async def attempted(self, count):
        while len(self.sent) < count:
            await self.news.wait()
            self.news.clear()


class Down:
    """A store that does not answer."""

    async def first(self, key, seconds, report=()):
        raise LimiterUnavailable

    report = reports = first


@pytest.fixture
def counts():
    return []


@pytest.fixture
async def start(counts):
    """Makes a Delivery with these rows and channels, which ends with the test."""
    found = []

    def make(rows, *channels, clock=None):
        clock = clock or Clock()
        made = AlertDelivery([Outbox(each, clock) for each in rows], lambda *count: counts.append(count), clock)
        made.adopt({each.kind: each for each in channels}, "prod")
        made.start()
        found.append(made)
        return made

    yield make
    for each in found:
        await each.aclose()


async def until_empty(rows, clock):
    while await Outbox(rows, clock).pending():
        await asyncio.sleep(0)


async def test_each_channel_gets_the_alert_once(start, counts):
    one, other, clock = Scripted("webhook"), Scripted("email"), Clock()
    rows = MemoryControls(clock)
    delivery = start([rows], one, other, clock=clock)
    assert await delivery.post(CROSSING)
    assert not await delivery.post(CROSSING)
    await until_empty(rows, clock)
    assert one.sent == other.sent == [(CROSSING.alert(0, "").id, "prod: 80 %")]
    assert sorted(counts) == [("budget.threshold", "email", "sent"), ("budget.threshold", "webhook", "sent")]


async def test_a_channel_that_hangs_delays_no_other(start):
    hangs, works, clock = Scripted("webhook", None), Scripted("email"), Clock()
    delivery = start([MemoryControls(clock)], hangs, works, clock=clock)
    await delivery.post(CROSSING)
    await hangs.attempted(1)
    await delivery.post(Crossing(key="alert:2", seconds=60, type="store.down", text="down"))
    await works.attempted(2)  # while the first still hangs


async def test_a_failed_attempt_is_made_again_when_its_time_has_come(start, counts, monkeypatch):
    monkeypatch.setattr(of_delivery, "LOOK_SECONDS", 0.01)
    clock, rows = Clock(), None
    rows = MemoryControls(clock)
    async with Receiver(500, 503) as receiver:
        delivery = start([rows], Webhook(receiver.url, [SECRET]), clock=clock)
        await delivery.post(CROSSING)
        for attempt in (1, 2):
            await receiver.attempted(attempt)
            while sum(each[2] == "failed" for each in counts) < attempt:
                await asyncio.sleep(0.01)
            assert receiver.deliveries == []
            clock.now += 31
        [arrived] = await receiver.delivered(1)
    assert receiver.attempts == [arrived.id] * 3
    assert arrived.body["type"] == "budget.threshold"
    assert arrived.body["text"] == "prod: 80 %"
    assert arrived.body["data"] == {"server": "prod"}
    assert arrived.body["timestamp"] == "2026-09-21T14:13:20Z"


async def test_a_receiver_that_is_gone_is_not_tried_again(start, counts, caplog):
    clock = Clock()
    rows = MemoryControls(clock)
    async with Receiver(410) as receiver:
        delivery = start([rows], Webhook(receiver.url, [SECRET]), clock=clock)
        await delivery.post(CROSSING)
        await receiver.attempted(1)
        await until_empty(rows, clock)
    assert counts == [("budget.threshold", "webhook", "lost")]
    assert "is lost: 410: the receiver is gone" in caplog.text


async def test_alerts_of_an_ended_process_are_delivered_by_the_next(start):
    clock = Clock()
    rows = MemoryControls(clock)
    hangs = Scripted("webhook", None)
    first = start([rows], hangs, clock=clock)
    await first.post(CROSSING)
    await hangs.attempted(1)
    await first.aclose()
    clock.now += 61  # the attempt of the first has ended
    works = Scripted("webhook")
    start([rows], works, clock=clock)
    await works.attempted(1)
    assert works.sent == hangs.sent


async def test_while_the_store_is_down_one_process_of_a_machine_sends_by_a_file(start, tmp_path):
    clock, path = Clock(), tmp_path / "state" / "alerts.db"
    clock.now = time.time()  # that of the file
    files, channels = (LocalRows(path), LocalRows(path)), (Scripted("webhook"), Scripted("webhook"))
    both = [
        start([Down(), rows, MemoryControls(clock)], each, clock=clock)
        for rows, each in zip(files, channels, strict=True)
    ]
    assert sorted(await asyncio.gather(*(each.post(CROSSING) for each in both))) == [False, True]
    while await Outbox(files[0], clock).pending():
        await asyncio.sleep(0.01)
    for each in (*both, *files):
        await each.aclose()
    assert len(channels[0].sent) + len(channels[1].sent) == 1


async def test_a_file_that_was_removed_is_made_anew(tmp_path):
    path = tmp_path / "alerts.db"
    rows = LocalRows(path)
    assert await rows.reports("alert") == ()
    assert not path.exists()
    assert await rows.first("a", 60)
    await rows.aclose()
    path.unlink()
    rows = LocalRows(path)
    assert await rows.first("a", 60)
    await rows.aclose()


async def test_on_a_full_disk_the_alert_is_sent_from_memory_and_logged(start, tmp_path, caplog):
    clock = Clock()
    rows, channel = LocalRows(tmp_path / "alerts.db"), Scripted("webhook")
    delivery = start([Down(), rows, MemoryControls(clock)], channel, clock=clock)
    before = resource.prlimit(os.getpid(), resource.RLIMIT_FSIZE)
    resource.prlimit(os.getpid(), resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        assert await delivery.post(CROSSING)
    finally:
        resource.prlimit(os.getpid(), resource.RLIMIT_FSIZE, before)
    await channel.attempted(1)
    assert caplog.text.count("an alert (budget.threshold) can't be kept here") == 2
    await rows.aclose()


async def test_an_alert_that_nothing_can_keep_is_lost_loudly(start, counts, caplog):
    delivery = start([Down()], Scripted("webhook"))
    assert not await delivery.post(CROSSING)
    assert "is lost: it could be kept nowhere: prod: 80 %" in caplog.text
    assert counts == [("budget.threshold", "every channel", "lost")]


async def test_a_reload_changes_the_channels_and_leaves_a_running_attempt_alone(start):
    clock = Clock()
    before, after, mail = Scripted("webhook", None), Scripted("webhook"), Scripted("email")
    delivery = start([MemoryControls(clock)], before, clock=clock)
    await delivery.post(CROSSING)
    await before.attempted(1)
    delivery.adopt({"webhook": after, "email": mail}, "")
    delivery.start()
    await delivery.post(Crossing(key="alert:2", seconds=60, type="store.down", text="down"))
    await mail.attempted(1)
    delivery.adopt({}, "")
    delivery.start()
    assert await delivery.post(Crossing(key="alert:3", seconds=60, type="store.down", text="down"))
    assert len(mail.sent) == 1
