"""Anthropic's Messages, streamed or whole. https://docs.anthropic.com/en/api/messages

The official clients read only named events. A conversation may not end with an assistant's message to be continued.
The file is long because it has all of a request: its parser, its refusals and its schema.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from chat_nest.core.errors import BadRequest, BodyTooLarge, ChallengeRequired, ChatError, NotFound, RequestTooLarge
from chat_nest.core.media import PDF
from chat_nest.core.messages import ChatRequest, Message, Options, Thought, Tool, ToolCall
from chat_nest.core.protocols import Answer, Encoder, Route
from chat_nest.dialects import fields as read
from chat_nest.dialects import options as asked
from chat_nest.dialects.anthropic_stream import AnthropicEncoder, AnthropicWhole, error_object
from chat_nest.dialects.facts import Facts
from chat_nest.dialects.fields import MAX_PARTS, MAX_TOOLS
from chat_nest.dialects.frames import (
    FAILED_DEPENDENCY,
    JSON,
    LONGEST_WAIT,
    BudgetStatus,
    as_json,
    limit_status,
    reset_date,
    reset_text,
    retry_headers,
)
from chat_nest.dialects.media_parts import (
    MessageParts,
    file_name,
    from_base64,
    from_file,
    from_url,
    media_type,
    read_parts,
)
from chat_nest.dialects.schemas import (
    ANY,
    CONTENT,
    COUNT,
    EFFORT,
    JSON_SCHEMA,
    JSON_SCHEMA_FORMAT,
    LOWERED,
    MODEL,
    NAME,
    NULL,
    REQUEST_ID,
    REQUIRED_CHALLENGE,
    STOPS,
    STRING,
    SWITCH,
    TEMPERATURE,
    TEXT,
    TEXT_PART,
    TOOL,
    TOP_K,
    TOP_P,
    URL,
    array,
    block,
    described,
    either,
    event_schema,
    formats,
    listed,
    messages,
    nullable,
    refusing,
    role,
    table,
    whole,
)
from chat_nest.dialects.strict_json import is_array, is_object
from chat_nest.dialects.turns import PlacedMessage, content, conversation, entries, with_open_thoughts

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


SOURCE = either(
    block("base64", {"data": TEXT, **nullable({"media_type": TEXT})}, "data"),
    block("url", {"url": URL}, "url"),
    block("text", {"data": TEXT}, "data"),
)
IMAGE = block("image", {"source": SOURCE}, "source")
DOCUMENT = block("document", {"source": SOURCE, **nullable({"title": TEXT})}, "source")
GIVEN = either(TEXT, array(either(TEXT_PART, IMAGE, DOCUMENT), MAX_PARTS))
RESULT = table(
    {"type": {"const": "tool_result"}, "tool_use_id": NAME, **nullable({"content": GIVEN})}, "type", "tool_use_id"
)
USE = block("tool_use", {"id": NAME, "name": NAME, **nullable({"input": {"type": "object"}})}, "id", "name")
THOUGHTS = [
    block("thinking", nullable({"thinking": TEXT, "signature": TEXT})),
    block("redacted_thinking", {"data": TEXT}, "data"),
]
ASKED = either(TEXT, array(either(TEXT_PART, IMAGE, DOCUMENT, RESULT), MAX_PARTS))
ANSWERED = either(TEXT, array(either(TEXT_PART, USE, *THOUGHTS), MAX_PARTS))
ANTHROPIC_TOOL = table(
    {
        "name": TOOL,
        **nullable({"type": {"const": "custom"}, "description": TEXT, "input_schema": JSON_SCHEMA, "strict": SWITCH}),
    },
    "name",
)
ANTHROPIC_CHOICE = {
    **table(
        {"type": {"enum": ["auto", "none", "any", "tool"]}, "name": described(ANY, "The tool's, with `tool`")}, "type"
    ),
    "examples": [{"type": "auto"}],
}
ANTHROPIC_MESSAGE = whole(
    {
        "id": STRING,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": STRING,
        "content": listed(
            either(
                whole({"type": {"const": "text"}, "text": STRING}),
                whole({"type": {"const": "thinking"}, "thinking": STRING, "signature": STRING}),
                whole({"type": {"const": "tool_use"}, "id": STRING, "name": STRING, "input": {"type": "object"}}),
            )
        ),
        "stop_reason": {"enum": ["end_turn", "max_tokens", "tool_use", "refusal"]},
        "stop_sequence": NULL,
        "usage": whole(
            {
                "input_tokens": COUNT,
                "cache_creation_input_tokens": COUNT,
                "cache_read_input_tokens": COUNT,
                "output_tokens": COUNT,
            }
        ),
    }
)

REQUEST = refusing(
    REFUSED_FIELDS,
    table(
        {
            "messages": messages(
                either(
                    role("user", {"content": ASKED}, "content"),
                    role("assistant", {"content": ANSWERED}, "content"),
                )
            ),
            **nullable(
                {
                    "system": CONTENT,
                    "model": MODEL,
                    "stream": SWITCH,
                    "max_tokens": LOWERED,
                    "temperature": TEMPERATURE,
                    "tools": array(ANTHROPIC_TOOL, MAX_TOOLS),
                    "tool_choice": ANTHROPIC_CHOICE,
                    "output_config": table(nullable({"format": formats(JSON_SCHEMA_FORMAT), "effort": EFFORT})),
                    "output_format": formats(JSON_SCHEMA_FORMAT),
                    "stop_sequences": STOPS,
                    "top_p": TOP_P,
                    "top_k": TOP_K,
                }
            ),
        },
        "messages",
    ),
)

FACTS = Facts(
    path="/v1/messages",
    request=REQUEST,
    example={"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100},
    event=event_schema(
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop", "ping", "error"),
    ),
    stream="`message_start` to `message_stop`, or `error`",
    answer=ANTHROPIC_MESSAGE,
    error=whole(
        {
            "type": {"const": "error"},
            "error": whole({"type": STRING, "message": STRING}, code=STRING, challenge=REQUIRED_CHALLENGE),
            "request_id": REQUEST_ID,
        }
    ),
)


class Anthropic:
    """The dialect of Messages.

    `path` comes after the client's `base_url`, which ends before `/v1/messages`; `budget_status` is as in OpenAI.
    """

    facts: ClassVar[Facts] = FACTS

    option_names = OPTION_NAMES
    takes_images = True
    longest_wait = LONGEST_WAIT

    def __init__(self, path: str = "/v1/messages", *, budget_status: BudgetStatus = 429) -> None:
        path = path.rstrip("/")
        models = f"{path.rstrip('/').rpartition('/')[0]}/models"
        self.routes: Sequence[Route] = (
            Route(path=path),
            Route(path=f"{path}/count_tokens", count=counted),
            Route(path=models, method="GET", models=_models, header=b"anthropic-version"),
        )
        self._budget_status: BudgetStatus = budget_status

    def parse(self, body: bytes) -> ChatRequest:
        """Parse a body.

        Raises BadRequest, which names the field and the rule, never the value. Ignores unknown fields.
        """
        fields = read.parse_fields(body, REFUSED_FIELDS)
        turns: list[PlacedMessage] = []
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
        status = FAILED_DEPENDENCY if error.billed else 400 if too_long else limit_status(error, self._budget_status)
        body = error_object(error, status)
        if isinstance(error, ChallengeRequired):
            body["error"] |= {"code": error.code, "challenge": error.challenge}
        if date := reset_date(error):
            body["error"]["message"] += reset_text(date)
            body["error"]["resets_at"] = date
        return Answer(
            status=status, body=as_json({**body, "request_id": request_id}), headers=(*JSON, *retry_headers(error))
        )


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


def _turns(entry: Any, field: str) -> list[PlacedMessage]:
    """Return a message as turns. Each tool result is a turn, before the message's own."""
    fields = read.table(entry, field)
    role = fields.get("role")
    if role not in ("user", "assistant", "system"):  # the profile decides on `system`
        raise BadRequest("must be user, assistant or system", field=f"{field}.role")
    said = fields.get("content")
    if not is_array(said):
        return [(field, Message(role=role, content=read.text(said, f"{field}.content")))]
    parts = MessageParts()
    calls: list[ToolCall] = []
    thoughts: list[Thought] = []
    turns: list[PlacedMessage] = []
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


def _part(block: dict[str, Any], field: str, parts: MessageParts) -> None:
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


def _source(block: dict[str, Any], field: str, parts: MessageParts) -> None:
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
