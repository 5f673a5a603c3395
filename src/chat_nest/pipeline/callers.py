"""Identification of callers, the state of their limits, and rates for requests that no other limit counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from msgspec import Struct

from chat_nest.controls.gate import Address, Gate
from chat_nest.controls.grants import Grants
from chat_nest.core.claims import OWN, Line, Quota, Standing
from chat_nest.core.errors import ChatError, LimiterUnavailable
from chat_nest.core.limits import Share
from chat_nest.core.messages import Caller, ChatRequest
from chat_nest.core.parts import PartMisused, failure_text, kind_of, offers, part_name
from chat_nest.core.protocols import AcceptsStrangers, Identify, Now, Scope
from chat_nest.ledger.ledger import Ledger
from chat_nest.limits.caller_rates import CallerRates
from chat_nest.limits.profiles import Profiles
from chat_nest.pipeline.gate import VisitorGate

log = logging.getLogger("chat_nest.pipeline")

IDENTIFY_SECONDS = 10.0
CLOSED_PER_MINUTE = 30
"""Refused requests of a caller without a profile."""
NOT_SHARED = ("caller", "group", "all")
"""Scopes whose limits come from the profile, [groups] and [limits]."""
COUNTED = (400, 403, 404)
"""The statuses of refusals whose work no other limit counts."""


class CallerRules(Struct, frozen=True, kw_only=True, eq=False):
    """The part of Callers that a reload replaces."""

    identify: Identify
    profiles: Profiles
    address_of: Callable[[Scope], Address | None]
    """Returns the client's IP address, by which networks are blocked; None if it is not known."""
    visitor_gate: VisitorGate | None = None


