"""Ollama's own API: the request, what the lines of a stream mean, and the provider.

The format is that of https://docs.ollama.com/api/chat. Ollama speaks OpenAI's, too: the preset `ollama_v1`.
"""

from __future__ import annotations

import secrets
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
from chat_nest.errors import UpstreamError, UpstreamProtocol
from chat_nest.limits import Timeouts
from chat_nest.messages import Message, Tool
from chat_nest.protocols import Prompt
from chat_nest.providers.codec import MAX_CALLS, Codec, count, with_calls
from chat_nest.providers.ndjson import LineDecoder
from chat_nest.providers.presets import OLLAMA
from chat_nest.providers.stream import ModelServer
from chat_nest.providers.tools import as_object, names_by_id
from chat_nest.usage import Usage

# The request.


def request_body(prompt: Prompt) -> bytes:
    """The JSON of one request for a stream."""
    names = names_by_id(prompt.messages)
    options: dict[str, Any] = {"num_predict": prompt.max_output_tokens}
    if prompt.temperature is not None:
        options["temperature"] = prompt.temperature
    body: dict[str, Any] = {
        "model": prompt.model,
        "messages": [_message(message, names) for message in prompt.messages],
        "stream": True,
        "options": options,
    }
    if tools := _tools(prompt):
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
            for tool in tools
        ]
    return msgspec.json.encode(body)


def _tools(prompt: Prompt) -> Sequence[Tool]:
    """The API has no choice of tools: none, or a certain one, is said by what is offered; `required` can't be said."""
    if prompt.tool_choice == "none":
        return ()
    if prompt.tool_choice.startswith("tool:"):
        return [tool for tool in prompt.tools if tool.name == prompt.tool_choice.removeprefix("tool:")]
    return prompt.tools


def _message(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    said: dict[str, Any] = {"role": role, "content": message.content}
    if message.tool_calls:
        said["tool_calls"] = [
            {"function": {"name": call.name, "arguments": as_object(call.arguments)}} for call in message.tool_calls
        ]
    if message.role == "tool":
        said["tool_name"] = names.get(message.tool_call_id) or message.tool_call_id
    return said


# The stream.


class _Function(msgspec.Struct, gc=False):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(msgspec.Struct, gc=False):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Line(msgspec.Struct, gc=False):
    message: _Message | None = None
    done: bool | None = None
    done_reason: str | None = None
    error: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None


class _LineWithoutCounts(msgspec.Struct, gc=False):
    message: _Message | None = None
    done: bool | None = None
    done_reason: str | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Line).decode
_decode_without_counts = msgspec.json.Decoder(_LineWithoutCounts).decode

_DONE_REASONS: Final[dict[str, FinishReason]] = {"stop": "stop", "length": "length"}


def ollama_codec(calls: str = "call") -> Codec:
    """For one answer. `calls` begins the ids of calls that come without one: it should differ from answer to answer."""
    return Codec(OllamaReader(calls), LineDecoder())


class OllamaReader:
    """See Reader. An answer is finished and over with the line that says `done`, which also has the counts.

    Where the prompt's count is missing, as it is when the server had all of it in its cache, nothing is reported.
    """

    def __init__(self, calls: str) -> None:
        self.over = False
        self.finished = False
        self._ids = calls
        self._calls = 0

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        for data in events:
            if not data.strip():
                continue
            line = _parsed(data)
            if line.error is not None:
                raise UpstreamError
            if line.message is not None:
                self._read_message(line.message, deltas)
            if line.done:
                self.over = self.finished = True
                reason = _DONE_REASONS.get(line.done_reason or "stop", "other")
                deltas.append(FinishDelta(with_calls(reason, self._calls)))
                counts = {"prompt": line.prompt_eval_count, "answer": line.eval_count}
                prompt, answer = count(counts, "prompt"), count(counts, "answer")
                if prompt is not None and answer is not None:
                    deltas.append(UsageDelta(Usage(input_tokens=prompt, output_tokens=answer)))
                return

    def _read_message(self, message: _Message, deltas: list[Delta]) -> None:
        if message.thinking:
            deltas.append(ReasoningDelta(message.thinking))
        if message.content:
            deltas.append(TextDelta(message.content))
        for call in message.tool_calls or ():
            index = self._calls
            if index >= MAX_CALLS:
                raise UpstreamProtocol
            self._calls += 1
            arguments = bytes(call.function.arguments).decode()
            call_id = call.id or f"{self._ids}_{index}"
            said = "{}" if arguments == "null" else arguments
            deltas.append(ToolCallDelta(index, said, call_id, call.function.name))


def _parsed(data: bytes) -> _Line:
    try:
        return _decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: invalid UTF-8
        pass
    try:  # counts with numbers out of range
        line = _decode_without_counts(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UpstreamProtocol from None
    return _Line(line.message, line.done, line.done_reason, line.error)


# The provider.


class OllamaProvider:
    """An Ollama server. `base_url` ends where `/api/chat` begins.

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
        self._server = ModelServer(OLLAMA, api_key, base_url, abort_bills=abort_bills, headers=headers)
        self.base_url = self._server.base_url
        self.abort_bills = self._server.abort_bills
        self.check = self._server.check
        self.aclose = self._server.aclose

    def __repr__(self) -> str:
        return f"OllamaProvider({self.base_url!r})"

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Only `timeouts.connect` is kept here; the others are for the caller, who cancels."""
        codec = ollama_codec(f"call_{secrets.token_hex(6)}")
        return self._server.open("/api/chat", request_body(prompt), codec, timeouts)
