"""Whom pauses, blocks and stops refuse, and which answers they end: the rules, beside those of tests/wire/test_controls.py."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from chat_nest.controls.gate import Gate, Running, StopTerms, terms_of
from chat_nest.controls.live import LiveControls
from chat_nest.controls.memory import MemoryControls
from chat_nest.core.controls import Control
from chat_nest.core.errors import Blocked, LimiterUnavailable, Paused, SessionRevoked, Stopped, Unauthorized
from chat_nest.core.limits import Share
from chat_nest.core.messages import Caller
from chat_nest.testing import FakeClock

ADA = Caller(id="ada", group="Team")
BOB = Caller(id="bob")
STOPS = msgspec.json.encode(StopTerms(stop_running=True)).decode()


class Rows:
    """A gate, and the rows that it obeys."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.controls = MemoryControls(self.clock)
        self.gate = Gate(LiveControls(self.controls, self.clock), self.clock)

    async def put(self, kind: str, name: str, *, seconds: float | None = None, value: str = "") -> None:
        expires = None if seconds is None else self.clock() + seconds
        await self.controls.change([Control(kind=kind, name=name, value=value, expires=expires)])


@pytest.fixture
def rows() -> Rows:
    return Rows()


def stops(rows: Rows, running: Running) -> bool:
    error = rows.gate.stopped(running)
    assert isinstance(error, Stopped | None)
    return error is not None


async def test_nothing_is_refused_without_rows(rows: Rows) -> None:
    await rows.gate.ready()
    rows.gate.check(ADA, "balanced")
    rows.gate.check_address(ip_address("192.0.2.1"))
    rows.gate.check_address(None)
    assert rows.gate.open_models(["p:m"]) == ["p:m"]
    assert not rows.gate.pauses("p:m")
    assert not rows.gate.stops_any
    assert rows.gate.stopped(Running(run="r", caller=ADA, profile="balanced", model="")) is None


async def test_a_gate_that_has_not_seen_the_store_is_not_ready() -> None:
    class Away(MemoryControls):
        async def watch(self, known: int) -> None:
            raise LimiterUnavailable

    class Stored:
        """Of a store that does not answer; LiveControls reads those of this process at once."""

        def __init__(self) -> None:
            self.watch = Away().watch

    live = LiveControls(Stored(), FakeClock())  # type: ignore[arg-type]
    try:
        with pytest.raises(LimiterUnavailable):
            await Gate(live, FakeClock()).ready()
    finally:
        await live.aclose()


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("all", {ADA: {"balanced", "Other"}, BOB: {"balanced", "Other"}}),
        ("profile:other", {ADA: {"Other"}, BOB: {"Other"}}),
        (f"caller:{ADA.key}", {ADA: {"balanced", "Other"}, BOB: set()}),
        ("group:Team", {ADA: {"balanced", "Other"}, BOB: set()}),
        ("group:team", {ADA: set(), BOB: set()}),
        ("group:None", {ADA: set(), BOB: set()}),
        ("profile:Other", {ADA: set(), BOB: set()}),
    ],
)
async def test_which_callers_a_pause_refuses(rows: Rows, name: str, who: dict[Caller, set[str]]) -> None:
    await rows.put("pause", name, value=STOPS)
    for caller, profiles in who.items():
        for profile in ("balanced", "Other"):
            running = Running(run="r", caller=caller, profile=profile, model="p:m")
            assert stops(rows, running) == (profile in profiles)
            if profile in profiles:
                with pytest.raises(Paused):
                    rows.gate.check(caller, profile)
            else:
                rows.gate.check(caller, profile)


@pytest.mark.parametrize(
    ("seconds", "after"), [(None, 60.0), (3_600, 60.0), (60, 60.0), (30, 30.0), (1.5, 1.5), (0.25, 1.0)]
)
async def test_a_pause_sends_retry_after_and_ends(rows: Rows, seconds: float | None, after: float) -> None:
    await rows.put("pause", "all", seconds=seconds)
    with pytest.raises(Paused) as refused:
        rows.gate.check(BOB, "balanced")
    assert refused.value.retry_after == after
    if seconds is not None:
        rows.clock.advance(seconds)
        rows.gate.check(BOB, "balanced")
        assert rows.gate.open_models(["p:m"]) == ["p:m"]


