"""The messages of a request: their shape in several dialects, and the rules for a conversation that is sent on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from chat_nest.core.errors import BadRequest
from chat_nest.core.messages import Message, Role, ToolCall
from chat_nest.dialects import fields as read
from chat_nest.dialects.media_parts import MessageParts, openai_part, read_parts
from chat_nest.dialects.strict_json import is_array

MAX_MESSAGES = 1_000
"""The most messages. A longer list is refused, not trimmed."""

PlacedMessage = tuple[str, Message]
"""A message, and the name of its field."""

ROLES: dict[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
}
"""The profile decides whether a caller may use the last three."""


def entries(fields: Mapping[str, Any]) -> list[Any]:
    """Return the unread items of `messages`."""
    items = fields.get("messages")
    if not is_array(items) or not items:
        raise BadRequest("must be an array of at least one message", field="messages")
    if len(items) > MAX_MESSAGES:
        raise BadRequest(f"must not have more than {MAX_MESSAGES} messages", field="messages")
    return items


def conversation(turns: Sequence[PlacedMessage]) -> tuple[Message, ...]:
    """Return the messages in the order that every provider accepts. The last one must ask something.

    Each result follows the message of its call. A call without a result is left out, and so is an answer that is then
    empty. An id that an earlier call had is replaced. Raises BadRequest for a result without a call.
    """
    results = _results(turns)
    kept: list[Message] = []
    ids: set[str] = set()
    for at, (_, message) in enumerate(turns):
        if message.role == "tool":
            continue
        answered: list[tuple[ToolCall, Message]] = []
        for number, call in enumerate(message.tool_calls):
            if (result := results.get((at, number))) is not None:
                id = call.id if call.id not in ids else f"{call.id}_{at}_{number}"
                ids.add(id)
                answered.append((replace(call, id=id), replace(result, tool_call_id=id)))
        # An answer that was cancelled before its first token. Providers refuse empty messages.
        if message.role != "assistant" or answered or message.content.strip():
            calls = tuple(call for call, _ in answered)
            kept.append(replace(message, tool_calls=calls) if message.tool_calls else message)
        kept += [result for _, result in answered]
    # Claude Code ends with a system turn.
    spoken = [turn for turn in turns if turn[1].role not in ("system", "developer")]
    field, last = spoken[-1] if spoken else ("messages", None)
    if last is None or last.role not in ("user", "tool"):
        raise BadRequest("the last message must be from the user", field=field)
    if last.role == "user" and not (last.content.strip() or last.attachments):
        raise BadRequest("the last message must not be blank", field=field)
    return tuple(kept)


def with_open_thoughts(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages with the thoughts of the turn that goes on: the answers after the user's latest words.

    Models want these back with the results of the tools. Providers drop earlier ones, which would only be counted here.
    """
    start = len(messages)
    while start > 0:
        start -= 1
        if messages[start].role == "user" and (start == 0 or messages[start - 1].role not in ("tool", "user")):
            break
    return (
        *(replace(message, thoughts=()) if message.thoughts else message for message in messages[:start]),
        *messages[start:],
    )


def _results(turns: Sequence[PlacedMessage]) -> dict[tuple[int, int], Message]:
    """Return the result of each call, by the call's place.

    Ids can repeat: a result is for the latest call without one.
    """
    results: dict[tuple[int, int], Message] = {}
    called: dict[str, list[tuple[int, int]]] = {}
    for at, (field, message) in enumerate(turns):
        for number, call in enumerate(message.tool_calls):
            places = called.setdefault(call.id, [])
            # Within one message, the first call with an id gets the first result.
            places.insert(0 if not places or places[0][0] != at else number, (at, number))
        if message.role == "tool":
            if message.tool_call_id not in called:
                raise BadRequest("must answer a tool call of an earlier message", field=field)
            places = called[message.tool_call_id]
            results[next((place for place in places if place not in results), places[0])] = message
    return results


def turn(
    entry: Any,
    field: str,
    *,
    calls: str = "tool_calls",
    answers: str = "tool_call_id",
    part: Callable[[dict[str, Any], str, MessageParts], None] = openai_part,
) -> PlacedMessage:
    """Return a message of OpenAI's shape. `calls` and `answers` are the dialect's names of these two fields.

    `part` reads one part of the content.
    """
    fields = read.table(entry, field)
    named = fields.get("role")
    role = ROLES.get(named) if type(named) is str else None
    if role is None:
        raise BadRequest("must be system, developer, user, assistant or tool", field=f"{field}.role")
    said = fields.get("content")
    if said is None and role in ("assistant", "tool"):
        said = ""
    made: tuple[ToolCall, ...] = ()
    answered = ""
    if role == "assistant":
        if fields.get(calls) is not None:
            items = read.array(fields[calls], f"{field}.{calls}", read.MAX_TOOLS)
            made = tuple(_call(item, f"{field}.{calls}[{index}]") for index, item in enumerate(items))
    elif role == "tool":
        answered = read.word(fields.get(answers), f"{field}.{answers}")
    parts = read_parts(said, f"{field}.content", part)
    return field, parts.message(role, f"{field}.content", tool_calls=made, tool_call_id=answered)


def content(value: Any, field: str) -> str:
    """Return a string, or the text parts of an array, joined as paragraphs."""

    def part(fields: dict[str, Any], at: str, parts: MessageParts) -> None:
        if fields.get("type") != "text":
            raise BadRequest("must be text", field=f"{at}.type")
        parts.say(read.text(fields.get("text"), f"{at}.text"))

    return "\n".join(read_parts(value, field, part).texts)


def _call(entry: Any, field: str) -> ToolCall:
    fields = read.table(entry, field)
    function = read.table(fields.get("function"), f"{field}.function")
    given = function.get("arguments")
    return ToolCall(
        id=read.word(fields.get("id"), f"{field}.id"),
        name=read.word(function.get("name"), f"{field}.function.name"),
        arguments=read.written({} if given is None else given, f"{field}.function.arguments"),
    )
