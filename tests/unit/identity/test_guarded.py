"""Refused credentials are counted by address; who sends too many of them is refused without a look at them."""

from __future__ import annotations

import inspect

import pytest

from chat_nest.core.errors import Forbidden, RateLimited, Unauthorized
from chat_nest.core.messages import Caller
from chat_nest.identity.guarded import REFUSED_PER_MINUTE, Guarded
from chat_nest.identity.peer import PeerAddress

ADA = Caller(id="ada")


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Keys:
    """Knows one key, and counts how often it was asked; `waits` makes it answer later."""

    def __init__(self, *, waits: bool = False) -> None:
        self.asked = 0
        self.waits = waits

    def __call__(self, scope):
        return self._later(scope) if self.waits else self._now(scope)

    async def _later(self, scope):
        return self._now(scope)

    def _now(self, scope):
        self.asked += 1
        key = dict(scope["headers"]).get(b"authorization")
        if key == b"Bearer closed":
            raise Forbidden
        if key != b"Bearer good":
            raise Unauthorized
        return ADA


async def who(guarded, key, address):
    scope = {"client": ("10.0.0.1", 1), "headers": [(b"authorization", b"Bearer " + key)]}
    scope["headers"].append((b"x-forwarded-for", address.encode()))  # type: ignore[attr-defined]
    found = guarded(scope)
    return await found if inspect.isawaitable(found) else found


@pytest.fixture(params=[False, True], ids=["at once", "later"])
def keys(request):
    return Keys(waits=request.param)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guarded(keys, clock):
    return Guarded(keys, PeerAddress(["10.0.0.1"]), clock)


async def refused(guarded, address, times=REFUSED_PER_MINUTE):
    for _ in range(times):
        with pytest.raises(Unauthorized):
            await who(guarded, b"bad", address)


async def test_after_many_refusals_an_address_is_refused_without_a_check(guarded, keys, clock):
    await refused(guarded, "8.8.8.8")
    for key in (b"bad", b"good"):
        with pytest.raises(RateLimited) as limited:
            await who(guarded, key, "8.8.8.8")
    assert limited.value.retry_after == pytest.approx(60 / REFUSED_PER_MINUTE)
    assert keys.asked == REFUSED_PER_MINUTE
    assert await who(guarded, b"good", "8.8.4.4") == ADA
    clock.now += 60 / REFUSED_PER_MINUTE
    assert await who(guarded, b"good", "8.8.8.8") == ADA
    await refused(guarded, "8.8.8.8", 1)
    with pytest.raises(RateLimited):
        await who(guarded, b"bad", "8.8.8.8")


async def test_addresses_of_one_ipv6_network_are_one(guarded):
    await refused(guarded, "2a00:1450:4001:82b::1")
    with pytest.raises(RateLimited):
        await who(guarded, b"bad", "2a00:1450:4001:82b:ffff::2")


@pytest.mark.parametrize("address", ["192.168.1.2", "127.0.0.1", "fd00::1", "not an address"])
async def test_a_private_address_may_be_an_unconfigured_proxy(guarded, address):
    await refused(guarded, address, 2 * REFUSED_PER_MINUTE)
    assert await who(guarded, b"good", address) == ADA


async def test_a_known_caller_is_not_counted(guarded):
    for _ in range(2 * REFUSED_PER_MINUTE):
        assert await who(guarded, b"good", "8.8.8.8") == ADA
        with pytest.raises(Forbidden):
            await who(guarded, b"closed", "8.8.8.8")
    with pytest.raises(Unauthorized):
        await who(guarded, b"bad", "8.8.8.8")
