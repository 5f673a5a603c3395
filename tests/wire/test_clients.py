"""What real clients make of our answers. tests/clients has a driver for each; they run in processes of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgi_servers import serve
from client_drivers import DRIVERS, Watched, drive
from msgspec.structs import replace
from raw_client import settled
from scripted_provider import HANG, ScriptedProvider, chunk, stream

from chat_nest import BALANCED, Timeouts, create_chat_handler
from chat_nest.deltas import FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.dialects.blog import Blog
from chat_nest.errors import UpstreamIdle
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import Step, answer
from chat_nest.usage import Usage


ALL = ("native", "openai", "ai_sdk", "ag_ui", "anthropic", Blog(get=True))
PROFILE = replace(BALANCED, model="p:gpt-4o-mini", allow_tools=True)
ODD = [
    "a\r\nb\rc\n\n",
    "data: [DONE]\n\n",
    "event: done\n: c\nid: 1\n",
    "\u2028\u2029\x85\ufeff\x00",
    "👩\u200d",
    "👧🎉 ",
]

EVERY = pytest.mark.parametrize("client", DRIVERS)
SPEAKS_TOOLS = pytest.mark.parametrize(
    "client",
    ["openai", "openai-python", "anthropic", "anthropic-python", "ai5", "ai6", "ai7", "openai-compatible", "ag-ui"],
)
REASONS = {
    "anthropic": "end_turn",
    "anthropic-python": "end_turn",
    "ag-ui": None,
    "eventsource": "closed by 204",
}


def watched(script: list[Step], **options: Any) -> tuple[Watched, Scripted]:
    provider = Scripted(script)
    profiles = {"balanced": replace(PROFILE, **options.pop("limits", {}))}
    handler = create_chat_handler(providers={"p": provider}, profiles=profiles, dialects=ALL, **options)
    return Watched(handler), provider


def told(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


@EVERY
async def test_row_29_a_happy_answer_of_odd_texts(client):
    app, provider = watched(answer(*ODD, input_tokens=9))
    async with serve(app) as port:
        events = await drive(client, port)
    assert [event["text"] for event in told(events, "text")] == ["".join(ODD)]
    assert [event["event"] for event in events] == ["text", "end"]
    assert events[-1]["reason"] == REASONS.get(client, "stop")
    assert events[-1]["tokens"] == (None if client == "eventsource" else 9 + len(ODD))
    assert provider.opened == provider.closed == 1
    assert app.asked.total() == (2 if client == "eventsource" else 1), "an EventSource connects again after the end"


@SPEAKS_TOOLS
async def test_reasoning_and_a_call_of_a_tool(client):
    script: list[Step] = [
        [ReasoningDelta("Hm, "), ReasoningDelta("Bonn.")],
        [TextDelta("Let me see.")],
        [ToolCallDelta(0, '{"ci', "call-a", "weather"), ToolCallDelta(0, 'ty":"Bonn"}')],
        [FinishDelta("tool_calls"), UsageDelta(Usage(input_tokens=9, output_tokens=20))],
    ]
    app, provider = watched(script)
    async with serve(app) as port:
        events = await drive(client, port, tools=True)
    assert [event["text"] for event in told(events, "reasoning")] == ["Hm, Bonn."]
    assert [event["text"] for event in told(events, "text")] == ["Let me see."]
    assert told(events, "tool") == [{"event": "tool", "name": "weather", "input": {"city": "Bonn"}}]
    assert len(told(events, "end")) == 1
    assert [tool.name for tool in provider.prompts[0].tools] == ["weather"]


@pytest.mark.parametrize("client", ["openai", "openai-python", "anthropic", "anthropic-python"])
async def test_a_whole_answer(client):
    script: list[Step] = [
        [ReasoningDelta("Hm.")],
        [TextDelta("Let "), TextDelta("me see.")],
        [ToolCallDelta(0, '{"city":"Bonn"}', "call-a", "weather")],
        [FinishDelta("tool_calls"), UsageDelta(Usage(input_tokens=9, output_tokens=20))],
    ]
    app, _ = watched(script)
    async with serve(app) as port:
        events = await drive(client, port, tools=True, stream=False)
    assert events == [
        {"event": "reasoning", "text": "Hm."},
        {"event": "text", "text": "Let me see."},
        {"event": "tool", "name": "weather", "input": {"city": "Bonn"}},
        {"event": "end", "reason": "tool_use" if "anthropic" in client else "tool_calls", "tokens": 29},
    ]


@EVERY
async def test_heartbeats_are_not_seen(client):
    app, provider = watched([], timeouts=Timeouts(commit=0.05, heartbeat=0.05))
    steps = answer("one ", "two ", "three")
    provider.script = [app.pinged.wait, steps[0], _more_pings(app), steps[1], *steps[2:]]
    async with serve(app) as port:
        events = await drive(client, port)
    assert [event["text"] for event in told(events, "text")] == ["one two three"]
    assert not told(events, "error")
    assert app.pings >= 6


def _more_pings(app: Watched):
    async def wait() -> None:
        app.pings = 0
        app.pinged.clear()
        await app.pinged.wait()
        app.pings += 3

    return wait


@EVERY
async def test_row_41_an_abort_closes_the_providers_socket(client):
    async with ScriptedProvider(stream(chunk("one"), HANG)) as provider:
        handler = create_chat_handler(api_key="k", base_url=provider.url, dialects=ALL)
        async with serve(Watched(handler)) as port:
            events = await drive(client, port, abort=True)
            async with asyncio.timeout(60):
                await provider.closed()
            used = (await settled(port))["tokens_per_day"]["used"]
    assert [event["event"] for event in events] == ["aborted"]
    assert 0 < used < 400, "what came was charged, not the whole hold"


@EVERY
@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_day"])
async def test_row_28_a_refusal_is_told_and_not_asked_again(client, limit):
    app, provider = watched(answer("hi"), limits={"requests_per_minute": None, limit: 1})
    async with serve(app) as port:
        if limit == "requests_per_minute":
            await drive(client, port)
            app.asked.clear()
        events = await drive(client, port)
    assert [event["event"] for event in events] == ["error"]
    if client not in ("ai5", "ai6"):  # which tell nothing but the sentence
        assert events[0]["status"] == 429
    if client != "eventsource":  # which tells nothing of a refusal but its status
        assert ("Rate limit exceeded" if limit == "requests_per_minute" else "budget exceeded") in events[0]["message"]
    assert app.asked.total() == 1
    assert provider.opened == (limit == "requests_per_minute")


@EVERY
async def test_an_error_in_the_middle_is_told_and_not_taken_for_an_end(client):
    app, provider = watched([[TextDelta("one ")], UpstreamIdle()])
    async with serve(app) as port:
        events = await drive(client, port)
    assert [event["event"] for event in events] == ["error"]
    assert "The model provider stopped answering" in events[0]["message"]
    assert provider.opened == provider.closed == 1
    assert app.asked.total() == 1


@pytest.mark.parametrize("client", ["openai", "openai-python"])
async def test_models_are_listed(client):
    app, _ = watched([])
    async with serve(app) as port:
        events = await drive(client, port, models=True)
    assert [event["id"] for event in events] == ["gpt-4o-mini", "balanced"]
