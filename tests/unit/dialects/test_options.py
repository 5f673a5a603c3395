"""What a client asks besides: each dialect's words for it, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from chat_nest.dialects import named
from chat_nest.core.errors import BadRequest
from chat_nest.core.messages import Format, Options

HELLO = {"role": "user", "content": "hello"}
BODIES: dict[str, dict[str, Any]] = {
    "openai": {"messages": [HELLO]},
    "anthropic": {"messages": [HELLO], "max_tokens": 5},
    "ai_sdk": {"messages": [{"role": "user", "parts": [{"type": "text", "text": "hello"}]}]},
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
RAW = Raw(b'{"type":"object","properties":{"city":{"type":"string"}}}')
DESCRIBED = {"name": "town", "description": "A town", "schema": SCHEMA, "strict": True}


def parse(name: str, **fields: Any) -> Options:
    return named(name).parse(json.dumps({**BODIES[name], **fields}).encode()).options  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "fields", "options"),
    [
        ("openai", {}, Options()),
        ("openai", {"response_format": {"type": "text"}}, Options()),
        ("openai", {"response_format": {"type": "json_object"}}, Options(format=Format())),
        (
            "openai",
            {"response_format": {"type": "json_schema", "json_schema": DESCRIBED}},
            Options(format=Format(schema=RAW, name="town", description="A town", strict=True)),
        ),
        ("openai", {"stop": "END"}, Options(stop=("END",))),
        ("openai", {"stop": ["END", "", "\n"]}, Options(stop=("END", "\n"))),
        ("openai", {"parallel_tool_calls": False}, Options(parallel_calls=False)),
        ("openai", {"reasoning_effort": "low", "verbosity": "high"}, Options(effort="low", verbosity="high")),
        (
            "openai",
            {"seed": -1, "top_p": 0.5, "top_k": 40, "frequency_penalty": 0, "presence_penalty": -2},
            Options(seed=-1, top_p=0.5, top_k=40, frequency_penalty=0.0, presence_penalty=-2.0),
        ),
        ("anthropic", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, RAW),
        ("anthropic", {"output_format": {"type": "json_schema", "schema": SCHEMA}}, RAW),
        ("anthropic", {"output_config": {"effort": "max"}}, Options(effort="max")),
        ("anthropic", {"stop_sequences": ["END"], "top_k": 5, "top_p": 1}, Options(stop=("END",), top_k=5, top_p=1.0)),
        (
            "anthropic",
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            Options(parallel_calls=False),
        ),
        ("ai_sdk", {"responseFormat": {"type": "json"}}, Options(format=Format())),
        ("ai_sdk", {"responseFormat": {"type": "json", "schema": SCHEMA}}, RAW),
        (
            "ai_sdk",
            {"stopSequences": ["END"], "topP": 0.1, "topK": 3, "seed": 7, "presencePenalty": 1},
            Options(stop=("END",), top_p=0.1, top_k=3, seed=7, presence_penalty=1.0),
        ),
    ],
)
def test_each_dialects_words(name: str, fields: dict[str, Any], options: Options | Raw) -> None:
    expected = Options(format=Format(schema=options)) if isinstance(options, Raw) else options
    assert parse(name, **fields) == expected


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("openai", {"response_format": "json"}, "response_format"),
        ("openai", {"response_format": {"type": "xml"}}, "response_format.type"),
        ("openai", {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            "openai",
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        (
            "openai",
            {"response_format": {"type": "json_schema", "json_schema": {**DESCRIBED, "name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ("openai", {"stop": 5}, "stop"),
        ("openai", {"stop": ["a", 5]}, "stop[1]"),
        ("openai", {"stop": "x" * 257}, "stop"),
        ("openai", {"stop": ["x"] * 17}, "stop"),
        ("openai", {"seed": 1.5}, "seed"),
        ("openai", {"top_p": 1.1}, "top_p"),
        ("openai", {"top_p": True}, "top_p"),
        ("openai", {"frequency_penalty": 3}, "frequency_penalty"),
        ("openai", {"reasoning_effort": "huge"}, "reasoning_effort"),
        ("openai", {"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        (
            "openai",
            {"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]},
            "tools[0].function.strict",
        ),
        ("openai", {"web_search_options": {}}, "web_search_options"),
        ("anthropic", {"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
        ("anthropic", {"stop_sequences": "END"}, "stop_sequences"),
        ("anthropic", {"output_config": {"effort": 5}}, "output_config.effort"),
        ("anthropic", {"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ("ai_sdk", {"responseFormat": {"type": "json_schema"}}, "responseFormat.type"),
        ("ai_sdk", {"topP": -1}, "topP"),
    ],
)
def test_an_invalid_option_is_named(name: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(name, **fields)
    assert caught.value.field == field
