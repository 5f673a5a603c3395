"""Anthropic's Messages API: the request, what the events of a stream mean, and the provider.

The format is that of https://docs.anthropic.com/en/api/messages-streaming. llama.cpp and others speak it, too.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec

from chat_nest.deltas import (
    Batch,
    Delta,
    FinishDelta,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    UsageDelta,
)
from chat_nest.errors import UpstreamError, UpstreamProtocol, UpstreamRateLimited, UpstreamUnavailable
from chat_nest.limits import Timeouts
from chat_nest.messages import Message
from chat_nest.protocols import Prompt
from chat_nest.providers.codec import MAX_CALLS, Codec, count, field
from chat_nest.providers.presets import ANTHROPIC
from chat_nest.providers.stream import ModelServer
from chat_nest.providers.tools import as_object
from chat_nest.sse import Decoder
from chat_nest.tokens import base_name
from chat_nest.usage import Usage

# The request.

_NEWER = re.compile(r"claude-(?!(?:[123]|instant|(?:opus|sonnet|haiku)-4(?!-(?:[7-9]|\d\d)(?!\d)))(?![a-z]))")


def takes_temperature(model: str) -> bool:
    """Claude models since Opus 4.7 refuse one."""
    return _NEWER.match(base_name(model)) is None


def request_body(prompt: Prompt) -> bytes:
    """The JSON of one request for a stream."""
    system = [message.content for message in prompt.messages if message.role in ("system", "developer")]
    body: dict[str, Any] = {
        "model": prompt.model,
        "max_tokens": prompt.max_output_tokens,
        "messages": _turns(prompt.messages),
        "stream": True,
    }
    if text := "\n\n".join(part for part in system if part.strip()):
        body["system"] = text
    if prompt.temperature is not None and takes_temperature(prompt.model):
        body["temperature"] = min(prompt.temperature, 1.0)
    if prompt.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
            for tool in prompt.tools
        ]
        if prompt.tool_choice.startswith("tool:"):
            body["tool_choice"] = {"type": "tool", "name": prompt.tool_choice.removeprefix("tool:")}
        elif prompt.tool_choice != "auto":
            body["tool_choice"] = {"type": "any" if prompt.tool_choice == "required" else prompt.tool_choice}
    return msgspec.json.encode(body)


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """User and assistant in turn, beginning with the user; the results of tools are the user's.

    Turns of one side are put together, blank texts are left out, and so is what the assistant said before the user's
    first turn: the API refuses all of these.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if not blocks or (not turns and role == "assistant"):
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if turns and turns[-1]["role"] == "assistant" and "text" in (last := turns[-1]["content"][-1]):
        last["text"] = last["text"].rstrip()  # a text to go on with can't end in spaces
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}]
    blocks: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content.strip() else []
    return blocks + [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": as_object(call.arguments)}
        for call in message.tool_calls
    ]


# The stream.


