"""Time-outs for a provider and for a whole answer."""

from __future__ import annotations

import logging

from chat_nest.core.errors import DeadlineExceeded, UpstreamIdle, UpstreamTimeout
from chat_nest.core.timeouts import Timeouts
from chat_nest.pipeline.lifecycle import Lifecycle, State

log = logging.getLogger("chat_nest.pipeline")


class Deadlines:
    """The deadlines of one admitted request. They have no timer: the timer of the response stream calls `check`."""

    def __init__(self, life: Lifecycle, timeouts: Timeouts) -> None:
        self._life = life
        self._timeouts = timeouts

    def check(self, now: float) -> float:
        """End the request if a deadline has passed; return when to check again. In the event loop's seconds."""
        life, pulse, limits = self._life, self._life.pulse, self._timeouts
        blocked = pulse.writing and life.has_reader  # then the provider waits for the reader, which has a time-out
        if life.state in (State.ENDING, State.ABANDONED):
            if not blocked and now >= life.ended_at + limits.write:
                log.error("request %s: a provider does not let go of its stream", life.id)
                life.insist()
            return max(now, life.ended_at) + limits.write
        if life.state not in (State.SERVING, State.DETACHED):
            return now + limits.total
        at = life.began_at + limits.total
        if not blocked:
            due, late = (
                (pulse.read_at + limits.first_token, UpstreamTimeout)
                if pulse.first_at is None
                else (pulse.read_at + limits.idle, UpstreamIdle)
            )
            if due <= now:
                life.end(late())
                return now + limits.write
            at = min(at, due)
        if at <= now:
            life.end(DeadlineExceeded())
            return now + limits.write
        return at
