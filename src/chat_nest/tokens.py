"""How many tokens a text has: never too few, since the count guards money.

Without a model's own tokenizer a text counts as its UTF-8 bytes: a byte-level BPE never makes more tokens than bytes.
With `toktok-rs` installed (the extra `tokens`), OpenAI's models are counted exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache

from chat_nest.messages import Message, Tool
from chat_nest.protocols import TokenCounter

MESSAGE_OVERHEAD = 8
"""Tokens that a chat template puts around one message (OpenAI's takes 4)."""
PROMPT_OVERHEAD = 32
"""Tokens that a chat template adds once: the start of the answer, a default system text."""
TOOL_OVERHEAD = 32
"""Tokens that a chat template puts around one tool, or one call of it."""
LONGEST_TOKEN = 128
"""No token of the vocabularies in use is longer, in bytes."""

_EVERYTHING = 1 << 60
_SLOW_RUNS = tuple(character * 128 for character in "-=/#*")
_SLOW_RUNS_ALLOWED = 64
_TAIL = 1_024
_BREAKS = frozenset(" \n,.;:!?\u3001\u3002\uff0c\uff01\uff1f")

_O200K = re.compile(r"(?:gpt-(?:4o|4\.1|4\.5|5)|chatgpt-4o|o[134](?:-|$))")
_CL100K = re.compile(r"gpt-(?:4(?:-|$)|3\.5)")
_REASONING = re.compile(
    r"o[1-9]\d?(?![a-z0-9])|gpt-(?:[5-9]|1\d)(?!\d)(?!.*-chat)"  # gpt-35 is Azure's 3.5
    r"|claude-(?!(?:[123]|instant|(?:opus|sonnet|haiku)-4)(?![a-z\d]))|gemini-(?:2\.5|[3-9])"
)


def _byte_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class ByteCounter:
    """The upper bound for any text and any model with a byte-level BPE: its UTF-8 bytes."""

    exact = False

    def count(self, text: str) -> int:
        return _byte_length(text)


class ExactCounter:
    """OpenAI's own tokenizer: `encoding` is `cl100k_base` or `o200k_base`. Raises ImportError without `toktok-rs`.

    Special tokens such as `<|endoftext|>` are ordinary text. What the tokenizer can't count, or not in a few
    milliseconds (long runs of one punctuation mark), counts as its bytes.
    """

    exact = True

    def __init__(self, encoding: str) -> None:
        # An extra without type stubs, and slow to load.
        from toktok import truncate  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs]

        self._measure: Callable[[str, int, str], tuple[str, int]] = truncate
        self._encoding = encoding
        truncate("The first count builds the tables!", _EVERYTHING, encoding)

    def count(self, text: str) -> int:
        if len(text) > 4_096 and sum(map(text.count, _SLOW_RUNS)) > _SLOW_RUNS_ALLOWED:
            return _byte_length(text)
        try:
            return self._measure(text, _EVERYTHING, self._encoding)[1]
        except Exception:  # lone surrogates, and whatever else it can't take
            return _byte_length(text)


@cache
def _exact(encoding: str) -> TokenCounter:
    try:
        return ExactCounter(encoding)
    except ImportError:
        return ByteCounter()


@lru_cache(256)
def counter_for(model: str) -> TokenCounter:
    """The tightest counter there is for `model`, which is the provider's own name for it.

    The first call for a model that is counted exactly takes 0.2 s: make it when the application starts.
    """
    name = base_name(model)
    if _O200K.match(name):
        return _exact("o200k_base")
    if _CL100K.match(name):
        return _exact("cl100k_base")
    return ByteCounter()


def is_reasoning_model(model: str) -> bool:
    """Whether `model` thinks in tokens that it bills and does not show, so that its output can't be counted."""
    return _REASONING.match(base_name(model)) is not None


def base_name(model: str) -> str:
    """Without a router's prefix or the mark of a fine-tuned model: `openrouter/openai/o3-mini` is `o3-mini`."""
    return model.rpartition("/")[2].lower().removeprefix("ft:")


def message_bound(message: Message, counter: TokenCounter) -> int:
    """An upper bound of the input tokens that a provider will bill for one message."""
    bound = MESSAGE_OVERHEAD + counter.count(message.content)
    for call in message.tool_calls:
        bound += TOOL_OVERHEAD + counter.count(call.name) + counter.count(call.arguments) + counter.count(call.id)
    return bound + counter.count(message.tool_call_id) if message.tool_call_id else bound


def prompt_bound(messages: Iterable[Message], counter: TokenCounter, tools: Iterable[Tool] = ()) -> int:
    """An upper bound of the input tokens that a provider will bill for `messages` and the definitions of `tools`."""
    bound = PROMPT_OVERHEAD + sum(message_bound(message, counter) for message in messages)
    for tool in tools:
        # Providers rewrite the schema into a form of their own, which is shorter than its JSON; twice is never low.
        written = len(tool.name.encode()) + len(tool.description.encode()) + len(bytes(tool.parameters))
        bound += TOOL_OVERHEAD + 2 * written
    return bound


class OutputMeter:
    """Counts one answer as it streams, to cut it at `cap` tokens and to charge it when it ends early.

    With an exact counter the text is counted only when it could have passed the cap since the last count; what lies
    before a word break is counted once and let go, so the work does not grow with the answer. Without one there is no
    tight count: the answer is cut when it had more pieces than the cap (a piece of a token stream has at least one
    token), or more bytes than that many tokens can have.
    """

    def __init__(self, counter: TokenCounter, cap: int) -> None:
        self.exact = counter.exact
        self._counter = counter
        self._cap = cap
        self._exact = counter.exact
        self._settled = 0
        """Exact: tokens of the text let go. Else: bytes so far."""
        self._pieces: list[str] = []
        self._room = cap if counter.exact else cap * LONGEST_TOKEN
        """Bytes that may still come before the cap can have been passed."""
        self._pieces_left = cap

    def add(self, text: str) -> bool:
        """Take one piece; True once the answer has certainly more than `cap` tokens."""
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        self._room -= size
        if self._exact:
            self._pieces.append(text)
            return self._room < 0 and self._recount()
        self._settled += size
        self._pieces_left -= 1
        return self._room < 0 or self._pieces_left < 0

    def produced(self) -> int:
        """The tokens so far: exact where the counter is, else their upper bound in bytes."""
        if not self._exact:
            return self._settled
        self._recount()
        return self._cap - self._room

    def _recount(self) -> bool:
        tail = "".join(self._pieces)
        if len(tail) > _TAIL:
            end = _last_break(tail)
            self._settled += self._counter.count(tail[:end])
            tail = tail[end:]
        self._pieces = [tail]
        self._room = self._cap - self._settled - self._counter.count(tail)
        return self._room < 0


def _last_break(text: str) -> int:
    """The last index that text can be cut at with no change to its tokens, else its end.

    Letters and digits never join a break that follows them, in any of the splitting patterns, and these patterns
    don't look back.
    """
    for index in range(len(text) - 1, 0, -1):
        if text[index] in _BREAKS and text[index - 1].isalnum():
            return index
    return len(text)
