"""/readyz: the store and every provider, asked with a deadline and not too often."""

from __future__ import annotations

import asyncio

import pytest

from chat_nest.core.errors import (
    LimiterUnavailable,
    UpstreamAuth,
    UpstreamError,
    UpstreamNotStarted,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from chat_nest.server.health import FRESH_SECONDS, Health
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import FakeClock


class Checked:
    """A provider whose check does what it is told, and counts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.checks = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def check(self) -> None:
        self.checks += 1
        await self.may_answer.wait()
        if self.error:
            raise self.error


class Unchecked:
    """A provider without a check."""


class BrokenStore(MemoryStore):
    async def ping(self) -> None:
        raise OSError("/secret/path: disk I/O error")


class FrozenStore(MemoryStore):
    async def ping(self) -> None:
        await asyncio.Event().wait()


def health(*, store=None, clock=None, key_from=None, draws_on_allowance=lambda: False, **providers) -> Health:
    return Health(
        MemoryStore() if store is None else store,
        providers,
        key_from or {},
        draws_on_allowance=draws_on_allowance,
        store_seconds=0.01,
        provider_seconds=0.01,
        clock=clock or FakeClock(),
    )


async def test_ready_when_the_store_and_every_provider_answer():
    found = await health(a=Checked(), b=Unchecked()).readiness()
    assert found.ready
    assert (
        found.body()
        == b'{"status":"ready","store":{"status":"ok"},"providers":{"a":{"status":"ok"},"b":{"status":"ok"}}}'
    )


@pytest.mark.parametrize(
    ("error", "status", "advice"),
    [
        (UpstreamAuth(), "upstream_auth", "The provider refused the key: correct it in the variable A_KEY"),
        (
            UpstreamUnreachable(),
            "upstream_unreachable",
            "The model provider can't be reached: check base_url of [providers.a], and the network",
        ),
        (
            UpstreamNotStarted("the model can't be loaded: libgomp.so.1 is missing"),
            "upstream_unreachable",
            "the model can't be loaded: libgomp.so.1 is missing: the log has the remedy",
        ),
        (
            UpstreamTimeout(),
            "upstream_timeout",
            "The provider did not answer in time: check its base_url and the network",
        ),
        (
            UpstreamRateLimited(),
            "upstream_rate_limited",
            "The provider refuses requests for now: check the account's quota",
        ),
        (
            UpstreamError(),
            "upstream_error",
            "The provider failed: check its base_url, and whether its kind is the API that is there",
        ),
        (
            RuntimeError("sk-canary"),
            "upstream_error",
            "The provider failed: check its base_url, and whether its kind is the API that is there",
        ),
    ],
)
async def test_a_failing_provider_is_named_with_a_remedy(error, status, advice):
    found = await health(a=Checked(error), b=Checked(), key_from={"a": "the variable A_KEY"}).readiness()
    assert not found.ready
    assert (found.providers["a"].status, found.providers["a"].advice) == (status, advice)
    assert found.providers["b"].status == "ok"
    assert b"sk-canary" not in found.body()


async def test_a_model_that_can_not_start_logs_that_itself_and_is_not_logged_twice(caplog):
    broken = Checked(UpstreamNotStarted("the model can't be loaded"))
    asked = health(a=broken, b=Checked(UpstreamAuth()))
    await asked.report()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["b"]


async def test_a_provider_that_does_not_answer_is_not_waited_for():
    slow = Checked()
    slow.may_answer.clear()
    found = await health(a=slow).readiness()
    assert found.providers["a"].status == "upstream_timeout"


@pytest.mark.parametrize("store", [BrokenStore, FrozenStore])
async def test_a_store_that_fails_or_freezes(store):
    found = await health(store=store(), a=Checked()).readiness()
    assert not found.ready
    assert found.store.status == "limiter_unavailable"
    assert b"secret" not in found.body()


async def test_an_answer_is_given_again_for_a_while():
    clock, provider = FakeClock(), Checked()
    asked = health(clock=clock, a=provider)
    for _ in range(3):
        await asked.readiness()
    assert provider.checks == 1
    provider.error = UpstreamAuth()
    clock.advance(FRESH_SECONDS - 0.001)
    assert (await asked.readiness()).ready
    clock.advance(0.001)
    assert not (await asked.readiness()).ready
    assert provider.checks == 2


async def test_simultaneous_readiness_requests_share_one_check_and_may_leave():
    provider = Checked()
    provider.may_answer.clear()
    asked = Health(MemoryStore(), {"a": provider}, {})
    first, second = asyncio.create_task(asked.readiness()), asyncio.create_task(asked.readiness())
    await asyncio.sleep(0)
    first.cancel()
    provider.may_answer.set()
    assert (await second).ready
    assert provider.checks == 1


async def test_problems_are_logged_with_a_remedy(caplog):
    await health(a=Checked(UpstreamAuth()), b=Checked(), key_from={"a": "the variable A_KEY"}).report()
    assert [record.getMessage() for record in caplog.records] == [
        "a: upstream_auth: The provider refused the key: correct it in the variable A_KEY"
    ]


async def test_closing_ends_a_question_that_is_open():
    provider = Checked()
    provider.may_answer.clear()
    asked = Health(MemoryStore(), {"a": provider}, {})
    waiting = asyncio.create_task(asked.readiness())
    await asyncio.sleep(0)
    await asked.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_worker_on_its_allowance_is_ready_and_reports_it():
    found = await health(store=BrokenStore(), draws_on_allowance=lambda: True, a=Checked()).readiness()
    assert found.ready
    assert b'"status":"degraded","store":{"status":"degraded","advice":"The ' in found.body()
    assert b"does not answer, and requests draw on the allowance of [degraded]: " in found.body()
    found = await health(store=BrokenStore(), draws_on_allowance=lambda: False, a=Checked()).readiness()
    assert not found.ready
    assert b'"status":"unavailable","store":{"status":"limiter_unavailable"' in found.body()


class Keys:
    """Tells who asks; `broken` says whether its file is."""

    def __init__(self, *, broken: bool) -> None:
        self.broken = broken

    def __call__(self, _scope):
        raise AssertionError("nobody asks")

    async def check(self) -> None:
        if self.broken:
            raise LimiterUnavailable


@pytest.mark.parametrize("broken", [False, True])
async def test_row24_not_ready_while_no_caller_can_be_identified(broken, caplog):
    health = Health(MemoryStore(), {"a": Checked()}, {}, identify=Keys(broken=broken), clock=FakeClock())
    found = await health.readiness()
    assert found.ready is not broken
    assert (b'"identity":{"status":"limiter_unavailable","advice":"The file of keys' in found.body()) is broken
    assert (b'"identity":{"status":"ok"}' in found.body()) is not broken
    await health.report()
    assert ("identity: limiter_unavailable: The file of keys" in caplog.text) is broken


class Listing(Checked):
    async def check(self) -> frozenset[str]:  # type: ignore[override]
        await super().check()
        return frozenset({"gpt-4o-mini"})


async def test_a_model_that_the_provider_does_not_list_is_advice_and_not_a_failure(caplog):
    asked = Health(MemoryStore(), {"a": Listing()}, {}, models={"a": ["gpt-4o-mni"]}, clock=FakeClock())
    found = await asked.readiness()
    assert found.ready
    assert found.providers["a"].status == "ok"
    assert b"does not have gpt-4o-mni. Did you mean gpt-4o-mini?" in found.body()
    await asked.report()
    assert caplog.messages == ["a: The provider's list of models does not have gpt-4o-mni. Did you mean gpt-4o-mini?"]
    assert caplog.records[0].levelname == "WARNING"


@pytest.mark.parametrize("provider", [Listing(), Checked(), Unchecked()])
async def test_a_model_that_is_listed_or_of_which_nothing_is_known_needs_no_advice(provider, caplog):
    asked = Health(MemoryStore(), {"a": provider}, {}, models={"a": ["gpt-4o-mini"]}, clock=FakeClock())
    await asked.report()
    assert (await asked.readiness()).providers["a"].advice == ""
    assert caplog.messages == []
