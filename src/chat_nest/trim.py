"""Drop the oldest turns of a chat until it fits."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from chat_nest.messages import Message, Tool
from chat_nest.protocols import TokenCounter
from chat_nest.tokens import message_bound, prompt_bound


class Trimmed(Struct, frozen=True, kw_only=True):
    """`tokens` is the bound of the kept messages as `prompt_bound` gives it; `dropped` counts messages."""

    messages: tuple[Message, ...]
    tokens: int
    dropped: int


def trim(
    messages: Sequence[Message],
    max_messages: int,
    max_tokens: int | None,
    counter: TokenCounter,
    tools: Sequence[Tool] = (),
) -> Trimmed:
    """Keep the most recent turns that fit into `max_messages` and, beside `tools`, `max_tokens`; None is no limit.

    A turn is a user's message and all that answers it, so no answer is kept without its question and no tool result
    without its call. System and developer messages are always kept and don't count as messages. The latest turn is
    kept even where it does not fit: whoever reserves the tokens refuses it.
    """
    spoken = [index for index, message in enumerate(messages) if message.role not in ("system", "developer")]
    standing = set(range(len(messages))).difference(spoken)
    tokens = prompt_bound([messages[index] for index in standing], counter, tools)
    kept = len(spoken)
    for start in range(len(spoken) - 1, -1, -1):
        if start and messages[spoken[start]].role != "user":
            continue
        latest = kept == len(spoken)
        if len(spoken) - start > max_messages and not latest:
            break
        turn = sum(message_bound(messages[index], counter) for index in spoken[start:kept])
        if max_tokens is not None and tokens + turn > max_tokens and not latest:
            break
        kept = start
        tokens += turn
    left = standing.union(spoken[kept:])
    return Trimmed(messages=tuple(messages[index] for index in sorted(left)), tokens=tokens, dropped=kept)
