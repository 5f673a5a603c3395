"""What a provider yields, piece by piece, in no provider's and no dialect's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

from msgspec import Struct

from chat_nest.usage import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "other"]
"""`length` also ends a stream that we cut at its cap."""


@final
class TextDelta(Struct, frozen=True, array_like=True, tag="text", gc=False):
    """A piece of the answer, never empty."""

    text: str


@final
class ReasoningDelta(Struct, frozen=True, array_like=True, tag="reasoning", gc=False):
    """A piece of the model's visible reasoning, never empty; it counts as output."""

    text: str


@final
class ToolCallDelta(Struct, frozen=True, array_like=True, tag="tool", gc=False):
    """A piece of a call to one of the client's tools; it counts as output.

    `index` tells the calls of one answer apart. A call's first piece has its `id` and `name`; `arguments` is text to be
    joined.
    """

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """What the model wrote."""
        return self.name + self.arguments


@final
class UsageDelta(Struct, frozen=True, array_like=True, tag="usage", gc=False):
    """Totals so far as the provider counts them; the newest replaces the ones before."""

    usage: Usage


@final
class FinishDelta(Struct, frozen=True, array_like=True, tag="finish", gc=False):
    """The provider's own completion signal."""

    reason: FinishReason


Delta = TextDelta | ReasoningDelta | ToolCallDelta | UsageDelta | FinishDelta
Batch = Sequence[Delta]
"""Everything that one read from the provider brought; never empty."""
