"""What a kind of challenge offers, and a solution that it accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct


class Solved(Struct, frozen=True, kw_only=True):
    """An accepted solution. No other solution has its `id`, which is remembered for `seconds`.

    `unchecked` is True if the service did not answer and the operator accepts that.
    """

    id: str
    seconds: float
    unchecked: bool = False


class Verifier(Protocol):
    """One kind of challenge."""

    def make(self, owner: str) -> Mapping[str, Any]:
        """Return what a page needs to solve the challenge, for the visitor with this key."""
        ...

    async def verify(self, solution: str, owner: str) -> Solved:
        """Check a solution. Raises ChallengeFailed, and ChallengeUnavailable if it can't be checked now."""
        ...

    async def aclose(self) -> None: ...
