"""OpenAI's chat completions, for everything that speaks to an OpenAI-compatible server.

https://platform.openai.com/docs/api-reference/chat. No `event:`, `id:` or `retry:` line and no empty `data:` is ever
sent: the official clients parse the data of every event that a blank line ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from chat_nest.deltas import Batch, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.dialects import fields as read
from chat_nest.dialects.collected import Collected
from chat_nest.dialects.frames import EVENT_STREAM, JSON, PING, as_json, data, retry_headers, run_of_texts
from chat_nest.dialects.strict_json import is_object
from chat_nest.dialects.turns import conversation, entries, turn
from chat_nest.errors import (
    BadRequest,
    BudgetExceeded,
    ChatError,
    Forbidden,
    LimitExceeded,
    NotFound,
    RequestTooLarge,
    Unauthorized,
)
from chat_nest.limits import Quota
from chat_nest.messages import ChatRequest, Tool
from chat_nest.protocols import Answer, Encoder, Ending, Now, Route
from chat_nest.usage import Usage

REFUSED_FIELDS = read.OWN_CONNECTION | {"models", "functions", "function_call", "logit_bias", "top_logprobs", "audio"}
"""What would choose a provider, open a connection, or cost what no limit sees. Any other parameter is ignored."""
ONLY = {"n": 1, "best_of": 1, "logprobs": False, "modalities": ["text"], "response_format": {"type": "text"}}
"""The one value that is accepted of these: what they are without being said."""
OUTPUT_FIELDS = ("max_tokens", "max_completion_tokens")

_DONE = b"data: [DONE]\n\n"
_TAIL = b'},"finish_reason":null}]}\n\n'
_FINISH_REASONS: dict[FinishReason | None, str] = {
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


class OpenAI:
    """`path` is where the `base_url` of an OpenAI client ends; `now` is the clock of `created`."""

    def __init__(self, path: str = "/v1", *, now: Now = time.time) -> None:
        path = path.rstrip("/")
        self.routes: Sequence[Route] = (
            Route(path=f"{path}/chat/completions"),
            Route(path=f"{path}/models", method="GET", models=self._models),
        )
        self._now = now

    def parse(self, body: bytes) -> ChatRequest:
        """Raises BadRequest, which names the field and the rule and never the value. Unknown fields are ignored."""
        fields = read.parse_fields(body, REFUSED_FIELDS)
        for name, only in ONLY.items():
            if name in fields and (fields[name] != only or type(fields[name]) is not type(only)):
                raise BadRequest("is not offered here: leave it out", field=name)
        turns = [turn(entry, f"messages[{index}]") for index, entry in enumerate(entries(fields))]
        tools = _tools(fields)
        options = read.table(fields.get("stream_options", {}), "stream_options")
        return ChatRequest(
            messages=conversation(turns),
            model=read.model(fields),
            max_output_tokens=read.least(fields, OUTPUT_FIELDS),
            temperature=read.temperature(fields),
            tools=tools,
            tool_choice=_tool_choice(fields.get("tool_choice", "auto"), tools),
            stream=read.switch(fields, "stream"),
            include_usage=options.get("include_usage") is True,
        )

    def encoder(self, request: ChatRequest, run_id: str) -> Encoder:
        created = int(self._now())
        if request.stream:
            return OpenAIEncoder(run_id, created, include_usage=request.include_usage)
        return OpenAIWhole(run_id, created)

    def refuse(self, error: ChatError, request_id: str) -> Answer:  # noqa: ARG002 - it is in a header, as OpenAI has it
        status = 400 if isinstance(error, RequestTooLarge) else error.status
        return Answer(status=status, body=as_json(_error(error)), headers=(*JSON, *retry_headers(error)))

    def quota_headers(self, quotas: Sequence[Quota]) -> list[tuple[bytes, bytes]]:
        """The caller's tightest limit of requests, and that of tokens, in OpenAI's headers."""
        headers: list[tuple[bytes, bytes]] = []
        for unit in ("requests", "tokens"):
            of_unit = [each for each in quotas if each.line.unit == unit and each.line.kind != "request"]
            tightest = min((each for each in of_unit if each.line.scope == "caller"), key=_room, default=None)
            if tightest is not None:
                told = {"limit": str(tightest.line.limit), "remaining": str(tightest.room)}
                told["reset"] = _duration(tightest.resets_in)
                headers += [(f"x-ratelimit-{name}-{unit}".encode(), said.encode()) for name, said in told.items()]
        return headers

    def _models(self, names: Sequence[str], below: str) -> Answer:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "chat-nest"} for name in names]
        if not below:
            return Answer(status=200, body=as_json({"object": "list", "data": models}))
        for model in models:
            if model["id"] == below:
                return Answer(status=200, body=as_json(model))
        raise NotFound("There is no such model here")


class OpenAIEncoder:
    """One answer as chunks. Reasoning goes where most servers put it, in `reasoning_content`."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, run_id: str, created: int, *, include_usage: bool) -> None:
        self._id = f"chatcmpl-{run_id}"
        self._created = created
        self._include_usage = include_usage
        self._head = b""
        self._text_head = b""

    def start(self, model: str) -> bytes:
        known = {"id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": model}
        self._head = b"data: %b," % as_json(known)[:-1]
        self._text_head = self._head + b'"choices":[{"index":0,"delta":{"content":'
        return self._chunk({"role": "assistant", "content": ""})

    def encode(self, batch: Batch) -> bytes:
        if len(batch) > 1 and (quick := run_of_texts(batch, self._text_head, _TAIL)):
            return quick
        pieces: list[bytes] = []
        for delta in batch:
            if type(delta) is TextDelta:
                pieces.append(b"%b%b%b" % (self._text_head, as_json(delta.text), _TAIL))
            elif type(delta) is ReasoningDelta:
                pieces.append(self._chunk({"reasoning_content": delta.text}))
            elif type(delta) is ToolCallDelta:
                pieces.append(self._chunk({"tool_calls": [_call_piece(delta)]}))
        return b"".join(pieces)

    def number(self, data: bytes, number: int) -> bytes:  # noqa: ARG002 - the format has no numbers
        return data

    def heartbeat(self) -> bytes:
        return PING

    def fail(self, error: ChatError) -> bytes:
        return data(_error(error))

    def finish(self, ending: Ending) -> bytes:
        last = self._chunk({}, _FINISH_REASONS.get(ending.reason, "stop"))
        if not self._include_usage:
            return last + _DONE
        return b'%b%b"choices":[],"usage":%b}\n\n%b' % (last, self._head, as_json(_usage(ending.usage)), _DONE)

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return b'%b"choices":[%b]}\n\n' % (self._head, as_json(choice))


