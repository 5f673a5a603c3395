"""What is known of a wire format besides its parser and its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from chat_nest.dialects.schemas import Schema


class Facts(Struct, frozen=True, kw_only=True):
    """The default path of a built-in dialect, and its part of the OpenAPI document."""

    path: str
    is_on: bool = True
    """Whether a server has it by default."""
    request: Schema
    """Of the body of a chat."""
    example: Mapping[str, Any]
    """The shortest body."""
    event: Schema
    """Of each event of a streamed answer."""
    stream: str
    """The events of an answer, in a sentence."""
    answer: Schema | None = None
    """Of a whole answer, if the format has such: with `stream` false or absent."""
    error: Schema
    """Of a refusal."""
