"""Token counters for texts: bounds that guard money, and are tight for ordinary chats.

OpenAI's models are counted exactly with `toktok-rs` (the extra `tokens`). Other models are counted by the same
tokenizer and by what is known of their family (see `families`). Without it, and with `counting = "bytes"`, a text
counts as its UTF-8 bytes: a byte-level BPE never makes more tokens than bytes. docs/ledger.md states how far each bound
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import cache, lru_cache
from typing import Literal

import msgspec

from chat_nest.core.messages import Message, Tool
from chat_nest.core.protocols import TokenCounter
from chat_nest.counting.families import UNKNOWN, Encoding, Family, base_name, encoding_of, family_of, is_reasoning_model
from chat_nest.counting.images import UNKNOWN_IMAGES, ImageRule, attachment_bound, image_rule

__all__ = [
    "LEARNED_MOST",
    "LONGEST_TOKEN",
    "ByteCounter",
    "Counting",
    "ExactCounter",
    "FamilyCounter",
    "OutputMeter",
    "TokenCounter",
    "TokenCounters",
    "base_name",
    "counter_for",
    "is_reasoning_model",
    "message_bound",
    "prompt_bound",
]

Counting = Literal["auto", "bytes"]
"""How a provider's models are counted before they answer: by the tightest bound there is, or by bytes."""

MESSAGE_OVERHEAD = 8
"""Tokens that a chat template adds to one message (OpenAI's adds 4)."""
PROMPT_OVERHEAD = 32
"""Tokens that a chat template adds once: the start of the answer, a default system text."""
LONGEST_TOKEN = 128
"""The longest token of the vocabularies in use, in bytes."""
TOOL_OVERHEAD = 32
"""Tokens that a chat template adds to one tool, or to one call of it."""

_EVERYTHING = 1 << 60
_QUICK = 4_096
"""Characters. A shorter text is counted in a few milliseconds, whatever it says."""
_SLICE = 16_384
"""Characters that are counted in one step."""
_SLOW_RUNS = tuple(character * 96 for character in "-=/#*")
_UNUSUAL_ALLOWED = 3_072
"""The excess of tokens over ordinary text at which the rest of a text counts as bytes: such text is slow to count."""
_LONGEST_WORD = 512
_BATCH = 2_048
"""Bytes of an answer that are counted in one step."""
_TAIL = 1_024
_SURPLUS = 5
"""How many times too high a family's bound can be: for words that are one token in its vocabulary, not in o200k."""
_TYPICAL, _TYPICAL_OF_BYTES = 125, 300
"""How much too high a bound usually is, in hundredths."""
_DOUBT, _DOUBT_OF_BYTES = 2, 16
"""The most times too high that the bound of a known family, or of bytes, is for a whole answer in any language."""
_BREAKS = frozenset(" \n,.;:!?\u3001\u3002\uff0c\uff01\uff1f")
_DIGITS = b"0123456789"
_CHEAP = _DIGITS + b" \n\"',:.;(){}[]="
"""Characters that make many tokens of a text, but are fast to count."""

_LEARN_FROM = 128
"""The least counted tokens of a prompt whose report measures the text, not the template around it."""
_LEARN_UP_TO = 6
"""The most times the count that a report can be true: no text has more, so a higher report counts something else."""
_LEARNED_MARGIN = 5
LEARNED_MOST = 150
"""Hundredths. One odd prompt raises the bound for every prompt, so the rise is limited."""


def _byte_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class ByteCounter:
    """The upper bound for any text and any model with a byte-level BPE: its UTF-8 bytes."""

    exact = False
    images: ImageRule = UNKNOWN_IMAGES

    def count(self, text: str) -> int:
        return _byte_length(text)


class ExactCounter:
    """OpenAI's own tokenizer: `encoding` is `cl100k_base` or `o200k_base`. Raises ImportError without `toktok-rs`.

    Special tokens such as `<|endoftext|>` are ordinary text. Text that the tokenizer can't count, or not in a few
    milliseconds (long runs of one mark, long texts of no language), counts as its bytes.
    """

    exact = True
    images: ImageRule = UNKNOWN_IMAGES

    def __init__(self, encoding: Encoding) -> None:
        # An extra without type stubs, and slow to load.
        from toktok import truncate  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs]

        self._measure: Callable[[str, int, str], tuple[str, int]] = truncate
        self._encoding = encoding
        truncate("The first count builds the tables!", _EVERYTHING, encoding)

    def count(self, text: str) -> int:
        try:
            if len(text) <= _QUICK:
                return self._measure(text, _EVERYTHING, self._encoding)[1]
            if len(text) <= _SLICE:
                return _byte_length(text) if _has_slow_runs(text) else self._tokens(text)
            return self._count_long(text)
        except Exception:  # lone surrogates, and other text that it can't encode
            return _byte_length(text)

    def _tokens(self, text: str) -> int:
        return self._measure(text, _EVERYTHING, self._encoding)[1]

    def _count_long(self, text: str) -> int:
        """Count slice by slice, until a text has more unusual tokens than are fast to count."""
        total, start, unusual = 0, 0, 0
        while start < len(text):
            end = start + _SLICE
            part = text[start:end]
            if end < len(text):
                part = part[: _last_break(part, _LONGEST_WORD)]
            start += len(part)
            size = _byte_length(part)
            if unusual > _UNUSUAL_ALLOWED or _has_slow_runs(part):
                total += size
                continue
            count = self._tokens(part)
            total += count
            unusual += _unusual(part, size, count)
        return total


