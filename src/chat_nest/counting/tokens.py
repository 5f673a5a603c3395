"""Token counters for texts: bounds that guard money, and are tight for ordinary chats.

OpenAI's models are counted exactly with `toktok-rs` (the extra `tokens`). Other models are counted by the same
tokenizer and by what is known of their family (see `families`). Without it, and with `counting = "bytes"`, a text
counts as its UTF-8 bytes: a byte-level BPE never makes more tokens than bytes. docs/ledger.md states how far each bound
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import cache, lru_cache
from typing import Literal

from chat_nest.core.protocols import TokenCounter
from chat_nest.counting.families import Encoding, ModelFamily, base_name, encoding_of, family_of, is_reasoning_model
from chat_nest.counting.images import UNKNOWN_IMAGES, ImageRule, image_rule

__all__ = [
    "LEARNED_MOST",
    "LONGEST_TOKEN",
    "ByteCounter",
    "Counting",
    "ExactCounter",
    "FamilyCounter",
    "TokenCounter",
    "TokenCounters",
    "base_name",
    "counter_for",
    "is_reasoning_model",
]

Counting = Literal["auto", "bytes"]
"""How a provider's models are counted before they answer: by the tightest bound there is, or by bytes."""

LONGEST_TOKEN = 128
"""The longest token of the vocabularies in use, in bytes."""

_EVERYTHING = 1 << 60
_QUICK = 4_096
"""Characters. A shorter text is counted in a few milliseconds, whatever its content."""
_SLICE = 16_384
"""Characters that are counted in one step."""
_SLOW_RUNS = tuple(character * 96 for character in "-=/#*")
_UNUSUAL_ALLOWED = 3_072
"""The excess of tokens over ordinary text at which the rest of a text counts as bytes: such text is slow to count."""
_LONGEST_WORD = 512
_BREAKS = frozenset(" \n,.;:!?\u3001\u3002\uff0c\uff01\uff1f")
_DIGITS = b"0123456789"
_CHEAP = _DIGITS + b" \n\"',:.;(){}[]="
"""Characters that make many tokens of a text, but are fast to count."""

_LEARN_FROM = 128
"""The fewest counted tokens of a prompt for which a report measures the text, not the template around it."""
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


def last_break(text: str, within: int | None = None) -> int:
    """Return the last index where a cut does not change the text's tokens, else its end; `within` its last characters.

    Letters and digits never join a break that follows them, in any of the splitting patterns, and these patterns don't
    look back.
    """
    for index in range(len(text) - 1, 0 if within is None else max(0, len(text) - within), -1):
        if text[index] in _BREAKS and text[index - 1].isalnum():
            return index
    return len(text)


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
                part = part[: last_break(part, _LONGEST_WORD)]
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

    def __init__(self, family: ModelFamily, basis: TokenCounter) -> None:
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
