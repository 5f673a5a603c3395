"""What is kept of one request when it is over: who, which model, how much, how it ended. Never a word of the chat."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from chat_nest.usage import Source, Usage

LOST = "lost"
"""The ending of a request whose process died: its lease expired, and the whole hold was charged."""
RECORDS_DAYS = 90.0
"""How long a store that keeps records keeps them, where nobody says otherwise."""


class Record(Struct, frozen=True, kw_only=True, gc=False):
    """One admitted request. A store gets it twice: with the claim, as it is to be kept if nobody ever says more
    (`ending` is LOST), and when it is settled.
    """

    run: str
    """The id that the client was told."""
    caller: str
    """The hash of the caller's id."""
    group: str = ""
    """The name of the caller's group, or nothing."""
    profile: str = ""
    model: str = ""
    """PROVIDER:MODEL that answered, or was asked last."""
    started_at: float = 0.0
    """Unix seconds."""
    seconds: float = 0.0
    first_token_seconds: float | None = None
    usage: Usage = Usage()
    cost: int | None = None
    """Nano-dollars; None where the model's price is not known."""
    price: str = ""
    """Whose price that was, and of when."""
    source: Source = "assumed"
    ending: str = LOST
    """The finish reason (`stop`, `length` ...), or the code of the error that ended it."""
    spent_nothing: bool = False
    """It ended with an error before anything was spent, so the same question may be asked again under the same key."""


By = Literal["day", "caller", "group", "profile", "model"]
"""What a report can be grouped by."""


class UsageRow(Struct, frozen=True, kw_only=True):
    """What some requests used together. Tokens are in inclusive buckets, as in Usage."""

    by: tuple[str, ...]
    """What they have in common: a value for each thing grouped by, in that order. A model is PROVIDER:MODEL."""
    requests: int
    errors: int
    """Those that ended with an error, or were lost; a reader who left or stopped the answer is none."""
    assumed: int
    """Those of which nobody knows what they used, so the whole hold was charged."""
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: int
    """Nano-dollars, of those whose price is known."""
    unpriced: int
    """Those whose price is not known: they may have cost more."""