class OpenAIWhole:
    """One answer as one JSON object."""

    streams = False
    headers: Sequence[tuple[bytes, bytes]] = JSON

    def __init__(self, run_id: str, created: int) -> None:
        self._id = f"chatcmpl-{run_id}"
        self._created = created
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
        return as_json(_error(error))

    def finish(self, ending: Ending) -> bytes:
        answer = self._answer
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if calls := answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments or "{}"},
                }
                for call in calls
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _FINISH_REASONS.get(ending.reason, "stop"),
        }
        return as_json(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self._model,
                "choices": [choice],
                "usage": _usage(ending.usage),
            }
        )


def _room(quota: Quota) -> int:
    return quota.room


def _duration(seconds: float) -> str:
    """As OpenAI writes a time: 120ms, 7.5s, 6m0s, 23h59m59s."""
    if not 0 < seconds < math.inf:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1_000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 1_000) / 1_000, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}h" * (hours > 0) + f"{minutes}m" * (hours + minutes > 0) + f"{round(rest, 3):g}s"


def _call_piece(delta: ToolCallDelta) -> dict[str, Any]:
    if not delta.id:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    called = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": called}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _error(error: ChatError) -> dict[str, Any]:
    message, kind, code, param = error.message, "invalid_request_error", error.code, None
    if isinstance(error, BudgetExceeded):
        kind = code = "insufficient_quota"
    elif isinstance(error, RequestTooLarge):
        code = "context_length_exceeded"
    elif isinstance(error, LimitExceeded):
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    elif isinstance(error, BadRequest):
        param = error.field or None
        code = "model_not_found" if param == "model" else code
        message = f"{param}: {message}" if param else message
    elif isinstance(error, Unauthorized):
        kind, code = "authentication_error", "invalid_api_key"
    elif isinstance(error, Forbidden):
        kind = "permission_error"
    elif error.status >= 500:
        kind = "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _tools(fields: dict[str, Any]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, entry in enumerate(read.array(fields.get("tools", []), "tools", read.MAX_TOOLS)):
        at = f"tools[{index}]"
        offered = read.table(entry, at)
        if offered.get("type") != "function":
            raise BadRequest("must be function", field=f"{at}.type")
        at = f"{at}.function"
        function = read.table(offered.get("function"), at)
        tools.append(
            read.tool(function.get("name"), function.get("description"), function.get("parameters"), at, "parameters")
        )
    return tuple(tools)


def _tool_choice(value: Any, tools: Sequence[Tool]) -> str:
    if value in ("auto", "none", "required"):
        return read.choice(str(value), tools, "tool_choice")
    if is_object(value) and value.get("type") == "function":
        function = read.table(value.get("function"), "tool_choice.function")
        named = read.name(function.get("name"), "tool_choice.function.name")
        return read.choice(f"tool:{named}", tools, "tool_choice.function.name")
    raise BadRequest("must be auto, none, required or a function", field="tool_choice")
