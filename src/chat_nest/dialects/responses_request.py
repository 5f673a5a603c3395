"""Read the fields of a request for Responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from chat_nest.core.errors import BadRequest
from chat_nest.core.messages import Options, Tool
from chat_nest.dialects import fields as read
from chat_nest.dialects import options as asked
from chat_nest.dialects import responses_items as items
from chat_nest.dialects.strict_json import is_object

HOSTED = (
    *("web_search_preview", "web_search", "file_search", "code_interpreter", "computer_use_preview", "computer"),
    *("image_generation", "mcp", "local_shell", "shell", "apply_patch", "custom", "tool_search"),
)
"""Tools that run at OpenAI, or that other providers do not have."""
INCLUDED = (
    *("reasoning.encrypted_content", "web_search_call.results", "web_search_call.action.sources"),
    *("file_search_call.results", "code_interpreter_call.outputs", "computer_call_output.output.image_url"),
    "message.input_image.image_url",
)
"""The values that `include` may have. Answers contain only the first, if the provider has Responses itself."""
SUMMARIES = ("auto", "concise", "detailed")
MAX_METADATA = 16


def check_include(fields: Mapping[str, Any]) -> None:
    for index, name in enumerate(read.array(fields.get("include", []), "include", 16)):
        if type(name) is not str or name not in INCLUDED:
            raise BadRequest("is not offered here: leave it out", field=f"include[{index}]")


def read_options(fields: dict[str, Any], text: dict[str, Any], reasoning: dict[str, Any]) -> Options:
    chosen = text.get("format")
    return Options(
        format=None if chosen is None else asked.json_format(chosen, "text.format"),
        parallel_calls=asked.switch(fields, "parallel_tool_calls"),
        effort=asked.word(reasoning.get("effort"), asked.EFFORTS, "reasoning.effort"),
        summary=_summary(reasoning),
        encrypted_reasoning="reasoning.encrypted_content" in fields.get("include", ()),
        verbosity=asked.word(text.get("verbosity"), asked.VERBOSITIES, "text.verbosity"),
        **asked.sampling(
            fields, top_p="top_p", frequency_penalty="frequency_penalty", presence_penalty="presence_penalty"
        ),
    )


def read_tools(fields: dict[str, Any]) -> tuple[Tool, ...]:
    """Return the functions.

    A function of a namespace is named NAMESPACE__NAME: models and other providers have no groups.
    """
    tools = _functions(fields.get("tools", []), "tools")
    if len(tools) > read.MAX_TOOLS:
        raise BadRequest(f"must not have more than {read.MAX_TOOLS} functions", field="tools")
    return tools


def _functions(value: Any, field: str, namespace: str = "") -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, entry in enumerate(read.array(value, field, read.MAX_TOOLS)):
        at = f"{field}[{index}]"
        offered = read.table(entry, at)
        kind = offered.get("type")
        if kind == "namespace" and not namespace:
            tools += _functions(offered.get("tools"), f"{at}.tools", read.name(offered.get("name"), f"{at}.name"))
            continue
        if kind == "web_search" and offered.get("external_web_access") is False:
            continue  # Codex always sends it: with this value the tool may look up nothing
        if kind != "function":
            hosted = next((f"{name} is not offered here: " for name in HOSTED if _is(kind, name)), "")
            raise BadRequest(f"{hosted}must be function", field=f"{at}.type")
        named, description, parameters = (offered.get(name) for name in ("name", "description", "parameters"))
        if namespace and type(named) is str:
            named = items.qualified(named, namespace)
        strict = asked.strictness(offered, at)
        tool = read.tool(named, description, parameters, at, "parameters", strict=strict)
        tools.append(replace(tool, namespace=namespace) if namespace else tool)
    return tuple(tools)


def _is(kind: Any, name: str) -> bool:
    """Return whether a type has this name, with or without a date."""
    return type(kind) is str and (kind == name or re.fullmatch(rf"{name}_\d{{4}}_\d\d_\d\d", kind) is not None)


def read_tool_choice(value: Any, tools: tuple[Tool, ...]) -> tuple[str, tuple[Tool, ...]]:
    """Return the choice, and the tools that it leaves."""
    if type(value) is str and value in ("auto", "none", "required"):
        return read.choice(value, tools, "tool_choice"), tools
    if is_object(value) and value.get("type") == "function":
        named = read.name(value.get("name"), "tool_choice.name")
        return read.choice(f"tool:{named}", tools, "tool_choice.name"), tools
    if is_object(value) and value.get("type") == "allowed_tools":
        return asked.allowed_tools(value, tools, "tool_choice")
    raise BadRequest("must be auto, none, required, a function or allowed_tools", field="tool_choice")


def echo_of(fields: Mapping[str, Any], reasoning: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are only echoed."""
    summary = _summary(reasoning)
    effort = asked.word(reasoning.get("effort"), asked.EFFORTS, "reasoning.effort")
    named = {
        name: read.name(fields[name], name) for name in ("safety_identifier", "prompt_cache_key") if name in fields
    }
    return {
        "metadata": _metadata(fields),
        "previous_response_id": fields.get("previous_response_id"),
        "reasoning": {"effort": effort, "summary": summary},
        "safety_identifier": named.get("safety_identifier"),
        "prompt_cache_key": named.get("prompt_cache_key"),
        "user": read.text(fields.get("user", ""), "user"),
    }


def _summary(reasoning: Mapping[str, Any]) -> Any:
    """Return the client's wish; `generate_summary` is the field's former name."""
    name = "generate_summary" if reasoning.get("summary") is None else "summary"
    return asked.word(reasoning.get(name), SUMMARIES, f"reasoning.{name}")


def _metadata(fields: Mapping[str, Any]) -> dict[str, str]:
    pairs = read.table(fields.get("metadata", {}), "metadata")
    if len(pairs) > MAX_METADATA:
        raise BadRequest(f"must not have more than {MAX_METADATA} pairs", field="metadata")
    for key, value in pairs.items():
        if len(read.text(key, "metadata")) > 64 or len(read.text(value, "metadata")) > 512:
            raise BadRequest("must have keys of at most 64 and values of at most 512 characters", field="metadata")
    return pairs


def read_format(options: Options) -> dict[str, Any]:
    format = options.format
    if format is None:
        return {"type": "text"}
    if format.schema is None:
        return {"type": "json_object"}
    described = {"description": format.description} if format.description else {}
    strict = format.strict is True
    return {"type": "json_schema", "name": format.name, **described, "schema": format.schema, "strict": strict}


def choice_as_echoed(choice: str) -> object:
    kind, _, name = choice.partition(":")
    return {"type": "function", "name": name} if name else kind


def tool_as_echoed(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        **items.named(tool.name, tool.namespace),
        "description": tool.description or None,
        "parameters": tool.parameters,
        "strict": tool.strict is True,
    }
