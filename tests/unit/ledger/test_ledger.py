"""Every reservation ends exactly once, whatever the store and the request do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from chat_nest.core.claims import Claim, Duplicate, Granted, Line
from chat_nest.core.errors import BudgetExceeded, ChatError, InProgress, LimiterUnavailable, RateLimited
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.counting.meter import OutputMeter
from chat_nest.counting.tokens import ByteCounter, ExactCounter
from chat_nest.ledger.delivery import Delivery
from chat_nest.ledger.journal import Journal
from chat_nest.ledger.ledger import AlreadyEnded, Ledger
from chat_nest.ledger.reservation import Reservation
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import FakeClock


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


SAID = {"stops": "estimated", "full": "assumed"}


def refusal(claim, refused):
    line = claim.lines[refused.line]
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
        ({"reported": Usage()}, "", 0, "reported"),
        ({"reported": Usage()}, "abc", 13, "estimated"),
        ({"reported": Usage(input_tokens=3)}, "abc", 6, "estimated"),
        ({"reported": Usage(input_tokens=3), "countable": False}, "abc", 53, "assumed"),
        ({"reported": Usage(output_tokens=3), "countable": False}, "abc", 13, "estimated"),
        ({"abort_bills": "full"}, "x" * 80, 60, "assumed"),
        ({}, "x" * 80, 60, "estimated"),
        ({}, "x" * 800, 60, "estimated"),
        ({}, "x" * 900, 310, "estimated"),
        ({"abort_bills": "full"}, "x" * 900, 310, "assumed"),
        ({"unseen": True}, "abc", 60, "assumed"),
        ({"unseen": True}, "x" * 900, 310, "assumed"),
        ({"unseen": True, "finished": True}, "abc", 13, "estimated"),
        ({"unseen": True, "reported": Usage(input_tokens=3, output_tokens=2)}, "abc", 5, "reported"),
        (
            {"unseen": True, "reported": Usage(input_tokens=3, output_tokens=2), "reported_last": False},
            "abc",
            53,
            "assumed",
        ),
    ],
)
def test_what_a_stream_that_ended_costs(facts, text, tokens, source) -> None:
    held = reservation(**facts)
    if text:
        held.meter.add(text)
    if held.reported_last:
        held.meter.mark()  # as `report` does: the text came before it
    usage, said = held.spent()
    assert (usage.total_tokens, said) == (tokens, source)


@pytest.mark.parametrize("again", [None, 1, 2], ids=["once", "lower", "the same again"])
@pytest.mark.parametrize(("bills", "tokens", "source"), [("stops", 8, "estimated"), ("full", 53, "assumed")])
def test_output_after_the_last_report_is_charged_even_if_the_provider_repeats_a_report(
    bills, tokens, source, again
) -> None:
    held = reservation(abort_bills=bills)
    held.meter.add("ab")
    held.report(Usage(input_tokens=3, output_tokens=2), last=True)
    held.meter.add("cde")
    if again is not None:
        held.report(Usage(input_tokens=3, output_tokens=again), last=True)
    usage, said = held.spent()
    assert (usage.total_tokens, said) == (tokens, source)
    held.finished = True
    assert held.spent() == (Usage(input_tokens=3, output_tokens=5), "estimated")
    held.report(Usage(input_tokens=3, output_tokens=4), last=True)
    assert held.spent() == (Usage(input_tokens=3, output_tokens=4), "reported"), "it counts what came since"


def test_a_last_report_that_repeats_an_earlier_one_is_the_last_word() -> None:
    held = reservation(finished=True)
    held.meter.add("ab")
    held.report(Usage(input_tokens=3, output_tokens=2), last=False)
    held.meter.add("c")
    held.report(Usage(input_tokens=3, output_tokens=2), last=True)
    assert held.spent() == (Usage(input_tokens=3, output_tokens=2), "reported")


@pytest.mark.parametrize("bills", ["stops", "full", "unknown"])
def test_a_finished_answer_with_an_early_report_is_topped_up_and_never_assumed(bills) -> None:
    held = reservation(abort_bills=bills)
    held.meter.add("ab")
    held.report(Usage(input_tokens=3, output_tokens=1), last=False)
    held.meter.add("cde")
    assert held.spent()[1] == ("estimated" if bills == "stops" else "assumed"), "it may have been cut off"
    held.finished = True
    assert held.spent() == (Usage(input_tokens=3, output_tokens=4), "estimated")


@pytest.mark.parametrize("facts", [{}, {"reported": Usage(input_tokens=10), "reported_last": False}])
def test_an_exact_count_is_charged_even_above_the_granted_limit(facts) -> None:
    counter = ExactCounter("o200k_base")
    held = reservation(meter=OutputMeter(counter, 50), **facts)
    held.meter.add(" word" * 80)
    assert held.spent() == (Usage(input_tokens=10, output_tokens=80), "estimated")


def test_remaining_is_the_limit_left_after_the_settlement() -> None:
    lines = (line(limit=100), line(limit=5, fixed=1, kind="rate", name="requests_per_minute", unit="requests"))
    held = Reservation(claim("a", *lines), Granted(output_tokens=50, room=(40, 4)), 10)
    assert held.remaining(Usage(input_tokens=4, output_tokens=3), None) == {
        "tokens_per_day": 93,
        "requests_per_minute": 4,
    }
    assert held.remaining(Usage(output_tokens=500), None) == {"tokens_per_day": 0, "requests_per_minute": 4}
    others = (replace(line(), scope="all"), line(kind="gauge", name="concurrent_streams"))
    assert Reservation(claim("a", *others), Granted(output_tokens=50, room=(40, 4)), 10).remaining(Usage(), None) == {}


def test_a_quota_has_the_remaining_limit_and_the_seconds_until_it_is_whole() -> None:
    lines = (line(), line(), line(limit=30, kind="rate"), line(limit=30, kind="rate"), line(kind="gauge"))
    held = Reservation(claim("a", *lines), Granted(output_tokens=50, room=(40, 40, 20, 40, 3)), 10)
    assert [(each.room, each.resets_in) for each in held.quotas(2e9 - 0.5)] == [
        (40, 0.5),
        (40, 0.5),
        (20, 20.0),
        (40, 0.0),  # a limit that was lowered meanwhile
        (3, 0.0),
    ]
    assert held.quotas(2e9 + 1)[0].resets_in == 0


def test_a_store_that_does_not_return_what_is_left_of_each_line_is_not_trusted() -> None:
    held = Reservation(claim("a", line(), line()), Granted(output_tokens=50, room=(40,)), 10)
    for read in (lambda: held.quotas(0), lambda: held.remaining(Usage(), None)):
        with pytest.raises(ValueError, match="zip"):
            read()


@pytest.mark.parametrize("bills", ["stops", "full"])
def test_a_later_report_adds_to_the_earlier_one_and_may_be_the_last(bills) -> None:
    held = reservation(abort_bills=bills)
    held.report(Usage(input_tokens=25, output_tokens=9), last=False)
    assert held.spent() == (Usage(input_tokens=25, output_tokens=9 if bills == "stops" else 50), SAID[bills])
    held.meter.add("abc")
    held.report(Usage(output_tokens=9), last=True)
    assert held.spent() == (Usage(input_tokens=25, output_tokens=9), "reported")
    held.report(Usage(input_tokens=25, output_tokens=12), last=True)
    assert held.spent() == (Usage(input_tokens=25, output_tokens=12), "reported")


async def test_usage_is_settled_and_a_request_without_a_provider_call_is_released() -> None:
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
async def test_a_store_that_batches_calls_has_as_many_at_once_as_it_names() -> None:
    class Batching(MemoryStore):
        calls_at_once = 20
        running = most = 0  # type: ignore[assignment]

        async def reserve(self, claim, lease):
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.05)
            self.running -= 1
            return await super().reserve(claim, lease)

    async def hold(number: int) -> None:
        async with ledger.reserve(claim(f"r{number}", line(limit=100_000)), 10):
            pass

    store = Batching(FakeClock())
    ledger = Ledger(store, refusal)
    await asyncio.gather(*map(hold, range(500)))
    assert store.most == 20
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


class Away(MemoryStore):
    """Answers nothing while it is away."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(lambda: 1_000_000_000 + loop.time())
        self.away = False

    async def reserve(self, claim, lease):
        self._check()
        return await super().reserve(claim, lease)

    async def extend(self, claims, lease):
        self._check()
        return await super().extend(claims, lease)

    async def sweep(self):
        self._check()
        return await super().sweep()

    def _check(self) -> None:
        if self.away:
            raise ConnectionError


