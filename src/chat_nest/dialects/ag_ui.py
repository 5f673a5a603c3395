"""AG-UI, the agent user interaction protocol, 1.0: one run of an agent that only talks. https://docs.ag-ui.com

Its client checks the order of events: each start needs its end before `RUN_FINISHED`. It also fails at `[DONE]`.
The file is long because it has all that is known of the format: parser, encoder and schemas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from chat_nest.core.deltas import Batch, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.core.errors import BadRequest, ChallengeRequired, ChatError
from chat_nest.core.messages import ChatRequest, Tool
from chat_nest.core.protocols import Answer, Ending, Route
from chat_nest.dialects import fields as read
from chat_nest.dialects.collected import NO_ARGUMENTS
from chat_nest.dialects.facts import Facts
from chat_nest.dialects.fields import MAX_PARTS, MAX_TOOLS, OWN_CONNECTION
from chat_nest.dialects.frames import EVENT_STREAM, PING, as_json, data, template, texts
from chat_nest.dialects.media_parts import MessageParts, file_name, from_base64, from_url, media_type
from chat_nest.dialects.schemas import (
    MODEL,
    NAME,
    PROFILE,
    REQUEST_ID,
    REQUIRED_CHALLENGE,
    SPECIFIED,
    STRING,
    TEXT,
    TEXT_PART,
    TOOL,
    URL,
    array,
    block,
    described,
    either,
    event_schema,
    messages,
    nullable,
    refusing,
    table,
    turns,
    whole,
)
from chat_nest.dialects.strict_json import is_object
from chat_nest.dialects.turns import conversation, entries, turn

NOT_SAID = ("activity", "reasoning")
"""Roles of messages that only the page shows. They are not sent to the model."""

FAILED = 429
"""From this status on the request itself was valid: a limit, this server or the provider refused it."""

UNSAID = described(table({"role": {"enum": [*NOT_SAID]}}, "role"), "For the page to show; not sent to the model")
UI_SOURCE = table({"value": URL, **nullable({"type": {"enum": ["data", "url"]}, "mimeType": TEXT})}, "value")
UI_BINARY = block("binary", nullable({"mimeType": TEXT, "data": TEXT, "url": URL, "filename": TEXT}))
UI_PARTS = either(
    TEXT,
    array(
        either(
            TEXT_PART,
            *(block(kind, {"source": UI_SOURCE}, "source") for kind in ("image", "document")),
            UI_BINARY,
        ),
        MAX_PARTS,
    ),
)

REQUEST = refusing(
    OWN_CONNECTION,
    table(
        {
            "messages": messages(either(*turns("toolCalls", "toolCallId", UI_PARTS), UNSAID)),
            **nullable(
                {
                    "threadId": NAME,
                    "runId": NAME,
                    "context": array(table({"description": TEXT, "value": TEXT}, "description", "value"), MAX_PARTS),
                    "tools": array(table({"name": TOOL, **SPECIFIED}, "name"), MAX_TOOLS),
                    "forwardedProps": table(nullable({"profile": PROFILE, "model": MODEL})),
                }
            ),
        },
        "messages",
    ),
)

FACTS = Facts(
    path="/api/ag-ui",
    request=REQUEST,
    example={"threadId": "thread-1", "runId": "run-1", "messages": [{"id": "1", "role": "user", "content": "Hello"}]},
    event=event_schema("message"),
    stream="The events of AG-UI: `RUN_STARTED` to `RUN_FINISHED` or `RUN_ERROR`",
    error=whole(
        {"message": STRING, "code": STRING, "request_id": REQUEST_ID}, field=STRING, challenge=REQUIRED_CHALLENGE
    ),
)


class AGUI:
    """The dialect of AG-UI. `path` is the HttpAgent's `url`."""

    facts: ClassVar[Facts] = FACTS

    takes_images = True

    def __init__(self, path: str = "/api/ag-ui") -> None:
        self.routes: Sequence[Route] = (Route(path=path),)

    def parse(self, body: bytes) -> ChatRequest:
        """Parse a body. Raises BadRequest, which names the field and the rule, never the value. Ignores unknown fields.

        Of `forwardedProps`, `profile` and `model` are read.
        """
        fields = read.parse_fields(body, read.OWN_CONNECTION)
        turns = [
            turn(entry, f"messages[{index}]", calls="toolCalls", answers="toolCallId", part=_part)
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
        """Return a run that failed, if the request was valid: pages of this format show failed runs, but no status."""
        if error.status >= FAILED:
            encoder = AGUIEncoder(request_id, request_id, request_id)
            return Answer(status=200, body=encoder.start("") + encoder.fail(error), headers=EVENT_STREAM[:1])
        details: dict[str, Any] = {"field": error.field} if isinstance(error, BadRequest) and error.field else {}
        if isinstance(error, ChallengeRequired):
            details = {"challenge": error.challenge}
        body = {"message": error.message, "code": error.code, **details, "request_id": request_id}
        return Answer(status=error.status, body=as_json(body))


class AGUIEncoder:
    """Encodes one run. `message_id` is a prefix of its new ids, so that no id appears twice in a thread."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, thread_id: str, run_id: str, message_id: str) -> None:
        self._run = {"threadId": thread_id, "runId": run_id}
        self._message_id = message_id
        self._model = ""
        self._open: type[TextDelta | ReasoningDelta] | None = None
        self._event = b""
        self._end = b""
        self._parts = 0
        self._parent = message_id
        """The message of the calls: the last message of text, else a message of their own."""
        self._calls: dict[int, str] = {}
        self._empty: set[int] = set()
        """The calls that have no arguments yet."""

    def start(self, model: str) -> bytes:
        self._model = model
        return data({"type": "RUN_STARTED", **self._run})

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
        calls = [self._arguments(index, NO_ARGUMENTS) for index in sorted(self._empty)]
        calls += [data({"type": "TOOL_CALL_END", "toolCallId": id}) for id in self._calls.values()]
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
        self._event = template(data(content)[:-3] + b',"delta":', b"}\n\n")
        return ended + begin

    def _call(self, delta: ToolCallDelta) -> bytes:
        begun = self._switch(None)
        if delta.index not in self._calls:
            self._calls[delta.index] = delta.id
            self._empty.add(delta.index)
            called = {"toolCallId": delta.id, "toolCallName": delta.name, "parentMessageId": self._parent}
            begun += data({"type": "TOOL_CALL_START", **called})
        if not delta.arguments:
            return begun
        return begun + self._arguments(delta.index, delta.arguments)

    def _arguments(self, index: int, text: str) -> bytes:
        self._empty.discard(index)
        return data({"type": "TOOL_CALL_ARGS", "toolCallId": self._calls[index], "delta": text})


def _id(fields: dict[str, Any], name: str) -> str:
    return read.name(fields[name], name) if name in fields else ""


def _part(part: dict[str, Any], field: str, parts: MessageParts) -> None:
    """Add a part. https://docs.ag-ui.com/sdk/js/core/multimodal-inputs, and its predecessor `binary`."""
    match part.get("type"):
        case "text":
            parts.say(read.text(part.get("text"), f"{field}.text"))
        case "image" | "document" | "audio" | "video":
            at = f"{field}.source"
            source = read.table(part.get("source"), at)
            if source.get("type") == "data":
                parts.attach(from_base64(source.get("value"), media_type(source, "mimeType", at), f"{at}.value"))
            else:
                parts.attach(from_url(source.get("value"), f"{at}.value", media_type(source, "mimeType", at)))
        case "binary":
            named = file_name(part.get("filename"), f"{field}.filename")
            if part.get("data") is not None:
                parts.attach(
                    from_base64(part["data"], media_type(part, "mimeType", field), f"{field}.data", name=named)
                )
            else:
                parts.attach(from_url(part.get("url"), f"{field}.url", media_type(part, "mimeType", field), name=named))
        case _:
            raise BadRequest("must be text, image, document or binary", field=f"{field}.type")


def _is_said(entry: Any) -> bool:
    return not is_object(entry) or entry.get("role") not in NOT_SAID


def _context(value: Any) -> str:
    """Return the page's context as paragraphs."""
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
