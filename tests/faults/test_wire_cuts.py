"""Row 35 and its like, anywhere: whatever a network does to an answer, it never looks finished when it was not."""

from __future__ import annotations

import asyncio

import pytest
from asgi_servers import serve
from fault_proxy import Fault, FaultProxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_client import HELLO, Cut, connect, settled
from scripted_provider import ScriptedProvider, answer

from chat_nest import BALANCED, Timeouts, create_chat_handler

DIALECTS = {
    "/api/chat": (HELLO, b"event: done\n"),
    "/v1/chat/completions": ({**HELLO, "stream": True}, b"data: [DONE]\n"),
    "/api/ai": ({"messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]}, b'{"type":"finish"'),
}
COUNT = 8
"""What the provider itself counts for the whole answer."""
WORDS = b"Hello"
EVERY = pytest.mark.parametrize("path", DIALECTS)
pytestmark = pytest.mark.timeout(60)  # an attempt is made again after a pause, in each example
RUNS = settings(
    max_examples=4, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

faults = st.builds(
    Fault,
    st.sampled_from(["none", "cut", "reset", "silent", "trickle", "delay"]),
    at=st.integers(0, 2_500),
    size=st.integers(1, 7),
)


async def say(path: str, to_provider: Fault, to_client: Fault) -> None:
    body, mark = DIALECTS[path]
    timeouts = Timeouts(idle=0.2, first_token=0.2, commit=0.1, heartbeat=0.1)
    async with (
        ScriptedProvider(answer("Hello", 3, input_tokens=5)) as provider,
        FaultProxy(provider.port, to_provider) as behind,
    ):
        url = f"http://127.0.0.1:{behind.port}/v1"
        handler = create_chat_handler(
            api_key="k", base_url=url, model="m", timeouts=timeouts, dialects=("native", "openai", "ai_sdk")
        )
        async with serve(handler) as port, FaultProxy(port, to_client) as front:
            raw, whole = b"", False
            try:
                async with asyncio.timeout(1.5 if to_client.kind == "silent" else 15), connect(front.port) as client:
                    reply = await client.post(body, path=path)
                    while await reply.piece():
                        raw = reply.raw
                    whole = reply.status == 200
            except (Cut, TimeoutError):
                pass
            finished = mark in raw
            if finished:
                assert b'"finish_reason":"stop"' in behind.said, "the provider's own signal had come"
                assert raw.count(WORDS) == 3, "every word arrived before the answer was said to be finished"
            if not behind.broke and not front.broke:
                assert whole and finished
            used = (await settled(port, 10))["tokens_per_day"]["used"]
            if finished:
                assert used >= COUNT
            if raw.count(WORDS):
                assert used > 0, "what was said was charged"
            assert used <= 2_000, "and no more than was held"


@EVERY
@RUNS
@given(fault=faults)
def test_row35_a_fault_between_us_and_the_provider(path: str, fault: Fault) -> None:
    asyncio.run(say(path, fault, Fault("none")))