def streams(limit: int) -> Line:
    return Line(name="concurrent_streams", scope="all", key="all", unit="streams", kind="gauge", limit=limit, fixed=1)


@asynccontextmanager
async def running(ledger: Ledger, names: Sequence[str], limit: int) -> AsyncGenerator[list[str]]:
    """Reserve a stream for each name, and keep those that were let in until the end; yields their names."""
    async with AsyncExitStack() as stack:
        admitted = []
        for name in names:
            with contextlib.suppress(RateLimited, LimiterUnavailable):
                await stack.enter_async_context(ledger.reserve(claim(name, streams(limit)), 10))
                admitted.append(name)
        yield admitted


@pytest.mark.looptime(start=0)
async def test_streams_that_outlive_an_outage_longer_than_a_lease_are_counted_before_new_ones() -> None:
    store = Away()
    ledgers = [Ledger(store, refusal, lease=60) for _ in range(2)]
    ledgers[1].start()
    await asyncio.sleep(0.5)  # so that the one without streams renews first
    ledgers[0].start()
    async with (
        running(ledgers[0], [f"old {n}" for n in range(20)], 20) as first,
        running(ledgers[1], ["one too many"], 20) as refused,
    ):
        assert (len(first), refused) == (20, [])
        store.away = True
        await asyncio.sleep(200.3)
        store.away = False
        let_in: list[str] = []
        async with AsyncExitStack() as stack:
            for second in range(20):  # four a second
                for number in range(4):
                    name = f"new {second} {number}"
                    let_in += await stack.enter_async_context(running(ledgers[number % 2], [name], 20))
                await asyncio.sleep(0.25)
        assert let_in == []
        assert (await store.peek([streams(20)]))[0].held == 20
    async with running(ledgers[1], ["next"], 20) as admitted:
        assert admitted == ["next"]
    for ledger in ledgers:
        await ledger.aclose()


