"""Requests as clients send them to servers that are not OpenAI's or Anthropic's own: what asks for nothing is no error."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from msgspec.structs import replace
from pictures import png

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.protocols import Prompt
from chat_nest.testing import Answer, ScriptedProvider, answer, collect

PATHS = {
    "openai": "/v1/chat/completions",
    "responses": "/v1/responses",
    "anthropic": "/v1/messages",
    "ai_sdk": "/api/ai",
}
PROFILE = replace(BALANCED, model="p:gpt-4o-mini", allow_tools=True, allow_images=True, allow_system_prompt=True)
HELLO = {"role": "user", "content": "hi"}
FUNCTION = {"type": "function", "function": {"name": "weather"}}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}],
}
PNG = b64encode(png(4, 3)).decode()


async def sent(dialect: str, body: dict[str, Any]) -> tuple[Answer, list[Prompt]]:
    provider = ScriptedProvider(answer("ok"))
    chat = create_chat_handler(providers={"p": provider}, profiles={"balanced": PROFILE}, dialects=tuple(PATHS))
    async with chat:
        reply = await collect(chat, body, path=PATHS[dialect])
    return reply, provider.prompts


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {}},
        {"functions": []},
        {"logprobs": False, "top_logprobs": 0},
        {"max_tokens": -1},
        {"max_completion_tokens": -1, "max_tokens": None},
        {"top_k": -1},
        {"stop": [], "tools": [], "tool_choice": "auto"},
        {"api_key": "", "headers": {}},
    ],
)
async def test_a_field_without_an_effect_is_accepted(fields: dict[str, Any]) -> None:
    reply, [prompt] = await sent("openai", {"messages": [HELLO], **fields})
    assert reply.status == 200, reply.body
    assert prompt.max_output_tokens == BALANCED.max_output_tokens
    assert prompt.options.top_k is None


@pytest.mark.parametrize("fields", [{"logit_bias": {"1": 5}}, {"functions": [{"name": "f"}]}, {"top_logprobs": 2}])
async def test_the_same_field_with_an_effect_is_refused(fields: dict[str, Any]) -> None:
    reply, prompts = await sent("openai", {"messages": [HELLO], **fields})
    assert (reply.status, prompts) == (400, [])
    assert next(iter(fields)) in reply.body.decode()


async def test_anthropics_empty_servers() -> None:
    body = {"messages": [HELLO], "max_tokens": 9, "mcp_servers": [], "container": None, "tools": []}
    reply, prompts = await sent("anthropic", body)
    assert (reply.status, len(prompts)) == (200, 1)


async def test_a_tool_message_without_content() -> None:
    history = [HELLO, CALLED, {"role": "tool", "tool_call_id": "c1", "content": None}, HELLO]
    reply, [prompt] = await sent("openai", {"messages": history})
    assert reply.status == 200, reply.body
    assert [(each.role, each.content) for each in prompt.messages[1:3]] == [("assistant", ""), ("tool", "")]


async def test_a_refusal_in_the_history() -> None:
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I can't."}]}
    reply, [prompt] = await sent("openai", {"messages": [HELLO, refused, HELLO]})
    assert reply.status == 200, reply.body
    assert prompt.messages[1].content == "I can't."


async def test_mistrals_word_for_a_call_that_must_come() -> None:
    reply, [prompt] = await sent("openai", {"messages": [HELLO], "tools": [FUNCTION], "tool_choice": "any"})
    assert (reply.status, prompt.tool_choice) == (200, "required")


async def test_another_apis_format_is_named() -> None:
    """Responses has `text.format`: an answer in prose would be paid for."""
    reply, prompts = await sent("responses", {"input": "hi", "response_format": {"type": "json_object"}})
    assert (reply.status, prompts) == (400, [])
    assert b'"param":"response_format"' in reply.body


async def test_a_model_message_of_the_ai_sdk_with_an_image() -> None:
    content = [{"type": "text", "text": "What?"}, {"type": "file", "data": PNG, "mediaType": "image/png"}]
    reply, [prompt] = await sent("ai_sdk", {"messages": [{"role": "user", "content": content}]})
    assert reply.status == 200, reply.body
    assert [each.media_type for each in prompt.messages[0].attachments] == ["image/png"]
