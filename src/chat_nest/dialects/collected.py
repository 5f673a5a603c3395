"""An answer that is sent whole: what a dialect's JSON body is made of."""

from __future__ import annotations

from chat_nest.deltas import Batch, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.messages import ToolCall


class Collected:
    """Keeps an answer's pieces. It grows no further than the answer's cap of output tokens lets it."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}

    def add(self, batch: Batch) -> None:
        for delta in batch:
            if isinstance(delta, TextDelta):
                self._text.append(delta.text)
            elif isinstance(delta, ReasoningDelta):
                self._reasoning.append(delta.text)
            elif isinstance(delta, ToolCallDelta):
                self._calls.setdefault(delta.index, []).append(delta)

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def calls(self) -> list[ToolCall]:
        return [
            ToolCall(id=pieces[0].id, name=pieces[0].name, arguments="".join(piece.arguments for piece in pieces))
            for pieces in self._calls.values()
        ]