@pytest.mark.looptime(start=0)
async def test_the_keeper_charges_the_lease_of_a_dead_process_without_any_request() -> None:
    store = Away()
    swept: list[int] = []
    sweep = store.sweep
    crashed = claim("crashed", line(limit=1_000))
    await store.reserve(crashed, 60)

    async def counted() -> int:
        swept.append(await sweep())
        return swept[-1]

    store.sweep = counted
    ledger = Ledger(store, refusal, lease=60)
    ledger.start()
    await asyncio.sleep(90)
    assert sum(swept) == 1
    for name in ("another", "a third"):
        await store.reserve(claim(name, line(limit=1_000)), 60)
    await asyncio.sleep(90)
    assert sum(swept) == ledger.expired == 3
    await ledger.aclose()


class Answering(MemoryStore):
    """Answers each reserve with what it is told to, or raises it; keeps what it is told of endings."""

    def __init__(self, answer: object = None) -> None:
        super().__init__(FakeClock())
        self.answer = answer
        self.endings: list[tuple[object, ...]] = []

    async def reserve(self, claim, lease):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer or await super().reserve(claim, lease)

    async def settle(self, claim, actual, source, record=None):
        self.endings.append((claim.id, actual, source, record))
        return await super().settle(claim, actual, source, record)

    async def release(self, claim):
        self.endings.append((claim.id,))
        return await super().release(claim)


