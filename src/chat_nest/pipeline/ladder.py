"""The rung of a profile's ladder for a request, by what is left of the request's limits.

The rung is chosen by one read of the store, before the reservation. Other requests may reserve in between: only the
reservation decides whether the request is admitted.
"""

from __future__ import annotations

from msgspec.structs import replace

from chat_nest.controls.grants import Grants
from chat_nest.core.attachments import all_needs
from chat_nest.core.messages import Caller, ChatRequest
from chat_nest.core.protocols import Now, Prompt
from chat_nest.ledger.ledger import Ledger
from chat_nest.ledger.store_queue import Turn
from chat_nest.limits.ladder import lines_of_ladder, lowest, on_rung, rung_of
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.spec import Profile, Rung
from chat_nest.pipeline.upstream import Upstream


class Ladder:
    """Finds rungs for profiles that have a ladder."""

    def __init__(
        self, profiles: Profiles, ledger: Ledger, upstream: Upstream, now: Now, grants: Grants | None = None
    ) -> None:
        self._profiles = profiles
        self._ledger = ledger
        self._upstream = upstream
        self._now = now
        self._grants = grants

    async def climb_down(
        self, caller: Caller, request: ChatRequest, profile: Profile, turn: Turn
    ) -> tuple[ChatRequest, Profile]:
        """Return the request and the profile on the rung that applies, if one does.

        A rung whose model can't do what the request needs only shortens the answer. While the store is down, an
        allowance admits requests on the lowest rung. Raises LimiterUnavailable if the store does not answer.
        """
        if not profile.ladder:
            return request, profile
        rung = await self._rung(caller, profile, turn)
        if rung is None:
            return request, replace(profile, ladder=())
        chosen = on_rung(profile, rung, with_model=self._is_able(rung, request, profile))
        return replace(request, ladder_below=rung.below), chosen

    async def _rung(self, caller: Caller, profile: Profile, turn: Turn) -> Rung | None:
        if self._ledger.is_down:
            return lowest(profile)
        found = self._profiles.lines(caller, profile, 0, self._now())
        lines = lines_of_ladder(found if self._grants is None else self._grants.raised(found))
        standings = await self._ledger.peek(lines, turn) if lines else ()
        if self._grants is not None and lines:
            shown = [self._grants.shown(line, each) for line, each in zip(lines, standings, strict=True)]
            lines, standings = [line for line, _ in shown], [standing for _, standing in shown]
        return rung_of(profile, lines, standings)

    def _is_able(self, rung: Rung, request: ChatRequest, profile: Profile) -> bool:
        if rung.model is None:
            return False
        prompt = Prompt(
            model=rung.model,
            messages=request.messages,
            max_output_tokens=profile.max_output_tokens,
            temperature=profile.temperature,
            tools=request.tools,
            tool_choice=request.tool_choice,
            options=request.options,
        )
        if self._upstream.lacks(prompt, rung.model):
            return False
        needed = all_needs(request.messages) & self._upstream.takes(profile.model)
        return needed <= self._upstream.takes(rung.model)