def _unusual(part: str, size: int, count: int) -> int:
    """Return how far a text of `size` bytes and `count` tokens is from ordinary ones, which have 3 to 6 bytes a token.

    The unit is tokens in excess of ordinary text. One takes about half a microsecond to count.
    """
    dense = 31 * count > 10 * size
    if not dense and count * (6 if part.isascii() else 9) >= size:
        return 0
    data = part.encode()
    blanks = size - len(data.translate(None, b" \t\r\n"))
    if 2 * blanks > size:
        return size // 12
    if not dense:
        return size // 5  # long runs of marks
    cheap = size - len(data.translate(None, _CHEAP))
    return max(0, count - 10 * size // 31 - 3 * cheap // 10)


def _has_slow_runs(text: str) -> bool:
    """Return whether counting takes half a millisecond for each 1,000 characters."""
    return len(text) > _QUICK and sum(map(text.count, _SLOW_RUNS)) > 1


class FamilyCounter:
    """A bound for a family's models, by o200k's count. It rises if a provider reports more."""

    exact = False
    images: ImageRule = UNKNOWN_IMAGES
    """How the counted model counts images."""

    def __init__(self, family: Family, basis: TokenCounter) -> None:
        self.family = family
        self._basis = basis
        self.learned = 100
        """Hundredths of the family's bound."""

    def count(self, text: str) -> int:
        family, tokens, length = self.family, self._basis.count(text), len(text)
        bound, size = tokens * family.text, length
        if family.digits or not text.isascii():
            data = text.encode("utf-8", "surrogatepass")
            size = len(data)
            bound += (size - length) * family.other
            if family.digits:
                bound += 67 * (size - len(data.translate(None, _DIGITS)))
        # o200k has tokens for long runs of a character that other vocabularies lack.
        bound = max(bound, 20 * length)
        if family.byte_level and bound > 100 * size:
            return size
        return -(-bound * self.learned // 10_000)

    def learn(self, counted: int, reported: int) -> None:
        """Raise the bound if the provider reported more than `counted` tokens for a prompt."""
        if _LEARN_FROM <= counted < reported <= _LEARN_UP_TO * counted:
            ratio = 100 * reported // counted + _LEARNED_MARGIN
            self.learned = min(max(self.learned, self.learned * ratio // 100), LEARNED_MOST)


@cache
def _exact(encoding: Encoding) -> ExactCounter | ByteCounter:
    try:
        return ExactCounter(encoding)
    except ImportError:
        return ByteCounter()


@lru_cache(256)
def counter_for(model: str) -> ExactCounter | FamilyCounter | ByteCounter:
    """Return the tightest counter there is for `model`, the provider's own name for it.

    The first call takes 0.2 s: make it when the application starts.
    """
    encoding = encoding_of(model)
    if encoding is not None:
        return _exact(encoding)
    basis = _exact("o200k_base")
    return FamilyCounter(family_of(model), basis) if basis.exact else basis


class TokenCounters:
    """The counter of each model, by PROVIDER:MODEL. `counting` is by provider; "auto" if it is missing."""

    def __init__(self, counting: Mapping[str, Counting] | None = None) -> None:
        self._counting = dict(counting or {})
        self._counters: dict[str, TokenCounter] = {}

    def of(self, model: str) -> TokenCounter:
        """Return the counter of PROVIDER:MODEL; always the same object, which keeps what it learned."""
        counter = self._counters.get(model)
        if counter is None:
            provider, _, name = model.partition(":")
            found = ByteCounter() if self._counting.get(provider) == "bytes" else copy(counter_for(name))
            found.images = image_rule(name)
            self._counters[model] = counter = found
        return counter

    def renewed(self, counting: Mapping[str, Counting] | None) -> TokenCounters:
        """Return counters for another `counting`. Those of a provider with the same one keep what they learned."""
        made = TokenCounters(counting)
        for model, counter in list(self._counters.items()):
            provider = model.partition(":")[0]
            if made._counting.get(provider, "auto") == self._counting.get(provider, "auto"):
                made._counters[model] = counter
        return made

    def become(self, other: TokenCounters) -> None:
        """Take over the counters of `other`, without those that are now counted in another way."""
        self._counting, self._counters = other._counting, other._counters

    def learned(self) -> Mapping[str, int]:
        """Return the rise of each bound that can rise, in hundredths of its family's, by PROVIDER:MODEL."""
        counters = self._counters.items()
        return {model: counter.learned for model, counter in counters if isinstance(counter, FamilyCounter)}

    def raise_to(self, model: str, learned: int) -> None:
        """Take what another process learned; a bound never falls, nor rises over LEARNED_MOST hundredths."""
        counter = self._counters.get(model)
        if isinstance(counter, FamilyCounter):
            counter.learned = max(counter.learned, min(learned, LEARNED_MOST))


def _family(counter: TokenCounter) -> Family | None:
    return counter.family if isinstance(counter, FamilyCounter) else None


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


class OutputMeter:
    """Counts one answer as it streams, to cut it at `cap` tokens and to charge it when it ends early.

    Text is counted a batch at a time, and when it could have passed the cap since the last count. Text before a word
    break is counted once and dropped, so that neither work nor memory grow with the answer. A counter that is only a
    bound cuts an answer once it has more than `cap` tokens in any language: far above the cap, because the provider was
    given the cap as its own limit. A byte counter keeps no text, and cuts at the most bytes that so many tokens can
    have.
    """

    def __init__(self, counter: TokenCounter, cap: int, *, teaches: bool = True) -> None:
        self._teaches = teaches
        """True if the prompt is text only, so that its reported count measures the counter."""
        self.bytes = 0
        """UTF-8 bytes so far."""
        self._counter = counter
        self._keeps_text = not isinstance(counter, ByteCounter)
        self._cut_at = cap * (1 if counter.exact else _SURPLUS if self._keeps_text else LONGEST_TOKEN)
        self._doubt = _DOUBT if isinstance(counter, FamilyCounter) and counter.family is not UNKNOWN else _SURPLUS
        self._settled = 0
        """Tokens of the text that was dropped."""
        self._pieces: list[str] = []
        """The text that was not dropped."""
        self._produced = 0
        """Tokens of the first `_counted` bytes."""
        self._counted = 0
        self._count_at = min(self._cut_at, _BATCH) if self._keeps_text else self._cut_at
        """How many bytes may come before the next count."""
        self._mark = 0
        """The number of pieces before the mark, as long as `_before_mark` is None."""
        self._before_mark: int | None = 0
        """Tokens before the mark."""
        self._mark_bytes = 0

    def add(self, text: str) -> bool:
        """Take one piece; True once the answer certainly exceeds the cap."""
        self.bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        if not self._keeps_text:
            return self.bytes > self._count_at
        self._pieces.append(text)
        return self.bytes > self._count_at and self._recount()

    def produced(self) -> int:
        """Return the tokens so far: exact if the counter is, else an upper bound."""
        if not self._keeps_text:
            return self.bytes
        if self._counted != self.bytes:
            self._recount()
        return self._produced

    def charged(self, tokens: int, granted: int) -> int:
        """Return the charge for `tokens` of `produced` or `since`, if the provider's limit was `granted`.

        A bound above `granted` is cut to it, unless the answer certainly has more tokens than that.
        """
        if self._counter.exact:
            return tokens
        doubt, typical = (_DOUBT_OF_BYTES, _TYPICAL_OF_BYTES) if not self._keeps_text else (self._doubt, _TYPICAL)
        return min(tokens, granted) if tokens <= doubt * granted else tokens * 100 // typical

    def mark(self) -> None:
        """Remember this point for `since`. Counts nothing, so that a provider may report with every piece."""
        self._mark, self._mark_bytes = len(self._pieces), self.bytes
        self._before_mark = None if self._keeps_text else self.bytes

    def since(self) -> int:
        """Return the tokens since the mark, as in `produced`; 0 only if no text came."""
        if self.bytes == self._mark_bytes:
            return 0
        if self._before_mark is None:
            self._recount()
        return max(1, self.produced() - (self._before_mark or 0))

    def learn(self, counted: int, reported: int) -> None:
        """Pass on that the provider reported `reported` tokens of a prompt that the counter counted as `counted`."""
        if self._teaches and isinstance(self._counter, FamilyCounter):
            self._counter.learn(counted, reported)

    def _recount(self) -> bool:
        count = self._counter.count
        if self._before_mark is None:
            self._before_mark = self._settled + count("".join(self._pieces[: self._mark]))
        tail = "".join(self._pieces)
        if len(tail) > _TAIL:
            end = _last_break(tail)
            self._settled += count(tail[:end])
            tail = tail[end:]
        self._pieces = [tail]
        self._produced, self._counted = self._settled + count(tail), self.bytes
        room = self._cut_at - self._produced
        self._count_at = self.bytes + min(max(room, 0), _BATCH)
        return room < 0


def _last_break(text: str, within: int | None = None) -> int:
    """Return the last index where a cut does not change the text's tokens, else its end; `within` its last characters.

    Letters and digits never join a break that follows them, in any of the splitting patterns, and these patterns don't
    look back.
    """
    for index in range(len(text) - 1, 0 if within is None else max(0, len(text) - within), -1):
        if text[index] in _BREAKS and text[index - 1].isalnum():
            return index
    return len(text)
