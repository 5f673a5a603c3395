"""Google's Gemini API: the request, what the events of a stream mean, and the provider.

The format is that of https://ai.google.dev/api/generate-content (streamGenerateContent with alt=sse).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import quote

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
from chat_nest.providers.codec import MAX_CALLS, Codec, count, with_calls
from chat_nest.providers.presets import GEMINI
from chat_nest.providers.stream import ModelServer
from chat_nest.providers.tools import as_object, names_by_id
from chat_nest.sse import Decoder
from chat_nest.usage import Usage

# The request.

NO_SIGNATURE: Final = "skip_thought_signature_validator"
"""What Gemini 3 accepts on a call in the history where the signature that came with it was not kept."""


def request_path(model: str) -> str:
    """`model` is a name such as gemini-2.5-flash, or a resource with its collection, such as tunedModels/mine."""
    resource = model if "/" in model else f"models/{model}"
    return f"/{quote(resource)}:streamGenerateContent?alt=sse"


def request_body(prompt: Prompt) -> bytes:
    """The JSON of one request. The model is in the path."""
    config: dict[str, Any] = {"maxOutputTokens": prompt.max_output_tokens}
    if prompt.temperature is not None:
        config["temperature"] = prompt.temperature
    body: dict[str, Any] = {"contents": _contents(prompt.messages), "generationConfig": config}
    system = [message.content for message in prompt.messages if message.role in ("system", "developer")]
    if parts := [{"text": text} for text in system if text]:
        body["systemInstruction"] = {"parts": parts}
    if prompt.tools:
        declared = [
            {"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters}
            for tool in prompt.tools
        ]
        body["tools"] = [{"functionDeclarations": declared}]
        if prompt.tool_choice != "auto":
            calling: dict[str, Any] = {"mode": "NONE" if prompt.tool_choice == "none" else "ANY"}
            if prompt.tool_choice.startswith("tool:"):
                calling["allowedFunctionNames"] = [prompt.tool_choice.removeprefix("tool:")]
            body["toolConfig"] = {"functionCallingConfig": calling}
    return msgspec.json.encode(body)


def _contents(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """User and model in turn; turns of one side are put together, and the results of tools are the user's."""
    names = names_by_id(messages)
    contents: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "model" if message.role == "assistant" else "user"
        parts = _parts(message, names)
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    return contents


