"""Anthropic's Messages, streamed or whole. https://docs.anthropic.com/en/api/messages

The official clients read only named events. A conversation may not end with an assistant's message to be continued.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from chat_nest.core.deltas import Batch, FinishReason, ReasoningDelta, SignatureDelta, TextDelta, ToolCallDelta
from chat_nest.core.errors import (
    BadRequest,
    BodyTooLarge,
    ChallengeRequired,
    ChatError,
    ContextLengthExceeded,
    NotFound,
    RequestTooLarge,
)
from chat_nest.core.media import PDF
from chat_nest.core.messages import ChatRequest, Message, Options, Thought, Tool, ToolCall
from chat_nest.core.protocols import Answer, Encoder, Ending, Route
from chat_nest.core.sse import event
from chat_nest.core.usage import Usage
from chat_nest.dialects import fields as read
from chat_nest.dialects import options as asked
from chat_nest.dialects.collected import NO_ARGUMENTS, Collected
from chat_nest.dialects.frames import (
    EVENT_STREAM,
    FAILED_DEPENDENCY,
    JSON,
    LONGEST_WAIT,
    as_json,
    reset_date,
    retry_headers,
    template,
    texts,
)
from chat_nest.dialects.media_parts import Parts, file_name, from_base64, from_file, from_url, media_type, read_parts
from chat_nest.dialects.strict_json import is_array, is_object
from chat_nest.dialects.turns import Turn, content, conversation, entries, with_open_thoughts

REFUSED_FIELDS = read.OWN_CONNECTION | {"models", "mcp_servers", "container"}
"""Fields that would choose a provider or open a connection. Other unknown fields are ignored."""
_SERVER_BLOCK = re.compile(r"server_tool_use|mcp_tool_use|[a-z_]+_tool_result|container_upload")
"""Blocks of an earlier answer for tools that ran on Anthropic's servers. They are left out, too."""
_ANTHROPIC_TOOL = re.compile(r"[a-z_]+_20\d{6}")
"""A tool of Anthropic's own, such as web_search_20250305. It has no schema for another model."""

OPTION_NAMES = {
    "format": "output_config.format",
    "stop": "stop_sequences",
    "parallel_calls": "tool_choice.disable_parallel_tool_use",
}

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
    """The dialect of Messages. `path` comes after the client's `base_url`, which ends before `/v1/messages`."""

    option_names = OPTION_NAMES
    takes_images = True
    longest_wait = LONGEST_WAIT

    def __init__(self, path: str = "/v1/messages") -> None:
        path = path.rstrip("/")
        models = f"{path.rstrip('/').rpartition('/')[0]}/models"
        self.routes: Sequence[Route] = (
            Route(path=path),
            Route(path=f"{path}/count_tokens", count=counted),
            Route(path=models, method="GET", models=_models, header=b"anthropic-version"),
        )

    def parse(self, body: bytes) -> ChatRequest:
        """Parse a body.

        Raises BadRequest, which names the field and the rule, never the value. Ignores unknown fields.
        """
        fields = read.parse_fields(body, REFUSED_FIELDS)
        turns: list[Turn] = []
        for index, entry in enumerate(entries(fields)):
            turns += _turns(entry, f"messages[{index}]")
        tools = _tools(fields)
        return ChatRequest(
            messages=with_open_thoughts(conversation(turns)),
            model=read.model(fields),
            system_prompt=content(fields.get("system", ""), "system") or None,
            system_field="system",
            max_output_tokens=read.least(fields, ("max_tokens",)),
            temperature=read.temperature(fields),
            tools=tools,
            tool_choice=_tool_choice(fields, tools),
            options=_options(fields),
            stream=read.switch(fields, "stream"),
        )

    def encoder(self, request: ChatRequest, run_id: str) -> Encoder:
        return AnthropicEncoder(run_id) if request.stream else AnthropicWhole(run_id)

    def refuse(self, error: ChatError, request_id: str) -> Answer:
        too_long = isinstance(error, RequestTooLarge | BodyTooLarge)
        status = FAILED_DEPENDENCY if error.billed else 400 if too_long else error.status
        body = _error(error, status)
        if isinstance(error, ChallengeRequired):
            body["error"] |= {"code": error.code, "challenge": error.challenge}
        if date := reset_date(error):
            body["error"]["message"] += f" It resets at {date}."
            body["error"]["resets_at"] = date
        return Answer(
            status=status, body=as_json({**body, "request_id": request_id}), headers=(*JSON, *retry_headers(error))
        )


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
        return event(b"error", as_json(_error(error, error.status)))

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
        return as_json(_error(error, error.status))

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


