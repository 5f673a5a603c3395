"""What one request used, in tokens."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Source = Literal["reported", "estimated", "assumed"]
"""Who says so: the provider reported it, we counted what came, or nothing is known and the whole hold is charged."""


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens, in inclusive buckets: cached tokens are part of the input, reasoning is part of the output."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together: what token budgets are charged."""
        return self.input_tokens + self.output_tokens
