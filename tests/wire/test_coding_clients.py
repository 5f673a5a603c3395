"""Coding clients themselves, if they are installed; and the requests of two of them, as they sent them, everywhere.

The requests are those of @anthropic-ai/claude-code 2.1.197 and @openai/codex 0.171.0 for one prompt, with shorter texts.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from asgi_servers import serve
from client_drivers import HEAVY, IMAGE, SCHEMA, TOOLS, Watched
from msgspec.structs import replace
from pictures import png
from raw_client import ask, connect

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.deltas import Batch, FinishDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.usage import Usage
from chat_nest.dialects.anthropic import Anthropic
from chat_nest.dialects.frames import BudgetStatus
from chat_nest.dialects.openai import OpenAI
from chat_nest.dialects.responses import Responses
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import Step, answer

CLIENTS = Path(__file__).parent.parent / "clients"
PLACE = Path(os.environ.get("CODING_CLIENTS") or CLIENTS / "coding")
AIDER = CLIENTS.parent.parent / ".venv-aider/bin/aider"
RESETS = "it will reset at"
SHOWN = {"codex": "last status: 429 Too Many Requests"}
"""Of a rate or a budget. Codex shows no message of a server but OpenAI's own."""
TOO_LONG = {
    "claude": "Prompt is too long",
    "codex": "ran out of room in the model's context window",
    "aider": "has hit a token limit",
}
"""With these words the first two shorten the conversation, if it has more than one turn; aider explains how."""
PATHS = {"claude": "/v1/messages", "codex": "/v1/responses"}
REQUESTS = {"aider": 9}
"""For a refused budget or daily limit. Nothing stops aider before a minute is over."""
SUMMARIES = {"opencode": 1}
"""Requests that shorten the conversation after a prompt that is too long."""


def each(what: str | None = None) -> pytest.MarkDecorator:
    """Run the test for the clients that are able to do this, if they are installed."""
    names = [name for name, client in HEAVY.items() if client.file in ("coding", "aider")]
    programs = {name: PLACE / "node_modules/.bin" / name for name in names} | {"aider": AIDER}
    missing = "scripts/heavy-clients installs it"
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.skipif(not programs[name].exists(), reason=missing))
            for name in names
            if what is None or what in HEAVY[name].able
        ],
    )


AGENT = replace(
    BALANCED,
    name="agent",
    model="p:claude-sonnet-4-5",
    allow_system_prompt=True,
    allow_tools=True,
    allow_images=True,
    max_messages=1_000,
    max_output_tokens=32_000,
    tokens_per_request=None,
    tokens_per_day=None,
    requests_per_minute=None,
)


def agent(
    provider: Scripted, limits: dict[str, Any] | None = None, budget_status: BudgetStatus = 429, **options: Any
) -> Any:
    profiles = {"agent": replace(AGENT, **(limits or {}))}
    dialects = [kind(budget_status=budget_status) for kind in (OpenAI, Responses, Anthropic)]
    return create_chat_handler(providers={"p": provider}, profiles=profiles, dialects=dialects, **options)


