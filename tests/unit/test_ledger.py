"""Every reservation ends exactly once, whatever the store and the request do."""

from __future__ import annotations

import asyncio

import pytest

from chat_nest.errors import BudgetExceeded, LimiterUnavailable, RateLimited
from chat_nest.ledger import Ledger, Reservation
from chat_nest.limits import Claim, Granted, Line
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import FakeClock
from chat_nest.tokens import ByteCounter, OutputMeter
from chat_nest.usage import Usage


def line(limit: int = 100, fixed: int = 10, kind="window", name="tokens_per_day", unit="tokens") -> Line:
    per = 1_000_000 if unit == "tokens" else 0
    return Line(
        name=name,
        scope="caller",
        key=f"k:{name}",
        unit=unit,
        kind=kind,
        limit=limit,
        fixed=fixed,
        per_million=per,
        resets_at=2e9,
        period=60 if kind == "rate" else 0,
    )


def claim(id: str = "a", *lines: Line) -> Claim:
    return Claim(id=id, fingerprint="f", lines=lines or (line(),), max_output_tokens=50, min_output_tokens=5)


def refusal(line, refused):
    return (BudgetExceeded if line.kind == "window" else RateLimited)(limit=line.name)


async def used(store) -> tuple[int, int]:
    (standing,) = await store.peek([line()])
    return standing.used, standing.held


def reservation(**facts) -> Reservation:
    held = Reservation(claim(), Granted(output_tokens=50, room=(40,)), 10)
    held.meter = OutputMeter(ByteCounter(), 50)
    held.asked = True
    held.abort_bills = "stops"
    for name, value in facts.items():
        setattr(held, name, value)
    return held


@pytest.mark.parametrize(
    ("facts", "text", "tokens", "source"),
    [
        ({"asked": False}, "", 0, "reported"),
        ({"spent_nothing": True}, "", 0, "reported"),
        ({}, "", 10, "estimated"),
        ({}, "abc", 13, "estimated"),
        ({"finished": True, "abort_bills": "full"}, "abc", 13, "estimated"),
        ({"abort_bills": "full"}, "abc", 60, "assumed"),
        ({"abort_bills": "unknown"}, "abc", 60, "assumed"),
        ({"countable": False}, "abc", 60, "assumed"),
        ({"countable": False, "finished": True}, "abc", 60, "assumed"),
        ({"reported": Usage(input_tokens=3, output_tokens=2)}, "abc", 5, "reported"),
        ({"reported": Usage()}, "abc", 0, "reported"),
        ({"abort_bills": "full"}, "x" * 80, 60, "assumed"),
    ],
)
def test_what_a_stream_that_ended_costs(facts, text, tokens, source) -> None:
    held = reservation(**facts)
    if text:
        held.meter.add(text)
    usage, said = held.spent()
    assert (usage.total_tokens, said) == (tokens, source)


def test_remaining_is_what_is_left_after_the_settlement() -> None:
    lines = (line(limit=100), line(limit=5, fixed=1, kind="rate", name="requests_per_minute", unit="requests"))
    held = Reservation(claim("a", *lines), Granted(output_tokens=50, room=(40, 4)), 10)
    assert held.remaining(Usage(input_tokens=4, output_tokens=3), None) == {
        "tokens_per_day": 93,
        "requests_per_minute": 4,
    }
    assert held.remaining(Usage(output_tokens=500), None) == {"tokens_per_day": 0, "requests_per_minute": 4}


async def test_settled_with_what_was_used_and_released_when_nobody_was_asked() -> None:
    store = MemoryStore(FakeClock())
    ledger = Ledger(store, refusal)
    async with ledger.reserve(claim("a"), 10) as held:
        assert await used(store) == (0, 60)
        held.asked = True
        held.reported = Usage(input_tokens=8, output_tokens=4)
    assert await used(store) == (12, 0)
    async with ledger.reserve(claim("b"), 10):
        pass
    assert await used(store) == (12, 0)
    await ledger.aclose()


async def test_a_refused_line_raises_its_refusal_and_changes_nothing() -> None:
    store = MemoryStore(FakeClock())
    ledger = Ledger(store, refusal)
    with pytest.raises(BudgetExceeded) as refused:
        async with ledger.reserve(claim("a", line(limit=12)), 10):
            pass
    assert refused.value.limit == "tokens_per_day"
    assert await used(store) == (0, 0)
    await ledger.aclose()


