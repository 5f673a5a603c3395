"""A counter that each request keeps for longer, such as a conversation's: see pipeline.conversation."""

from __future__ import annotations

from chat_nest.core.claims import Granted, Refused
from stores_under_test import LEASE, START, claim, standing, window

DAY = 86_400.0


async def test_a_counter_lasts_from_its_last_request_on(store, clock):
    def line(at):
        return window(1_000, key="conversation:c1:tokens", resets_at=at + 30 * DAY, name="tokens_per_conversation")

    for number in range(4):  # 20 days apart: each comes before the end that the request before it set
        asked = claim(f"r{number}", line(clock.now))
        assert isinstance(await store.reserve(asked, LEASE), Granted)
        assert await store.settle(asked, {"tokens": 240}, "reported")
        clock.advance(20 * DAY)
        await store.sweep()
    assert clock.now == START + 80 * DAY
    assert await standing(store, line(clock.now)) == (960, 0)
    assert isinstance(await store.reserve(claim("r4", line(clock.now), least=50), LEASE), Refused)
