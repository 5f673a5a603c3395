"""Frameworks for agents in Python, as users install them; where they are installed: scripts/heavy-clients.

tests/clients/agents has a driver for each. Most always send a system prompt, so the profile allows it.
"""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from asgi_servers import serve
from client_drivers import AGENTS, IMAGE, QUIET, SCHEMA, TOOLS
from client_drivers import Watched, able, client, drive, environment, find_command, parametrize_client  # noqa: F401
from msgspec.structs import replace
from pictures import png
from raw_client import settled
from scripted_provider import HANG, ScriptedProvider, chunk, delta, stream

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.deltas import FinishDelta, ToolCallDelta, UsageDelta
from chat_nest.core.usage import Usage
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import Step, answer

DIALECTS = ("openai", "responses", "anthropic")
PROFILE = replace(
    BALANCED,
    model="p:gpt-4o-mini",
    allow_system_prompt=True,
    allow_tools=True,
    tokens_per_request=None,
    max_messages=100,
)
EACH = parametrize_client(AGENTS)
PAGE = (Path(__file__).parents[2] / "docs/clients.md").read_text("utf-8")
[SECTION] = re.findall(r"\n## Frameworks for agents\n(.*?)\n## ", PAGE, re.DOTALL)
EXAMPLES = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
STRANDS = ("strands", "strands-responses", "strands-anthropic")
ATTEMPTS = {"smolagents": (3, 3), "llama-index": (1, 3), **dict.fromkeys(STRANDS, (6, 6))}
"""How often these send a request that a budget refuses, as installed: for a stream and for JSON by a schema."""
ENDS_BY = {"smolagents": "final_answer", "dspy": "submit", "dspy-responses": "submit"}
"""The tools by which these agents end."""
BY_TOOL = {
    "litellm-anthropic": "json_tool_call",
    **dict.fromkeys(("instructor-responses", "instructor-anthropic", *STRANDS), "City"),
}
"""The tools by which these ask for JSON, of a model with an unknown name or of all."""


def watched(provider: Scripted, **limits: Any) -> Watched:
    profiles = {"balanced": replace(PROFILE, **limits)}
    return Watched(create_chat_handler(providers={"p": provider}, profiles=profiles, dialects=DIALECTS))


class InTurn(Scripted):
    """Answers each request by the next script."""

    def __init__(self, *scripts: list[Step]) -> None:
        super().__init__(scripts[0])
        self._scripts = scripts

    def open(self, prompt: Any, timeouts: Any) -> Any:
        self.script = self._scripts[min(self.opened, len(self._scripts) - 1)]
        return super().open(prompt, timeouts)


def answering(client: str, text: str, **usage: int) -> list[Step]:
    """How a model puts a text to this client: two of them ask for a form."""
    if client.startswith("instructor"):
        return calling("Answer", **usage, text=text)
    form = client.startswith("dspy")
    return answer(*(["[[ ## answer ## ]]\n", text, "\n\n[[ ## completed ## ]]"] if form else text), **usage)


def calling(name: str, input_tokens: int = 9, output_tokens: int = 9, **arguments: str) -> list[Step]:
    called = ToolCallDelta(0, json.dumps(arguments), f"call-{name}", name)
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    return [[called], [FinishDelta("tool_calls"), UsageDelta(usage)]]


