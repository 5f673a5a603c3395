"""Trimming: drop the oldest images and turns of a chat until it fits."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from chat_nest.core.attachments import first_new, without
from chat_nest.core.messages import Message, Tool
from chat_nest.core.protocols import TokenCounter
from chat_nest.counting.bounds import message_bound, prompt_bound

_CHARACTERS = 4
"""Characters of a token of plain text, about."""


class Trimmed(Struct, frozen=True, kw_only=True):
    """`tokens` is the bound of the kept messages as `prompt_bound` gives it; `dropped` counts messages."""

    messages: tuple[Message, ...]
    tokens: int
    dropped: int
    dropped_images: int = 0
    """The images and files of the kept messages that a short text replaces."""


def trim(
    messages: Sequence[Message],
    max_messages: int,
    max_tokens: int | None,
    counter: TokenCounter,
    tools: Sequence[Tool] = (),
) -> Trimmed:
    """Keep the most recent turns that fit into `max_messages` and, beside `tools`, `max_tokens`; None is no limit.

    A turn is a user's message and all that answers it, so no answer is kept without its question and no tool result
    without its call. System and developer messages are always kept and don't count as messages. A turn that does not
    fit is kept without its images if it fits then, and so are those before it. The latest turn is always kept with its
    new input, even if it does not fit: the reservation then refuses it.
    """
    if len(messages) <= max_messages and _may_fit(messages, max_tokens):
        tokens = prompt_bound(messages, counter, tools)
        if max_tokens is None or tokens <= max_tokens:
            return Trimmed(messages=tuple(messages), tokens=tokens, dropped=0)
    spoken = [index for index, message in enumerate(messages) if message.role not in ("system", "developer")]
    standing = set(range(len(messages))).difference(spoken)
    fitted = list(messages)
    tokens = prompt_bound([messages[index] for index in standing], counter, tools)
    kept, dropped_images = len(spoken), 0
    new = first_new(messages)
    for start in range(len(spoken) - 1, -1, -1):
        if start and messages[spoken[start]].role != "user":
            continue
        latest = kept == len(spoken)
        if len(spoken) - start > max_messages and not latest:
            break
        here = spoken[start:kept]
        turn = sum(message_bound(messages[index], counter) for index in here)
        for index in here:  # the oldest first; all of them once a newer one was dropped
            fits = max_tokens is None or tokens + turn <= max_tokens
            if messages[index].attachments and index < new and (dropped_images or not fits):
                fitted[index] = without(messages[index])
                turn += message_bound(fitted[index], counter) - message_bound(messages[index], counter)
        if max_tokens is not None and tokens + turn > max_tokens and not latest:
            break
        kept = start
        tokens += turn
        dropped_images += sum(len(messages[index].attachments) - len(fitted[index].attachments) for index in here)
    left = tuple(fitted[index] for index in sorted(standing.union(spoken[kept:])))
    return Trimmed(messages=left, tokens=tokens, dropped=kept, dropped_images=dropped_images)


def _may_fit(messages: Sequence[Message], max_tokens: int | None) -> bool:
    """Return whether all messages probably fit, so that counting them together is not in vain."""
    return max_tokens is None or sum([len(message.content) for message in messages]) <= _CHARACTERS * max_tokens
