"""OpenAI's chat completions as bytes: the request, and what the events of a stream mean.

The format is that of https://platform.openai.com/docs/api-reference/chat-streaming, read leniently where servers
differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from chat_nest.deltas import Delta, FinishDelta, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.errors import UpstreamError, UpstreamProtocol
from chat_nest.messages import Message
from chat_nest.protocols import Prompt
from chat_nest.providers.codec import MAX_CALLS, Codec, count, field, with_calls
from chat_nest.providers.presets import OPENAI, Preset
from chat_nest.sse import Decoder
from chat_nest.tokens import base_name
from chat_nest.usage import Usage

# The request.

_NEWER = re.compile(r"(?:o[1-9]\d?(?![a-z0-9])|gpt-(?:[5-9]|1\d)(?!\d))")  # gpt-35 is Azure's 3.5


def token_limit_field(model: str) -> str:
    """OpenAI's models since o1 refuse `max_tokens`; the servers of other models know nothing else."""
    return "max_completion_tokens" if _NEWER.match(base_name(model)) else "max_tokens"


def takes_temperature(model: str) -> bool:
    """OpenAI's reasoning models (o1 and after, gpt-5 and after) and its search previews refuse one."""
    name = base_name(model)
    return not (_NEWER.match(name) or (name.startswith("gpt-") and "-search-" in name))


def request_body(prompt: Prompt, preset: Preset = OPENAI) -> bytes:
    """The JSON of one request for a stream with usage."""
    limit = token_limit_field(prompt.model) if preset.newer_token_field else "max_tokens"
    body: dict[str, Any] = {
        "model": prompt.model,
        "messages": [_message(message) for message in prompt.messages],
        "stream": True,
        limit: prompt.max_output_tokens,
    }
    if preset.stream_options:
        body["stream_options"] = {"include_usage": True}
        if preset.running_usage:
            body["stream_options"]["continuous_usage_stats"] = True
    if prompt.temperature is not None and takes_temperature(prompt.model):
        body["temperature"] = prompt.temperature
    if prompt.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
            for tool in prompt.tools
        ]
        if prompt.tool_choice.startswith("tool:"):
            named = prompt.tool_choice.removeprefix("tool:")
            body["tool_choice"] = {"type": "function", "function": {"name": named}}
        elif prompt.tool_choice != "auto":
            body["tool_choice"] = prompt.tool_choice
    return msgspec.json.encode(body)


def _message(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        said["content"] = message.content or None
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        said["tool_call_id"] = message.tool_call_id
    return said


# The stream.


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int | None = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    error: Any = None
    usage: Any = None


class _ChunkWithoutUsage(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_without_usage = msgspec.json.Decoder(_ChunkWithoutUsage).decode

_FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


def openai_codec() -> Codec:
    """For one answer."""
    return Codec(OpenAIReader(), Decoder())


class OpenAIReader:
    """See Reader. `over` is set by [DONE]; `finished` by a finish reason, since some servers leave [DONE] out."""

    def __init__(self) -> None:
        self.over = False
        self.finished = False
        self._usage: Usage | None = None
        self._calls: set[int] = set()

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        for event in events:
            try:
                chunk = _decode(event)
            except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: invalid UTF-8
                odd = self._read_odd(event)
                if self.over:
                    return
                if odd is None:
                    continue
                chunk = odd
            if chunk.error is not None:
                raise UpstreamError
            for choice in chunk.choices or ():
                if not choice.index:  # one answer was asked for
                    self._read_choice(choice, deltas)
            if chunk.usage is not None:
                usage = _usage(chunk.usage)
                if usage is not None and usage != self._usage:
                    self._usage = usage
                    deltas.append(UsageDelta(usage))

    def _read_odd(self, event: bytes) -> _Chunk | None:
        """An event that is not a chunk as it should be: the end, nothing at all, a usage of numbers out of range."""
        word = event.strip()
        if word == b"[DONE]":
            self.over = True
        elif word:  # some servers keep a connection alive with empty data
            try:
                chunk = _decode_without_usage(event)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                raise UpstreamProtocol from None
            return _Chunk(chunk.choices, chunk.error)
        return None

    def _read_choice(self, choice: _Choice, deltas: list[Delta]) -> None:
        delta = choice.delta
        if delta is not None:
            reasoning = delta.reasoning_content or delta.reasoning
            if reasoning and isinstance(reasoning, str):
                deltas.append(ReasoningDelta(reasoning))
            if delta.content:
                deltas.append(TextDelta(delta.content))
            if delta.refusal:
                deltas.append(TextDelta(delta.refusal))
            if delta.tool_calls:
                for call in delta.tool_calls:
                    self._read_call(call, deltas)
        if choice.finish_reason and not self.finished:
            self.finished = True
            reason = _FINISH_REASONS.get(choice.finish_reason, "other")
            deltas.append(FinishDelta(with_calls(reason, len(self._calls))))

    def _read_call(self, call: _Call, deltas: list[Delta]) -> None:
        index = call.index
        if index is None:  # left out by servers that send each call whole, with its id
            index = len(self._calls) if call.id or not self._calls else len(self._calls) - 1
        if not 0 <= index < MAX_CALLS:
            raise UpstreamProtocol
        function = call.function or _Function()
        if index not in self._calls:
            self._calls.add(index)
            call_id = call.id or f"call_{index}"
            deltas.append(ToolCallDelta(index, function.arguments or "", call_id, function.name or ""))
        elif function.arguments:  # some servers repeat id and name with every piece
            deltas.append(ToolCallDelta(index, function.arguments))


def _usage(counts: object) -> Usage | None:
    """The provider's totals; None where the counts that matter are missing or can't be true."""
    input_tokens, output_tokens = count(counts, "prompt_tokens"), count(counts, "completion_tokens")
    if input_tokens is None or output_tokens is None:
        return None
    details = field(counts, "prompt_tokens_details")
    cached = min(count(details, "cached_tokens") or 0, input_tokens)
    reasoning = count(field(counts, "completion_tokens_details"), "reasoning_tokens") or 0
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=cached,
        cache_write_tokens=min(count(details, "cache_write_tokens") or 0, input_tokens - cached),  # OpenRouter's
        reasoning_tokens=min(reasoning, output_tokens),
    )
