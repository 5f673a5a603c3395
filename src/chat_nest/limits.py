"""Profiles and what they allow; lines, which are counters that one request draws on together."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.records import Record

MAX_AMOUNT = 2**50
"""No limit or amount may be larger: stores keep integers as doubles, which lose them at 2**53."""

Unit = Literal["requests", "tokens", "nanousd", "streams"]
Scope = Literal["caller", "group", "all"]
OnDisconnect = Literal["cancel", "grace", "finish"]
LineKind = Literal["window", "rate", "gauge", "request"]


class Limits(Struct, frozen=True, kw_only=True):
    """Counters that several callers share: a group's, or all callers'. None is no limit.

    Tokens are input and output together, usd are dollars. A minute of requests or tokens refills evenly; every other
    window is a calendar one, in the operator's time zone.
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


class Allowance(Struct, frozen=True, kw_only=True):
    """What one process may spend while its store is down: held there beforehand, in the budgets for all callers.

    As in Limits; `streams` are answers at once.
    """

    tokens: int | None = None
    usd: float | None = None
    requests: int | None = None
    streams: int | None = None


class Profile(Struct, frozen=True, kw_only=True):
    """What one kind of caller may ask for, and the counters of each such caller: see Limits."""

    name: str = "balanced"
    open: bool | None = None
    """Whether a caller without a profile of its own may choose it. None: only where it is the default profile."""
    model: str = "openai:gpt-4o-mini"
    """PROVIDER:MODEL."""
    fallbacks: tuple[str, ...] = ()
    max_output_tokens: int = 400
    min_output_tokens: int = 16
    """A request is refused rather than clamped below this."""
    max_messages: int = 6
    temperature: float = 0.7
    tokens_per_request: int | None = 2_048
    requests_per_minute: int | None = 30
    requests_per_hour: int | None = None
    requests_per_day: int | None = None
    requests_per_month: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_hour: int | None = None
    tokens_per_day: int | None = 70_000
    tokens_per_month: int | None = None
    usd_per_minute: float | None = None
    usd_per_hour: float | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None
    concurrent_streams: int | None = None
    allow_system_prompt: bool = False
    on_disconnect: OnDisconnect = "cancel"
    """What happens to an answer whose reader leaves: it is cancelled at once, or after `grace_seconds` without a
    reader, or it is finished. Unless it is `cancel`, the answer is kept for readers who come back."""
    grace_seconds: float = 30
    allow_tools: bool = False
    """Whether a client may offer tools, and send the results of calling them."""


CONSTRAINED = Profile(
    name="constrained",
    max_output_tokens=150,
    max_messages=4,
    temperature=0.5,
    tokens_per_request=2_048,
    tokens_per_day=30_000,
    requests_per_minute=15,
)
BALANCED = Profile()
EXPANDED = Profile(
    name="expanded",
    max_output_tokens=3_000,
    max_messages=12,
    temperature=0.8,
    tokens_per_request=12_000,
    tokens_per_day=200_000,
    requests_per_minute=60,
)
BUILT_IN_PROFILES = {profile.name: replace(profile, open=True) for profile in (CONSTRAINED, BALANCED, EXPANDED)}
"""The profiles where the operator names none: every caller may choose each."""


class HardCaps(Struct, frozen=True, kw_only=True):
    """The ceiling above every profile. An operator may change it, a client never can."""

    max_output_tokens: int = 4_096
    max_messages: int = 20
    temperature: float = 2.0
    tokens_per_day: int = 500_000
    tokens_per_request: int = 16_000
    requests_per_minute: int = 60


HARD_CAPS = HardCaps()


class Timeouts(Struct, frozen=True, kw_only=True):
    """Seconds."""

    connect: float = 10.0
    first_token: float = 30.0
    """From the start of the provider's request to its first delta."""
    idle: float = 60.0
    """Between two deltas."""
    write: float = 30.0
    """A client that makes no progress for this long is dropped."""
    total: float = 600.0
    heartbeat: float = 15.0
    """Silence after which a ping is sent."""
    commit: float = 1.0
    """How long the answer's status waits for the provider's, so that a failure can still be a real 4xx or 5xx."""
    store: float = 1.0
    """How long the store may take to answer."""


class Line(Struct, frozen=True, kw_only=True, gc=False):
    """One counter that a request draws on: `fixed` units, and more for each token of output.

    Kinds:
    - `window`: a calendar window of `period` seconds. Its id is part of the key; `resets_at` is its end, in Unix
      seconds.
    - `rate`: GCRA (ITU-T I.371) with a burst of `limit`, refilled evenly over `period` seconds.
    - `gauge`: held while the request runs, then given back: concurrent streams.
    - `request`: a limit on this one request; it has no state.
    """

    name: str
    """The limit's name in a profile, as the user sees it: `tokens_per_day`."""
    scope: Scope
    key: str
    """Its first two words, `SCOPE:OWNER`, say whose it is: stores that spread keys keep an owner's together."""
    unit: Unit
    kind: LineKind
    limit: int
    fixed: int
    per_million: int = 0
    """Units per million output tokens, rounded up: 1_000_000 for tokens."""
    period: int = 0
    resets_at: float = 0.0

    def amount(self, output_tokens: int) -> int:
        """What a request with this much output draws, in the line's unit."""
        return self.fixed - (-output_tokens * self.per_million // 1_000_000)

    def affordable(self, room: int) -> int | None:
        """The output tokens that fit into `room` units; None where output is free, -1 where `fixed` alone is over."""
        if room < self.fixed:
            return -1
        return (room - self.fixed) * 1_000_000 // self.per_million if self.per_million else None


class Claim(Struct, frozen=True, kw_only=True, gc=False):
    """What one request asks a store to reserve: all lines or none."""

    id: str
    fingerprint: str
    """The same id with another fingerprint is a Conflict."""
    owner: str = ""
    """Who made the claim: of the same id, only the owner that was granted it extends, settles and releases it."""
    lines: tuple[Line, ...]
    max_output_tokens: int
    min_output_tokens: int = 1
    record: Record | None = None
    """What is kept of the request if its lease expires; the store puts in what was then charged."""


class Granted(Struct, frozen=True, kw_only=True, gc=False):
    """The claim is held, with its output clamped to what the tightest line affords."""

    output_tokens: int
    room: tuple[int, ...]
    """For each line, what is left behind this hold."""


class Refused(Struct, frozen=True, kw_only=True, gc=False):
    """Nothing was changed. `line` is the index of the first line that had no room; `retry_after` is in seconds."""

    line: int
    room: int
    retry_after: float


class Duplicate(Struct, frozen=True, kw_only=True, gc=False):
    """The id was reserved before: the first answer again, or `released`, when it can't be reserved any more."""

    output_tokens: int
    state: Literal["open", "settled", "expired", "released"]
    record: Record | None = None
    """What was kept of the request, as it was settled; None while it is open, and where none was given."""


class Conflict(Struct, frozen=True):
    """The id was reserved before for another fingerprint."""


class Quota(Struct, frozen=True, gc=False):
    """A line of one request and what is left on it, `room` in its unit, and in how many seconds it is whole again."""

    line: Line
    room: int
    resets_in: float


class Standing(Struct, frozen=True, kw_only=True, gc=False):
    """A line as it stands now, in its unit."""

    used: int
    held: int
    room: int
    """Never negative."""
    resets_at: float
    """Unix seconds at which all of it is free again, other things being equal; 0 where it does not reset by time."""
