"""What LangChain and Mastra in JavaScript make of our answers, if they are installed."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64encode
from typing import Any

import pytest
from asgi_servers import serve
from client_drivers import (
    CLIENTS,
    environment,
    find_command,
    CHAINS,
    IMAGE,
    REASONING,
    SCHEMA,
    TOOLS,
    Events,
    Watched,
    able,
    drive,
    parametrize_client,
)
from client_drivers import client  # noqa: F401
from msgspec.structs import replace
from pictures import png
from raw_client import settled
from scripted_provider import HANG, ScriptedProvider, chunk, stream

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.deltas import FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import UpstreamIdle
from chat_nest.core.usage import Usage
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import Step, answer

PAGE = (CLIENTS.parents[1] / "docs/clients.md").read_text("utf-8")
EXAMPLES = [code for code in re.findall(r"```ts\n(.*?)```", PAGE, re.DOTALL) if "langchain" in code or "mastra" in code]
EACH = parametrize_client(CHAINS)
DIALECTS = ("native", "openai", "responses", "anthropic")
PROFILE = replace(BALANCED, model="p:gpt-4o-mini", allow_tools=True, allow_images=True, requests_per_minute=None)
CALL: list[Step] = [
    [ReasoningDelta("Hm, "), ReasoningDelta("Bonn.")],
    [ToolCallDelta(0, '{"ci', "call-a", "weather"), ToolCallDelta(0, 'ty":"Bonn"}')],
    [FinishDelta("tool_calls"), UsageDelta(Usage(input_tokens=9, output_tokens=20))],
]


def watched(*scripts: list[Step], **limits: Any) -> tuple[Watched, Scripted]:
    provider = InTurn(*scripts)
    profiles = {"balanced": replace(PROFILE, **limits)}
    return Watched(create_chat_handler(providers={"p": provider}, profiles=profiles, dialects=DIALECTS)), provider


class InTurn(Scripted):
    """Answers each request by the next script."""

    def __init__(self, *scripts: list[Step]) -> None:
        super().__init__(scripts[0])
        self._scripts = scripts

    def open(self, prompt: Any, timeouts: Any) -> Any:
        self.script = self._scripts[min(self.opened, len(self._scripts) - 1)]
        return super().open(prompt, timeouts)


def told(events: Events, kind: str) -> Events:
    return [event for event in events if event["event"] == kind]


def texts(events: Events) -> list[str]:
    return [event["text"] for event in told(events, "text")]


@EACH
async def test_a_happy_answer(client: str) -> None:
    app, provider = watched(answer("Good ", "mor\r\n", "ning\u2028👩\u200d", "👧", input_tokens=9))
    async with serve(app) as port:
        events = await drive(client, port)
    assert texts(events) == ["Good mor\r\nning\u2028👩\u200d👧"]
    assert [event["event"] for event in events] == ["text", "end"]
    if client not in ("langchain-js-anthropic", "mastra-chat"):  # which add the first event's count, or ask for none
        assert events[-1]["tokens"] == 13
    assert (provider.opened, app.asked.total()) == (1, 1)


@parametrize_client(able(TOOLS, CHAINS))
async def test_a_tool_is_called_and_its_result_sent_back(client: str) -> None:
    app, provider = watched(CALL, answer("It is 19 degrees", input_tokens=9))
    async with serve(app) as port:
        events = await drive(client, port, tools=True, round=True)
    assert texts(events) == ["It is 19 degrees"]
    assert told(events, "tool") == [{"event": "tool", "name": "weather", "input": {"city": "Bonn"}}]
    assert [event["text"] for event in told(events, "reasoning")] == ["Hm, Bonn."] * (REASONING in CHAINS[client].able)
    *_, called, result = provider.prompts[1].messages
    [call] = called.tool_calls
    assert (call.id, result.tool_call_id, result.content) == ("call-a", "call-a", "19 degrees")
    assert [tool.name for tool in provider.prompts[0].tools] == ["weather"]


@parametrize_client(able(SCHEMA, CHAINS))
async def test_a_schema_reaches_the_model_and_its_json_the_client(client: str) -> None:
    app, provider = watched(answer('{"city":', '"Bonn"}', input_tokens=9))
    async with serve(app) as port:
        events = await drive(client, port, format=True)
    assert texts(events) == ['{"city":"Bonn"}']
    format = provider.prompts[0].options.format
    assert format is not None
    assert json.loads(bytes(format.schema))["required"] == ["city"]


@parametrize_client(able(IMAGE, CHAINS))
async def test_an_image_reaches_the_model(client: str) -> None:
    app, provider = watched(answer("A grey picture", input_tokens=9))
    async with serve(app) as port:
        events = await drive(client, port, image=b64encode(png(64, 48)).decode())
    assert texts(events) == ["A grey picture"]
    [message] = provider.prompts[0].messages
    assert message.content == "Hello"
    assert [(each.media_type, each.width, each.height) for each in message.attachments] == [("image/png", 64, 48)]


@EACH
async def test_an_abort_closes_the_providers_socket(client: str) -> None:
    async with ScriptedProvider(stream(chunk("one"), HANG)) as provider:
        handler = create_chat_handler(api_key="k", base_url=provider.url, dialects=DIALECTS)
        async with serve(Watched(handler)) as port:
            events = await drive(client, port, abort=True)
            await provider.closed()
            used = (await settled(port))["tokens_per_day"]["used"]
    assert [event["event"] for event in events] == ["aborted"]
    assert 0 < used < 400, "what came was charged, not the whole hold"


@EACH
@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_day", "tokens_per_request"])
async def test_a_refusal_is_shown_and_not_repeated(client: str, limit: str) -> None:
    """LangChain with `maxRetries: 0`, without which it waits for Retry-After."""
    most = 1 if limit == "requests_per_minute" else 500
    app, provider = watched(answer("hi", input_tokens=100, output_tokens=400), **{limit: most})
    async with serve(app) as port:
        if limit != "tokens_per_request":
            await drive(client, port)
            app.asked.clear()
        events = await drive(client, port, prompt="Hello " * (2_000 if limit == "tokens_per_request" else 1))
    [event] = events
    shown = {"requests_per_minute": "Rate limit exceeded", "tokens_per_day": "budget exceeded"}.get(limit, "too l")
    assert (event["event"], shown in event["message"]) == ("error", True), event
    assert app.asked.total() == 1
    assert provider.opened == (limit != "tokens_per_request")


@EACH
async def test_an_error_in_the_middle_is_shown_and_not_taken_for_an_end(client: str) -> None:
    app, provider = watched([[TextDelta("one ")], UpstreamIdle()])
    async with serve(app) as port:
        events = await drive(client, port)
    assert [event["event"] for event in events] == ["error"]
    assert "The model provider stopped answering" in events[0]["message"]
    assert (provider.opened, provider.closed, app.asked.total()) == (1, 1, 1)


@pytest.mark.parametrize("example", EXAMPLES, ids=[code.split("\n")[0] for code in EXAMPLES])
async def test_an_example_prints_the_answer(example: str) -> None:
    [node, *_] = find_command("chains/langchain.mjs")
    app, provider = watched(answer("Hello ", "from ", "the nest"))
    async with serve(app) as port:
        process = await asyncio.create_subprocess_exec(
            *(node, "--input-type=module", "--eval", example.replace("localhost:8000", f"127.0.0.1:{port}")),
            cwd=CLIENTS / "chains",
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
    assert (said.decode(), provider.opened) == ("Hello from the nest", 1)


def test_there_is_an_example_for_each_package() -> None:
    assert len(EXAMPLES) == 3
