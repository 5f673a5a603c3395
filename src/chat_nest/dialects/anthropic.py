"""Anthropic's Messages, streamed or whole. https://docs.anthropic.com/en/api/messages

The official clients read only events that have a name. A conversation may not end with an answer to be continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from chat_nest.deltas import Batch, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.dialects import fields as read
from chat_nest.dialects.collected import Collected
from chat_nest.dialects.frames import EVENT_STREAM, JSON, as_json, retry_headers, run_of_texts
from chat_nest.dialects.strict_json import is_array, is_object
from chat_nest.dialects.turns import Turn, content, conversation, entries
from chat_nest.errors import BadRequest, ChatError, RequestTooLarge
from chat_nest.messages import ChatRequest, Message, Tool, ToolCall
from chat_nest.protocols import Answer, Encoder, Ending, Route
from chat_nest.sse import event
from chat_nest.usage import Usage

REFUSED_FIELDS = read.OWN_CONNECTION | {"models", "mcp_servers", "container"}
"""What would choose a provider or open a connection. Parameters not named here are ignored."""
THOUGHTS = frozenset({"thinking", "redacted_thinking"})
"""Blocks of an earlier answer that are left out: only the model that wrote them could read them."""

_TAIL = b"}}\n\n"
_STOP_REASONS: dict[FinishReason | None, str] = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Anthropic:
    """`path` is below the client's `base_url`, which ends before `/v1/messages`."""

    def __init__(self, path: str = "/v1/messages") -> None:
        self.routes: Sequence[Route] = (Route(path=path),)

    def parse(self, body: bytes) -> ChatRequest:
        """Raises BadRequest, which names the field and the rule and never the value. Unknown fields are ignored."""
        fields = read.parse_fields(body, REFUSED_FIELDS)
        turns: list[Turn] = []
        for index, entry in enumerate(entries(fields)):
            turns += _turns(entry, f"messages[{index}]")
        tools = _tools(fields)
        return ChatRequest(
            messages=conversation(turns),
            model=read.model(fields),
            system_prompt=content(fields.get("system", ""), "system") or None,
            system_field="system",
            max_output_tokens=read.least(fields, ("max_tokens",)),
            temperature=read.temperature(fields),
            tools=tools,
            tool_choice=_tool_choice(fields, tools),
            stream=read.switch(fields, "stream"),
        )

    def encoder(self, request: ChatRequest, run_id: str) -> Encoder:
        return AnthropicEncoder(run_id) if request.stream else AnthropicWhole(run_id)

    def refuse(self, error: ChatError, request_id: str) -> Answer:
        status = 413 if isinstance(error, RequestTooLarge) else error.status
        body = {**_error(error, status), "request_id": request_id}
        return Answer(status=status, body=as_json(body), headers=(*JSON, *retry_headers(error)))


