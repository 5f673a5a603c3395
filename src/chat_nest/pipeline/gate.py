"""The gate that visitors pass with a challenge, as the pipeline needs it."""

from __future__ import annotations

from typing import Protocol

from chat_nest.core.errors import ChatError
from chat_nest.core.messages import Caller


class VisitorGate(Protocol):
    """See challenges.gate. Callers that are no visitors pass unchanged."""

    def place(self, caller: Caller) -> Caller:
        """Return a visitor with the profile that its pass gives."""
        ...

    async def check(self, caller: Caller) -> None:
        """Raise ChallengeRequired if the visitor must pass a challenge before its chat is read."""
        ...

    def instead(self, caller: Caller, error: ChatError) -> ChatError:
        """Return the error to send: a challenge, if passing it lifts the limit that refused the visitor."""
        ...
