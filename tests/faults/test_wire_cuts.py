"""Row 35 and its like, anywhere: whatever a network does to an answer, it never looks finished when it was not."""

from __future__ import annotations

import asyncio

import pytest
from asgi_servers import serve
from fault_proxy import Fault, FaultProxy
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from raw_client import HELLO, connect, settled
from scripted_provider import CLOSE, ScriptedProvider, Step, answer, head

from chat_nest import Timeouts, create_chat_handler

DIALECTS = {
    "/api/chat": (HELLO, b"event: done\n"),
    "/v1/chat/completions": ({**HELLO, "stream": True}, b"data: [DONE]\n"),
    "/api/ai": ({"messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]}, b'{"type":"finish"'),
}
COUNT = 8
"""What the provider itself counts for the whole answer."""
WORDS = b"Hello"
EVERY = pytest.mark.parametrize("path", DIALECTS)
RUNS = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LARGEST = 2_300
"""Bytes of the provider's answer, and a few more."""

faults = st.builds(
    Fault,
    st.sampled_from(["none", "cut", "reset", "silent", "trickle", "delay"]),
    at=st.integers(0, LARGEST),
    size=st.integers(1, 7),
    seconds=st.just(0.02),
)


def whole(*, chunked: bool) -> list[Step]:
    """The provider's answer: in chunks, or until the connection closes, which a cut looks like."""
    steps = answer("Hello", 3, input_tokens=5)
    if chunked:
        return steps
    events = [step.partition(b"\r\n")[2][:-2] for step in steps[1:-1] if isinstance(step, bytes)]
    return [head(transfer_encoding=None), *events, CLOSE]


async def say(path: str, fault: Fault, *, chunked: bool) -> None:
    body, mark = DIALECTS[path]
    # Only a provider that goes silent may run into a time-out, on a busy machine too.
    wait = 0.2 if fault.kind == "silent" else 60.0
    timeouts = Timeouts(idle=wait, first_token=wait, commit=0.1, heartbeat=0.1)
    async with (
        ScriptedProvider(whole(chunked=chunked)) as provider,
        FaultProxy(provider.port, fault) as behind,
    ):
        url = f"http://127.0.0.1:{behind.port}/v1"
        handler = create_chat_handler(
            api_key="k", base_url=url, model="m", timeouts=timeouts, dialects=("native", "openai", "ai_sdk")
        )
        async with serve(handler) as port:
            async with asyncio.timeout(240), connect(port) as client:
                reply = await client.post(body, path=path)
                raw = await reply.body()
            finished = mark in raw
            said = raw.count(WORDS)
            if finished:
                assert b'"finish_reason":"stop"' in behind.said, "the provider's own signal had come"
                assert said == 3, "every word arrived before the answer was said to be finished"
            if not behind.broke and fault.kind != "silent":
                assert reply.status == 200 and finished
            used = (await settled(port))["tokens_per_day"]["used"]
            if finished:
                assert used >= COUNT
            if said:
                assert used >= 5 + said, "what was said was charged, and its prompt"
            assert used <= 2_000, "and no more than was held"


@EVERY
@RUNS
@given(fault=faults, chunked=st.booleans())
@example(fault=Fault("cut", 1_000), chunked=True)
@example(fault=Fault("cut", 1_000), chunked=False)
@example(fault=Fault("cut", 1_600), chunked=False)
@example(fault=Fault("reset", 1_000), chunked=False)
@example(fault=Fault("silent", 1_000), chunked=True)
def test_row35_a_fault_between_us_and_the_provider(path: str, fault: Fault, chunked: bool) -> None:
    asyncio.run(say(path, fault, chunked=chunked))
