"""Streams that can't hang: every wait has an end and a name. Time is the event loop's, and virtual."""

from __future__ import annotations

import asyncio
import json

import pytest

from chat_nest import create_chat_handler
from chat_nest.limits.spec import BALANCED
from chat_nest.core.timeouts import Timeouts
from chat_nest.testing import ScriptedProvider, answer, collect
from msgspec.structs import replace

BODY = {"messages": [{"role": "user", "content": "hello"}]}
WHOLE = answer("a", "b")


def silence(seconds: float):
    async def wait() -> None:
        await asyncio.sleep(seconds)

    return wait


class SlowToAccept(ScriptedProvider):
    """Sends its headers late."""

    def __init__(self, seconds: float, script) -> None:
        super().__init__(script)
        self.seconds = seconds

    def open(self, prompt, timeouts):
        opening = super().open(prompt, timeouts)
        seconds = self.seconds

        class Late:
            async def __aenter__(self):
                batches = await opening.__aenter__()
                try:
                    await asyncio.sleep(seconds)
                except BaseException:
                    await opening.__aexit__(None, None, None)
                    raise
                return batches

            async def __aexit__(self, *error):
                return await opening.__aexit__(*error)

        return Late()


def make(provider, **timeouts):
    return create_chat_handler(
        providers={"p": provider},
        profiles={"balanced": replace(BALANCED, model="p:m")},
        timeouts=Timeouts(**timeouts),
    )


def at(seconds: float) -> bool:
    """Whether the loop's clock stands there: to the resolution of its timers."""
    return asyncio.get_running_loop().time() == pytest.approx(seconds, abs=0.05)


async def names(handler, **how):
    got = await collect(handler, BODY, **how)
    await handler.aclose()
    return got, [name for name, _ in got.events]


@pytest.mark.looptime(start=0)
async def test_a_ping_every_15_seconds_also_before_the_first_token() -> None:
    times = []

    async def sent(data: bytes) -> None:
        times.append((data.split(b"\n")[0], round(asyncio.get_running_loop().time(), 1)))

    provider = ScriptedProvider([silence(29), WHOLE[0], silence(31), *WHOLE[1:]])
    _, events = await names(make(provider), sent=sent)
    assert events == ["start", "ping", "token", "ping", "ping", "token", "done"]
    assert [time for name, time in times if name == b"event: ping"] == [
        16.0,  # the stream was opened after a second, since the provider had said nothing yet
        44.0,
        59.0,
    ]


@pytest.mark.looptime(start=0)
async def test_the_stream_opens_after_a_second_while_the_provider_keeps_its_headers_back() -> None:
    times = []

    async def sent(data: bytes) -> None:
        times.append(round(asyncio.get_running_loop().time(), 1))

    _, events = await names(make(SlowToAccept(20, WHOLE)), sent=sent)
    assert events == ["start", "ping", "token", "token", "done"]
    assert times[:2] == [1.0, 16.0]


@pytest.mark.looptime(start=0)
async def test_row33_silence_before_headers_is_an_error_in_a_stream_as_the_prompt_may_be_billed() -> None:
    provider = SlowToAccept(100, WHOLE)
    got, events = await names(make(provider, first_token=30, commit=40))
    assert at(30)
    assert (got.status, events) == (200, ["start", "error"])  # a 504 would be asked again, and paid again
    assert json.loads(got.events[-1][1])["code"] == "upstream_timeout"
    assert provider.closed == 1


@pytest.mark.looptime(start=0)
async def test_row33_silent_before_headers_is_an_error_event_once_the_stream_is_open() -> None:
    provider = SlowToAccept(100, WHOLE)
    got, events = await names(make(provider))
    assert at(30)
    assert events == ["start", "ping", "error"]
    assert json.loads(got.events[-1][1]) == {
        "message": "The model provider took too long to answer",
        "code": "upstream_timeout",
        "retryable": True,
    }
    assert provider.closed == 1 and got.complete


@pytest.mark.looptime(start=0)
async def test_no_first_token_in_time() -> None:
    provider = ScriptedProvider([silence(100), *WHOLE])
    got, events = await names(make(provider))
    assert at(30)
    assert events == ["start", "ping", "error"] and provider.closed == 1
    assert json.loads(got.events[-1][1])["code"] == "upstream_timeout"


@pytest.mark.looptime(start=0)
async def test_row34_silent_mid_stream_pings_then_upstream_idle_at_60_s() -> None:
    provider = ScriptedProvider([WHOLE[0], silence(100), *WHOLE[1:]])
    got, events = await names(make(provider))
    assert at(60)
    assert events == ["start", "token", "ping", "ping", "ping", "error"]
    assert json.loads(got.events[-1][1])["code"] == "upstream_idle"
    assert provider.closed == 1


@pytest.mark.looptime(start=0)
async def test_row34_a_trickle_ends_at_600_s_in_all() -> None:
    provider = ScriptedProvider([WHOLE[0], silence(50)] * 100)
    got, events = await names(make(provider))
    assert at(600)
    assert events[-1] == "error" and json.loads(got.events[-1][1])["code"] == "deadline_exceeded"
    assert provider.closed == 1


@pytest.mark.looptime(start=0)
async def test_row8_a_reader_without_progress_for_30_s_is_dropped() -> None:
    blocked, never = asyncio.Event(), asyncio.Event()

    async def sent(data: bytes) -> None:
        if b'"a"' in data:
            blocked.set()
            await never.wait()

    provider = ScriptedProvider(WHOLE)
    got, events = await names(make(provider), sent=sent)
    assert at(30)
    assert blocked.is_set() and not got.complete and "error" not in events
    assert provider.closed == 1


@pytest.mark.looptime(start=0)
async def test_a_reader_that_stalls_on_the_last_bytes_is_dropped_too() -> None:
    never = asyncio.Event()

    async def sent(data: bytes) -> None:
        if b"event: error" in data:
            await never.wait()

    provider = ScriptedProvider([WHOLE[0], silence(100)])
    await names(make(provider, idle=10, write=5), sent=sent)
    assert at(15)


@pytest.mark.looptime(start=0)
async def test_the_time_that_a_slow_reader_takes_is_not_the_providers_silence() -> None:
    async def sent(data: bytes) -> None:
        if b'"a"' in data:
            await asyncio.sleep(25)

    provider = ScriptedProvider([WHOLE[0], silence(8), *WHOLE[1:]])
    _, events = await names(make(provider, idle=10), sent=sent)
    assert events[-1] == "done"


@pytest.mark.looptime(start=0)
async def test_reasoning_that_is_not_shown_keeps_the_stream_alive_with_pings() -> None:
    from chat_nest.core.deltas import ReasoningDelta

    steps = [step for _ in range(5) for step in ([ReasoningDelta("hm")], silence(10))]
    provider = ScriptedProvider([*steps, *WHOLE])
    _, events = await names(make(provider, idle=20))
    assert events == ["start", "ping", "ping", "ping", "token", "token", "done"]