class AnthropicEncoder:
    """One message as events: blocks of text, thinking and tool use, one after another."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, run_id: str) -> None:
        self._id = f"msg_{run_id}"
        self._open: type[TextDelta | ReasoningDelta] | None = None
        self._head = b""
        self._end = b""
        self._blocks = 0
        self._calls: dict[int, int] = {}
        """The block of each call."""

    def start(self, model: str) -> bytes:
        usage = {"input_tokens": 0, "output_tokens": 0}  # known at the end
        return _event("message_start", {"message": _message(self._id, model, [], None, usage)})

    def encode(self, batch: Batch) -> bytes:
        if len(batch) > 1 and self._open is TextDelta and (quick := run_of_texts(batch, self._head, _TAIL)):
            return quick
        pieces: list[bytes] = []
        for delta in batch:
            if type(delta) is TextDelta or type(delta) is ReasoningDelta:
                if type(delta) is not self._open:
                    pieces.append(self._switch(type(delta)))
                pieces.append(b"%b%b%b" % (self._head, as_json(delta.text), _TAIL))
            elif type(delta) is ToolCallDelta:
                pieces.append(self._call(delta))
        return b"".join(pieces)

    def number(self, data: bytes, number: int) -> bytes:  # noqa: ARG002 - the format has no numbers
        return data

    def heartbeat(self) -> bytes:
        return _event("ping", {})

    def fail(self, error: ChatError) -> bytes:
        return event(b"error", as_json(_error(error, error.status)))

    def finish(self, ending: Ending) -> bytes:
        delta = {"stop_reason": _STOP_REASONS.get(ending.reason, "end_turn"), "stop_sequence": None}
        last = _event("message_delta", {"delta": delta, "usage": _usage(ending.usage)})
        return self._stop() + last + _event("message_stop", {})

    def _stop(self) -> bytes:
        """End the open block."""
        ended, self._open, self._end = self._end, None, b""
        return ended

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
        # Up to the text, which is the last thing in it: `""}}` and a blank line.
        self._head = _event("content_block_delta", {"index": self._blocks - 1, "delta": delta})[:-6]
        return begun

    def _call(self, delta: ToolCallDelta) -> bytes:
        begun = b""
        if delta.index not in self._calls:
            begun = self._begin({"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}})
            self._calls[delta.index] = self._blocks - 1
        if not delta.arguments:
            return begun
        piece = {"type": "input_json_delta", "partial_json": delta.arguments}
        return begun + _event("content_block_delta", {"index": self._calls[delta.index], "delta": piece})


class AnthropicWhole:
    """One message as one JSON object."""

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
        return as_json(_error(error, error.status))

    def finish(self, ending: Ending) -> bytes:
        answer = self._answer
        blocks: list[dict[str, Any]] = []
        if answer.reasoning:
            blocks.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.text:
            blocks.append({"type": "text", "text": answer.text})
        blocks += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
            for call in answer.calls
        ]
        reason = _STOP_REASONS.get(ending.reason, "end_turn")
        return as_json(_message(self._id, self._model, blocks, reason, _usage(ending.usage)))


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
    """The arguments as a value, which is all that this format has room for; an object that holds them if not JSON."""
    try:
        value: Any = msgspec.json.decode(arguments or "{}")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = None
    return value if is_object(value) else {"arguments": arguments}


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic's input tokens are those that no cache had a part in."""
    cached, written = usage.cached_input_tokens, usage.cache_write_tokens
    return {
        "input_tokens": max(0, usage.input_tokens - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.output_tokens,
    }


def _error(error: ChatError, status: int) -> dict[str, Any]:
    message = f"{error.field}: {error.message}" if isinstance(error, BadRequest) and error.field else error.message
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _turns(entry: Any, field: str) -> list[Turn]:
    """A message as turns: the results of tools come first, each as one of its own."""
    fields = read.table(entry, field)
    role = fields.get("role")
    if role not in ("user", "assistant"):
        raise BadRequest("must be user or assistant", field=f"{field}.role")
    said = fields.get("content")
    if not is_array(said):
        return [(field, Message(role=role, content=read.text(said, f"{field}.content")))]
    texts: list[str] = []
    calls: list[ToolCall] = []
    turns: list[Turn] = []
    for index, item in enumerate(read.array(said, f"{field}.content", read.MAX_PARTS)):
        at = f"{field}.content[{index}]"
        block = read.table(item, at)
        match block.get("type"):
            case "text":
                texts.append(read.text(block.get("text"), f"{at}.text"))
            case "tool_use" if role == "assistant":
                calls.append(_call(block, at))
            case "tool_result" if role == "user":
                turns.append((field, _result(block, at)))
            case str() as kind if role == "assistant" and kind in THOUGHTS:
                pass
            case _:
                raise BadRequest(
                    "must be text, tool_use of the assistant or tool_result of the user", field=f"{at}.type"
                )
    if texts or calls or not turns:
        turns.append((field, Message(role=role, content="\n".join(texts), tool_calls=tuple(calls))))
    return turns


def _call(block: dict[str, Any], field: str) -> ToolCall:
    return ToolCall(
        id=read.name(block.get("id"), f"{field}.id"),
        name=read.name(block.get("name"), f"{field}.name"),
        arguments=read.written(read.table(block.get("input", {}), f"{field}.input"), f"{field}.input"),
    )


def _result(block: dict[str, Any], field: str) -> Message:
    answered = read.name(block.get("tool_use_id"), f"{field}.tool_use_id")
    said = block.get("content")
    return Message(
        role="tool", content=content("" if said is None else said, f"{field}.content"), tool_call_id=answered
    )


def _tools(fields: dict[str, Any]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, entry in enumerate(read.array(fields.get("tools", []), "tools", read.MAX_TOOLS)):
        at = f"tools[{index}]"
        offered = read.table(entry, at)
        if offered.get("type", "custom") not in ("custom", None):
            raise BadRequest("must be custom", field=f"{at}.type")
        named, description, schema = (offered.get(name) for name in ("name", "description", "input_schema"))
        tools.append(read.tool(named, description, schema, at, "input_schema"))
    return tuple(tools)


def _tool_choice(fields: dict[str, Any], tools: Sequence[Tool]) -> str:
    if "tool_choice" not in fields:
        return "auto"
    chosen = read.table(fields["tool_choice"], "tool_choice")
    match chosen.get("type"):
        case "auto" | "none" as kind:
            return str(kind)
        case "any":
            return read.choice("required", tools, "tool_choice.type")
        case "tool":
            named = read.name(chosen.get("name"), "tool_choice.name")
            return read.choice(f"tool:{named}", tools, "tool_choice.name")
        case _:
            raise BadRequest("must be auto, any, tool or none", field="tool_choice.type")