def told(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


@EACH
async def test_an_answer_is_shown_with_its_tokens(client: str) -> None:
    text = 'Good "morning" 👩\u200d👧 ü'
    provider = Scripted(answering(client, text, input_tokens=9, output_tokens=20))
    app = watched(provider)
    async with serve(app) as port:
        events = await drive(client, port)
    assert [event["text"] for event in told(events, "text")] == [text]
    assert [event["event"] for event in events] == ["text", "end"]
    assert events[-1]["tokens"] == (None if client.startswith("instructor") else 29)
    assert provider.opened == provider.closed == 1
    assert app.asked.total() == 1


@parametrize_client(able(TOOLS, AGENTS))
async def test_a_tool_is_called_and_its_result_sent_back(client: str) -> None:
    text = "It is 19 degrees"
    ends_by = ENDS_BY.get(client)
    last = calling(ends_by, answer=text) if ends_by else answering(client, text)
    provider = InTurn(calling("weather", city="Bonn"), last)
    async with serve(watched(provider)) as port:
        events = await drive(client, port, tools=True, round=True)
    assert [event["text"] for event in told(events, "text")] == [text]
    assert told(events, "tool") == [{"event": "tool", "name": "weather", "input": {"city": "Bonn"}}]
    assert not told(events, "error")
    assert "weather" in [tool.name for tool in provider.prompts[0].tools]
    sent = provider.prompts[1].messages
    [result] = [message for message in sent if message.role == "tool"] or sent[-1:]
    assert "19 degrees" in result.content
    if client != "smolagents":  # which sends calls and results as texts
        assert [call.id for message in sent for call in message.tool_calls] == [result.tool_call_id]
    assert provider.opened == 2


@parametrize_client(able(SCHEMA, AGENTS))
async def test_a_schema_reaches_the_model_and_its_json_the_client(client: str) -> None:
    tool = BY_TOOL.get(client)
    provider = Scripted(calling(tool, city="Bonn") if tool else answer('{"city":', '"Bonn"}', input_tokens=9))
    async with serve(watched(provider)) as port:
        events = await drive(client, port, format=True)
    assert [json.loads(event["text"]) for event in told(events, "text")] == [{"city": "Bonn"}]
    assert not told(events, "error")
    [prompt] = provider.prompts
    schema = prompt.tools[0].parameters if tool else prompt.options.format and prompt.options.format.schema
    assert schema is not None
    assert json.loads(bytes(schema))["required"] == ["city"]


@parametrize_client(able(IMAGE, AGENTS))
async def test_an_image_reaches_the_model(client: str) -> None:
    provider = Scripted(answering(client, "A grey picture", input_tokens=9))
    async with serve(watched(provider, allow_images=True)) as port:
        events = await drive(client, port, image=b64encode(png(64, 48)).decode())
    assert [event["text"] for event in told(events, "text")] == ["A grey picture"]
    found = [each for message in provider.prompts[0].messages for each in message.attachments]
    assert [(each.media_type, each.width, each.height) for each in found] == [("image/png", 64, 48)]


@EACH
async def test_an_abort_closes_the_providers_socket(client: str) -> None:
    if client.startswith("instructor"):
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "Answer", "arguments": '{"text":"one'}}
        begun = [delta({"tool_calls": [call]})]
    else:
        form = ["[[ ## answer ## ]]\n"] if client.startswith("dspy") else []
        begun = [chunk(text) for text in (*form, "one ", "two ", "three ", "four ")]
    async with ScriptedProvider(stream(*begun, HANG)) as provider:
        profiles = {"balanced": replace(PROFILE, model="openai:gpt-4o-mini")}
        handler = create_chat_handler(api_key="k", base_url=provider.url, profiles=profiles, dialects=DIALECTS)
        async with serve(handler) as port:
            events = await drive(client, port, abort=True)
            await provider.closed()
            used = (await settled(port))["tokens_per_day"]["used"]
    assert [event["event"] for event in events] == ["aborted"]
    assert used > 0


@EACH
@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_day"])
async def test_a_refusal_is_shown_and_not_repeated(client: str, limit: str) -> None:
    provider = Scripted(answering(client, "hi", input_tokens=9_900, output_tokens=400))
    most = {"requests_per_minute": 1, "tokens_per_day": 10_000}[limit]
    app = watched(provider, **{"requests_per_minute": None, limit: most})
    async with serve(app) as port:
        await drive(client, port)
        app.asked.clear()
        events = await drive(client, port)
    assert [event["event"] for event in events] == ["error"]
    assert ("Rate limit exceeded" if limit == "requests_per_minute" else "budget exceeded") in events[0]["message"]
    assert app.asked.total() == 1
    assert provider.opened == 1


@EACH
@pytest.mark.parametrize("format", [False, True], ids=["stream", "format"])
async def test_as_installed_it_sends_a_refused_budget_so_often(client: str, format: bool) -> None:
    provider = Scripted(answering(client, "hi", input_tokens=9_900, output_tokens=400))
    app = watched(provider, tokens_per_day=10_000)
    async with serve(app) as port:
        await drive(client, port)
        app.asked.clear()
        events = await drive(client, port, defaults=True, format=format)
    assert [event["event"] for event in events] == ["error"]
    assert "budget exceeded" in events[0]["message"]
    assert app.asked.total() == ATTEMPTS.get(client, (1, 1))[format]
    assert provider.opened == 1


@EACH
@pytest.mark.parametrize("limit", ["tokens_per_request", "max_body_bytes"])
async def test_a_prompt_that_is_too_long_is_shown_and_not_sent_again(client: str, limit: str) -> None:
    prompt = "Hello " * (2_000 if limit == "tokens_per_request" else 60_000)
    provider = Scripted(answer("hi"))
    app = watched(provider, tokens_per_request=1_500, requests_per_minute=None)
    async with serve(app) as port:
        events = await drive(client, port, prompt=prompt)
    assert [event["event"] for event in events] == ["error"]
    assert re.search(r"too (long|large)|tokens|at most \d+ bytes|Unable to trim", events[0]["message"]), events
    assert app.asked.total() == 1
    assert provider.opened == 0


@pytest.mark.parametrize("example", EXAMPLES, ids=[re.split(r"[\s.]", example)[1] for example in EXAMPLES])
async def test_an_example_of_the_page_prints_the_answer(example: str, tmp_path: Path) -> None:
    text = "Hello from the nest"
    written = {"instructor": json.dumps({"text": text}), "dspy": f"[[ ## answer ## ]]\n{text}\n\n[[ ## completed ## ]]"}
    provider = Scripted(answer(*written.get(example.split()[1], text)))
    command, *_ = find_command("agents/litellm_client.py")
    async with serve(watched(provider)) as port:
        code = example.replace("localhost:8000", f"127.0.0.1:{port}")
        assert code != example
        process = await asyncio.create_subprocess_exec(
            *(command, "-c", code),
            env={**environment(), **QUIET, "DSPY_CACHEDIR": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        shown, complained = await process.communicate()
    assert shown.decode().strip() == text, complained.decode()
    assert provider.opened == 1
