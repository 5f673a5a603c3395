"""Deltas: the pieces of an answer that a provider yields, in a form that no provider or dialect owns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

from msgspec import Struct

from chat_nest.core.usage import Usage

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
class SignatureDelta(Struct, frozen=True, array_like=True, tag="signature", gc=False):
    """What the provider needs to accept a thought again: the signature of the reasoning before it, or a hidden thought.

    Exactly one of the fields has a text. It is no output of the model and counts as none.
    """

    signature: str = ""
    redacted: str = ""
    """A whole thought that only the provider can read (Anthropic's `redacted_thinking`)."""
    encrypted: str = ""
    """The thought of a provider with Responses, of which the reasoning before it is a summary (`encrypted_content`)."""

    @property
    def text(self) -> str:
        """Return no text: nothing of this is shown or counted."""
        return ""


@final
class ToolCallDelta(Struct, frozen=True, array_like=True, tag="tool", gc=False):
    """A piece of a call to one of the client's tools; it counts as output.

    `index` distinguishes the calls of one answer. A call's first piece has its `id` and `name`; join the `arguments` of
    its pieces.
    """

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """Return the text that the model wrote."""
        return self.name + self.arguments


@final
class UsageDelta(Struct, frozen=True, array_like=True, tag="usage", gc=False):
    """The provider's totals so far; the newest replaces the ones before."""

    usage: Usage


@final
class FinishDelta(Struct, frozen=True, array_like=True, tag="finish", gc=False):
    """The provider's own completion signal; the newest replaces the ones before."""

    reason: FinishReason


@final
class AskedDelta(Struct, frozen=True, array_like=True, tag="asked", gc=False):
    """The request of a kept answer, in its dialect's format: the first delta of a log, never from a provider."""

    text: str


Delta = TextDelta | ReasoningDelta | SignatureDelta | ToolCallDelta | UsageDelta | FinishDelta | AskedDelta
Batch = Sequence[Delta]
"""All deltas from one read of the provider's stream; never empty."""
