"""What only requests know, for the watch: a few additions a request, in its own task, and no call of anything."""

from __future__ import annotations

from collections import Counter
from typing import Final

from chat_nest.core.errors import ChatError, LimitExceeded, UpstreamAuth, UpstreamForbidden, UpstreamQuota
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Ending, HasFigures

OF_KEYS: Final = (UpstreamAuth, UpstreamForbidden, UpstreamQuota)
"""The errors of a provider that an operator has to act on: they are about the key or its account."""


class Counts:
    """An observer. The watch reads what it has counted, and sets it back."""

    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        """Refused requests, by the error's code."""
        self.visitors = 0
        """First requests of new visitors."""
        self.full: set[tuple[str, str, str]] = set()
        """Limits of all callers and of groups that refused a request: scope, group and name."""
        self.keys: dict[str, str] = {}
        """Providers that refused a key, each with the error's code."""
        self.figures: HasFigures | None = None

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None:  # noqa: ARG002 - see Observer
        visit = caller.visit
        if visit is not None and visit.counted_as:
            self.visitors += 1

    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None:  # noqa: ARG002 - see Observer
        self.refusals[error.code] += 1
        if isinstance(error, LimitExceeded) and error.scope in ("all", "group"):
            group = caller.group if caller is not None and error.scope == "group" else None
            self.full.add((error.scope, group or "", error.limit))

    def finished(self, ending: Ending) -> None:
        if isinstance(ending.error, OF_KEYS):
            self.keys[ending.model.partition(":")[0]] = ending.error.code

    def watch(self, handler: HasFigures) -> None:
        """Take the figures of the handler."""
        self.figures = handler