def recorded(**facts) -> Record:
    return Record(run="r", caller="c", profile="p", model="m", started_at=1e9, usage=Usage(), **facts)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Duplicate(output_tokens=5, state="open"), InProgress),
        (Duplicate(output_tokens=0, state="released"), InProgress),  # nothing was spent: it is free in a moment
        (Duplicate(output_tokens=5, state="settled", record=recorded(spent_nothing=True)), InProgress),
        (Duplicate(output_tokens=5, state="settled", record=recorded()), AlreadyEnded),
        (Duplicate(output_tokens=5, state="settled"), AlreadyEnded),
        (Duplicate(output_tokens=5, state="expired", record=recorded()), AlreadyEnded),
    ],
)
async def test_what_became_of_an_id_that_was_used_before(answer, error) -> None:
    ledger = Ledger(Answering(answer), refusal)
    with pytest.raises(error) as refused:
        async with ledger.reserve(claim("mine"), 10):
            pytest.fail("admitted twice")
    if error is InProgress:
        assert (refused.value.claim, refused.value.retry_after) == ("mine", 1.0)
    else:
        assert refused.value.record is answer.record
    await ledger.aclose()


async def test_a_request_that_is_cancelled_while_it_reserves_stays_cancelled_and_gives_its_id_back() -> None:
    store = Broken("hangs")
    ledger = Ledger(store, refusal)

    async def request() -> None:
        async with ledger.reserve(claim(), 10):
            pytest.fail("admitted without a store")

    task = asyncio.create_task(request())
    while not store.calls:
        await asyncio.sleep(0)
    store.how = "works"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ledger.aclose()
    assert "release" in store.calls


async def test_a_refusal_raised_by_the_store_is_passed_on_unchanged(caplog) -> None:
    ledger = Ledger(Answering(full := LimiterUnavailable()), refusal)
    with pytest.raises(ChatError) as refused:
        async with ledger.reserve(claim(), 10):
            pytest.fail("admitted by a store that is full")
    assert (refused.value, caplog.text) == (full, "")
    await ledger.aclose()


async def test_the_store_that_reserved_gets_the_usage_and_its_source() -> None:
    store = Answering()
    ledger = Ledger(store, refusal)
    record = recorded(cost=7)
    async with ledger.reserve(claim("a"), 10, lambda held, failure: record) as held:
        held.asked = True
        held.reported = Usage(input_tokens=8, output_tokens=4)
    async with ledger.reserve(claim("b", line(1_000)), 10) as held:
        held.asked = True
    async with ledger.reserve(claim("c", line(1_000)), 10):
        pass
    await ledger.aclose()
    assert store.endings == [
        ("a", {"tokens": 12, "nanousd": 7}, "reported", record),
        ("b", {"tokens": 60}, "assumed", None),
        ("c",),
    ]


async def test_what_is_kept_of_a_request_that_is_released_too_late_is_how_it_ended() -> None:
    """The store charged its lease meanwhile, and answers a release with no."""
    store = Answering()
    store.release = lambda claim: asyncio.sleep(0, result=False)
    ledger = Ledger(store, refusal)
    record = recorded(ending="client_gone")
    async with ledger.reserve(claim("a"), 10, lambda held, failure: record):
        pass
    await ledger.aclose()
    actual: Any
    kept: Any
    [(_, actual, source, kept)] = store.endings
    assert (set(actual.values()), source, kept.ending, kept.spent_nothing) == ({0}, "reported", "client_gone", True)


async def test_an_ending_that_did_not_land_is_a_settlement_to_the_next_process_too(tmp_path) -> None:
    store = Broken("works")
    ledger = Ledger(store, refusal, delivery=Delivery(store, journal=Journal(tmp_path)))
    async with ledger.reserve(claim(), 10) as held:
        held.asked = True
        held.reported = Usage(input_tokens=8, output_tokens=4)
        store.how = "fails"
    await ledger.aclose(grace=0)
    store.how = "works"
    later = Delivery(store, journal=Journal(tmp_path))
    await later.adopt()
    await later.aclose(1)
    assert await used(store) == (12, 0)


