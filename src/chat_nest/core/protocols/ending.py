"""How a request ended, for dialects, run logs and observers."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from chat_nest.core.deltas import FinishReason
from chat_nest.core.errors import ChatError
from chat_nest.core.usage import Source, Usage


class Ending(Struct, frozen=True, kw_only=True):
    """How an admitted request ended and what it used: for the final event and for observers."""

    id: str
    caller: str
    """The hash of the caller's id."""
    profile: str
    model: str
    reason: FinishReason | None
    """None if `error` has the reason."""
    error: ChatError | None
    usage: Usage
    cost: int | None = None
    """Nano-dollars; None if the model's price is unknown."""
    source: Source
    seconds: float
    first_token_seconds: float | None
    remaining: Mapping[str, int]
    """The room left on each of the caller's own limits, by name; limits in dollars as nano-dollars."""
    group: str = ""
    dropped_messages: int = 0
    """The number of oldest messages that did not fit and were not sent."""
    signature: str = ""
    """Of the whole answer's text, if the profile has `signed_turns`."""
    dropped_images: int = 0
    """The number of images and files replaced by a short text: they did not fit, or the model can't read them."""


class Finale(Struct, frozen=True, kw_only=True):
    """How a run ended, for readers who follow it: an ending, or an error's code and message."""

    ending: Ending | None = None
    code: str = ""
    message: str = ""
    retryable: bool = False
