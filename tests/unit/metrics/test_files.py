"""Processes that count together: what is in their files, and when."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector

from chat_nest import Profile, create_chat_handler, price
from chat_nest.metrics import Metrics
from chat_nest.metrics.files import FOLDER
from chat_nest.testing import ScriptedProvider, answer, collect

BODY = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start to count as a new process at this place would."""
    monkeypatch.setenv(FOLDER, str(tmp_path))

    @asynccontextmanager
    async def process(place: int, profile: Profile | None = None):
        monkeypatch.setattr(values, "ValueClass", values.MultiProcessValue(lambda: place))
        metrics = Metrics(CollectorRegistry())
        chat = create_chat_handler(
            providers={"p": ScriptedProvider(answer("Hello", " you"))},
            profiles={"balanced": profile or Profile(model="p:m", open=True, max_output_tokens=100)},
            prices={"p:m": price(input=1.0, output=2.0)},
            observers=[metrics],
        )
        async with chat:
            yield metrics, chat

    return process


@pytest.fixture
def written(tmp_path):
    """Return the samples of all files, as another process reads them."""

    def read() -> dict[tuple, float]:
        collector = MultiProcessCollector(CollectorRegistry(), str(tmp_path))
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for metric in collector.collect()
            for sample in metric.samples
        }

    return read


OK = ("chat_nest_requests_total", "balanced", "native", "ok")
RESERVED = ("chat_nest_reserve_seconds_count", "memory")


@asynccontextmanager
async def sampling(metrics):
    task = asyncio.create_task(metrics.keep_sampling())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_without_a_look_each_second_a_request_is_written_when_it_ends(start, written):
    async with start(0) as (_, chat):
        await collect(chat, BODY)
        assert written()[OK] == 1
        await collect(chat, BODY)
        assert written()[OK] == written()[RESERVED] == 2


async def test_with_a_look_each_second_nothing_is_lost_at_the_end(start, written, monkeypatch):
    monkeypatch.setattr("chat_nest.metrics.observer.SAMPLE_SECONDS", 3600.0)
    async with start(0) as (metrics, chat):
        async with sampling(metrics):
            await collect(chat, BODY)
            assert OK not in written()
        assert written()[OK] == written()[RESERVED] == 1
        metrics.alerted("budget", "webhook", "sent")
        assert written()["chat_nest_alerts_total", "budget", "sent", "webhook"] == 1


async def test_a_look_writes_what_was_counted_since_the_last_one(start, written, monkeypatch):
    monkeypatch.setattr("chat_nest.metrics.observer.SAMPLE_SECONDS", 0.0)
    async with start(0) as (metrics, chat), sampling(metrics):
        for count in (1, 2):
            await collect(chat, BODY)
            while written().get(OK) != count:
                await asyncio.sleep(0)


async def test_a_scrape_has_the_latest_counts_of_its_process(start):
    async with start(0) as (metrics, chat), sampling(metrics):
        await collect(chat, BODY)
        _, body = await metrics.render()
    assert 'chat_nest_requests_total{code="ok",dialect="native",profile="balanced"} 1.0' in body.decode()


async def test_values_of_processes_are_added_and_a_replacement_continues_them(start, written):
    for place in (0, 1, 0):
        async with start(place) as (_, chat):
            await collect(chat, BODY)
    found = written()
    assert found[OK] == found[RESERVED] == 3
    assert found["chat_nest_workers",] == 2
    (cost,) = [value for key, value in found.items() if key[0] == "chat_nest_cost_usd_total"]
    async with start(0) as (metrics, chat):
        await collect(chat, BODY)
    again = written()
    assert again["chat_nest_cost_usd_total", "m", "p", "reported"] == pytest.approx(cost / 3 * 4)
    bounds = [key[1:] for key in again if key[0] == "chat_nest_reserve_seconds_bucket"]
    assert len(bounds) == 13
    assert again["chat_nest_reserve_seconds_bucket", "+Inf", "memory"] == 4


async def test_a_file_that_can_not_grow_is_warned_of_once_and_written_later(start, written, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    async with start(0) as (_, chat):
        with monkeypatch.context() as broken:
            broken.setattr(values, "ValueClass", full)
            await collect(chat, BODY)
            await collect(chat, BODY)
        assert [record.getMessage() for record in caplog.records if record.name == "chat_nest.metrics"] == [
            "the metrics of this process can't be written: No space left on device; it goes on trying"
        ]
        await collect(chat, BODY)
        assert written()[OK] == 3
