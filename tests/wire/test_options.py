"""A client's wishes over real sockets: what reaches the provider, and a 400 where it has no word for one."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from raw_client import ask
from scripted_provider import ScriptedProvider, answer

from chat_nest import BALANCED, create_chat_handler
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import answer as said

USER = {"role": "user", "content": "Hello"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
OPENAI = {
    "messages": [USER],
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
}
ANTHROPIC = {
    "messages": [USER],
    "max_tokens": 9,
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
}
AI_SDK = {
    "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}],
    "responseFormat": {"type": "json", "schema": SCHEMA},
}
CHATS = pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", OPENAI), ("/v1/messages", ANTHROPIC), ("/api/ai", AI_SDK)]
)
DIALECTS = ("openai", "anthropic", "ai_sdk")


@asynccontextmanager
async def chat(model, **options):
    profiles = {"balanced": replace(BALANCED, model=model, **options.pop("limits", {}))}
    async with serve(create_chat_handler(profiles=profiles, dialects=DIALECTS, **options)) as port:
        yield port


@CHATS
async def test_a_schema_reaches_the_provider_in_its_format(path, body):
    async with ScriptedProvider(answer("{}", 1)) as provider, chat("openai:gpt-4o", base_url=provider.url) as port:
        assert (await ask(port, body, path=path)).status == 200
        asked = provider.requests[0].json()["response_format"]
    assert asked["type"] == "json_schema"
    assert asked["json_schema"]["schema"] == SCHEMA


@CHATS
async def test_a_provider_without_the_word_refuses_it_by_name_and_nothing_is_spent(path, body):
    class Unknowing:
        """As one written before there were options."""

        open = Scripted(said("hi")).open

    names = {"/v1/chat/completions": b"response_format", "/v1/messages": b"output_config.format"}
    async with chat("p:m", providers={"p": Unknowing()}, limits={"tokens_per_day": 10_000}) as port:
        reply = await ask(port, body, path=path)
        assert (reply.status, "retry-after" in reply.headers) == (400, False)
        assert names.get(path, b"responseFormat") in reply.raw
        assert re.search(rb": is not offered by the provider of this model: leave it out\b", reply.raw)
        assert (await ask(port, {"messages": [USER]}, path="/v1/chat/completions")).status == 200


async def test_json_without_a_schema_is_not_anthropics(provider_url="http://127.0.0.1:9"):
    providers = {"a": AnthropicProvider("k", provider_url)}
    body = {"messages": [USER], "response_format": {"type": "json_object"}}
    async with chat("a:claude-sonnet-4-5", providers=providers) as port:
        reply = await ask(port, body, path="/v1/chat/completions")
        assert (reply.status, (await reply.json())["error"]["param"]) == (400, "response_format")


async def test_a_fallback_without_a_required_field_is_not_called():
    first, second = Scripted([ConnectionError()]), Scripted(said("{}"))
    second.lacks = lambda prompt: ["format"] if prompt.options.format else []
    fallbacks = {"fallbacks": ("b:m",)}
    async with chat("a:m", providers={"a": first, "b": second}, limits=fallbacks) as port:
        assert (await ask(port, OPENAI, path="/v1/chat/completions")).status >= 500
    assert second.opened == 0


async def test_a_schema_is_counted_as_input():
    provider = Scripted(said("{}"))
    async with chat("p:m", providers={"p": provider}, limits={"tokens_per_request": 2_000}) as port:
        wide = {"type": "object", "description": "word " * 2_000}
        body = {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {"schema": wide}}}
        reply = await ask(port, body, path="/v1/chat/completions")
    assert (reply.status, provider.opened) == (400, 0)
    assert (await reply.json())["error"]["code"] == "context_length_exceeded"
