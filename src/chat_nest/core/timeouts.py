"""The time limits of a chat's parts, in seconds."""

from __future__ import annotations

from msgspec import Struct


class Timeouts(Struct, frozen=True, kw_only=True):
    """Seconds."""

    connect: float = 10.0
    first_token: float = 30.0
    """From the start of the provider's request to its first delta."""
    idle: float = 60.0
    """Between two deltas."""
    write: float = 30.0
    """A client that makes no progress for this long is disconnected."""
    total: float = 600.0
    heartbeat: float = 15.0
    """The silence after which a ping is sent."""
    commit: float = 1.0
    """How long the answer's status waits for the provider's, so that a failure can still be a real 4xx or 5xx."""
    store: float = 1.0
    """The time limit for the store's answer."""
