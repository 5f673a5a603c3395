"""What a client asks besides, in each provider's own words; what a provider has no word for, by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from msgspec import Raw

from chat_nest.core.messages import Format, Message, Options, Tool
from chat_nest.core.protocols import Prompt
from chat_nest.providers import anthropic, gemini, ollama, openai_codec
from chat_nest.providers import PRESETS

RAW = Raw(b'{"type":"object"}')
SCHEMA = {"type": "object"}
JSON = Options(format=Format())
TOWN = Options(format=Format(schema=RAW, name="town", description="A town", strict=True))
SAMPLED = Options(seed=7, top_p=0.5, top_k=40, frequency_penalty=1.0, presence_penalty=-1.0)
ONE = Options(parallel_calls=False)
TOOLS = {"tools": (Tool(name="weather", strict=True),)}

Body = Callable[[Prompt], bytes]
Lacks = Callable[[Prompt], Sequence[str]]


def prompt(model: str, options: Options, **more: Any) -> Prompt:
    messages = (Message(role="user", content="Hi"),)
    return Prompt(model=model, messages=messages, max_output_tokens=5, options=options, **more)


def openai(kind: str) -> Body:
    return partial(openai_codec.request_body, preset=PRESETS[kind])


def told(body: Body, model: str, options: Options, **more: Any) -> dict[str, Any]:
    """What the options add to the request."""
    plain = json.loads(body(prompt(model, Options(), **more)))
    said = json.loads(body(prompt(model, options, **more)))
    return {name: value for name, value in said.items() if plain.get(name) != value}


@pytest.mark.parametrize(
    ("body", "model", "options", "said"),
    [
        (openai("openai"), "gpt-4o", JSON, {"response_format": {"type": "json_object"}}),
        *(
            (
                openai(kind),
                "m",
                TOWN,
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "town", "schema": SCHEMA, "description": "A town", "strict": True},
                    }
                },
            )
            for kind in ("openai", "llamacpp", "vllm", "groq", "openrouter", "mistral", "azure", "ollama_v1")
        ),
        (openai("openai"), "gpt-4o", Options(stop=("END",)), {"stop": ["END"]}),
        (
            openai("openai"),
            "gpt-4o",
            SAMPLED,
            {"seed": 7, "top_p": 0.5, "frequency_penalty": 1.0, "presence_penalty": -1.0},
        ),
        (openai("openai"), "gpt-5", SAMPLED, {"seed": 7}),
        (openai("llamacpp"), "m", Options(top_k=40), {"top_k": 40}),
        (openai("mistral"), "m", Options(seed=7, effort="low"), {"random_seed": 7}),
        (
            openai("openai"),
            "gpt-5",
            Options(effort="low", verbosity="low"),
            {"reasoning_effort": "low", "verbosity": "low"},
        ),
        (openai("openai"), "gpt-4o", Options(effort="low", verbosity="low"), {}),
        (anthropic.request_body, "claude-sonnet-4-5", JSON, {}),
        (
            anthropic.request_body,
            "claude-sonnet-4-5",
            TOWN,
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        (anthropic.request_body, "claude-opus-4-7", Options(effort="xhigh"), {"output_config": {"effort": "high"}}),
        (anthropic.request_body, "claude-sonnet-4-5", Options(effort="low"), {}),
        (anthropic.request_body, "claude-3-5-haiku-latest", SAMPLED, {"top_p": 0.5, "top_k": 40}),
        (anthropic.request_body, "claude-sonnet-4-5", SAMPLED, {"top_k": 40}),
        (anthropic.request_body, "claude-opus-4-7", SAMPLED, {}),
        (anthropic.request_body, "claude-sonnet-4-5", Options(stop=("END",)), {"stop_sequences": ["END"]}),
        (
            ollama.request_body,
            "llama3",
            SAMPLED,
            {
                "options": {
                    "num_predict": 5,
                    "seed": 7,
                    "top_p": 0.5,
                    "top_k": 40,
                    "frequency_penalty": 1.0,
                    "presence_penalty": -1.0,
                }
            },
        ),
        (ollama.request_body, "llama3", Options(stop=("END",)), {"options": {"num_predict": 5, "stop": ["END"]}}),
        (ollama.request_body, "llama3", JSON, {"format": "json"}),
        (ollama.request_body, "llama3", TOWN, {"format": SCHEMA}),
    ],
)
def test_each_providers_words(body: Body, model: str, options: Options, said: dict[str, Any]) -> None:
    assert told(body, model, options) == said


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("gemini-2.5-flash", JSON, {"responseMimeType": "application/json"}),
        ("gemini-2.5-flash", TOWN, {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}),
        ("gemini-2.5-flash", SAMPLED, {"seed": 7, "topP": 0.5, "topK": 40}),
        ("gemini-2.5-flash", Options(stop=("END",)), {"stopSequences": ["END"]}),
        ("gemini-2.5-flash", Options(effort="medium"), {"thinkingConfig": {"thinkingBudget": 8_192}}),
        ("gemini-3-pro", Options(effort="minimal"), {"thinkingConfig": {"thinkingLevel": "low"}}),
        ("gemini-1.5-flash", Options(effort="low"), {}),
        ("gemini-1.5-flash", Options(summary="auto"), {}),
        ("gemini-3-pro", Options(summary="auto"), {"thinkingConfig": {"includeThoughts": True}}),
        (
            "gemini-2.5-flash",
            Options(summary="concise", effort="medium"),
            {"thinkingConfig": {"thinkingBudget": 8_192, "includeThoughts": True}},
        ),
    ],
)
def test_geminis_words(model: str, options: Options, said: dict[str, Any]) -> None:
    config = json.loads(gemini.request_body(prompt(model, options)))["generationConfig"]
    assert config == {"maxOutputTokens": 5, **said}


def test_one_call_at_a_time_and_strict_tools() -> None:
    assert told(openai("openai"), "gpt-4o", ONE, **TOOLS) == {"parallel_tool_calls": False}
    assert told(openai("openai"), "gpt-4o", ONE) == {}, "OpenAI refuses it without tools"
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert told(anthropic.request_body, "claude-sonnet-4-5", ONE, **TOOLS) == {"tool_choice": choice}
    named = told(anthropic.request_body, "claude-sonnet-4-5", ONE, **TOOLS, tool_choice="tool:weather")
    assert named == {"tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}}
    [tool] = json.loads(openai("openai")(prompt("gpt-4o", Options(), **TOOLS)))["tools"]
    assert tool["function"]["strict"] is True
    for model, strict in (("claude-sonnet-4-5", True), ("claude-3-5-haiku-latest", False)):
        [tool] = json.loads(anthropic.request_body(prompt(model, Options(), **TOOLS)))["tools"]
        assert tool.get("strict", False) is strict


@pytest.mark.parametrize(
    ("lacks", "model", "options", "more", "lacking"),
    [
        (openai_codec.lacks, "gpt-4o", TOWN, {}, []),
        (openai_codec.lacks, "o3", Options(stop=("END",)), {}, ["stop"]),
        (openai_codec.lacks, "gpt-4o", Options(stop=("a", "b", "c", "d", "e")), {}, ["stop"]),
        (partial(openai_codec.lacks, preset=PRESETS["vllm"]), "gpt-5", Options(stop=("a",) * 5), {}, []),
        (anthropic.lacks, "claude-sonnet-4-5", TOWN, {}, []),
        (anthropic.lacks, "claude-opus-4-1-20250805", TOWN, {}, []),
        (anthropic.lacks, "claude-sonnet-4-5", JSON, {}, ["format"]),
        *(
            (anthropic.lacks, model, TOWN, {}, ["format"])
            for model in (
                "claude-3-7-sonnet-latest",
                "claude-sonnet-4-20250514",
                "claude-opus-4-0",
                "claude-sonnet-4@20250514",
            )
        ),
        (gemini.lacks, "gemini-2.5-flash", TOWN, {}, []),
        (gemini.lacks, "gemini-2.5-flash", TOWN, TOOLS, ["format"]),
        (gemini.lacks, "gemini-3-flash", TOWN, TOOLS, []),
        (gemini.lacks, "gemini-3-flash", ONE, TOOLS, ["parallel_calls"]),
        (gemini.lacks, "gemini-3-flash", Options(stop=("a",) * 6), {}, ["stop"]),
        (ollama.lacks, "llama3", TOWN, {}, []),
        (ollama.lacks, "llama3", ONE, {}, []),
        (ollama.lacks, "llama3", ONE, TOOLS, ["parallel_calls"]),
        (ollama.lacks, "llama3", Options(), {**TOOLS, "tool_choice": "required"}, ["tool_choice"]),
    ],
)
def test_what_a_provider_has_no_word_for(
    lacks: Lacks, model: str, options: Options, more: dict[str, Any], lacking: list[str]
) -> None:
    assert list(lacks(prompt(model, options, **more))) == lacking
