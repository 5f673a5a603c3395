"""The gate that visitors pass with a challenge."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from chat_nest.challenges.pressure import Peek, Pressure
from chat_nest.challenges.settings import PATH, Challenge
from chat_nest.challenges.solved import Solved, Verifier
from chat_nest.core.errors import ChallengeFailed, ChallengeRequired, ChatError, LimiterUnavailable, LimitExceeded
from chat_nest.core.messages import Caller, Visit, hashed
from chat_nest.core.protocols import Now
from chat_nest.identity.visitors import network_of
from chat_nest.limits.counters import LIMITS
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.spec import Profile

log = logging.getLogger("chat_nest.challenges")

UNCHECKED_SECONDS = 600
"""How long a pass lasts that the service could not check."""
STORE_SECONDS = 2.0

First = Callable[[str, float], Awaitable[bool]]
"""Return True for exactly one call with a key, of all processes, within so many seconds."""


class ChallengeGate:
    """Gives visitors their profile, challenges them when it is due, and lets a solution count once.

    Raises ValueError for a profile that does not exist.
    """

    def __init__(
        self,
        challenge: Challenge,
        verifier: Verifier,
        rules: Profiles,
        now: Now = time.time,
    ) -> None:
        self._challenge = challenge
        self._verifier = verifier
        self._pressure: Pressure
        self._first: First
        self._now = now
        before, after = (_profile(rules, field, getattr(challenge, field)) for field in ("before", "after"))
        self._lifted = {
            name
            for name in LIMITS
            if (limit := getattr(before, name)) is not None
            and ((higher := getattr(after, name)) is None or higher > limit)
        }
        """The limits that passing raises."""

    def attach(self, peek: Peek, first: First) -> None:
        """Use this store from now on."""
        self._pressure = Pressure(self._challenge.pressure, self._challenge.refusals_per_minute, peek)
        self._first = first

    def place(self, caller: Caller) -> Caller:
        """Return a visitor with the profile that its pass gives; any other caller unchanged."""
        if caller.visit is None:
            return caller
        name = self._challenge.after if caller.visit.passed == "after" else self._challenge.before
        return replace(caller, profiles=(name,)) if name else caller

    async def check(self, caller: Caller) -> None:
        """Raise ChallengeRequired if this visitor must pass a challenge before its chat is read."""
        when, visit = self._challenge.when, caller.visit
        if visit is None or visit.passed or when == "limit":
            return
        if when == "always" or await self._pressure.is_high():
            raise self.required(visit)

    def instead(self, caller: Caller, error: ChatError) -> ChatError:
        """Return the error for the client: a challenge, if passing it lifts the limit that refused this visitor."""
        if not isinstance(error, LimitExceeded):
            return error
        self._pressure.count_refused()
        visit = caller.visit
        if visit is None or visit.passed or self._challenge.when != "limit":
            return error
        return self.required(visit) if error.scope == "caller" and error.limit in self._lifted else error

    def required(self, visit: Visit) -> ChallengeRequired:
        """Return the refusal, with what a page needs."""
        return ChallengeRequired(
            {"kind": self._challenge.kind, "path": PATH, **self._verifier.make(self._owner(visit))}
        )

    async def passed(self, visit: Visit, solution: str) -> Visit:
        """Return the visit with the pass that the solution gives.

        Raises ChallengeFailed for a wrong, expired or used solution, ChallengeUnavailable and LimiterUnavailable.
        """
        solved = await self._verifier.verify(solution, self._owner(visit))
        if not await self._is_first(solved):
            raise ChallengeFailed("This solution was used before: get another challenge")
        now = self._now()
        if solved.unchecked:
            return replace(visit, issued=int(now), passed="before", passed_until=int(now) + UNCHECKED_SECONDS)
        until = int(now + self._challenge.hours * 3_600)
        return replace(visit, issued=int(now), passed="after", passed_until=until)

    async def aclose(self) -> None:
        """Close the connections to the service."""
        await self._verifier.aclose()

    def _owner(self, visit: Visit) -> str:
        """Return what a challenge is made for: the visitor, at an address or in a network."""
        match self._challenge.bind:
            case "none":
                return hashed(visit.id)
            case "network":
                return hashed(f"{visit.id} {network_of(visit.address)}")
            case "address":
                return hashed(f"{visit.id} {visit.address}")

    async def _is_first(self, solved: Solved) -> bool:
        try:
            async with asyncio.timeout(STORE_SECONDS):
                return await self._first(f"challenge:{self._challenge.kind}:{solved.id}", solved.seconds)
        except ChatError:
            raise
        except Exception as failure:
            log.error("the store can't remember a solution: %s", type(failure).__name__)  # noqa: TRY400
            raise LimiterUnavailable from None


def _profile(rules: Profiles, field: str, name: str) -> Profile:
    try:
        return rules.named(name or None)
    except ValueError as error:
        raise ValueError(f"{field} {error}") from None
