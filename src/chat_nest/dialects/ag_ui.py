"""AG-UI, the agent user interaction protocol, 1.0: one run of an agent that only talks. https://docs.ag-ui.com

Its client checks the order of events, and fails at `[DONE]`: each start has its end before `RUN_FINISHED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chat_nest.deltas import Batch, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.dialects import fields as read
from chat_nest.dialects.frames import EVENT_STREAM, PING, as_json, data, run_of_texts
from chat_nest.dialects.strict_json import is_object
from chat_nest.dialects.turns import conversation, entries, turn
from chat_nest.errors import BadRequest, ChatError
from chat_nest.messages import ChatRequest, Tool
from chat_nest.protocols import Answer, Ending, Route

NOT_SAID = ("activity", "reasoning")
"""Messages that are for the page to show; no model is told of them."""

_TAIL = b"}\n\n"


class AGUI:
    """`path` is the HttpAgent's `url`."""

    def __init__(self, path: str = "/api/ag-ui") -> None:
        self.routes: Sequence[Route] = (Route(path=path),)

    def parse(self, body: bytes) -> ChatRequest:
        """Raises BadRequest, which names the field and the rule and never the value. Unknown fields are ignored.

        Of `forwardedProps`, `profile` and `model` are read.
        """
        fields = read.parse_fields(body, read.OWN_CONNECTION)
        turns = [
            turn(entry, f"messages[{index}]", calls="toolCalls", answers="toolCallId")
            for index, entry in enumerate(entries(fields))
            if _is_said(entry)
        ]
        thread, run = _id(fields, "threadId"), _id(fields, "runId")
        props = read.table(fields.get("forwardedProps", {}), "forwardedProps")
        chosen = {
            name: read.name(props[name], f"forwardedProps.{name}")
            for name in ("profile", "model")
            if props.get(name) is not None
        }
        return ChatRequest(
            messages=conversation(turns),
            profile=chosen.get("profile"),
            model=chosen.get("model"),
            system_prompt=_context(fields.get("context", [])) or None,
            tools=_tools(fields.get("tools", [])),
            chat_id=thread,
            echo=(thread, run),
        )

    def encoder(self, request: ChatRequest, run_id: str) -> AGUIEncoder:
        thread, run = request.echo or ("", "")
        return AGUIEncoder(thread or run_id, run or run_id, run_id)

    def refuse(self, error: ChatError, request_id: str) -> Answer:
        details = {"field": error.field} if isinstance(error, BadRequest) and error.field else {}
        body = {"message": error.message, "code": error.code, **details, "request_id": request_id}
        return Answer(status=error.status, body=as_json(body))


class AGUIEncoder:
    """One run. `message_id` is a prefix of what is new in it, so that a thread never sees an id twice."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, thread_id: str, run_id: str, message_id: str) -> None:
        self._run = {"threadId": thread_id, "runId": run_id}
        self._message_id = message_id
        self._model = ""
        self._open: type[TextDelta | ReasoningDelta] | None = None
        self._head = b""
        self._end = b""
        self._parts = 0
        self._parent = message_id
        """The message that calls belong to: the last one of text, else one of their own."""
        self._calls: dict[int, str] = {}

    def start(self, model: str) -> bytes:
        self._model = model
        return data({"type": "RUN_STARTED", **self._run})

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
        return PING

    def fail(self, error: ChatError) -> bytes:
        return data({"type": "RUN_ERROR", "message": error.message, "code": error.code})

    def finish(self, ending: Ending) -> bytes:
        usage = ending.usage
        counts = {
            "model": self._model,
            "inputTokens": usage.input_tokens,
            "outputTokens": usage.output_tokens,
            "totalTokens": usage.total_tokens,
            "reasoningTokens": usage.reasoning_tokens,
            "cachedInputTokens": usage.cached_input_tokens,
            "cacheWriteInputTokens": usage.cache_write_tokens,
        }
        calls = [data({"type": "TOOL_CALL_END", "toolCallId": id}) for id in self._calls.values()]
        last = data({"type": "RUN_FINISHED", **self._run, "usage": [counts]})
        return b"".join([self._switch(None), *calls, last])

    def _switch(self, kind: type[TextDelta | ReasoningDelta] | None) -> bytes:
        """End the open message, and start one of another kind."""
        ended, self._open, self._end = self._end, kind, b""
        if kind is None:
            return ended
        id = f"{self._message_id}-{self._parts}"
        self._parts += 1
        if kind is TextDelta:
            self._parent = id
            content = {"type": "TEXT_MESSAGE_CONTENT", "messageId": id}
            begin = data({"type": "TEXT_MESSAGE_START", "messageId": id, "role": "assistant"})
            self._end = data({"type": "TEXT_MESSAGE_END", "messageId": id})
        else:
            content = {"type": "REASONING_MESSAGE_CONTENT", "messageId": id}
            begin = data({"type": "REASONING_START", "messageId": id})
            begin += data({"type": "REASONING_MESSAGE_START", "messageId": id, "role": "reasoning"})
            self._end = data({"type": "REASONING_MESSAGE_END", "messageId": id})
            self._end += data({"type": "REASONING_END", "messageId": id})
        self._head = data(content)[:-3] + b',"delta":'
        return ended + begin

    def _call(self, delta: ToolCallDelta) -> bytes:
        begun = self._switch(None)
        if delta.index not in self._calls:
            self._calls[delta.index] = delta.id
            called = {"toolCallId": delta.id, "toolCallName": delta.name, "parentMessageId": self._parent}
            begun += data({"type": "TOOL_CALL_START", **called})
        if not delta.arguments:
            return begun
        id = self._calls[delta.index]
        return begun + data({"type": "TOOL_CALL_ARGS", "toolCallId": id, "delta": delta.arguments})


def _id(fields: dict[str, Any], name: str) -> str:
    return read.name(fields[name], name) if name in fields else ""


def _is_said(entry: Any) -> bool:
    return not is_object(entry) or entry.get("role") not in NOT_SAID


def _context(value: Any) -> str:
    """What the page tells of itself: paragraphs."""
    told: list[str] = []
    for index, entry in enumerate(read.array(value, "context", read.MAX_PARTS)):
        at = f"context[{index}]"
        item = read.table(entry, at)
        description = read.text(item.get("description"), f"{at}.description")
        told.append(f"{description}: {read.text(item.get('value'), f'{at}.value')}")
    return "\n\n".join(told)


def _tools(value: Any) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, entry in enumerate(read.array(value, "tools", read.MAX_TOOLS)):
        at = f"tools[{index}]"
        fields = read.table(entry, at)
        named, description, parameters = (fields.get(name) for name in ("name", "description", "parameters"))
        tools.append(read.tool(named, description, parameters, at, "parameters"))
    return tuple(tools)
