"""Encoders for Anthropic's Messages: named events, or the message that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from chat_nest.core.deltas import Batch, FinishReason, ReasoningDelta, SignatureDelta, TextDelta, ToolCallDelta
from chat_nest.core.errors import BadRequest, BodyTooLarge, ChatError, ContextLengthExceeded, RequestTooLarge
from chat_nest.core.messages import Thought
from chat_nest.core.protocols import Ending
from chat_nest.core.sse import event
from chat_nest.core.usage import Usage
from chat_nest.dialects.collected import NO_ARGUMENTS, Collected
from chat_nest.dialects.frames import EVENT_STREAM, FAILED_DEPENDENCY, JSON, as_json, template, texts
from chat_nest.dialects.strict_json import is_object

_STOP_REASONS: dict[FinishReason | None, str] = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicEncoder:
    """Encodes one message as events: blocks of text, thinking and tool use, in order."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, run_id: str) -> None:
        self._id = f"msg_{run_id}"
        self._input = 0
        self._open: type[TextDelta | ReasoningDelta] | None = None
        self._event = b""
        self._end = b""
        self._blocks = 0
        self._called = -1
        """The call whose block is open."""
        self._later: dict[int, list[ToolCallDelta]] = {}
        """Pieces of the calls after it: blocks come one after another, but a model's calls may alternate."""

    def expect_input(self, tokens: int) -> None:
        """See TellsInput."""
        self._input = tokens

    def start(self, model: str) -> bytes:
        usage = {"input_tokens": self._input, "output_tokens": 0}
        return _event("message_start", {"message": _message(self._id, model, [], None, usage)})

    def encode(self, batch: Batch) -> bytes:
        if self._open is TextDelta and (quick := texts(batch, self._event)):
            return quick
        pieces: list[bytes] = []
        for delta in batch:
            if type(delta) is TextDelta or type(delta) is ReasoningDelta:
                if type(delta) is not self._open:
                    pieces.append(self._switch(type(delta)))
                pieces.append(self._event % as_json(delta.text))
            elif type(delta) is ToolCallDelta:
                pieces.append(self._call(delta))
            elif type(delta) is SignatureDelta:
                pieces.append(self._sign(delta))
        return b"".join(pieces)

    def number(self, data: bytes, number: int) -> bytes:  # noqa: ARG002 - the format has no numbers
        return data

    def heartbeat(self) -> bytes:
        return _event("ping", {})

    def fail(self, error: ChatError) -> bytes:
        return event(b"error", as_json(error_object(error, error.status)))

    def finish(self, ending: Ending) -> bytes:
        delta = {"stop_reason": _STOP_REASONS.get(ending.reason, "end_turn"), "stop_sequence": None}
        last = _event("message_delta", {"delta": delta, "usage": _usage(ending.usage)})
        return self._stop() + last + _event("message_stop", {})

    def _stop(self) -> bytes:
        """End the open block, and send the calls that wait for its end."""
        ended, self._open, self._end, self._called = [self._end], None, b"", -1
        later, self._later = self._later, {}
        for pieces in later.values():
            ended += [self._call(delta) for delta in pieces]
            ended.append(self._end)
            self._end, self._called = b"", -1
        return b"".join(ended)

    def _begin(self, block: dict[str, Any]) -> bytes:
        """End the open block, and start this one."""
        ended, index = self._stop(), self._blocks
        self._blocks += 1
        self._end = _event("content_block_stop", {"index": index})
        return ended + _event("content_block_start", {"index": index, "content_block": block})

    def _switch(self, kind: type[TextDelta | ReasoningDelta]) -> bytes:
        thinks = kind is ReasoningDelta
        block = {"type": "thinking", "thinking": "", "signature": ""} if thinks else {"type": "text", "text": ""}
        begun = self._begin(block)
        self._open = kind
        delta = {"type": "thinking_delta", "thinking": ""} if thinks else {"type": "text_delta", "text": ""}
        # Up to the text, the last value in it: `""}}` and a blank line.
        head = _event("content_block_delta", {"index": self._blocks - 1, "delta": delta})[:-6]
        self._event = template(head, b"}}\n\n")
        return begun

    def _sign(self, delta: SignatureDelta) -> bytes:
        """Encode a signature, which is the last of its block, or a hidden thought, which is a block of its own."""
        if delta.encrypted:  # another format's
            return b""
        if delta.redacted:
            begun = self._begin({"type": "redacted_thinking", "data": delta.redacted})
        else:
            begun = b"" if self._open is ReasoningDelta else self._switch(ReasoningDelta)
            signed = {"type": "signature_delta", "signature": delta.signature}
            begun += _event("content_block_delta", {"index": self._blocks - 1, "delta": signed})
        self._open = None
        return begun

    def _call(self, delta: ToolCallDelta) -> bytes:
        begun, index = b"", delta.index
        if self._called not in (-1, index):
            self._later.setdefault(index, []).append(delta)
            return b""
        if self._called == -1:
            begun = self._begin({"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}})
            self._called = index
            self._end = self._arguments(NO_ARGUMENTS) + self._end
        if not delta.arguments:
            return begun
        self._end = _event("content_block_stop", {"index": self._blocks - 1})
        return begun + self._arguments(delta.arguments)

    def _arguments(self, text: str) -> bytes:
        piece = {"type": "input_json_delta", "partial_json": text}
        return _event("content_block_delta", {"index": self._blocks - 1, "delta": piece})


class AnthropicWhole:
    """Encodes one message as one JSON object."""

    streams = False
    headers: Sequence[tuple[bytes, bytes]] = JSON

    def __init__(self, run_id: str) -> None:
        self._id = f"msg_{run_id}"
        self._model = ""
        self._answer = Collected()

    def start(self, model: str) -> bytes:
        self._model = model
        return b""

    def encode(self, batch: Batch) -> bytes:
        self._answer.add(batch)
        return b""

    def number(self, data: bytes, number: int) -> bytes:  # noqa: ARG002 - the format has no numbers
        return data

    def heartbeat(self) -> bytes:
        return b""

    def fail(self, error: ChatError) -> bytes:
        return as_json(error_object(error, error.status))

    def finish(self, ending: Ending) -> bytes:
        answer = self._answer
        blocks: list[dict[str, Any]] = []
        blocks += [_thinking(thought) for thought in answer.thoughts]
        if answer.text:
            blocks.append({"type": "text", "text": answer.text})
        blocks += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
            for call in answer.calls
        ]
        reason = _STOP_REASONS.get(ending.reason, "end_turn")
        return as_json(_message(self._id, self._model, blocks, reason, _usage(ending.usage)))


def _thinking(thought: Thought) -> dict[str, Any]:
    if thought.redacted:
        return {"type": "redacted_thinking", "data": thought.redacted}
    return {"type": "thinking", "thinking": thought.text, "signature": thought.signature}


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return event(kind.encode(), as_json({"type": kind, **fields}))


def _message(
    id: str, model: str, blocks: list[dict[str, Any]], reason: str | None, usage: dict[str, int]
) -> dict[str, Any]:
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }


