"""When one request reached each of its steps: for metrics and traces, which get them at its end."""

from __future__ import annotations


class Steps:
    """The times of one request, in the event loop's seconds. None: the request never came that far."""

    __slots__ = ("asked_at", "began_at", "closed_at", "ended_at", "gone_at", "opened_at", "reserve_at", "reserved_at")

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        """Its body was read."""
        self.reserve_at: float | None = None
        """The call to reserve was sent to the store."""
        self.reserved_at: float | None = None
        """The store answered, or failed to."""
        self.asked_at: float | None = None
        """The provider was called."""
        self.opened_at: float | None = None
        """The provider's first output came."""
        self.gone_at: float | None = None
        """Its reader left, which ended it."""
        self.closed_at: float | None = None
        """The provider's connection was closed or given back. The settlement began."""
        self.ended_at: float | None = None
        """It was over: settled, as far as the store answered in time."""
