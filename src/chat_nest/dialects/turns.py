"""A request's messages: what several dialects share of their shape, and what a conversation must be to be sent on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chat_nest.dialects import fields as read
from chat_nest.dialects.strict_json import is_array
from chat_nest.errors import BadRequest
from chat_nest.messages import Message, Role, ToolCall

MAX_MESSAGES = 1_000
"""More are refused, not trimmed."""

Turn = tuple[str, Message]
"""A message, and the name of the field that it came from."""

ROLES: dict[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
}
"""Whether a caller may use the last three is for the profile to say."""


def entries(fields: Mapping[str, Any]) -> list[Any]:
    """The items of `messages`, unread."""
    items = fields.get("messages")
    if not is_array(items) or not items:
        raise BadRequest("must be an array of at least one message", field="messages")
    if len(items) > MAX_MESSAGES:
        raise BadRequest(f"must not have more than {MAX_MESSAGES} messages", field="messages")
    return items


def conversation(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The messages, without empty answers, if the last one asks something and each tool's result answers a call."""
    called: set[str] = set()
    kept: list[Message] = []
    for field, message in turns:
        called.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in called:
            raise BadRequest("must answer a tool call of an earlier message", field=field)
        # An answer that was cancelled before its first token; providers refuse empty ones.
        if message.role != "assistant" or message.tool_calls or message.content.strip():
            kept.append(message)
    field, last = turns[-1] if turns else ("messages", None)
    if last is None or last.role not in ("user", "tool"):
        raise BadRequest("the last message must be from the user", field=field)
    if last.role == "user" and not last.content.strip():
        raise BadRequest("the last message must not be blank", field=field)
    return tuple(kept)


def turn(entry: Any, field: str, *, calls: str = "tool_calls", answers: str = "tool_call_id") -> Turn:
    """A message as OpenAI has it; `calls` and `answers` are what a dialect calls these two of its fields."""
    fields = read.table(entry, field)
    named = fields.get("role")
    role = ROLES.get(named) if type(named) is str else None
    if role is None:
        raise BadRequest("must be system, developer, user, assistant or tool", field=f"{field}.role")
    said = fields.get("content")
    made: tuple[ToolCall, ...] = ()
    answered = ""
    if role == "assistant":
        said = "" if said is None else said
        if fields.get(calls) is not None:
            items = read.array(fields[calls], f"{field}.{calls}", read.MAX_TOOLS)
            made = tuple(_call(item, f"{field}.{calls}[{index}]") for index, item in enumerate(items))
    elif role == "tool":
        answered = read.name(fields.get(answers), f"{field}.{answers}")
    text = content(said, f"{field}.content")
    return field, Message(role=role, content=text, tool_calls=made, tool_call_id=answered)


def content(value: Any, field: str) -> str:
    """A string, or an array of parts that are text: each is a paragraph."""
    if not is_array(value):
        return read.text(value, field)
    texts: list[str] = []
    for index, item in enumerate(read.array(value, field, read.MAX_PARTS)):
        part = read.table(item, f"{field}[{index}]")
        if part.get("type") != "text":
            raise BadRequest("must be text", field=f"{field}[{index}].type")
        texts.append(read.text(part.get("text"), f"{field}[{index}].text"))
    return "\n".join(texts)


def _call(entry: Any, field: str) -> ToolCall:
    fields = read.table(entry, field)
    function = read.table(fields.get("function"), f"{field}.function")
    return ToolCall(
        id=read.name(fields.get("id"), f"{field}.id"),
        name=read.name(function.get("name"), f"{field}.function.name"),
        arguments=read.text(function.get("arguments"), f"{field}.function.arguments"),
    )
