"""Join the halves of surrogate pairs: some servers cut a character beyond the Basic Multilingual Plane in two."""

from __future__ import annotations

from collections.abc import Sequence

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.providers.loose import whole_text

Said = TextDelta | ReasoningDelta | ToolCallDelta
_Key = tuple[type[Said], int]


class Halves:
    """Joins the halves in the text, in the reasoning and in each call. A half that stays alone becomes U+FFFD."""

    def __init__(self) -> None:
        self._waiting: dict[_Key, str] = {}
        """The first half at the end of the last piece of each."""

    def join(self, deltas: Sequence[Delta], *, last: bool) -> list[Delta]:
        """Return the deltas with whole characters only; at the `last` call also those that are left."""
        joined: list[Delta] = []
        for delta in deltas:
            if not isinstance(delta, TextDelta | ReasoningDelta | ToolCallDelta):
                joined.append(delta)
                continue
            key = (type(delta), delta.index if isinstance(delta, ToolCallDelta) else 0)
            text = delta.arguments if isinstance(delta, ToolCallDelta) else delta.text
            self._add(joined, key, delta, self._waiting.pop(key, "") + text)
        if last:
            rest = [_with_text(*key, "\ufffd") for key in self._waiting]
            self._waiting.clear()
            at = next((at for at, delta in enumerate(joined) if isinstance(delta, FinishDelta)), len(joined))
            joined[at:at] = rest
        return joined

    def _add(self, joined: list[Delta], key: _Key, delta: Said, text: str) -> None:
        if "\ud800" <= text[-1:] <= "\udbff":
            self._waiting[key] = text[-1]
            text = text[:-1]
        text = whole_text(text)
        if isinstance(delta, ToolCallDelta) and delta.id:
            joined.append(ToolCallDelta(delta.index, text, delta.id, delta.name))
        elif text:
            joined.append(_with_text(*key, text))


def _with_text(kind: type[Said], index: int, text: str) -> Said:
    return ToolCallDelta(index, text) if kind is ToolCallDelta else kind(text)