class Callers:
    """Identifies callers, and limits the rate of requests that cost no tokens.

    Each kind of these requests has the caller's request rate, counted by itself.
    """

    def __init__(self, rules: CallerRules, ledger: Ledger, gate: Gate, grants: Grants, now: Now = time.time) -> None:
        self._rules = rules
        self._ledger = ledger
        self._gate = gate
        self._grants = grants
        self._now = now
        self._refused = CallerRates()
        self._followed = CallerRates()
        self._counted = CallerRates()

    def adopt(self, rules: CallerRules) -> None:
        """Replace the rules. The rates so far are kept."""
        self._rules = rules

    async def identify(self, scope: Scope, way: Identify | None = None) -> Caller:
        """Identify the caller, in this `way` if it is another one than that of chats.

        Raises the ChatError that `identify` raises, and a plain one for any other failure. Raises Blocked for a blocked
        caller or network, and LimiterUnavailable if the blocks can't be read yet.
        """
        await self.check_address(scope)
        caller = await self._identified(scope, way or self._rules.identify)
        self._gate.check_caller(caller)
        return caller

    async def check_address(self, scope: Scope) -> None:
        """Raise Blocked for a blocked network, and LimiterUnavailable if the blocks can't be read yet."""
        await self._gate.ready()
        self._gate.check_address(self.address_of(scope))

    async def _identified(self, scope: Scope, way: Identify) -> Caller:
        limit: asyncio.Timeout | None = None
        try:
            caller: object = way(scope)
            if not isinstance(caller, Caller) and isinstance(caller, Awaitable):  # pyright: ignore[reportUnnecessaryIsInstance] - or anything else
                limit = asyncio.timeout(IDENTIFY_SECONDS)
                async with limit:
                    caller = await caller
            found = _checked(caller)
            return found if self._rules.visitor_gate is None else self._rules.visitor_gate.place(found)
        except ChatError:
            raise
        except Exception as bug:
            name = f"identify ({part_name(way)})"
            if limit is not None and limit.expired():
                log.error("%s took more than %s s: the request is refused", name, IDENTIFY_SECONDS)  # noqa: TRY400 - where it waited says nothing
                raise LimiterUnavailable from None
            log.error("%s %s%s", name, "" if isinstance(bug, PartMisused) else "raised ", failure_text(bug))  # noqa: TRY400 - no values in logs
            raise ChatError from None

    def address_of(self, scope: Scope) -> Address | None:
        """Return the client's IP address, by which networks are blocked; None if it is not known."""
        return self._rules.address_of(scope)

    def is_stranger(self, scope: Scope) -> bool:
        """Return whether the request presents no credential, and would be accepted all the same."""
        return offers(self._rules.identify, AcceptsStrangers) and self._rules.identify.is_stranger(scope)

    def check_refused(self, caller: Caller) -> None:
        """Raise RateLimited for a caller that keeps sending bad requests."""
        self._refused.check(caller.counter_key)

    async def check_challenge(self, caller: Caller) -> None:
        """Raise ChallengeRequired if the caller is a visitor that must pass a challenge before its chat is read."""
        if self._rules.visitor_gate is not None:
            await self._rules.visitor_gate.check(caller)

    def instead(self, caller: Caller | None, error: ChatError) -> ChatError:
        """Return the error to send: a challenge, if passing it lifts the limit that refused a visitor."""
        gate = self._rules.visitor_gate
        return error if gate is None or caller is None else gate.instead(caller, error)

    def count_refused(self, caller: Caller, error: ChatError) -> None:
        """Count a refusal, unless another limit counts it."""
        if error.status in COUNTED:
            self._refused.count(caller.counter_key, self._own_limits(caller)[0])

    def count_follower(self, caller: Caller) -> None:
        """Count a reader that reconnects. Raises RateLimited."""
        self._followed.check(caller.counter_key)
        self._followed.count(caller.counter_key, self._own_limits(caller)[0])

    def count_counting(self, caller: Caller) -> None:
        """Count a request for a token count. Raises RateLimited."""
        self._counted.check(caller.counter_key)
        self._counted.count(caller.counter_key, self._own_limits(caller)[0])

    def most_followers(self, caller: Caller) -> int | None:
        """Return the most followers of a caller: as many as its concurrent answers."""
        return self._own_limits(caller)[1]

    async def models(self, scope: Scope) -> tuple[str, ...]:
        """Return the names that the caller may send as a model."""
        return self._rules.profiles.model_names(await self.identify(scope))

    async def standing(self, scope: Scope, profile: str | None = None) -> list[tuple[Line, Standing]]:
        """Return the state of the caller's own limits, under the profile that a request with this name would have.

        Raises LimiterUnavailable if the store does not answer.
        """
        return await self.standing_of(await self.identify(scope), profile)

    async def standing_of(self, caller: Caller, name: str | None = None) -> list[tuple[Line, Standing]]:
        """Return the same as `standing`, for an identified caller."""
        profile = self._rules.profiles.resolve(caller, ChatRequest(messages=(), profile=name))
        lines = [
            line
            for line in self._grants.raised(self._rules.profiles.lines(caller, profile, 0, self._now()))
            if line.scope in OWN and line.kind != "request"
        ]
        standings = await self._ledger.peek(lines)
        return [self._grants.shown(line, standing) for line, standing in zip(lines, standings, strict=True)]

    def quotas(self, standings: list[tuple[Line, Standing]]) -> list[Quota]:
        """Return the same standings as what is left."""
        now = self._now()
        return [Quota(line, each.room, max(0.0, each.resets_at - now)) for line, each in standings]

    def _own_limits(self, caller: Caller) -> tuple[int | None, int | None]:
        """Return the caller's requests per minute and concurrent streams."""
        try:
            profile = self._rules.profiles.resolve(caller, ChatRequest(messages=()))
        except ChatError:
            return CLOSED_PER_MINUTE, None
        return profile.requests_per_minute, profile.concurrent_streams


def _checked(caller: object) -> Caller:
    """Raise PartMisused unless `identify` returned a Caller whose fields have their types."""
    if isinstance(caller, ChatError):
        raise PartMisused(f"returned {kind_of(caller)}; raise it instead")
    if not isinstance(caller, Caller):
        raise PartMisused(f"returned {kind_of(caller)}; return a chat_nest.Caller")
    if not isinstance(caller.id, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a struct does not check
        raise PartMisused(f"returned a Caller whose id is {kind_of(caller.id)}; it must be a str")
    for name in ("profile", "group"):
        value: object = getattr(caller, name)
        if value is not None and not isinstance(value, str):
            raise PartMisused(f"returned a Caller whose {name} is {kind_of(value)}; it must be a str or None")
    for share in caller.shares:
        if not isinstance(share, Share):  # pyright: ignore[reportUnnecessaryIsInstance] - a struct does not check
            raise PartMisused(f"returned a Caller with {kind_of(share)} among its shares; use chat_nest.Share")
        if share.scope in NOT_SHARED:
            raise PartMisused(f"returned a Caller with a share of the scope {share.scope}, which it has anyway")
    return caller
