"""The streams of one provider, and its pause after a refusal."""

from __future__ import annotations

from math import inf

from chat_nest.pipeline.fleet import Fleet

WEIGHT = 0.2
"""The weight of the newest answer in the mean duration of answers."""


class Bottleneck:
    """The streams of one provider, and its pause after a refusal."""

    __slots__ = ("fleet", "mean", "most", "opening", "paused_until", "running", "window")

    def __init__(self, most: int | None, fleet: Fleet | None) -> None:
        self.most = most
        self.fleet = fleet
        """The streams are shared with other workers if it is not None."""
        self.running = 0
        self.opening = 0
        """Those of them that the provider has not accepted yet."""
        self.window: int | None = None
        """How many may be opening at once, after a pause."""
        self.paused_until = 0.0
        self.mean: float | None = None
        """The mean duration of a stream, in seconds."""

    def has_room(self, now: float) -> bool:
        most = self.most if self.fleet is None else self.fleet.room
        return (most is None or self.running < most) and self.may_open(now) > 0

    def may_open(self, now: float) -> float:
        """Return how many more requests may call the provider, as far as its pause is concerned."""
        if now < self.paused_until:
            return 0
        return inf if self.window is None else self.window - self.opening

    def ended(self, seconds: float) -> None:
        self.mean = seconds if self.mean is None else self.mean + WEIGHT * (seconds - self.mean)
