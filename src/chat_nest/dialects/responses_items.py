"""Items of a Responses request: from items to messages, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from chat_nest.core.errors import BadRequest
from chat_nest.core.media import PDF
from chat_nest.core.messages import Message, Thought, ToolCall
from chat_nest.dialects import fields as read
from chat_nest.dialects.media_parts import MessageParts, detail, file_name, from_file, from_url, read_parts
from chat_nest.dialects.strict_json import is_array
from chat_nest.dialects.turns import MAX_MESSAGES, ROLES, PlacedMessage

TEXT_PARTS = frozenset({"input_text", "output_text", "text", "summary_text"})
ITEMS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")

Item = dict[str, Any]
Referred = Mapping[str, Item]
"""Items of kept answers, by id."""


def entries(value: Any) -> list[Any]:
    """Return the unread items of `input`. A string is one item of the user."""
    if type(value) is str:
        return [{"role": "user", "content": value}]
    if not is_array(value) or not value:
        raise BadRequest("must be a string, or an array of at least one item", field="input")
    if len(value) > MAX_MESSAGES:
        raise BadRequest(f"must not have more than {MAX_MESSAGES} items", field="input")
    return value


def kind_of(item: Item) -> Any:
    """Return an item's type, which a message and a reference may leave out."""
    if (kind := item.get("type")) is not None:
        return kind
    return "message" if "role" in item else "item_reference"


def turns(items: Sequence[Any], referred: Referred) -> list[PlacedMessage]:
    """Return the items as turns. A call belongs to the model's turn just before it.

    Reasoning belongs to the model's turn behind it if it is encrypted, and is left out otherwise.
    """
    found: list[PlacedMessage] = []
    thoughts: list[Thought] = []
    for index, entry in enumerate(items):
        at = f"input[{index}]"
        item = read.table(entry, at)
        if kind_of(item) == "item_reference":
            id = read.word(item.get("id"), f"{at}.id")
            if id not in referred:
                rule = "must be an item of an answer that is kept here: send the item itself, or `store` as false"
                raise BadRequest(rule, field=f"{at}.id")
            item = referred[id]
        match kind_of(item):
            case "message":
                message = _message(item, at)
                if thoughts and message.role == "assistant":
                    message = replace(message, thoughts=tuple(thoughts))
                thoughts = []
                found.append((at, message))
            case "function_call":
                call = _call(item, at)
                if found and found[-1][1].role == "assistant" and not thoughts:
                    before = found[-1][1]
                    found[-1] = (at, replace(before, tool_calls=(*before.tool_calls, call)))
                else:
                    message = Message(role="assistant", content="", tool_calls=(call,), thoughts=tuple(thoughts))
                    found.append((at, message))
                thoughts = []
            case "function_call_output":
                answered = read.word(item.get("call_id"), f"{at}.call_id")
                parts = read_parts(item.get("output"), f"{at}.output", _part)
                found.append((at, parts.message("tool", f"{at}.output", tool_call_id=answered)))
            case "reasoning":
                thoughts += _thought(item, at)
            case _:
                raise BadRequest(f"must be one of {', '.join(ITEMS)}", field=f"{at}.type")
    return found


def _thought(item: Item, field: str) -> list[Thought]:
    encrypted = item.get("encrypted_content")
    if not encrypted:
        return []
    said = [
        read.text(read.table(part, f"{field}.summary").get("text"), f"{field}.summary")
        for part in read.array(item.get("summary", []), f"{field}.summary", read.MAX_PARTS)
    ]
    return [Thought(text="\n\n".join(said), encrypted=read.text(encrypted, f"{field}.encrypted_content"))]


def _message(item: Item, field: str) -> Message:
    named = item.get("role")
    role = ROLES.get(named) if type(named) is str else None
    if role is None or role == "tool":
        raise BadRequest("must be system, developer, user or assistant", field=f"{field}.role")
    return read_parts(item.get("content"), f"{field}.content", _part).message(role, f"{field}.content")


def _part(part: Item, field: str, parts: MessageParts) -> None:
    """Add a part of a message, or of a function's output."""
    match part.get("type"):
        case str() as kind if kind in TEXT_PARTS:
            parts.say(read.text(part.get("text"), f"{field}.text"))
        case "refusal":
            parts.say(read.text(part.get("refusal"), f"{field}.refusal"))
        case "input_image":
            if part.get("image_url") is None:
                parts.attach(from_file(part, field, "image_url", "filename"))
            else:
                parts.attach(from_url(part["image_url"], f"{field}.image_url", detail=detail(part, field)))
        case "input_file":
            if part.get("file_url") is not None:
                named = file_name(part.get("filename"), f"{field}.filename")
                parts.attach(from_url(part["file_url"], f"{field}.file_url", PDF, name=named))
            else:
                parts.attach(from_file(part, field, "file_data", "filename"))
        case _:
            raise BadRequest("must be text, input_image or input_file", field=f"{field}.type")


def _call(item: Item, field: str) -> ToolCall:
    return ToolCall(
        id=read.word(item.get("call_id"), f"{field}.call_id"),
        name=qualified(read.word(item.get("name"), f"{field}.name"), item.get("namespace")),
        arguments=read.text(item.get("arguments"), f"{field}.arguments"),
    )


def qualified(name: str, namespace: Any) -> str:
    """Return the model's name for a function of a namespace."""
    return f"{namespace}__{name}" if type(namespace) is str and namespace else name


def named(name: str, namespace: str) -> Item:
    """Return the fields of an item or tool that name the function for the client."""
    return {"name": name.removeprefix(f"{namespace}__"), "namespace": namespace} if namespace else {"name": name}


def items_of(messages: Sequence[Message], run_id: str) -> list[Item]:
    """Return the messages as items with ids, as `input_items` lists them."""
    items: list[Item] = []

    def add(prefix: str, item: Item) -> None:
        items.append({"id": f"{prefix}_{run_id}_in_{len(items)}", "status": "completed", **item})

    for message in messages:
        if message.role == "tool":
            output = {"call_id": message.tool_call_id, "output": message.content}
            add("fco", {"type": "function_call_output", **output})
            continue
        if message.content or not message.tool_calls:
            part = {"type": "input_text", "text": message.content}
            if message.role == "assistant":
                part = output_text(message.content)
            add("msg", {"type": "message", "role": message.role, "content": [part]})
        for call in message.tool_calls:
            called = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
            add("fc", {"type": "function_call", **called})
    return items


def output_text(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def answered(items: Sequence[Item]) -> list[Message]:
    """Return an answer's items as messages of the assistant."""
    return [message for _, message in turns(items, {})]
