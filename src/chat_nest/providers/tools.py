"""Tool calls and their results, for the providers whose format is not OpenAI's."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from chat_nest.messages import Message


def as_object(arguments: str) -> object:
    """The arguments as the JSON object that they should be; what the model wrote instead is kept under `arguments`."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return msgspec.Raw(arguments.encode())  # as it was written: numbers may be larger than ours
    return {"arguments": arguments} if arguments.strip() else {}


def names_by_id(messages: Iterable[Message]) -> dict[str, str]:
    """Which function each call is of: some APIs want the name with its result, not the call's id."""
    return {call.id: call.name for message in messages for call in message.tool_calls}