CLAUDE_CODE = {
    "model": "agent",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nToday's date is 2026-11-29.\n</system-reminder>"},
                {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {"role": "system", "content": "Available agent types for the Agent tool:\n- claude: Catch-all"},
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.0df; cc_entrypoint=sdk-cli;"},
        {"type": "text", "text": "You are a Claude agent.", "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [{"name": "Read", "description": "Reads a file", "input_schema": {"type": "object", "properties": {}}}],
    "metadata": {"user_id": '{"device_id":"c1f9","account_uuid":"","session_id":"87ea"}'},
    "max_tokens": 32_000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}
BETA = {
    "content-type": "application/json",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
}

CODEX = {
    "model": "agent",
    "stream": True,
    "input": [
        {
            "type": "message",
            "id": "msg_1",
            "role": "developer",
            "content": [{"type": "input_text", "text": "You code."}],
        },
        {"type": "message", "id": "msg_2", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    ],
    "tools": [
        {
            "type": "function",
            "name": "exec_command",
            "description": "Runs",
            "strict": False,
            "parameters": {"type": "object"},
        },
        {
            "type": "namespace",
            "name": "multi_agent_v1",
            "description": "Sub-agents",
            "tools": [{"type": "function", "name": "close_agent", "strict": False, "parameters": {"type": "object"}}],
        },
        {"type": "web_search", "external_web_access": False},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a22879-4c51-7251-91b1-71c7fa330f6a",
    "client_metadata": {"x-codex-installation-id": "1"},
}


def events(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(b"data: ")) for line in raw.split(b"\n") if line.startswith(b"data: {")]


async def test_what_claude_code_sends_is_answered_and_its_first_event_counts_the_input() -> None:
    provider = Scripted(answer("Hello", input_tokens=1_234))
    async with serve(agent(provider)) as port:
        counted = await (await ask(port, CLAUDE_CODE, path="/v1/messages/count_tokens?beta=true", headers=BETA)).json()
        reply = await ask(port, CLAUDE_CODE, path="/v1/messages?beta=true", headers=BETA)
        assert reply.status == 200
    told = events(reply.raw)
    assert told[0]["type"] == "message_start"
    assert told[0]["message"]["usage"]["input_tokens"] == counted["input_tokens"] > 20
    assert told[-2]["usage"]["input_tokens"] == 1_234
    assert [message.role for message in provider.prompts[0].messages] == ["system", "user", "system"]


async def test_a_count_that_the_provider_sent_first_is_the_first_events() -> None:
    script: list[Batch] = [
        [UsageDelta(Usage(input_tokens=77, output_tokens=0))],
        [TextDelta("Hi")],
        [FinishDelta("stop"), UsageDelta(Usage(input_tokens=77, output_tokens=1))],
    ]
    async with serve(agent(Scripted(script))) as port:
        reply = await ask(port, CLAUDE_CODE, path="/v1/messages", headers=BETA)
    assert events(reply.raw)[0]["message"]["usage"]["input_tokens"] == 77


async def test_models_are_listed_in_the_format_of_the_client() -> None:
    """An Anthropic client is known by its `anthropic-version`; OpenAI's format has the same path."""
    async with serve(agent(Scripted(answer("Hi")))) as port, connect(port) as client:
        anthropics = await (await client.request("GET", "/v1/models", headers=BETA)).json()
        openais = await (await client.request("GET", "/v1/models")).json()
        model = {"type": "model", "display_name": "agent", "id": "agent", "created_at": "1970-01-01T00:00:00Z"}
        assert anthropics["data"][-1] == model
        assert (anthropics["has_more"], anthropics["first_id"]) == (False, "claude-sonnet-4-5")
        assert [each["id"] for each in openais["data"]] == [each["id"] for each in anthropics["data"]]
        assert openais["object"] == "list"
        assert await (await client.request("GET", "/v1/models/agent", headers=BETA)).json() == model
        missing = await client.request("GET", "/v1/models/none", headers=BETA)
        assert (missing.status, (await missing.json())["type"]) == (404, "error")
        assert (await client.request("HEAD", "/v1/models", headers=BETA)).status == 200
        elsewhere = await client.request("GET", "/v1/messages/batches", headers=BETA)
        assert (elsewhere.status, (await elsewhere.json())["error"]["type"]) == (404, "not_found_error")


async def test_a_conversation_of_system_turns_alone_is_refused() -> None:
    async with serve(agent(Scripted(answer("Hi")))) as port:
        for messages in (
            [{"role": "system", "content": "x"}],
            [*CLAUDE_CODE["messages"], {"role": "assistant", "content": "x"}],
        ):  # type: ignore[misc]
            reply = await ask(port, {**CLAUDE_CODE, "messages": messages}, path="/v1/messages", headers=BETA)
            assert (reply.status, b"the last message must be from the user" in reply.raw) == (400, True)


async def test_what_codex_sends_is_answered_and_a_call_is_in_its_namespace() -> None:
    """https://github.com/openai/codex: a function call has its namespace, and comes back with it."""
    script: list[Batch] = [
        [ToolCallDelta(0, "{}", "c1", "multi_agent_v1__close_agent"), ToolCallDelta(1, "{}", "c2", "exec_command")],
        [FinishDelta("tool_calls")],
    ]
    provider = Scripted(script)
    async with serve(agent(provider)) as port:
        reply = await ask(port, CODEX, path="/v1/responses")
        assert reply.status == 200
        called = list(events(reply.raw)[-1]["response"]["output"])
        assert [(item["name"], item.get("namespace")) for item in called] == [
            ("close_agent", "multi_agent_v1"),
            ("exec_command", None),
        ]
        results = [{"type": "function_call_output", "call_id": id, "output": "done"} for id in ("c1", "c2")]
        again = {**CODEX, "input": [*CODEX["input"], *called, *results]}  # type: ignore[misc]
        assert (await ask(port, again, path="/v1/responses")).status == 200
    assert [tool.name for tool in provider.prompts[0].tools] == ["exec_command", "multi_agent_v1__close_agent"]
    calls = [call.name for message in provider.prompts[1].messages for call in message.tool_calls]
    assert calls == ["multi_agent_v1__close_agent", "exec_command"]


async def test_a_search_of_the_web_that_may_look_is_refused_by_name() -> None:
    body = {**CODEX, "tools": [{"type": "web_search"}]}
    async with serve(agent(Scripted(answer("Hi")))) as port:
        reply = await ask(port, body, path="/v1/responses")
    assert (reply.status, b"web_search is not offered here" in reply.raw) == (400, True)


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


class InTurn(Scripted):
    """Answers each request by the next script."""

    def __init__(self, *scripts: list[Step]) -> None:
        super().__init__(scripts[0])
        self._scripts = scripts

    def open(self, prompt: Any, timeouts: Any) -> Any:
        self.script = self._scripts[min(self.opened, len(self._scripts) - 1)]
        return super().open(prompt, timeouts)


def calling(name: str, **arguments: str) -> list[Step]:
    called = ToolCallDelta(0, json.dumps(arguments), "call_1", name)
    return [[called], [FinishDelta("tool_calls"), UsageDelta(Usage(input_tokens=9, output_tokens=9))]]


async def start(name: str, port: int, **options: Any) -> asyncio.subprocess.Process:
    """Let the client answer a prompt, in a session of its own."""
    command = [sys.executable, str(CLIENTS / "coding.py"), name, str(port), "hi", json.dumps(options)]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, start_new_session=True)


async def coding(name: str, port: int, **options: Any) -> dict[str, Any]:
    out, _ = await (await start(name, port, **options)).communicate()
    told: dict[str, Any] = json.loads(out)
    return told


@each()
async def test_the_client_itself_shows_the_answer(name: str) -> None:
    provider = Scripted(answer("Good ", "morning", input_tokens=9))
    async with serve(agent(provider, max_body_bytes=1 << 20)) as port:
        assert (await coding(name, port))["text"] == "Good morning"
    assert len(provider.prompts) == 1


CALLS = {
    "claude": calling("Read", file_path="a.txt"),
    "codex": calling("exec_command", cmd="cat a.txt"),
    "opencode": calling("read", filePath="a.txt"),
    "qwen": calling("run_shell_command", command="cat a.txt"),
}


@each(TOOLS)
async def test_a_tool_runs_and_its_result_is_sent_back(name: str) -> None:
    provider = InTurn(CALLS[name], answer("It is warm", input_tokens=9))
    async with serve(agent(provider, max_body_bytes=1 << 20)) as port:
        told = await coding(name, port, files={"a.txt": "19 degrees\n"})
    assert told["text"] == "It is warm"
    *_, called, result = provider.prompts[1].messages
    assert [call.id for call in called.tool_calls] == [result.tool_call_id]
    assert "19 degrees" in result.content


@each(SCHEMA)
async def test_json_by_a_schema(name: str) -> None:
    """Claude Code and qwen-code ask by a tool of their own, Codex by `text.format`."""
    own = {"claude": "StructuredOutput", "qwen": "structured_output"}.get(name)
    provider = Scripted(calling(own, city="Bonn") if own else answer('{"city":', '"Bonn"}'))
    async with serve(agent(provider, max_body_bytes=1 << 20)) as port:
        told = await coding(name, port, schema=CITY)
    assert json.loads(told["text"]) == {"city": "Bonn"}
    if own:
        [tool] = [tool for tool in provider.prompts[0].tools if tool.name == own]
        assert json.loads(bytes(tool.parameters))["required"] == ["city"]
    else:
        format = provider.prompts[0].options.format
        assert format is not None
        assert json.loads(bytes(format.schema)) == CITY


@each(IMAGE)
async def test_a_picture_reaches_the_model(name: str, tmp_path: Path) -> None:
    """The others show it; Claude Code reads it with a tool, whose result it is."""
    picture = tmp_path / "a.png"
    picture.write_bytes(png(64, 48))
    seen = answer("A grey picture", input_tokens=9)
    provider = InTurn(calling("Read", file_path="a.png"), seen) if name == "claude" else Scripted(seen)
    async with serve(agent(provider, max_body_bytes=1 << 20)) as port:
        told = await coding(name, port, files={"a.png": [str(picture)]}, picture="a.png")
    assert told["text"] == "A grey picture"
    found = [each for message in provider.prompts[-1].messages for each in message.attachments]
    kind = "image/jpeg" if name == "qwen" else "image/png"  # it encodes it again
    assert [(each.media_type, each.width, each.height) for each in found] == [(kind, 64, 48)]


@each()
async def test_a_client_that_is_stopped_closes_the_providers_stream(name: str) -> None:
    reached, left = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with serve(agent(Scripted([[TextDelta("one")], hang]), max_body_bytes=1 << 20)) as port:
        process = await start(name, port)
        await reached.wait()
        os.killpg(process.pid, signal.SIGTERM)
        await left.wait()
        await process.communicate()


@each()
@pytest.mark.parametrize("limit", ["tokens_per_day", "requests_per_day", "tokens_per_request"])
async def test_a_refusal_is_shown_and_not_retried(name: str, limit: str) -> None:
    """With the settings of docs/clients.md: opencode repeats a 429 for more than a minute."""
    provider = Scripted(answer("Hello", input_tokens=99_000, output_tokens=900))
    limits: dict[str, Any] = {
        limit: {"tokens_per_day": 100_000, "requests_per_day": 1, "tokens_per_request": 500}[limit]
    }
    app = Watched(agent(provider, limits, 402 if name == "opencode" else 429, max_body_bytes=1 << 20))
    too_long = limit == "tokens_per_request"
    async with serve(app) as port:
        if not too_long:
            first = await ask(port, {"model": "agent", "input": "hi"}, path="/v1/responses")
            assert first.status == 200
            app.asked.clear()
        told = await coding(name, port)
    assert told["code"] != 0 or name == "aider"
    shown = TOO_LONG.get(name, "Request too large") if too_long else SHOWN.get(name, RESETS)
    assert shown in told["printed"], told["printed"]
    requests = 1 + SUMMARIES.get(name, 0) if too_long else REQUESTS.get(name, 1)
    assert app.asked == {f"POST {PATHS.get(name, '/v1/chat/completions')}": requests}
