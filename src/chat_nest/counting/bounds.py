"""Bounds on the tokens of a prompt, before it is sent."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from chat_nest.core.messages import Message, Tool
from chat_nest.core.protocols import TokenCounter
from chat_nest.counting.families import ModelFamily
from chat_nest.counting.images import UNKNOWN_IMAGES, attachment_bound
from chat_nest.counting.tokens import FamilyCounter

MESSAGE_OVERHEAD = 8
"""Tokens that a chat template adds to one message (OpenAI's adds 4)."""
PROMPT_OVERHEAD = 32
"""Tokens that a chat template adds once: the start of the answer, a default system text."""
TOOL_OVERHEAD = 32
"""Tokens that a chat template adds to one tool, or to one call of it."""


def message_bound(message: Message, counter: TokenCounter) -> int:
    """Return an upper bound of the input tokens that a provider will bill for one message."""
    family = _family(counter)
    bound = (MESSAGE_OVERHEAD if family is None else family.message) + counter.count(message.content)
    for attachment in message.attachments:
        bound += attachment_bound(attachment, getattr(counter, "images", UNKNOWN_IMAGES))
    for call in message.tool_calls:
        bound += TOOL_OVERHEAD + counter.count(call.name) + counter.count(call.arguments) + counter.count(call.id)
    for thought in message.thoughts:  # the signature holds the whole thought, of which the text may be a summary
        bound += counter.count(thought.text) + counter.count(thought.signature + thought.redacted + thought.encrypted)
    return bound + counter.count(message.tool_call_id) if message.tool_call_id else bound


def prompt_bound(messages: Iterable[Message], counter: TokenCounter, tools: Iterable[Tool] = ()) -> int:
    """Return an upper bound of the input tokens that a provider will bill for `messages` and `tools`."""
    family = _family(counter)
    bound = PROMPT_OVERHEAD if family is None else family.chat
    bound += sum(message_bound(message, counter) for message in messages)
    tools_before = bound
    for tool in tools:
        bound += TOOL_OVERHEAD + _schema_bound(tool, counter)
    return bound + (family.tools if family is not None and bound > tools_before else 0)


def _schema_bound(tool: Tool, counter: TokenCounter) -> int:
    """Return the bound for tools. Providers rewrite a tool's JSON into a form of their own."""
    family = _family(counter)
    if family is None and not counter.exact:
        return 2 * (len(tool.name.encode()) + len(tool.description.encode()) + len(bytes(tool.parameters)))
    count = counter.count(msgspec.json.encode(tool).decode())
    # `schema` already includes what the counter adds for the family's text.
    return 2 * count if family is None else -(-count * family.schema // family.text)


def _family(counter: TokenCounter) -> ModelFamily | None:
    return counter.family if isinstance(counter, FamilyCounter) else None