class Broken(MemoryStore):
    """Fails, or never answers, until it is mended."""

    def __init__(self, how: str) -> None:
        super().__init__(FakeClock())
        self.how = how
        self.calls: list[str] = []

    async def _fault(self, name: str) -> None:
        self.calls.append(name)
        if self.how == "fails":
            raise ConnectionError("secret-dsn")
        if self.how == "hangs":
            await asyncio.Event().wait()

    async def reserve(self, claim, lease):
        await self._fault("reserve")
        return await super().reserve(claim, lease)

    async def settle(self, claim, actual, source, record=None):
        await self._fault("settle")
        return await super().settle(claim, actual, source, record)

    async def release(self, claim):
        await self._fault("release")
        return await super().release(claim)


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_row43_a_store_that_does_not_answer_is_limiter_unavailable_within_a_second(how, caplog) -> None:
    store = Broken(how)
    ledger = Ledger(store, refusal)
    with pytest.raises(LimiterUnavailable):
        async with ledger.reserve(claim(), 10):
            pytest.fail("admitted without a store")
    assert asyncio.get_running_loop().time() <= 1.1
    store.how = "works"
    await asyncio.sleep(10)
    assert await used(store) == (0, 0)
    # The id was given back, so a reservation that the store makes late can't hold anything.
    assert "release" in store.calls
    assert type(await store.reserve(claim(), 60)).__name__ == "Duplicate"
    assert "secret-dsn" not in caplog.text
    await ledger.aclose()


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_row43_a_settlement_is_kept_and_tried_until_it_lands(how) -> None:
    store = Broken("works")
    ledger = Ledger(store, refusal)
    async with ledger.reserve(claim(), 10) as held:
        held.asked = True
        held.reported = Usage(input_tokens=8, output_tokens=4)
        store.how = how
    assert asyncio.get_running_loop().time() <= 1.1
    assert (await used(store))[1] == 60
    await asyncio.sleep(30)
    store.how = "works"
    await asyncio.sleep(10)
    assert await used(store) == (12, 0)
    await ledger.aclose()


@pytest.mark.looptime(start=0)
async def test_closing_gives_up_on_a_dead_store_after_its_grace(caplog) -> None:
    store = Broken("works")
    ledger = Ledger(store, refusal)
    async with ledger.reserve(claim(), 10) as held:
        held.asked = True
        store.how = "hangs"
    await ledger.aclose(grace=3)
    assert asyncio.get_running_loop().time() <= 4.2
    assert "did not land" in caplog.text


@pytest.mark.looptime(start=0)
async def test_a_live_reservation_outlives_its_lease_and_a_crashed_one_is_charged_in_full() -> None:
    loop = asyncio.get_running_loop()
    store = MemoryStore(lambda: 1_000_000_000 + loop.time())
    ledger = Ledger(store, refusal, lease=60)
    crashed = claim("crashed", line(limit=1_000))
    await store.reserve(crashed, 60)
    async with ledger.reserve(claim("live", line(limit=1_000)), 10) as held:
        held.asked = True
        held.reported = Usage(input_tokens=1)
        await asyncio.sleep(500)
        (standing,) = await store.peek([line()])
        assert (standing.used, standing.held) == (60, 60)
    (standing,) = await store.peek([line()])
    assert (standing.used, standing.held) == (61, 0)
    await ledger.aclose()


@pytest.mark.looptime(start=0)
async def test_a_settlement_that_the_store_can_never_take_is_not_tried_for_ever(caplog) -> None:
    class Strict(MemoryStore):
        calls = 0

        async def settle(self, claim, actual, source, record=None):
            self.calls += 1
            raise ValueError("line 0: secret")

    store = Strict(FakeClock())
    ledger = Ledger(store, refusal)
    async with ledger.reserve(claim(), 10) as held:
        held.asked = True
    await asyncio.sleep(30)
    assert store.calls == 1
    assert "refused a settlement" in caplog.text and "secret" not in caplog.text
    await ledger.aclose()
