"""The tool calls and results of a conversation, as providers take them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from chat_nest.core.messages import Message


def as_object(arguments: str) -> object:
    """Return the arguments as a JSON object. If the model wrote anything else, that is the object's `arguments`."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return msgspec.Raw(arguments.encode())  # unchanged: numbers may be larger than Python's
    return {"arguments": arguments} if arguments.strip() else {}


def names_by_id(messages: Iterable[Message]) -> dict[str, str]:
    """Return the function of each call, by id: some APIs need the name with the result, not the call's id."""
    return {call.id: call.name for message in messages for call in message.tool_calls}


def filled(arguments: str) -> str:
    """Return the arguments of an earlier call, `{}` for none: some servers read them as JSON, and refuse a blank."""
    return arguments if arguments.strip() else "{}"