def _models(names: Sequence[str], below: str) -> Answer:
    """List the models. https://platform.claude.com/docs/en/api/models-list"""
    models = [
        {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"} for name in names
    ]
    if below:
        model = next((model for model in models if model["id"] == below), None)
        if model is None:
            raise NotFound("There is no such model here")
        return Answer(status=200, body=as_json(model))
    ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
    return Answer(status=200, body=as_json({"data": models, "has_more": False, **ends}))


def counted(tokens: int, *, exact: bool) -> Answer:
    """Return a bound of the tokens of a request's input; `exact` is as in TokenCounter."""
    return Answer(status=200, body=as_json({"input_tokens": tokens, "exact": exact}))


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


def _error(error: ChatError, status: int) -> dict[str, Any]:
    message = f"{error.field}: {error.message}" if isinstance(error, BadRequest) and error.field else error.message
    if isinstance(error, RequestTooLarge | BodyTooLarge | ContextLengthExceeded):
        message = _too_long(error)
    kind = _ERROR_TYPES.get(
        error.status if status == FAILED_DEPENDENCY else status,
        "api_error" if status >= 500 else "invalid_request_error",
    )
    return {"type": "error", "error": {"type": kind, "message": message}}


def _turns(entry: Any, field: str) -> list[Turn]:
    """Return a message as turns. Each tool result is a turn, before the message's own."""
    fields = read.table(entry, field)
    role = fields.get("role")
    if role not in ("user", "assistant", "system"):  # the profile decides on `system`
        raise BadRequest("must be user, assistant or system", field=f"{field}.role")
    said = fields.get("content")
    if not is_array(said):
        return [(field, Message(role=role, content=read.text(said, f"{field}.content")))]
    parts = Parts()
    calls: list[ToolCall] = []
    thoughts: list[Thought] = []
    turns: list[Turn] = []
    for index, item in enumerate(read.array(said, f"{field}.content", read.MAX_PARTS)):
        at = f"{field}.content[{index}]"
        block = read.table(item, at)
        match block.get("type"):
            case "text" | "image" | "document" | "search_result":
                _part(block, at, parts)
            case "tool_use" if role == "assistant":
                calls.append(_call(block, at))
            case "tool_result" if role == "user":
                turns.append((field, _result(block, at)))
            case "thinking" | "redacted_thinking" if role == "assistant":
                thoughts += _thoughts(block, at)
            case str() as kind if role == "assistant" and _SERVER_BLOCK.fullmatch(kind):
                pass
            case _:
                rule = "must be text, image, document, tool_use of the assistant or tool_result of the user"
                raise BadRequest(rule, field=f"{at}.type")
    if parts or calls or not turns:
        message = parts.message(role, field, tool_calls=tuple(calls))
        turns.append((field, replace(message, thoughts=tuple(thoughts)) if thoughts else message))
    return turns


def _thoughts(block: dict[str, Any], field: str) -> list[Thought]:
    """Return a thought that its provider can read again; none without a signature, which another provider's lacks."""
    if block.get("type") == "redacted_thinking":
        data = read.text(block.get("data"), f"{field}.data")
        return [Thought(redacted=data)] if data else []
    signature = block.get("signature")
    signed = "" if signature is None else read.text(signature, f"{field}.signature")
    said = block.get("thinking")
    text = "" if said is None else read.text(said, f"{field}.thinking")
    return [Thought(text=text, signature=signed)] if signed else []


def _part(block: dict[str, Any], field: str, parts: Parts) -> None:
    """Add a block of a message or of a tool's result to `parts`."""
    match block.get("type"):
        case "text":
            parts.say(read.text(block.get("text"), f"{field}.text"))
        case "tool_reference":  # found by a search for tools; sent as text, which every model can read
            parts.say(f"Tool available: {read.word(block.get('tool_name'), f'{field}.tool_name')}")
        case "image" | "document":
            _source(block, field, parts)
        case "search_result":
            title = read.text(block.get("title"), f"{field}.title")
            found = content(block.get("content"), f"{field}.content")
            parts.say(f"{title} ({read.text(block.get('source'), f'{field}.source')}):\n{found}")
        case _:
            raise BadRequest("must be text, image or document", field=f"{field}.type")


def _source(block: dict[str, Any], field: str, parts: Parts) -> None:
    """Add an image or a document. https://platform.claude.com/docs/en/build-with-claude/pdf-support"""
    at = f"{field}.source"
    source = read.table(block.get("source"), at)
    title = file_name(block.get("title"), f"{field}.title")
    match source.get("type"):
        case "base64":
            parts.attach(
                from_base64(source.get("data"), media_type(source, "media_type", at), f"{at}.data", name=title)
            )
        case "url":
            kind = PDF if block["type"] == "document" else "image/*"
            parts.attach(from_url(source.get("url"), f"{at}.url", kind, name=title))
        case "text":
            text = read.text(source.get("data"), f"{at}.data")
            parts.say(f"{title}:\n{text}" if title else text)
        case "content":
            if title:
                parts.say(f"{title}:")
            said = source.get("content")
            for index, item in enumerate(said if is_array(said) else [{"type": "text", "text": said}]):
                inner = read.table(item, f"{at}.content[{index}]")
                if inner.get("type") not in ("text", "image"):
                    raise BadRequest("must be text or image", field=f"{at}.content[{index}].type")
                _part(inner, f"{at}.content[{index}]", parts)
        case "file":
            parts.attach(from_file({"file_id": source.get("file_id") or ""}, at, "data", "title"))
        case _:
            raise BadRequest("must be base64, url, text, content or file", field=f"{at}.type")


def _call(block: dict[str, Any], field: str) -> ToolCall:
    given = block.get("input")
    return ToolCall(
        id=read.word(block.get("id"), f"{field}.id"),
        name=read.word(block.get("name"), f"{field}.name"),
        arguments=read.written(read.table({} if given is None else given, f"{field}.input"), f"{field}.input"),
    )


def _result(block: dict[str, Any], field: str) -> Message:
    answered = read.word(block.get("tool_use_id"), f"{field}.tool_use_id")
    said = block.get("content")
    parts = read_parts("" if said is None else said, f"{field}.content", _part)
    return parts.message("tool", f"{field}.content", tool_call_id=answered)


def _tools(fields: dict[str, Any]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, entry in enumerate(read.array(fields.get("tools", []), "tools", read.MAX_TOOLS)):
        at = f"tools[{index}]"
        offered = read.table(entry, at)
        kind = offered.get("type")
        if type(kind) is str and _ANTHROPIC_TOOL.fullmatch(kind):
            continue
        if kind not in ("custom", None):
            raise BadRequest("must be custom", field=f"{at}.type")
        named, description, schema = (offered.get(name) for name in ("name", "description", "input_schema"))
        strict = asked.strictness(offered, at)
        tools.append(read.tool(named, description, schema, at, "input_schema", strict=strict))
    return tuple(tools)


def _options(fields: dict[str, Any]) -> Options:
    """Return the options. `output_format` is the beta's name for `output_config.format`."""
    config = read.table(fields.get("output_config", {}), "output_config")
    chosen, at = config.get("format"), "output_config.format"
    if chosen is None:
        chosen, at = fields.get("output_format"), "output_format"
    choice = fields.get("tool_choice", {})
    alone = asked.switch(choice, "disable_parallel_tool_use") if is_object(choice) else None
    return Options(
        format=None if chosen is None else asked.json_format(chosen, at, kinds=()),
        stop=asked.stops(fields, "stop_sequences"),
        parallel_calls=None if alone is None else not alone,
        effort=asked.word(config.get("effort"), asked.EFFORTS, "output_config.effort"),
        **asked.sampling(fields, top_p="top_p", top_k="top_k"),
    )


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
