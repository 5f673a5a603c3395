"""What real clients make of our answers. tests/clients has a driver for each; they run in processes of their own."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from asgi_servers import serve
from client_drivers import DRIVERS, EVERY, IMAGE, REASONING, SCHEMA, TOOLS
from client_drivers import Watched, able, client, drive, parametrize_client  # noqa: F401
from fault_proxy import Fault, FaultProxy
from msgspec.structs import replace
from pictures import png
from raw_client import settled
from scripted_provider import HANG, ScriptedProvider, chunk, stream
from scripted_provider import answer as whole
from serve_command import Command, command

from chat_nest import BALANCED, Timeouts, create_chat_handler
from chat_nest.core.deltas import FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.dialects.blog import Blog
from chat_nest.core.errors import UpstreamIdle
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import Step, answer
from chat_nest.core.usage import Usage


ALL = ("native", "openai", "responses", "ai_sdk", "ag_ui", "anthropic", Blog(get=True))
PROFILE = replace(BALANCED, model="p:gpt-4o-mini", allow_tools=True)
ODD = [
    "a\r\nb\rc\n\n",
    "data: [DONE]\n\n",
    "event: done\n: c\nid: 1\n",
    "\u2028\u2029\x85\ufeff\x00",
    "👩\u200d",
    "👧🎉 ",
]

REASONS = {
    "anthropic": "end_turn",
    "anthropic-python": "end_turn",
    **dict.fromkeys(("ai-anthropic", "pydantic-ai-anthropic"), "stop"),
    "langchain-anthropic": "end_turn",
    **dict.fromkeys(("ag-ui", "llm", "llm-responses"), None),
    **dict.fromkeys(("responses", "responses-python", "openai-agents", "openai-agents-js"), "completed"),
    "langchain-responses": "completed",
    "eventsource": "closed by 204",
}


ENDS_IN_CALLS = {"openai": "tool_calls", "responses": "completed", "anthropic": "tool_use"}


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


@parametrize_client([name for name in able(TOOLS) if not name.startswith("llm")])  # which shows no call
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
    assert [event["text"] for event in told(events, "reasoning")] == ["Hm, Bonn."] * (REASONING in DRIVERS[client].able)
    assert [event["text"] for event in told(events, "text")] == ["Let me see."]
    assert told(events, "tool") == [{"event": "tool", "name": "weather", "input": {"city": "Bonn"}}]
    assert len(told(events, "end")) == 1
    assert [tool.name for tool in provider.prompts[0].tools] == ["weather"]


@parametrize_client(["openai", "openai-python", "responses", "responses-python", "anthropic", "anthropic-python"])
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
        {"event": "end", "reason": ENDS_IN_CALLS[client.partition("-")[0]], "tokens": 29},
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
            await provider.closed()
            used = (await settled(port))["tokens_per_day"]["used"]
    assert [event["event"] for event in events] == ["aborted"]
    assert 0 < used < 400, "what came was charged, not the whole hold"


@EVERY
@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_day"])
async def test_row_28_a_refusal_is_shown_and_not_retried(client, limit):
    most = 1 if limit == "requests_per_minute" else 500
    script = answer("hi", input_tokens=100, output_tokens=400)
    app, provider = watched(script, limits={"requests_per_minute": None, limit: most})
    async with serve(app) as port:
        await drive(client, port)
        app.asked.clear()
        events = await drive(client, port)
    assert [event["event"] for event in events] == ["error"]
    if client not in ("ai5", "ai6", "ag-ui", "eventsource"):  # which tell nothing but the sentence
        assert events[0]["status"] == 429
    assert ("Rate limit exceeded" if limit == "requests_per_minute" else "budget exceeded") in events[0]["message"]
    assert app.asked.total() == 1
    assert provider.opened == 1


@parametrize_client([name for name in DRIVERS if name != "eventsource"])  # whose words are in the URL
@pytest.mark.parametrize("limit", ["tokens_per_request", "max_body_bytes"])
async def test_a_prompt_that_is_too_long_is_shown_and_not_sent_again(client, limit):
    prompt = "Hello " * (2_000 if limit == "tokens_per_request" else 60_000)
    app, provider = watched(answer("hi"), limits={"tokens_per_request": 500, "requests_per_minute": None})
    async with serve(app) as port:
        events = await drive(client, port, prompt=prompt)
    assert [event["event"] for event in events] == ["error"]
    assert events[0]["status"] in (400, 413, 429, None)
    assert re.search(r"too (long|large)|tokens|at most \d+ bytes", events[0]["message"]), events
    assert app.asked.total() == 1
    assert provider.opened == 0


@EVERY
async def test_an_error_in_the_middle_is_shown_and_not_taken_for_an_end(client):
    app, provider = watched([[TextDelta("one ")], UpstreamIdle()])
    async with serve(app) as port:
        events = await drive(client, port)
    assert [event["event"] for event in events] == ["error"]
    assert "The model provider stopped answering" in events[0]["message"]
    assert provider.opened == provider.closed == 1
    assert app.asked.total() == 1


@parametrize_client(["openai", "openai-python"])
async def test_models_are_listed(client):
    app, _ = watched([])
    async with serve(app) as port:
        events = await drive(client, port, models=True)
    assert [event["id"] for event in events] == ["gpt-4o-mini", "balanced"]


class InTurn(Scripted):
    """Answers each request by the next script."""

    def __init__(self, *scripts: list[Step]) -> None:
        super().__init__(scripts[0])
        self._scripts = scripts

    def open(self, prompt, timeouts):
        self.script = self._scripts[min(self.opened, len(self._scripts) - 1)]
        return super().open(prompt, timeouts)


@parametrize_client(able(TOOLS))
async def test_a_tool_is_called_and_its_result_sent_back(client):
    calling: list[Step] = [
        [ReasoningDelta("Hm.")],
        [ToolCallDelta(0, '{"city":"Bonn"}', "call-a", "weather")],
        [FinishDelta("tool_calls"), UsageDelta(Usage(input_tokens=9, output_tokens=20))],
    ]
    provider = InTurn(calling, answer("It is 19 degrees", input_tokens=9))
    profiles = {"balanced": PROFILE}
    app = Watched(create_chat_handler(providers={"p": provider}, profiles=profiles, dialects=ALL))
    async with serve(app) as port:
        events = await drive(client, port, tools=True, round=True)
    assert [event["text"] for event in told(events, "text")] == ["It is 19 degrees"]
    assert told(events, "tool") == [{"event": "tool", "name": "weather", "input": {"city": "Bonn"}}]
    assert not told(events, "error")
    first, *_, called, result = provider.prompts[1].messages  # pydantic-ai sends unsigned thoughts as the user's words
    assert (first.role, called.role, result.role) == ("user", "assistant", "tool")
    [call] = called.tool_calls
    assert (call.id, result.tool_call_id, result.content) == ("call-a", "call-a", "19 degrees")
    assert provider.opened == 2


@parametrize_client(able(SCHEMA))
async def test_a_schema_reaches_the_model_and_its_json_the_client(client):
    app, provider = watched(answer('{"city":', '"Bonn"}', input_tokens=9))
    async with serve(app) as port:
        events = await drive(client, port, format=True)
    assert [event["text"] for event in told(events, "text")] == ['{"city":"Bonn"}']
    assert not told(events, "error")
    format = provider.prompts[0].options.format
    assert format is not None
    assert json.loads(bytes(format.schema))["required"] == ["city"]


@parametrize_client(able(IMAGE))
async def test_an_image_reaches_the_model(client):
    app, provider = watched(answer("A grey picture", input_tokens=9), limits={"allow_images": True})
    async with serve(app) as port:
        events = await drive(client, port, image=b64encode(png(64, 48)).decode())
    assert [event["text"] for event in told(events, "text")] == ["A grey picture"]
    [message] = provider.prompts[0].messages
    assert message.content == "Hello"
    assert [(each.media_type, each.width, each.height) for each in message.attachments] == [("image/png", 64, 48)]


# The same clients and the command `chat-nest serve`.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Command, ScriptedProvider]]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "chat.toml").write_text(
        "[dialects]\nblog = true\nblog_get = true\n[profiles.balanced]\nrequests_per_day = 2\n"
    )
    async with ScriptedProvider() as provider:
        async with command(folder, provider.url, "sk-clients", "--config", "chat.toml") as served:
            yield served, provider


@EVERY
@pytest.mark.asyncio(loop_scope="module")
async def test_the_command_streams_stops_and_refuses(client, served):
    server, provider = served
    first = len(provider.requests)
    scripts = [whole("Hello ", 3, input_tokens=9), stream(chunk("one"), HANG)]
    provider.scripts = [b""] * first + scripts
    caller = f"127.0.1.{1 + [*DRIVERS].index(client)}"
    async with FaultProxy(server.port, Fault("none"), source=caller) as proxy:
        events = await drive(client, proxy.port)
        assert [event["text"] for event in told(events, "text")] == ["Hello Hello Hello "]
        assert events[-1]["event"] == "end"

        events = await drive(client, proxy.port, abort=True)
        assert [event["event"] for event in events] == ["aborted"]
        await provider.closed(first)
        used = (await settled(proxy.port))["tokens_per_day"]["used"]
        assert 12 < used < 300, "what came was charged, not the whole hold"

        events = await drive(client, proxy.port)
        assert [event["event"] for event in events] == ["error"]
        assert len(provider.requests) == first + 2
