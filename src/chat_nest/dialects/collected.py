"""The pieces of an answer that is sent whole, for the JSON body of a dialect."""

from __future__ import annotations

from chat_nest.core.deltas import Batch, ReasoningDelta, SignatureDelta, TextDelta, ToolCallDelta
from chat_nest.core.messages import Thought, ToolCall

NO_ARGUMENTS = "{}"
"""The arguments of a call without any, in every format: clients parse this text."""


class Collected:
    """Collects the pieces of an answer, up to the answer's cap of output tokens."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._thoughts: list[Thought] = []
        """The signed and the hidden ones."""
        self._signed = 0
        """The number of pieces of reasoning that are part of a signed thought."""
        self._calls: dict[int, list[ToolCallDelta]] = {}

    def add(self, batch: Batch) -> None:
        for delta in batch:
            if isinstance(delta, TextDelta):
                self._text.append(delta.text)
            elif isinstance(delta, ReasoningDelta):
                self._reasoning.append(delta.text)
            elif isinstance(delta, SignatureDelta) and not delta.encrypted:  # that is another format's
                thought = "" if delta.redacted else "".join(self._reasoning[self._signed :])
                self._signed = self._signed if delta.redacted else len(self._reasoning)
                self._thoughts.append(Thought(text=thought, signature=delta.signature, redacted=delta.redacted))
            elif isinstance(delta, ToolCallDelta):
                self._calls.setdefault(delta.index, []).append(delta)

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def thoughts(self) -> list[Thought]:
        """Return the reasoning in thoughts, in order; the last one has no signature if none came for it."""
        rest = "".join(self._reasoning[self._signed :])
        return [*self._thoughts, *([Thought(text=rest)] if rest else [])]

    @property
    def calls(self) -> list[ToolCall]:
        return [
            ToolCall(
                id=pieces[0].id,
                name=pieces[0].name,
                arguments="".join(piece.arguments for piece in pieces).strip() or NO_ARGUMENTS,
            )
            for pieces in self._calls.values()
        ]