async def test_a_paused_model_or_provider_leaves_the_others(rows: Rows) -> None:
    models = ["p:m", "p:m:tag", "q:m"]
    await rows.put("pause", "model:p:m", seconds=10)
    assert rows.gate.open_models(models) == ["p:m:tag", "q:m"]
    assert [rows.gate.pauses(model) for model in models] == [True, False, False]
    await rows.put("pause", "provider:p")
    assert rows.gate.open_models(models) == ["q:m"]
    assert [rows.gate.pauses(model) for model in models] == [True, True, False]
    await rows.put("pause", "provider:q", seconds=20)
    for order, after in ((["q:m", "p:m:tag"], 20.0), (["p:m:tag", "q:m"], 60.0)):  # of the first, which was wanted
        with pytest.raises(Paused) as refused:
            rows.gate.open_models(order)
        assert refused.value.retry_after == after
    assert rows.gate.open_models([]) == []


async def test_a_blocked_caller_is_refused_until_the_block_ends(rows: Rows) -> None:
    await rows.put("block", f"caller:{ADA.key}", seconds=5)
    for check in (lambda: rows.gate.check(ADA, "balanced"), lambda: rows.gate.check_caller(ADA)):
        with pytest.raises(Blocked):
            check()
    rows.gate.check(BOB, "balanced")
    rows.clock.advance(5)
    rows.gate.check(ADA, "balanced")


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("network:192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
        ("network:192.0.2.7/32", "192.0.2.7", "192.0.2.8"),
        ("network:2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
        ("network:::/96", "::c000:207", "192.0.2.7"),
    ],
)
async def test_which_callers_a_blocked_network_refuses(rows: Rows, name: str, inside: str, outside: str) -> None:
    await rows.put("block", "network:not one")
    await rows.put("block", "192.0.3.0/24")
    await rows.put("block", "caller:192.0.3.0/24")
    await rows.put("block", name, value=STOPS)
    with pytest.raises(Blocked):
        rows.gate.check_address(ip_address(inside))
    rows.gate.check_address(ip_address(outside))
    rows.gate.check_address(None)
    for address, stopped in ((inside, True), (outside, False)):
        running = Running(run="r", caller=BOB, profile="balanced", model="p:m", address=ip_address(address))
        assert stops(rows, running) is stopped


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("pause", "all"),
        ("pause", "profile:balanced"),
        ("pause", "provider:p"),
        ("pause", "model:p:m"),
        ("block", f"caller:{ADA.key}"),
        ("block", "network:192.0.2.0/24"),
    ],
)
async def test_only_rows_with_stop_running_stop_a_running_answer(rows: Rows, kind: str, name: str) -> None:
    running: dict[str, Any] = {"run": "r", "caller": ADA, "profile": "Balanced", "address": ip_address("192.0.2.1")}
    for value, ends in (("", False), ("{", False), ('{"stop_running": "yes"}', False), (STOPS, True)):
        await rows.put(kind, name, value=value)
        assert rows.gate.stops_any
        assert stops(rows, Running(**running, model="p:m")) is ends
    before_a_provider_is_asked = stops(rows, Running(**running, model=""))
    assert before_a_provider_is_asked is not name.startswith(("provider", "model"))


async def test_a_stop_names_one_answer(rows: Rows) -> None:
    await rows.put("stop", "r1", seconds=300)
    assert rows.gate.stops_any
    assert stops(rows, Running(run="r1", caller=BOB, profile="balanced", model="p:m"))
    assert not stops(rows, Running(run="r2", caller=BOB, profile="balanced", model="p:m"))


async def test_a_revoked_key_is_refused_and_ends_its_answers_and_its_sessions(rows: Rows) -> None:
    by_key, other = Caller(id="key:ada", api_key="k1"), Caller(id="key:ada", api_key="k2")
    session = Caller(id="session:u", api_key="k1", shares=(Share(scope="session", id="s_1"),))
    await rows.put("api_key_revoked", "k1", seconds=300)
    assert rows.gate.stops_any
    for caller, refusal, end in ((by_key, Unauthorized, Stopped), (session, SessionRevoked, SessionRevoked)):
        with pytest.raises(refusal):
            rows.gate.check(caller, "balanced")
        assert type(rows.gate.stopped(Running(run="r", caller=caller, profile="balanced", model="p:m"))) is end
    rows.gate.check(other, "balanced")
    assert not stops(rows, Running(run="r", caller=other, profile="balanced", model="p:m"))


def test_the_record_of_an_action_is_read_back() -> None:
    terms = StopTerms(stop_running=True, by="cli:op", since=7.0)
    assert terms_of(Control(kind="pause", name="all", value=msgspec.json.encode(terms).decode())) == terms
    assert terms_of(Control(kind="pause", name="all")) == StopTerms()
