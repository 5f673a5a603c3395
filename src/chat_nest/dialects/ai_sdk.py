"""The UI message stream of the AI SDK (npm `ai` 5, 6 and 7), for `useChat` and its DefaultChatTransport.

https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol. Its reader ends the whole chat at an unknown chunk, a delta without
its start, or an empty object, so none of these is ever sent.
The file is long because it has all that is known of the format: parser, encoder and schemas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from chat_nest.core.deltas import Batch, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.core.errors import BadRequest, ChatError, Stopped
from chat_nest.core.messages import ChatRequest, Format, Options, Tool
from chat_nest.core.protocols import Answer, Ending, Route
from chat_nest.dialects import fields as read
from chat_nest.dialects import options as asked
from chat_nest.dialects.ai_sdk_messages import ROLES, read_turns
from chat_nest.dialects.facts import Facts
from chat_nest.dialects.fields import MAX_PARTS, MAX_TOOLS
from chat_nest.dialects.frames import EVENT_STREAM, PING, as_json, data, in_dollars, template, texts
from chat_nest.dialects.schemas import (
    ANY,
    DESCRIBED,
    JSON_SCHEMA,
    LOWERED,
    MODEL,
    NAME,
    NULL,
    PENALTY,
    PROFILE,
    SEED,
    STOPS,
    STRING,
    TEMPERATURE,
    TEXT,
    TOOL,
    TOP_K,
    TOP_P,
    array,
    block,
    described,
    either,
    event_schema,
    messages,
    nullable,
    refusing,
    table,
)
from chat_nest.dialects.strict_json import is_array
from chat_nest.dialects.turns import PlacedMessage, conversation, entries

REFUSED_FIELDS = read.OWN_CONNECTION | {"models"}
OPTION_NAMES = {"format": "responseFormat", "stop": "stopSequences"}
SAMPLING = {
    "seed": "seed",
    "top_p": "topP",
    "top_k": "topK",
    "frequency_penalty": "frequencyPenalty",
    "presence_penalty": "presencePenalty",
}
HEADERS = (*EVENT_STREAM, (b"x-vercel-ai-ui-message-stream", b"v1"))

_DONE = b"data: [DONE]\n\n"
_TEXT_HTTP = ((b"content-type", b"text/plain; charset=utf-8"),)
_FINISH_REASONS: dict[FinishReason | None, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool-calls",
    "content_filter": "content-filter",
}

UI_PART = table(
    {
        "type": described(TEXT, "Parts that are not known are ignored"),
        "text": described(ANY, "A string, in a part of type `text`"),
        "url": described(ANY, "A data URL, in a part of type `file`"),
        "filename": described(ANY, "A string, in a part of type `file`"),
    },
    "type",
)
UI_MESSAGE = {
    **table(
        {
            "role": {"enum": [*ROLES]},
            "parts": array(UI_PART, MAX_PARTS),
            "content": described(ANY, "Instead of `parts`: a string, or the parts of a model message"),
        },
        "role",
    ),
    "examples": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}],
}
UI_OPTIONS = nullable(
    {
        "id": described(NAME, "The chat's"),
        "profile": PROFILE,
        "model": MODEL,
        "system": TEXT,
        "maxOutputTokens": LOWERED,
        "temperature": TEMPERATURE,
        "responseFormat": either(
            block("text", {}), block("json", {**DESCRIBED["properties"], **nullable({"schema": JSON_SCHEMA})})
        ),
        "stopSequences": STOPS,
        "seed": SEED,
        "topP": TOP_P,
        "topK": TOP_K,
        **dict.fromkeys(("frequencyPenalty", "presencePenalty"), PENALTY),
        "tools": {
            "type": "object",
            "maxProperties": MAX_TOOLS,
            "propertyNames": TOOL,
            "additionalProperties": table(
                nullable({"description": TEXT, "inputSchema": described(JSON_SCHEMA, "Or `parameters`")})
            ),
        },
    }
)

REQUEST = either(
    refusing(REFUSED_FIELDS, table({"messages": messages(UI_MESSAGE), **UI_OPTIONS}, "messages")),
    refusing(REFUSED_FIELDS, table({"message": UI_MESSAGE, "messages": NULL, **UI_OPTIONS}, "message")),
)

FACTS = Facts(
    path="/api/ai",
    request=REQUEST,
    example={"id": "chat-1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]},
    event=event_schema("message"),
    stream="The UI message stream of the AI SDK, version 1",
    error=described(STRING, "A sentence to show"),
)


class AISDK:
    """The dialect of the AI SDK. `path` is the transport's `api`."""

    facts: ClassVar[Facts] = FACTS

    option_names = OPTION_NAMES
    takes_images = True

    def __init__(self, path: str = "/api/ai") -> None:
        self.routes: Sequence[Route] = (Route(path=path),)

    def parse(self, body: bytes) -> ChatRequest:
        """Parse a body. Raises BadRequest, which names the field and the rule, never the value. Ignores unknown fields.

        `message` may replace a `messages` of one. A page can add fields with the transport's `body`: `profile`,
        `model`, `system`, `tools`, `maxOutputTokens`, `temperature` and the settings of `_options` are read.
        """
        fields = read.parse_fields(body, REFUSED_FIELDS)
        turns: list[PlacedMessage] = []
        if "messages" not in fields and "message" in fields:
            turns += read_turns(fields["message"], "message")
        else:
            for index, entry in enumerate(entries(fields)):
                turns += read_turns(entry, f"messages[{index}]")
        return ChatRequest(
            messages=conversation(turns),
            profile=read.name(fields["profile"], "profile") if "profile" in fields else None,
            model=read.model(fields),
            system_prompt=read.text(fields.get("system", ""), "system") or None,
            system_field="system",
            max_output_tokens=read.least(fields, ("maxOutputTokens",)),
            temperature=read.temperature(fields),
            tools=_tools(fields.get("tools", {})),
            options=_options(fields),
            chat_id=read.name(fields["id"], "id") if "id" in fields else "",
        )

    def encoder(self, request: ChatRequest, run_id: str) -> AISDKEncoder:  # noqa: ARG002 - nothing depends on it
        return AISDKEncoder(run_id)

    def refuse(self, error: ChatError, request_id: str) -> Answer:  # noqa: ARG002 - it is in a header
        """Return the refusal as a sentence: the page shows the whole body."""
        return Answer(status=error.status, body=_sentence(error).encode(), headers=_TEXT_HTTP)