async def test_an_answer_within_its_hold_is_no_alarm_and_one_token_more_is(caplog) -> None:
    ledger = Ledger(Answering(), refusal)
    for output in (50, 51):
        assert caplog.text == ""
        async with ledger.reserve(claim(f"{output}", line(1_000)), 10) as held:
            held.asked = True
            held.reported = Usage(input_tokens=10, output_tokens=output)
    assert "request 51 used more than it had reserved" in caplog.text
    await ledger.aclose()


@pytest.mark.looptime(start=0)
async def test_a_try_to_settle_takes_no_longer_than_the_ledgers_patience() -> None:
    store = Broken("works")
    ledger = Ledger(store, refusal, patience=0.25)
    async with ledger.reserve(claim(), 10) as held:
        held.asked = True
        held.reported = Usage(input_tokens=8)
        store.how = "hangs"
    store.how = "works"
    await asyncio.sleep(0.25)
    assert await used(store) == (8, 0)
    await ledger.aclose()


class Renewing(Away):
    """Notes when leases are renewed and swept; can be told to fail, or hang, at that alone."""

    def __init__(self) -> None:
        super().__init__()
        self.swept: list[float] = []
        self.hang = False

    async def extend(self, claims, lease):
        if self.hang:
            self.hang = False
            await asyncio.Event().wait()
        return await super().extend(claims, lease)

    async def sweep(self):
        self.swept.append(asyncio.get_running_loop().time())
        return await super().sweep()


@pytest.mark.looptime(start=0)
async def test_leases_are_renewed_thrice_in_their_time_and_each_second_after_a_failure_logged_once(caplog) -> None:
    store = Renewing()
    delivery = Delivery(store)
    adopted = []
    delivery.adopt = lambda: asyncio.sleep(0, adopted.append(asyncio.get_running_loop().time()))
    ledger = Ledger(store, refusal, lease=60, delivery=delivery)
    ledger.start()
    await asyncio.sleep(41)
    store.away = True
    await asyncio.sleep(21.5)
    store.away = False
    await asyncio.sleep(22)
    assert store.swept == pytest.approx([20, 40, 60, 61, 62, 63, 83])
    assert adopted[:3] == pytest.approx([0, 20, 40]), "what dead processes left is looked for as often"
    assert caplog.text.count("failed to renew leases") == 1
    await ledger.aclose()


@pytest.mark.looptime(start=0)
async def test_a_renewal_that_hangs_loses_no_lease() -> None:
    store = Renewing()
    ledger = Ledger(store, refusal, lease=60)
    async with ledger.reserve(claim("live"), 10):
        store.hang = True
        await asyncio.sleep(90)
        assert await used(store) == (0, 60)
    await ledger.aclose()


@pytest.mark.looptime(start=0)
async def test_a_failed_or_late_renewal_refuses_no_request_while_the_leases_last() -> None:
    store = Renewing()
    ledger = Ledger(store, refusal, lease=60)
    ledger.start()

    async def admitted(name: str) -> None:
        async with ledger.reserve(claim(name), 10):
            pass

    await asyncio.sleep(500.5)
    await admitted("just after a renewal")
    store.away = True
    await asyncio.sleep(25)
    store.away = False
    await admitted("before the next one")
    await ledger.aclose()


class Allowing:
    """A degraded mode that admits as the store does."""

    is_down = True

    def __init__(self, store) -> None:
        self.reserve, self.extend, self.sweep = store.reserve, store.extend, store.sweep

    def start(self) -> None: ...
    def end(self, entry) -> None: ...
    async def aclose(self, grace) -> None: ...


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize("allowance", [True, False])
async def test_after_leases_have_expired_only_a_store_with_an_allowance_admits(allowance) -> None:
    store = Renewing()
    ledger = Ledger(store, refusal, lease=60, degraded=Allowing(store) if allowance else None)  # type: ignore[arg-type]
    ledger.start()
    store.away = True
    await asyncio.sleep(70)
    store.away = False
    async with running(ledger, ["new"], 5) as admitted:
        assert admitted == (["new"] if allowance else [])
    await ledger.aclose()
