"""The dialect of chat-nest's own clients: `start`, `token`, `ping`, then one `done` or `error`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from chat_nest.deltas import Batch, TextDelta
from chat_nest.dialects import fields as read
from chat_nest.dialects.frames import EVENT_STREAM, in_dollars
from chat_nest.dialects.strict_json import flaw, is_object, parse_object
from chat_nest.dialects.turns import ROLES, entries
from chat_nest.errors import BadRequest, ChatError, LimitExceeded
from chat_nest.messages import ChatRequest, Message
from chat_nest.protocols import Answer, Ending, Route
from chat_nest.usage import NANO

REFUSED_FIELDS = read.OWN_CONNECTION | {
    *("model", "models", "tools", "tool_choice", "functions", "function_call"),
    *("n", "best_of", "logprobs", "top_logprobs", "logit_bias"),
}
"""What would choose a provider or a model, open a connection, or cost what no limit sees."""

OUTPUT_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

_encode = msgspec.json.Encoder().encode


class Native:
    """The native dialect, byte-compatible with the clients of the npm package chat-nest-server 1.x."""

    def __init__(self, path: str = "/api/chat") -> None:
        self.routes: Sequence[Route] = (Route(path=path),)

    def parse(self, body: bytes) -> ChatRequest:
        """Raises BadRequest, which names the field and the rule and never the value. Unknown fields are ignored."""
        fields = parse_object(body)
        read.refuse(fields, REFUSED_FIELDS)
        return ChatRequest(
            messages=_messages(fields),
            profile=_profile(fields),
            system_prompt=_system_prompt(fields),
            tokens_per_day=read.positive(fields, "dailyTokenLimit"),
            tokens_per_request=read.positive(fields, "maxTokensPerRequest"),
            max_output_tokens=read.least(fields, OUTPUT_FIELDS),
            temperature=read.temperature(fields),
        )

    def encoder(self, request: ChatRequest, run_id: str) -> NativeEncoder:  # noqa: ARG002 - nothing here depends on it
        return NativeEncoder(run_id)

    def refuse(self, error: ChatError, request_id: str) -> Answer:
        """`error` is the text that pages show; the fields behind it are for programs."""
        text = error.message
        details: dict[str, Any] = {}
        if isinstance(error, BadRequest):
            about_messages = error.field == "body" or error.field.startswith("messages")
            text = "Invalid messages payload" if about_messages else error.text
            details = {"field": error.field, "detail": error.message} if error.field else {"detail": error.message}
        elif isinstance(error, LimitExceeded):
            details = {"limit": error.limit, "scope": error.scope}
        body = {"error": text, "code": error.code, "request_id": request_id, **details, **_wait(error)}
        return Answer(status=error.status, body=_encode(body))


class NativeEncoder:
    """One answer as native events. Reasoning and tools are not sent."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def start(self, model: str) -> bytes:
        return _event(b"start", {"id": self._run_id, "model": model})

    def encode(self, batch: Batch) -> bytes:
        if len(batch) == 1 and type(batch[0]) is TextDelta:  # a paced token: half a microsecond of 40
            return _token(batch[0].text)
        return b"".join([_token(delta.text) for delta in batch if type(delta) is TextDelta])

    def number(self, data: bytes, number: int) -> bytes:
        """In the last event: who has read it has read them all."""
        return data and b"%bid: %b-%d\n\n" % (data[:-1], self._run_id.encode(), number)

    def heartbeat(self) -> bytes:
        return b"event: ping\ndata: \n\n"

    def fail(self, error: ChatError) -> bytes:
        answer = {"message": error.message, "code": error.code, "retryable": error.retryable, **_wait(error)}
        return _event(b"error", answer)

    def finish(self, ending: Ending) -> bytes:
        usage = ending.usage
        answer: dict[str, Any] = {
            "finish_reason": ending.reason,
            "model": ending.model.partition(":")[2],
            "usage": {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
            },
            "cost_usd": None if ending.cost is None else ending.cost / NANO,
            "source": ending.source,
            "remaining": in_dollars(ending.remaining),
        }
        if ending.dropped_messages:
            answer["dropped_messages"] = ending.dropped_messages
        return _event(b"done", answer)


def _event(name: bytes, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, _encode(data))


def _token(text: str) -> bytes:
    try:
        return b"event: token\ndata: %b\n\n" % _encode(text)
    except UnicodeEncodeError:  # half of a surrogate pair; JSON can carry it escaped
        return b"event: token\ndata: %b\n\n" % json.dumps(text).encode()


def _wait(error: ChatError) -> dict[str, int]:
    wait = error.retry_after
    return {"retry_after": math.ceil(wait)} if wait is not None and math.isfinite(wait) else {}


def _messages(fields: dict[str, Any]) -> tuple[Message, ...]:
    messages = [_message(entry, index) for index, entry in enumerate(entries(fields))]
    last = len(messages) - 1
    if messages[last].role != "user":
        raise BadRequest("the last message must be from the user", field=f"messages[{last}].role")
    if not messages[last].content.strip():
        raise BadRequest("the last message must not be blank", field=f"messages[{last}].content")
    # An answer that was cancelled before its first token; providers refuse empty ones.
    return tuple(message for message in messages if message.role != "assistant" or message.content.strip())


def _message(entry: Any, index: int) -> Message:
    if not is_object(entry):
        raise BadRequest("must be an object", field=f"messages[{index}]")
    named = entry.get("role")
    role = ROLES.get(named) if type(named) is str else None
    if role is None:
        raise BadRequest("must be user or assistant", field=f"messages[{index}].role")
    content = entry.get("content")
    if type(content) is not str:
        raise BadRequest("must be a string", field=f"messages[{index}].content")
    if rule := flaw(content):
        raise BadRequest(rule, field=f"messages[{index}].content")
    return Message(role=role, content=content)


def _system_prompt(fields: dict[str, Any]) -> str | None:
    text = fields.get("systemPrompt", "")
    if type(text) is not str:
        raise BadRequest("must be a string", field="systemPrompt")
    if rule := flaw(text):
        raise BadRequest(rule, field="systemPrompt")
    return text or None


def _profile(fields: dict[str, Any]) -> str | None:
    """`profile`, else `aiUsageProfile`; what is not a string is no choice."""
    name = fields.get("profile")
    if name is None:
        name = fields.get("aiUsageProfile")
    return name if isinstance(name, str) else None