class AISDKEncoder:
    """Encodes one answer as one step of one message."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = HEADERS

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._open: type[TextDelta | ReasoningDelta] | None = None
        self._event = b""
        self._end = b""
        self._parts = 0
        self._calls: dict[int, list[ToolCallDelta]] = {}

    def start(self, model: str) -> bytes:  # noqa: ARG002 - the stream has no place for it
        return data({"type": "start", "messageId": self._run_id}) + data({"type": "start-step"})

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
        """Encode `abort` for a run that its caller stopped: the page then keeps its text, and shows no error.

        `[DONE]` ends a failed stream as well: assistant-ui shows the lack of it instead of the error.
        """
        if isinstance(error, Stopped):
            return data({"type": "abort"}) + _DONE
        return data({"type": "error", "errorText": error.message}) + _DONE

    def finish(self, ending: Ending) -> bytes:
        usage = ending.usage
        counts = {
            "inputTokens": usage.input_tokens,
            "outputTokens": usage.output_tokens,
            "totalTokens": usage.total_tokens,
        }
        metadata: dict[str, Any] = {"usage": counts, "remaining": in_dollars(ending.remaining)}
        if ending.signature:
            metadata["signature"] = ending.signature
        last = {
            "type": "finish",
            "finishReason": _FINISH_REASONS.get(ending.reason, "other"),
            "messageMetadata": metadata,
        }
        calls = [_called(pieces) for pieces in self._calls.values()]
        return b"".join([self._switch(None), *calls, data({"type": "finish-step"}), data(last), _DONE])

    def _switch(self, kind: type[TextDelta | ReasoningDelta] | None) -> bytes:
        """End the open part, and start one of another kind."""
        ended, self._open, self._end = self._end, kind, b""
        if kind is None:
            return ended
        name = "text" if kind is TextDelta else "reasoning"
        id = str(self._parts)
        self._parts += 1
        self._event = template(data({"type": f"{name}-delta", "id": id})[:-3] + b',"delta":', b"}\n\n")
        self._end = data({"type": f"{name}-end", "id": id})
        return ended + data({"type": f"{name}-start", "id": id})

    def _call(self, delta: ToolCallDelta) -> bytes:
        begun = self._switch(None)
        pieces = self._calls.setdefault(delta.index, [])
        pieces.append(delta)
        id = pieces[0].id
        if len(pieces) == 1:
            begun += data({"type": "tool-input-start", "toolCallId": id, "toolName": delta.name})
        if not delta.arguments:
            return begun
        return begun + data({"type": "tool-input-delta", "toolCallId": id, "inputTextDelta": delta.arguments})


def _called(pieces: Sequence[ToolCallDelta]) -> bytes:
    """Encode the end of a call: its input as a value, or as text if it is not JSON."""
    call = {"toolCallId": pieces[0].id, "toolName": pieces[0].name}
    text = "".join(piece.arguments for piece in pieces)
    try:
        value: object = msgspec.json.decode(text or "{}")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        wrong = "The model wrote an input that is not JSON"
        return data({"type": "tool-input-error", **call, "input": text, "errorText": wrong})
    return data({"type": "tool-input-available", **call, "input": value})


def _sentence(error: ChatError) -> str:
    return f"{error.field}: {error.message}" if isinstance(error, BadRequest) and error.field else error.message


def _options(fields: dict[str, Any]) -> Options:
    """Return the options, by the AI SDK's names. `responseFormat` is `{type: "json", schema}` or `text`."""
    return Options(
        format=_format(fields["responseFormat"]) if "responseFormat" in fields else None,
        stop=asked.stops(fields, "stopSequences"),
        **asked.sampling(fields, **SAMPLING),
    )


def _format(value: Any) -> Format | None:
    chosen = read.table(value, "responseFormat")
    if chosen.get("type") not in ("text", "json"):
        raise BadRequest("must be text or json", field="responseFormat.type")
    if chosen["type"] == "text":
        return None
    return Format() if chosen.get("schema") is None else asked.schema_format(chosen, "responseFormat")


def _tools(value: Any) -> tuple[Tool, ...]:
    """Return a page's own tools, by name, each with `description` and `parameters` or `inputSchema`."""
    tools: list[Tool] = []
    if is_array(value):
        raise BadRequest("must be an object: a tool for each name", field="tools")
    for name, entry in read.table(value, "tools").items():
        if entry is None:
            continue
        fields = read.table(entry, "tools")
        schema = "inputSchema" if "inputSchema" in fields else "parameters"
        tools.append(read.tool(name, fields.get("description"), fields.get(schema), "tools", schema))
    if len(tools) > read.MAX_TOOLS:
        raise BadRequest(f"must not have more than {read.MAX_TOOLS} items", field="tools")
    return tuple(tools)
