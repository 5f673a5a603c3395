"""Limits as an operator writes them, and further limits that a request draws on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import force_setattr

NO_LIMIT = "none"
"""The word in a file for a limit that is switched off. In Python, None is the same."""

Unit = Literal["requests", "tokens", "nanousd", "streams"]

LineScope = Literal["caller", "key", "session", "conversation", "visitor", "address", "network", "group", "all"]
"""The owner of a limit."""
WindowKind = Literal["minute", "hour", "day", "month"]


class UnitSpec(Struct, frozen=True, kw_only=True):
    """How a unit is written: in the names of limits and in JSON, and in the header RateLimit-Policy."""

    name: str
    quota: str
    """The unit `qu` of draft-ietf-httpapi-ratelimit-headers-10; empty for requests."""


UNITS: Mapping[Unit, UnitSpec] = {
    "requests": UnitSpec(name="requests", quota=""),
    "tokens": UnitSpec(name="tokens", quota="tokens"),
    "nanousd": UnitSpec(name="usd", quota="nanousd"),
    "streams": UnitSpec(name="streams", quota="concurrent-requests"),
}


class LimitSpec(Struct, frozen=True):
    """A limit that a Profile or Limits can have. Without a window it counts what is open at once."""

    name: str
    unit: Unit
    window: WindowKind | None = None
    refills: bool = False
    """It refills evenly; all other windows are calendar windows."""


COUNTERS: tuple[LimitSpec, ...] = (
    LimitSpec("requests_per_minute", "requests", "minute", refills=True),
    LimitSpec("requests_per_hour", "requests", "hour"),
    LimitSpec("requests_per_day", "requests", "day"),
    LimitSpec("requests_per_month", "requests", "month"),
    LimitSpec("concurrent_streams", "streams"),
    LimitSpec("tokens_per_minute", "tokens", "minute", refills=True),
    LimitSpec("tokens_per_hour", "tokens", "hour"),
    LimitSpec("tokens_per_day", "tokens", "day"),
    LimitSpec("tokens_per_month", "tokens", "month"),
    LimitSpec("usd_per_minute", "nanousd", "minute"),
    LimitSpec("usd_per_hour", "nanousd", "hour"),
    LimitSpec("usd_per_day", "nanousd", "day"),
    LimitSpec("usd_per_month", "nanousd", "month"),
)
"""Each limit of Limits, in the order in which a refusal names them."""


class Limits(Struct, frozen=True, kw_only=True):
    """Counters that several callers share (a group's, or all callers'). None or "none" is no limit; 0 admits nothing.

    Tokens are input and output together, usd are dollars. A minute of requests or tokens refills evenly; every other
    window is a calendar window in the operator's time zone.
    """

    requests_per_minute: int | None = None
    requests_per_hour: int | None = None
    requests_per_day: int | None = None
    requests_per_month: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_hour: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    usd_per_minute: float | None = None
    usd_per_hour: float | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None
    concurrent_streams: int | None = None

    def __post_init__(self) -> None:
        read_no_limit(self, self.__struct_fields__)


def read_no_limit(numbers: Struct, names: tuple[str, ...]) -> None:
    """Replace "none", the word of a configuration file, by None."""
    for name in names:
        if getattr(numbers, name) == NO_LIMIT:
            force_setattr(numbers, name, None)


class Totals(Struct, frozen=True, kw_only=True):
    """What may be used from the beginning to the end of something, such as a session. None is no limit."""

    requests: int | None = None
    tokens: int | None = None
    usd: float | None = None


NO_TOTALS = Totals()


class Share(Struct, frozen=True, kw_only=True):
    """Further limits that each request of a caller draws on, together with the caller's own, and their owner."""

    scope: LineScope
    id: str
    """Stores and logs hold a hash of it."""
    limits: Limits = Limits()
    totals: Totals = NO_TOTALS
    ends_at: float = 0.0
    """Unix time until which the totals count. Stores forget them after it."""
