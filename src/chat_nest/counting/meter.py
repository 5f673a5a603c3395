"""Count the tokens of an answer while it streams."""

from __future__ import annotations

from chat_nest.core.protocols import TokenCounter
from chat_nest.counting.families import UNKNOWN
from chat_nest.counting.tokens import LONGEST_TOKEN, ByteCounter, FamilyCounter, last_break

_BATCH = 2_048
"""Bytes of an answer that are counted in one step."""
_TAIL = 1_024
_SURPLUS = 5
"""How many times too high a family's bound can be: for words that are one token in its vocabulary, not in o200k."""
_TYPICAL, _TYPICAL_OF_BYTES = 125, 300
"""How much too high a bound usually is, in hundredths."""
_DOUBT, _DOUBT_OF_BYTES = 2, 16
"""The most times too high that the bound of a known family, or of bytes, is for a whole answer in any language."""


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
            end = last_break(tail)
            self._settled += count(tail[:end])
            tail = tail[end:]
        self._pieces = [tail]
        self._produced, self._counted = self._settled + count(tail), self.bytes
        room = self._cut_at - self._produced
        self._count_at = self.bytes + min(max(room, 0), _BATCH)
        return room < 0
