"""The record of one finished request: caller, model, usage, ending. It holds no text of the chat."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from chat_nest.core.usage import Source, Usage

LOST = "lost"
"""The ending of a request after its process died: its lease expired, and the whole hold was charged."""
RECORDS_DAYS = 90.0
"""How long a store that keeps records keeps them by default."""


class Record(Struct, frozen=True, kw_only=True, gc=False):
    """One admitted request.

    A store receives it twice: with the claim, as the record to keep if the process dies (`ending` is LOST), and when
    the request is settled.
    """

    run: str
    """The id that the client received."""
    caller: str
    """The hash of the caller's id."""
    group: str = ""
    """The name of the caller's group, or ""."""
    profile: str = ""
    model: str = ""
    """PROVIDER:MODEL that answered, or that the last attempt used."""
    started_at: float = 0.0
    """Unix seconds."""
    seconds: float = 0.0
    first_token_seconds: float | None = None
    usage: Usage = Usage()
    cost: int | None = None
    """Nano-dollars; None if the model's price is unknown."""
    price: str = ""
    """The source of that price, and its date."""
    source: Source = "assumed"
    ending: str = LOST
    """The finish reason (`stop`, `length` ...), or the code of the error that ended it."""
    spent_nothing: bool = False
    """True if it ended with an error before anything was spent, so its Idempotency-Key can be used again."""


By = Literal["day", "caller", "group", "profile", "model"]
"""What a report can be grouped by."""


class UsageRow(Struct, frozen=True, kw_only=True):
    """The total use of a group of requests. Tokens are in inclusive buckets, as in Usage."""

    by: tuple[str, ...]
    """The group's values, one for each grouping, in that order. A model is PROVIDER:MODEL."""
    requests: int
    errors: int
    """Requests that ended with an error or were lost; a reader who left or stopped the answer is not an error."""
    assumed: int
    """Requests of unknown use, which were charged the whole hold."""
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: int
    """Nano-dollars of the requests with a known price."""
    unpriced: int
    """Requests without a known price: they may have added cost."""