def _input(arguments: str) -> object:
    """Return the arguments as a value, which this format requires; an object that holds the text if it is not JSON."""
    try:
        value: Any = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = None
    return value if is_object(value) else {"arguments": arguments}


def _usage(usage: Usage) -> dict[str, int]:
    """Return the usage. Anthropic's input tokens exclude cached tokens, read or written."""
    cached, written = usage.cached_input_tokens, usage.cache_write_tokens
    return {
        "input_tokens": max(0, usage.input_tokens - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.output_tokens,
    }


def _too_long(error: RequestTooLarge | BodyTooLarge | ContextLengthExceeded) -> str:
    """Return Anthropic's own text, which clients search for to compact a chat. Four bytes count as one token."""
    if isinstance(error, ContextLengthExceeded):
        counts = f": {error.tokens} tokens > {error.limit} maximum" if error.tokens is not None else ""
        return f"prompt is too long{counts}"
    if isinstance(error, RequestTooLarge):
        tokens, most, rule = error.tokens, error.most, ""
    else:
        tokens, most, rule = -(-error.size // 4), error.most // 4, f" (by its size: {error.message})"
    return f"prompt is too long: {tokens} tokens > {most} maximum{rule}" if tokens > most else error.message


def error_object(error: ChatError, status: int) -> dict[str, Any]:
    message = f"{error.field}: {error.message}" if isinstance(error, BadRequest) and error.field else error.message
    if isinstance(error, RequestTooLarge | BodyTooLarge | ContextLengthExceeded):
        message = _too_long(error)
    kind = _ERROR_TYPES.get(
        error.status if status == FAILED_DEPENDENCY else status,
        "api_error" if status >= 500 else "invalid_request_error",
    )
    return {"type": "error", "error": {"type": kind, "message": message}}