class _Part(msgspec.Struct, gc=False):
    """A content block, or a delta: its fields by `type`."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    id: str | None = None
    name: str | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str
    index: int | None = None
    delta: _Part | None = None
    content_block: _Part | None = None
    message: Any = None
    usage: Any = None
    error: Any = None


class _EventWithoutCounts(msgspec.Struct, gc=False):
    type: str
    index: int | None = None
    delta: _Part | None = None
    content_block: _Part | None = None


class _Type(msgspec.Struct, gc=False):
    type: str


_decode = msgspec.json.Decoder(_Event).decode
_decode_without_counts = msgspec.json.Decoder(_EventWithoutCounts).decode
_decode_type = msgspec.json.Decoder(_Type).decode

_KNOWN: Final = frozenset(
    ("message_start", "message_delta", "message_stop", "content_block_start", "content_block_delta", "error")
)
_INPUT: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_TOTALS: Final = (*_INPUT, "output_tokens")
_STOP_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_FAILURES: Final[dict[str, type[UpstreamError]]] = {
    "overloaded_error": UpstreamUnavailable,
    "api_error": UpstreamUnavailable,
    "timeout_error": UpstreamUnavailable,
    "rate_limit_error": UpstreamRateLimited,
}


def anthropic_codec() -> Codec:
    """For one answer."""
    return Codec(AnthropicReader(), Decoder())


class AnthropicReader:
    """See Reader. An answer is finished and over at `message_stop`.

    The input is known from the first event on, so a stream that is cut has that at least; the output's counts are
    totals so far. Events and blocks of unknown types are left out, as the API's versioning asks for.
    """

    def __init__(self) -> None:
        self.over = False
        self.finished = False
        self._counts: dict[str, int] = {}
        self._usage: Usage | None = None
        self._reason: FinishReason = "other"
        self._calls: dict[int, int] = {}
        """The call's number by its block's."""

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        for data in events:
            if not data.strip():
                continue
            event = _parsed(data)
            if event is None:
                continue
            match event.type:
                case "content_block_delta" if event.delta is not None:
                    self._read_delta(event.index, event.delta, deltas)
                case "content_block_start" if event.content_block is not None:
                    self._read_block(event.index, event.content_block, deltas)
                case "message_start":
                    # Its output is what the deltas are about to bring.
                    self._count(field(event.message, "usage"), _INPUT, deltas)
                case "message_delta":
                    if event.delta is not None and event.delta.stop_reason:
                        self._reason = _STOP_REASONS.get(event.delta.stop_reason, "other")
                    self._count(event.usage, _TOTALS, deltas)
                case "message_stop":
                    self.over = self.finished = True
                    deltas.append(FinishDelta(self._reason))
                    return
                case "error":
                    failure = _FAILURES.get(str(field(event.error, "type")), UpstreamError)
                    raise failure
                case _:
                    pass

    def _read_delta(self, index: int | None, delta: _Part, deltas: list[Delta]) -> None:
        if delta.text:
            deltas.append(TextDelta(delta.text))
        elif delta.thinking:
            deltas.append(ReasoningDelta(delta.thinking))
        elif delta.partial_json and index in self._calls:  # else of a tool that the provider runs itself
            deltas.append(ToolCallDelta(self._calls[index], delta.partial_json))

    def _read_block(self, index: int | None, block: _Part, deltas: list[Delta]) -> None:
        if block.type == "tool_use":
            call = len(self._calls)
            if index is None or index in self._calls or call >= MAX_CALLS:
                raise UpstreamProtocol
            self._calls[index] = call
            deltas.append(ToolCallDelta(call, "", block.id or f"call_{call}", block.name or ""))
        else:
            self._read_delta(index, block, deltas)

    def _count(self, counts: object, names: Sequence[str], deltas: list[Delta]) -> None:
        """Take what is there and can be true; every event may bring some of the totals anew."""
        for name in names:
            if (value := count(counts, name)) is not None:
                self._counts[name] = value
        if "input_tokens" not in self._counts:
            return
        read, written = (self._counts.get(f"cache_{kind}_input_tokens", 0) for kind in ("read", "creation"))
        usage = Usage(
            input_tokens=self._counts["input_tokens"] + read + written,
            output_tokens=self._counts.get("output_tokens", 0),
            cached_input_tokens=read,
            cache_write_tokens=written,
        )
        if usage != self._usage:
            self._usage = usage
            deltas.append(UsageDelta(usage))


def _parsed(data: bytes) -> _Event | None:
    """The event; None for one of a type that is not known, whatever it holds."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: invalid UTF-8
        pass
    try:
        if _decode_type(data).type not in _KNOWN:
            return None
        event = _decode_without_counts(data)  # counts with numbers out of range
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UpstreamProtocol from None
    return _Event(event.type, event.index, event.delta, event.content_block)


# The provider.


class AnthropicProvider:
    """Anthropic, or a server that speaks its Messages API. `base_url` ends where `/v1/messages` begins.

    The rest is as for ModelServer. Raises ValueError, which names the argument and never holds its value.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        abort_bills: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._server = ModelServer(ANTHROPIC, api_key, base_url, abort_bills=abort_bills, headers=headers)
        self.base_url = self._server.base_url
        self.abort_bills = self._server.abort_bills
        self.check = self._server.check
        self.aclose = self._server.aclose

    def __repr__(self) -> str:
        return f"AnthropicProvider({self.base_url!r})"

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Only `timeouts.connect` is kept here; the others are for the caller, who cancels."""
        return self._server.open("/v1/messages", request_body(prompt), anthropic_codec(), timeouts)