def _parts(message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if message.role == "tool":
        # The API matches results to calls by name and order.
        name = names.get(message.tool_call_id) or message.tool_call_id
        return [{"functionResponse": {"name": name, "response": {"result": message.content}}}]
    parts: list[dict[str, Any]] = [{"text": message.content}] if message.content else []
    for at, call in enumerate(message.tool_calls):
        part: dict[str, Any] = {"functionCall": {"name": call.name, "args": as_object(call.arguments)}}
        if at == 0:
            part["thoughtSignature"] = NO_SIGNATURE
        parts.append(part)
    return parts


# The stream.


class _FunctionCall(msgspec.Struct, gc=False):
    name: str = ""
    id: str | None = None
    args: msgspec.Raw = msgspec.Raw(b"{}")


class _Part(msgspec.Struct, gc=False, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    function_call: _FunctionCall | None = None


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    index: int | None = 0
    content: _Content | None = None
    finish_reason: str | None = None


class _Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: str | None = None


class _Problem(msgspec.Struct, gc=False):
    status: Any = None


class _Chunk(msgspec.Struct, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: Any = None
    error: _Problem | None = None


class _ChunkWithoutUsage(msgspec.Struct, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    error: _Problem | None = None


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_without_usage = msgspec.json.Decoder(_ChunkWithoutUsage).decode

_FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
}
_FAILURES: Final[dict[str, type[UpstreamError]]] = {
    "UNAVAILABLE": UpstreamUnavailable,
    "INTERNAL": UpstreamUnavailable,
    "DEADLINE_EXCEEDED": UpstreamUnavailable,
    "RESOURCE_EXHAUSTED": UpstreamRateLimited,
}


def gemini_codec(calls: str = "call") -> Codec:
    """For one answer. `calls` begins the ids of calls that come without one: it should differ from answer to answer."""
    return Codec(GeminiReader(calls), Decoder())


class GeminiReader:
    """See Reader. An answer is finished by a finish reason, or a prompt that is blocked; it is over with its body.

    Every event has counts, and only those of the last one are reliable: they are reported from the finish on, so a
    stream that is cut before it has none.
    """

    def __init__(self, calls: str) -> None:
        self.over = False
        self.finished = False
        self._ids = calls
        self._calls = 0
        self._usage: Usage | None = None
        self._reported: Usage | None = None

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        for event in events:
            if not event.strip():
                continue
            chunk = _parsed(event)
            if chunk.error is not None:
                failure = _FAILURES.get(str(chunk.error.status), UpstreamError)
                raise failure
            for candidate in chunk.candidates or ():
                if not candidate.index:  # one answer was asked for
                    self._read_candidate(candidate, deltas)
            if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
                self._finish("content_filter", deltas)
            self._usage = _usage(chunk.usage_metadata) or self._usage
            if self.finished and self._usage is not None and self._usage != self._reported:
                self._reported = self._usage
                deltas.append(UsageDelta(self._usage))

    def _read_candidate(self, candidate: _Candidate, deltas: list[Delta]) -> None:
        for part in (candidate.content.parts if candidate.content is not None else None) or ():
            if part.text:
                deltas.append(ReasoningDelta(part.text) if part.thought else TextDelta(part.text))
            if part.function_call is not None:
                call, index = part.function_call, self._calls
                if index >= MAX_CALLS:
                    raise UpstreamProtocol
                self._calls += 1
                arguments = bytes(call.args).decode()
                call_id = call.id or f"{self._ids}_{index}"
                deltas.append(ToolCallDelta(index, "{}" if arguments == "null" else arguments, call_id, call.name))
        if candidate.finish_reason and candidate.finish_reason != "FINISH_REASON_UNSPECIFIED":
            reason = _FINISH_REASONS.get(candidate.finish_reason, "other")
            self._finish(with_calls(reason, self._calls), deltas)

    def _finish(self, reason: FinishReason, deltas: list[Delta]) -> None:
        if not self.finished:
            self.finished = True
            deltas.append(FinishDelta(reason))


def _parsed(event: bytes) -> _Chunk:
    try:
        return _decode(event)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: invalid UTF-8
        pass
    try:  # a usage with numbers out of range
        chunk = _decode_without_usage(event)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UpstreamProtocol from None
    return _Chunk(chunk.candidates, chunk.prompt_feedback, None, chunk.error)


def _usage(counts: object) -> Usage | None:
    """The provider's totals; None where the input is missing, or a count can't be true.

    Zeros are left out by the API. Thoughts are output that `candidatesTokenCount` does not hold, and what tools of
    the provider's own added to the prompt is input that `promptTokenCount` does not hold.
    """
    if not isinstance(counts, dict) or "promptTokenCount" not in counts:
        return None
    found: dict[str, int] = {}
    for name in ("promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount"):
        value = count(counts, name) if name in counts else 0  # pyright: ignore[reportUnknownArgumentType]
        if value is None:
            return None
        found[name] = value
    prompt = found["promptTokenCount"]
    return Usage(
        input_tokens=prompt + found["toolUsePromptTokenCount"],
        output_tokens=found["candidatesTokenCount"] + found["thoughtsTokenCount"],
        cached_input_tokens=min(count(counts, "cachedContentTokenCount") or 0, prompt),  # pyright: ignore[reportUnknownArgumentType]
        reasoning_tokens=found["thoughtsTokenCount"],
    )


# The provider.


class GeminiProvider:
    """Google's Gemini API. `base_url` ends where `/models/...` begins.

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
        self._server = ModelServer(GEMINI, api_key, base_url, abort_bills=abort_bills, headers=headers)
        self.base_url = self._server.base_url
        self.abort_bills = self._server.abort_bills
        self.check = self._server.check
        self.aclose = self._server.aclose

    def __repr__(self) -> str:
        return f"GeminiProvider({self.base_url!r})"

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Only `timeouts.connect` is kept here; the others are for the caller, who cancels."""
        codec = gemini_codec(f"call_{secrets.token_hex(6)}")
        return self._server.open(request_path(prompt.model), request_body(prompt), codec, timeouts)
