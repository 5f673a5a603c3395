"""Claims on a store, their lines (the counters that a request draws on together), and the store's answers."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from chat_nest.core.limits import LineScope, Unit
from chat_nest.core.records import Record

MAX_AMOUNT = 2**50
"""The largest limit or amount: stores keep integers as doubles, which are exact only below 2**53."""

OWN: frozenset[LineScope] = frozenset(("caller", "key", "session"))
"""The owners that are one user, who may know what is left of their limits."""
LineKind = Literal["window", "rate", "gauge", "request"]


class Line(Struct, frozen=True, kw_only=True, gc=False):
    """One counter that a request draws on: `fixed` units, and more for each output token.

    Kinds:
    - `window`: a calendar window of `period` seconds. Its id is part of the key; `resets_at` is its end, in Unix
      seconds.
    - `rate`: GCRA (ITU-T I.371) with a burst of `limit`, refilled evenly over `period` seconds.
    - `gauge`: held while the request runs, then given back: concurrent streams.
    - `request`: a limit on this one request; it has no state.
    """

    name: str
    """The limit's name in a profile, as the user sees it: `tokens_per_day`."""
    scope: LineScope
    key: str
    """The first two words, `SCOPE:OWNER`, name the owner: stores that spread keys keep an owner's keys together."""
    unit: Unit
    kind: LineKind
    limit: int
    fixed: int
    per_million: int = 0
    """Units per million output tokens, rounded up: 1_000_000 for tokens."""
    period: int = 0
    resets_at: float = 0.0

    def amount(self, output_tokens: int) -> int:
        """Return what a request with this much output draws, in the line's unit."""
        return self.fixed - (-output_tokens * self.per_million // 1_000_000)

    def affordable(self, room: int) -> int | None:
        """Return the output tokens that fit into `room` units; None if output is free, -1 if `fixed` does not fit."""
        if room < self.fixed:
            return -1
        return (room - self.fixed) * 1_000_000 // self.per_million if self.per_million else None


class Claim(Struct, frozen=True, kw_only=True, gc=False):
    """What one request reserves at a store: all lines or none."""

    id: str
    fingerprint: str
    """The same id with another fingerprint is a Conflict."""
    owner: str = ""
    """The request that made the claim. Only the owner that was granted an id can extend, settle and release it."""
    lines: tuple[Line, ...]
    max_output_tokens: int
    min_output_tokens: int = 1
    record: Record | None = None
    """The record to keep if the lease expires; the store adds what was charged."""


class Granted(Struct, frozen=True, kw_only=True, gc=False):
    """The claim is held. Its output is cut to what the tightest line affords."""

    output_tokens: int
    room: tuple[int, ...]
    """For each line, the room left after this hold."""


class Refused(Struct, frozen=True, kw_only=True, gc=False):
    """Nothing was changed. `line` is the index of the first line that had no room; `retry_after` is in seconds."""

    line: int
    room: int
    retry_after: float


class Duplicate(Struct, frozen=True, kw_only=True, gc=False):
    """The id was reserved before: the first answer again, or `released` if the id can't be reserved any more."""

    output_tokens: int
    state: Literal["open", "settled", "expired", "released"]
    record: Record | None = None
    """The record of the settled request; None while it is open, or if none was given."""


class Conflict(Struct, frozen=True):
    """The id was reserved before with another fingerprint."""


class Quota(Struct, frozen=True, gc=False):
    """A line of one request, the `room` left on it in its unit, and the seconds until it is full again."""

    line: Line
    room: int
    resets_in: float


class Standing(Struct, frozen=True, kw_only=True, gc=False):
    """The present state of a line, in its unit."""

    used: int
    held: int
    room: int
    """Never negative."""
    resets_at: float
    """Unix seconds at which all of it is free again if nothing else happens; 0 if time does not reset it."""
